"""Kernels as JAX functions: one thread block for each element of the axes that ``vmap`` adds, and no Python when it runs.

A kernel is launched by a custom call of XLA's own, which takes PTX text and a fixed grid. Its arguments are pointers: every
operand's, then every result's. A result that takes the place of an operand has that operand's pointer once more.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap

from mbrl_jax.cuda.compiling import Source, ptx_of

TARGET = "__gpu$xla.gpu.ptx"


class Operand(NamedTuple):
    """An argument of a kernel as one element of the grid sees it."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    becomes: int | None = None  # the result that takes its place


class Kernel(NamedTuple):
    """A kernel with its sizes."""

    name: str  # of its entry
    source: Source
    macros: tuple[tuple[str, int], ...]
    threads: int  # of a block
    shared_bytes: int  # dynamic shared memory of a block
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    blocks: int = 1  # thread blocks for each element of the grid


class Backend(Protocol):
    """What runs a kernel."""

    def __call__(self, kernel: Kernel, operands: Sequence[Array]) -> list[Array]:
        """Run it on operands that have a leading grid axis; return its results, which have one as well."""


class Device(NamedTuple):
    """An NVIDIA GPU of one architecture, such as ``90``."""

    architecture: str

    def __call__(self, kernel: Kernel, operands: Sequence[Array]) -> list[Array]:
        """As :meth:`Backend.__call__`."""
        grid = operands[0].shape[0]
        results = [jax.ShapeDtypeStruct((grid, *result.shape), result.dtype) for result in kernel.results]
        aliases = {place: operand.becomes for place, operand in enumerate(kernel.operands) if operand.becomes is not None}
        sizes = {"grid_x": grid * kernel.blocks, "grid_y": 1, "grid_z": 1, "block_x": kernel.threads, "block_y": 1, "block_z": 1}
        numbers = {name: np.int32(value) for name, value in {**sizes, "shared_mem_bytes": kernel.shared_bytes}.items()}
        places = tuple(np.int32(len(operands) + place) for place in range(len(results)))  # results come last
        call = jax.ffi.ffi_call(TARGET, results, input_output_aliases=aliases)
        ptx = ptx_of(kernel.source, dict(kernel.macros), self.architecture)
        return list(call(*operands, name=kernel.name, kernel_type="ptx", kernel_data=ptx, output_indices=places, **numbers))


def launcher(kernel: Kernel, backend: Backend) -> Callable[..., list[Array]]:
    """The kernel as a function of one element's operands, to be mapped any number of times.

    Operands that a map leaves as they are, as settings that all seeds share, are copied for each element.
    """

    @custom_vmap
    def on_grid(*operands: Array) -> list[Array]:
        return backend(kernel, operands)

    @on_grid.def_vmap
    def map_grid(size: int, mapped: Sequence[bool], *operands: Array) -> tuple[list[Array], list[bool]]:
        def merge(operand: Array, is_mapped: bool) -> Array:
            full = operand if is_mapped else jnp.broadcast_to(operand[None], (size, *operand.shape))
            return full.reshape(size * full.shape[1], *full.shape[2:])

        results = on_grid(*map(merge, operands, mapped))
        return [result.reshape(size, -1, *result.shape[1:]) for result in results], [True] * len(results)

    def launch(*operands: Array) -> list[Array]:
        _check(kernel, operands)
        return [result[0] for result in on_grid(*(operand[None] for operand in operands))]

    return launch


def _check(kernel: Kernel, operands: Sequence[Array]) -> None:
    """Refuse operands of other shapes or types than the kernel reads: it could not notice."""
    if len(operands) != len(kernel.operands):
        raise ValueError(f"{kernel.name}: {len(operands)} operands do not fit; there must be {len(kernel.operands)}")
    for operand, wanted in zip(operands, kernel.operands, strict=True):
        if operand.shape != wanted.shape or operand.dtype != jnp.dtype(wanted.dtype):
            found, right = f"{operand.dtype}{list(operand.shape)}", f"{jnp.dtype(wanted.dtype)}{list(wanted.shape)}"
            raise ValueError(f"{kernel.name}: {wanted.name} is {found}; it must be {right}")
