"""ONNX models in INT8: which products are quantised, and how their weights are rounded."""

import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.serving.export.graphs import Graph
from mbrl_jax.serving.export.rounding import balance, round_weights
from mbrl_jax.serving.runtime import Session

CALIBRATION_ROWS = 5_000
SHARES = (0.5, 0.75, 1.0)  # of the difference between inputs that weights may take over; what agrees best on real rows is kept
LEAST_WEIGHTS = 1_000  # of a product that is quantised: the first and the last layer decide more than they weigh


def quantise(content: bytes, graph: Graph, how: Literal["dynamic", "static"], inputs: tuple[np.ndarray, ...]) -> bytes:
    """The model with its large matrix products in INT8.

    Weights are rounded for what they compute on real rows, with a scale for each column. Inputs of a product are quantised by the
    range of the batch (dynamic), or by the range that real rows have shown (static).

    Args:
      content: the model in float32.
      graph: whose it is.
      how: dynamic or static.
      inputs: real rows to calibrate by.

    Raises:
      ConfigError: no product is large enough.

    """
    import onnx

    model = onnx.load_from_string(content)
    large = _large_products(model)
    if not large:
        raise ConfigError(f"int8: {how!r} does not fit {graph.name}: no matrix product has {LEAST_WEIGHTS:,} weights or more")
    some = _spread(len(inputs[0]))
    rows = {port.name: column[some] for port, column in zip(graph.inputs, inputs, strict=True)}
    expected = Session(content).run(rows)
    made = [_quantised(model, large, how, rows, share) for share in SHARES]
    return min(made, key=lambda each: _error(expected, Session(each).run(rows)))


def _error(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """How far outputs differ: the share of other actions of a policy, else the mean square error of the next observation."""
    if "action" not in expected:
        return float(np.mean(np.square(found["next_observation"] - expected["next_observation"])))
    ours, theirs = expected["action"], found["action"]
    return float(np.mean(ours != theirs) if ours.dtype.kind == "i" else np.mean(np.square(ours - theirs)))


def _quantised(
    model: Any, products: list[str], how: Literal["dynamic", "static"], rows: dict[str, np.ndarray], share: float
) -> bytes:
    """The model with some products in INT8; it is left as it is."""
    import onnx
    from onnxruntime import quantization as quant

    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    _round(rounded, products, rows, share)
    options: dict[str, Any] = {"op_types_to_quantize": ["MatMul"], "nodes_to_quantize": products}
    options |= {"per_channel": True, "weight_type": quant.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder, _quiet_quantiser():
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(rounded, before)
        if how == "dynamic":
            quant.quantize_dynamic(before, after, **options)
        else:
            options["extra_options"] = {"OpTypesToExcludeOutputQuantization": ["MatMul"]}
            quant.quantize_static(before, after, _Reader(rows), activation_type=quant.QuantType.QInt8, **options)
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
    return large


def _round(model: Any, products: list[str], rows: dict[str, np.ndarray], share: float) -> None:
    """Balance the inputs of products with their weights, and round the weights, for what they compute on real rows."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [node for node in model.graph.node if node.name in products]
    values = _values(model, [node.input[0] for node in nodes], rows)
    initial = {each.name: each for each in model.graph.initializer}
    for node, value in zip(nodes, values, strict=True):
        weights = numpy_helper.to_array(initial[node.input[1]])
        seen = value.reshape(-1, len(weights))
        shift = balance(seen, weights, share)
        rounded = round_weights(seen / shift, weights * shift[:, None])
        names = [f"{node.name}_{part}" for part in ("balance", "input", "weights")]
        model.graph.initializer.append(numpy_helper.from_array(1 / shift, names[0]))
        model.graph.initializer.append(numpy_helper.from_array(rounded, names[2]))
        before = helper.make_node("Mul", [node.input[0], names[0]], [names[1]], f"{node.name}_balanced")
        model.graph.node.insert(list(model.graph.node).index(node), before)
        node.input[0], node.input[1] = names[1], names[2]
    _drop_unused(model)
    onnx.checker.check_model(model)


def _values(model: Any, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What inner tensors of a model are for rows."""
    import onnx

    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    for name in dict.fromkeys(names):
        open_model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    found = Session(open_model.SerializeToString()).run_some(list(dict.fromkeys(names)), inputs)
    each = dict(zip(dict.fromkeys(names), found, strict=True))
    return [each[name] for name in names]


def _drop_unused(model: Any) -> None:
    """Remove the constants that no operation takes any longer."""
    used = {name for node in model.graph.node for name in node.input}
    for unused in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(unused)


def _spread(count: int) -> np.ndarray:
    """Places of the rows that calibrate, evenly among ``count``."""
    return np.linspace(0, count - 1, min(CALIBRATION_ROWS, count), dtype=np.int64)


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

    def __init__(self, rows: dict[str, np.ndarray]):
        count = len(next(iter(rows.values())))
        parts = np.array_split(np.arange(count), max(1, count // 100))
        self._blocks = iter([{name: column[part] for name, column in rows.items()} for part in parts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next block of rows, none after the last."""
        return next(self._blocks, None)
