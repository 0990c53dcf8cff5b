"""Padded arrays inside a kernel.

Triton's tensors have powers of two as sizes, and its matrix products at least 16 on every side. So a kernel holds every array
padded, in memory it keeps its own size, and reading and writing go between the two: a reference is a flat array, and an array
in it is read through a matrix of places and a mask. Padded places hold zeros and stay zeros through every layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import triton as plgpu

SMALLEST = 16  # side of a matrix product


def padded(size: int) -> int:
    """The least power of two that is at least ``size`` and 16."""
    return max(SMALLEST, 1 << max(size - 1, 0).bit_length())


def places(size: int) -> Array:
    """[size] int32, 0, 1, 2, …, for a power of two."""
    return jax.lax.iota(jnp.int32, size)


def columns(rows: int, width: int) -> Array:
    """[rows, width] int32, the number of each place's column."""
    return jax.lax.broadcasted_iota(jnp.int32, (rows, width), 1)


def entries(shape: tuple[int, ...], start: Array | int = 0) -> tuple[Array, Array | None]:
    """Where the entries of a vector or matrix lie that begins at ``start`` of a flat array, int32 of its padded shape, and bool
    which of them are entries; none if all are.
    """
    full = tuple(map(padded, shape))
    if len(shape) == 1:
        index = places(full[0])
        mask = index < shape[0]
    else:
        row, column = (jax.lax.broadcasted_iota(jnp.int32, full, axis) for axis in (0, 1))
        index, mask = row * shape[1] + column, (row < shape[0]) & (column < shape[1])
    return start + index, None if full == shape else mask


def read(ref: Any, index: Array, mask: Array | None, other: float | int = 0) -> Array:
    """The entries of a flat array at ``index``, ``other`` where the mask is false."""
    blank = None if mask is None else jnp.full(index.shape, other, ref.dtype)
    return plgpu.load(ref.at[index], mask=mask, other=blank)


def write(ref: Any, index: Array, values: Array, mask: Array | None, when: Array | None = None) -> None:
    """Set the entries of a flat array at ``index`` where the mask is true, if ``when`` [] bool holds."""
    if mask is not None:
        index = jnp.where(mask, index, ref.shape[0])  # the interpreter writes what was there to places where the mask is false
    if when is not None:
        mask = jnp.broadcast_to(when, index.shape) if mask is None else mask & when
    plgpu.store(ref.at[index], values, mask=mask)


def read_array(ref: Any, shape: tuple[int, ...], start: Array | int = 0, other: float | int = 0) -> Array:
    """A vector or matrix, padded, that begins at ``start`` of a flat array."""
    return read(ref, *entries(shape, start), other)


def write_array(ref: Any, shape: tuple[int, ...], values: Array, when: Array | None = None) -> None:
    """Write a padded vector or matrix to the beginning of a flat array, if ``when`` [] bool holds."""
    index, mask = entries(shape)
    write(ref, index, values, mask, when)


def pick(values: Array, column: Array) -> Array:
    """[B] values[b, column[b]], from [B, W] and [B] int32."""
    return jnp.sum(jnp.where(columns(*values.shape) == column[:, None], values, 0.0), axis=1)


def first_best(values: Array, count: int) -> Array:
    """[B] int32 the first of the largest among the first ``count`` columns of [B, W]."""
    column = columns(*values.shape)
    candidates = jnp.where(column < count, values, -jnp.inf)
    best = jnp.max(candidates, axis=1)
    return jnp.min(jnp.where(candidates == best[:, None], column, count - 1), axis=1)


class Columns:
    """A padded matrix [B, W] as the task's known functions see it: ``x[..., i]`` is its column i; nothing else can be asked."""

    def __init__(self, values: Array, count: int):
        self._values, self._count = values, count

    def __getitem__(self, key: Any) -> Array:
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis and isinstance(key[1], int)):
            raise TypeError(f"{key!r}: inside a kernel an observation gives single axes only, as x[..., 2]")
        column = range(self._count)[key[1]]
        return jnp.sum(jnp.where(columns(*self._values.shape) == column, self._values, 0.0), axis=1)
