"""How closely two results agree, and in what precision they are computed."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

FLOAT64 = 1e-9


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64, with matrix products in full precision."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def to_numpy(x: Any) -> np.ndarray:
    """An array or tensor in numpy."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def tensor(x: Any) -> torch.Tensor:
    """A tensor with the numbers and the type of an array."""
    return torch.from_numpy(np.array(x))


class DisagreementError(AssertionError):
    """Two sides gave different numbers."""


def error_of(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays over the largest size of the second, or over 1 if that is less than 1e-9.

    Raises:
      AssertionError: the shapes differ.
      DisagreementError: a number is not finite on one side only.

    """
    a, b = to_numpy(ours).astype(np.float64), to_numpy(theirs).astype(np.float64)
    assert a.shape == b.shape, f"shapes differ: {a.shape} and {b.shape}"
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        raise DisagreementError("not finite in the same places")
    if not finite.any():
        return 0.0
    scale = float(np.max(np.abs(b[finite])))
    return float(np.max(np.abs(a - b)[finite])) / (scale if scale > 1e-9 else 1.0)


class Entry(NamedTuple):
    """One line of the table of agreements."""

    room: str
    what: str
    against: str
    error: float
    tolerance: float


class Agreement:
    """Holds results against each other, and remembers how closely they agreed."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.entries: list[Entry] = []

    def __call__(self, what: str, ours: Any, theirs: Any, tolerance: float, against: str = "PyTorch reference") -> None:
        """Two trees of arrays agree, leaf by leaf, within the relative error ``tolerance``; 0 asks for equality.

        Raises:
          AssertionError: the trees differ.
          DisagreementError: the numbers do.

        """
        mine, other = jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(theirs)
        assert mine, f"{what}: nothing to compare"
        assert len(mine) == len(other), f"{what}: {len(mine)} leaves and {len(other)}"
        worst = 0.0
        for (path, a), b in zip(mine, other, strict=True):
            error = error_of(a, b)
            if error > tolerance:
                raise DisagreementError(f"{what}{jax.tree_util.keystr(path)}: error {error:.2e} above {tolerance:.0e}")
            worst = max(worst, error)
        self.entries.append(Entry(self.room, what, against, worst, tolerance))
