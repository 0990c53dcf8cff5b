"""ONNX files: written by jax2onnx, quantised to INT8 and run by onnxruntime."""

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.serving.contract import Port
from mbrl_jax.serving.export.agreement import Run
from mbrl_jax.serving.export.graphs import Graph
from mbrl_jax.serving.runtime import Session

OPSET = 21  # which onnxruntime runs from 1.20 on
CALIBRATION_ROWS = 2_000
LEAST_WEIGHTS = 1_000  # of a product that is quantised: the first and the last layer decide more than they weigh


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


def quantise(content: bytes, graph: Graph, how: Literal["dynamic", "static"], inputs: tuple[np.ndarray, ...]) -> bytes:
    """The model with its large matrix products in INT8.

    Weights are quantised for each column. Inputs of a product are quantised by the range of the batch (dynamic), or by the range
    that real rows have shown (static).

    Args:
      content: the model in float32.
      graph: whose it is.
      how: dynamic or static.
      inputs: real rows to calibrate by.

    """
    import onnx
    from onnxruntime import quantization as quant

    model = onnx.load_from_string(content)
    large = _large_products(model)
    if not large:
        raise ConfigError(f"int8: {how!r} does not fit {graph.name}: no matrix product has {LEAST_WEIGHTS:,} weights or more")
    options: dict[str, Any] = {"op_types_to_quantize": ["MatMul"], "nodes_to_quantize": large}
    options |= {"per_channel": True, "weight_type": quant.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder, _quiet_quantiser():
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(model, before)
        if how == "dynamic":
            quant.quantize_dynamic(before, after, **options)
        else:
            reader = _Reader([port.name for port in graph.inputs], inputs)
            quant.quantize_static(before, after, reader, activation_type=quant.QuantType.QInt8, **options)
        return after.read_bytes()


def _large_products(model: Any) -> list[str]:
    """Names of the products of rows with a constant matrix of at least :data:`LEAST_WEIGHTS` numbers.

    They become plain products, of which alone there is a dynamic form in INT8. The converter writes them as sums with 0.
    """
    weights = {each.name: math.prod(each.dims) for each in model.graph.initializer}
    large = []
    for place, node in enumerate(model.graph.node):
        options = {option.name: option for option in node.attribute}
        turned = any(options[name].i for name in ("transA", "transB") if name in options)
        plain = node.op_type == "Gemm" and not turned and "beta" in options and options["beta"].f == 0
        if weights.get(node.input[1] if len(node.input) > 1 else "", 0) < LEAST_WEIGHTS or not (
            plain or node.op_type == "MatMul"
        ):
            continue
        if plain:
            node.op_type = "MatMul"
            del node.input[2:], node.attribute[:]
        node.name = f"product{place}"
        large.append(node.name)
    used = {name for node in model.graph.node for name in node.input}
    for unused in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(unused)
    return large


@contextlib.contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Without the advice to preprocess a model whose shapes are known already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


class _Reader:
    """Real rows as the calibration asks for them, in blocks."""

    def __init__(self, names: list[str], inputs: tuple[np.ndarray, ...]):
        some = np.linspace(0, len(inputs[0]) - 1, min(CALIBRATION_ROWS, len(inputs[0])), dtype=np.int64)
        parts = np.array_split(some, max(1, len(some) // 100))
        self._blocks = iter([dict(zip(names, (column[part] for column in inputs), strict=True)) for part in parts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next block of rows, none after the last."""
        return next(self._blocks, None)
