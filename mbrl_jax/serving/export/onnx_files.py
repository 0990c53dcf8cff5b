"""ONNX files: written by jax2onnx, run by onnxruntime."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.serving.contract import Port
from mbrl_jax.serving.export.agreement import Run
from mbrl_jax.serving.export.graphs import Graph
from mbrl_jax.serving.runtime import Session

OPSET = 21  # which onnxruntime runs from 1.20 on


def require() -> None:
    """Refuse to go on where a package is missing. Raises ConfigError: naming the extra."""
    try:
        import jax2onnx  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"format: 'onnx' needs {error.name}: pip install 'mbrl-jax[export]'") from error


def write(graph: Graph) -> bytes:
    """A graph as an ONNX model, for any number of rows.

    Raises:
      ConfigError: it has an operation that has no counterpart.

    """
    from jax2onnx import to_onnx

    try:
        with _quiet():
            model: Any = to_onnx(
                graph.function,
                [_specified(port) for port in graph.inputs],
                model_name=graph.name,
                opset=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
            )
    except (NotImplementedError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"format: 'onnx' does not fit {graph.name}: {type(error).__name__}: {error}") from error
    return bytes(model.SerializeToString())


def _specified(port: Port) -> Any:
    return SimpleNamespace(shape=port.shape, dtype=np.dtype(port.dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says of shapes that it leaves to the runtime, and of its own packages."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load(content: bytes, graph: Graph) -> Run:
    """What an ONNX model gives for rows."""
    session = Session(content)

    def run(*inputs: np.ndarray) -> Sequence[np.ndarray]:
        found = session.run(dict(zip([port.name for port in graph.inputs], inputs, strict=True)))
        return [found[port.name] for port in graph.outputs]

    return run
