"""Runs ONNX models by onnxruntime on one thread. This module imports no JAX."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbrl_jax.errors import ConfigError


class Session:
    """One model, ready to run; it may be run by several threads at once."""

    def __init__(self, content: bytes):
        """Of a model's bytes.

        Raises:
          ConfigError: onnxruntime is not installed, or it cannot read the model.

        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ConfigError("onnxruntime is missing: pip install 'mbrl-jax[serve]'") from error
        options = ort.SessionOptions()
        # Networks of this size take microseconds: handing a part of one to another thread would take longer.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each kind of damage
            raise ConfigError(f"the ONNX model cannot be read: {error}") from error
        self.inputs = tuple(each.name for each in self._session.get_inputs())
        self.outputs = tuple(each.name for each in self._session.get_outputs())

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output [B, ...] by name, of inputs [B, ...] by name."""
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))

    def run_some(self, outputs: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs [B, ...] alone."""
        return list(self._session.run(outputs, inputs))
