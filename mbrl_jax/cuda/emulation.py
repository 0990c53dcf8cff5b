"""Kernels on a CPU, from the same sources: threads are fibres, and shared memory, warps and barriers are acted out.

For tests, and for trying an engine where there is no GPU. It is thousands of times slower than one; nothing chooses it unasked.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.cuda.compiling import Macros, Source, cache_folder, key_of
from mbrl_jax.cuda.launching import Kernel

FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-DEMU", "-x", "c++", "-shared", "-fPIC", "-w")
Faults = tuple[tuple[str, str], ...]


class Emulator(NamedTuple):
    """The system's C++ compiler, in place of a GPU.

    Attributes:
      backwards: whether a block's warps run in the opposite order, which must change nothing.
      faults: (text, other text) to replace in the sources before they are compiled, so that tests can be seen to fail.

    """

    backwards: bool = False
    faults: Faults = ()

    def __call__(self, kernel: Kernel, operands: Sequence[Array]) -> list[Array]:
        """As :meth:`mbrl_jax.cuda.launching.Backend.__call__`, by a callback to the host."""
        grid = operands[0].shape[0]
        shapes = [jax.ShapeDtypeStruct((grid, *result.shape), result.dtype) for result in kernel.results]
        return list(jax.pure_callback(lambda *values: self.run(kernel, values), shapes, *operands))

    def run(self, kernel: Kernel, operands: Sequence[np.ndarray | Array]) -> list[np.ndarray]:
        """Run the kernel on arrays with a leading grid axis.

        Raises:
          ConfigError: there is no C++ compiler.
          RuntimeError: the source does not compile, or a block did not come to its end.

        """
        inputs = [np.ascontiguousarray(operand) for operand in operands]
        grid = inputs[0].shape[0]
        results = [np.zeros((grid, *result.shape), result.dtype) for result in kernel.results]
        pointers: list[int] = []
        for value, operand in zip(inputs, kernel.operands, strict=True):
            if value.shape != (grid, *operand.shape) or value.dtype != np.dtype(operand.dtype):
                found, right = f"{value.dtype}{list(value.shape)}", f"{np.dtype(operand.dtype)}{[grid, *operand.shape]}"
                raise ValueError(f"{kernel.name}: {operand.name} is {found}; it must be {right}")
            if operand.becomes is not None:
                value = results[operand.becomes]
                value[...] = inputs[len(pointers)]
            pointers.append(value.ctypes.data)
        pointers += [result.ctypes.data for result in results]
        library = built(kernel.source, kernel.macros, self.faults)
        entry = getattr(library, f"emulate_{kernel.name}")
        status = entry((ctypes.c_void_p * len(pointers))(*pointers), grid * kernel.blocks, int(self.backwards))
        if status != 0:
            raise RuntimeError(f"{kernel.name}: the emulation ended with {status}")
        return results


@cache
def built(source: Source, macros: tuple[tuple[str, int], ...], faults: Faults = ()) -> ctypes.CDLL:
    """The library of a source, its sizes and its planted faults; from the user's cache folder where it is there.

    Raises:
      ConfigError: there is no C++ compiler.
      RuntimeError: it refuses the source.
      ValueError: a fault's text is not in the source.

    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise ConfigError("engine: the emulator needs a C++ compiler; install g++, or name another by the variable CXX")
    source = with_faults(source, faults)
    options = [*FLAGS, *(f"-D{name}={value}" for name, value in sorted(macros))]
    folder = cache_folder() or Path(tempfile.gettempdir(), f"mbrl_jax_{os.getuid()}")
    file = folder / f"{key_of(source, options, compiler)}.so"
    if not file.exists():
        _build(source, [compiler, *options], file)
    return ctypes.CDLL(str(file))


def with_faults(source: Source, faults: Faults) -> Source:
    """The source with texts replaced. Raises ValueError: one of them does not occur in it exactly once."""
    files = {source.name: source.text, **dict(source.headers)}
    for text, other in faults:
        places = [name for name, content in files.items() for _ in range(content.count(text))]
        if len(places) != 1:
            raise ValueError(f"a fault must replace a text that occurs once; {text!r} occurs {len(places)} times")
        files[places[0]] = files[places[0]].replace(text, other)
    return Source(source.name, files.pop(source.name), tuple(sorted(files.items())))


def _build(source: Source, command: list[str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        for name, text in ((source.name, source.text), *source.headers):
            Path(folder, name).write_text(text)
        made = Path(folder, "library.so")
        done = subprocess.run([*command, "-o", str(made), str(Path(folder, source.name))], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile for the emulator:\n{done.stderr[-4000:]}")
        os.replace(made, file)


def shared_bytes(source: Source, macros: Macros) -> int:
    """Bytes of dynamic shared memory that a source asks for with these sizes, as its own layout counts them."""
    library = built(source, tuple(sorted(macros.items())))
    library.shared_bytes.restype = ctypes.c_uint
    return int(library.shared_bytes())
