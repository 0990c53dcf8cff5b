"""Kernels by the emulator, on plain arrays."""

import ctypes

import numpy as np
import pytest

from mbrl_jax.cuda import emulation
from mbrl_jax.cuda.compiling import shipped

QUICK = tuple(
    "-O0" if flag.startswith("-O") else flag for flag in emulation.FLAGS
)  # small cases take longer to compile than to run


def library_of(name, macros, faults=()):
    """The emulated kernel ``mbrl_NAME``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulation, "FLAGS", QUICK)
        return emulation.built(shipped(f"{name}.cu"), tuple(sorted(macros.items())), tuple(faults))


def run(name, macros, operands, results, *, blocks, backwards=False, faults=()):
    """Run ``mbrl_NAME`` on operands and results in its order; results that take an operand's place begin as it."""
    arrays = [*operands, *results]
    assert all(array.flags.c_contiguous and array.dtype.itemsize == 4 for array in arrays)
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    status = getattr(library_of(name, macros, faults), f"emulate_mbrl_{name}")(pointers, blocks, int(backwards))
    assert status == 0, f"the emulation of {name} ended with {status}"
    return results


def apart(found, expected, start=0.0):
    """Relative distance of two arrays, or of their changes since ``start``."""
    found, expected = (np.asarray(x, np.float64) - np.asarray(start, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300)
