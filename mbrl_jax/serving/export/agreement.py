"""How far a file computes what the library computes, on real observations and in real episodes, and how far it must."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax import statistics
from mbrl_jax.serving.contract import Port
from mbrl_jax.serving.export.graphs import Graph
from mbrl_jax.serving.export.sources import Rows

Run = Callable[..., Sequence[np.ndarray]]  # (inputs [B, ...]) -> outputs [B, ...]

BATCH = 64  # rows a call, the first call having but one: what INT8 makes of a row depends on those beside it
SAME_ACTION = 0.01  # share of its range within which a number of a continuous action counts as equal
SAME_RETURN = 1e-3  # share of the library's mean return by which a file's may be lower in any case, as rounding makes it
POLICIES = ("policy", "vote")


class Tolerance(NamedTuple):
    """What a file of a precision must reach; none where nothing is asked."""

    difference: float | None  # largest, of every float output, as :func:`relative` has it
    equal: float  # share of equal actions, and of equal flags
    model_error: float | None  # root mean square error of the next observation, in deviations of what real steps change

    def as_json(self) -> dict[str, Any]:
        """As in the contract."""
        return {"largest_difference": self.difference, "equal": self.equal, "model_error": self.model_error}


FLOAT = Tolerance(1e-5, 0.999, None)
INT8 = Tolerance(None, 0.99, 0.25)


def tolerance_of(precision: str) -> Tolerance:
    """What a precision must reach."""
    return FLOAT if precision == "float32" else INT8


def inputs_of(graph: Graph, rows: Rows) -> tuple[np.ndarray, ...]:
    """The real rows that a graph takes."""
    return tuple(getattr(rows, port.name) for port in graph.inputs)


def outputs_of(run: Run, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """What a function gives for rows, the first alone and the others in batches."""
    edges = [0, *range(1, len(inputs[0]), BATCH), len(inputs[0])]
    found = [
        [np.asarray(each) for each in run(*(column[first:end] for column in inputs))] for first, end in itertools.pairwise(edges)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[B, ...] differences over the number's own magnitude, the median magnitude of that output, or 1: the largest of them.

    Where an output is about 100 in most rows, a number of 1 is the difference of such numbers, and rounded as they are.
    """
    size = np.abs(ours.astype(np.float64))
    usual = np.median(size, axis=0, keepdims=True) if len(size) else size
    return np.abs(theirs.astype(np.float64) - ours) / np.maximum(1.0, np.maximum(size, usual))


def compare(graph: Graph, expected: Sequence[np.ndarray], found: Sequence[np.ndarray], rows: Rows) -> dict[str, Any]:
    """Set the outputs of a file beside the library's, both on the same real rows.

    Args:
      graph: what they are of.
      expected: the library's.
      found: the file's.
      rows: the inputs.

    """
    differences, equal = {}, {}
    for port, ours, theirs in zip(graph.outputs, expected, found, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(
                f"{port.name}: {theirs.dtype}{list(theirs.shape)} does not fit; it must be {ours.dtype}{list(ours.shape)}"
            )
        if ours.dtype.kind == "f":
            distance = relative(ours, theirs)
            differences[port.name] = float(np.max(distance, initial=0.0)) if np.isfinite(distance).all() else float("inf")
        if ours.dtype.kind != "f" or port.name == "action":
            equal[port.name] = float(np.mean(_equal(port, ours, theirs)))
    told: dict[str, Any] = {
        "rows": len(rows.observation),
        "observations": rows.about,
        "largest_difference": differences,
        "equal": equal,
    }
    if graph.role not in POLICIES:
        place = [port.name for port in graph.outputs].index("next_observation")
        change = np.std(expected[place] - rows.observation, axis=0)
        error = (found[place] - expected[place]) / np.where(change > 0, change, 1.0)
        told["model_error"] = float(np.sqrt(np.mean(np.square(error))))
    return told


def _equal(port: Port, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[n] whether rows are equal."""
    if ours.dtype.kind != "f":
        return ours == theirs
    low, high = ours.min(axis=0), ours.max(axis=0)
    near = np.abs(ours - theirs) <= SAME_ACTION * np.maximum(high - low, 1e-6)
    return near.all(axis=tuple(range(1, near.ndim)))


def compare_returns(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Set returns [n] of real episodes of a file beside those of the library from the same starts."""
    return {
        "episodes": len(ours),
        "library": statistics.bootstrap(ours, statistics.mean).as_json(),
        "file": statistics.bootstrap(theirs, statistics.mean).as_json(),
        "difference": statistics.paired_difference(theirs, ours).as_json(),
    }


def failures(told: dict[str, Any], tolerance: Tolerance) -> list[str]:
    """In which ways a file disagrees beyond its tolerance, one sentence for each."""
    found = []
    for name, difference in told["largest_difference"].items():
        if tolerance.difference is not None and not difference <= tolerance.difference:
            found.append(f"{name} differs by up to {difference:.3g}; it must be at most {tolerance.difference:g}")
    for name, share in told["equal"].items():
        if not share >= tolerance.equal:
            found.append(f"{name} is equal in {share:.2%} of the rows; it must be in at least {tolerance.equal:.1%}")
    error = told.get("model_error")
    if error is not None and tolerance.model_error is not None and not error <= tolerance.model_error:
        found.append(
            f"the next observation is wrong by {error:.3g} deviations of a step; it must be at most {tolerance.model_error:g}"
        )
    returns = told.get("returns")
    if returns is not None:
        (low, high), usual = returns["difference"]["ci95"], returns["library"]["value"]
    if returns is not None and not high >= -SAME_RETURN * max(1.0, abs(usual)):
        found.append(f"the return of real episodes is lower, by [{low:.3g}, {high:.3g}]; that interval must reach 0")
    return found
