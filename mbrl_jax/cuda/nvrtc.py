"""NVRTC, NVIDIA's run-time compiler, by ctypes: from CUDA C++ text to PTX or to a binary, on any machine.

``jax[cuda12]`` and ``jax[cuda13]`` bring it as a wheel. It needs neither a GPU nor a driver nor an installed toolkit.
"""

import ctypes
import ctypes.util
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.config import ConfigError

SUCCESS = 0
MISSING = (
    "engine: 'cuda' does not fit; libnvrtc, which compiles its kernels, is not installed; it must be: "
    "pip install 'mbrl-jax[cuda13]', or cuda12 for a driver below 580"
)


class CompilationError(RuntimeError):
    """The compiler refused a source; its message is the compiler's log."""


class Compiled(NamedTuple):
    """What the compiler made of a source."""

    code: bytes  # PTX text, or a binary (cubin)
    log: str  # warnings, and what --ptxas-options=-v tells of a binary


class Nvrtc:
    """One installed libnvrtc.

    Attributes:
      path: of the library.
      version: (major, minor) of CUDA.

    Raises:
      ConfigError: the file is not an NVRTC that can be loaded.

    """

    def __init__(self, path: str | Path):
        """Load the library at ``path``, or the one that the system knows by this name."""
        self.path = Path(path)
        try:
            self._library = ctypes.CDLL(str(path))
            major, minor = ctypes.c_int(), ctypes.c_int()
            self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        except (OSError, AttributeError) as error:
            raise ConfigError(f"engine: 'cuda' does not fit; {path} is no NVRTC that can be loaded ({error})") from error
        self.version = (major.value, minor.value)

    def compile(self, source: str, name: str, headers: Mapping[str, str], options: Sequence[str]) -> Compiled:
        """Compile a source that may include ``headers`` by name.

        An architecture ``compute_90`` among the options gives PTX, ``sm_90`` a binary.

        Raises:
          CompilationError: the compiler refuses the source or an option.

        """
        library, program = self._library, ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        asked = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names)
        self._check(created)
        try:
            status = library.nvrtcCompileProgram(program, len(options), asked)
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if status != SUCCESS:
                raise CompilationError(f"{name} for {' '.join(options)}: {self._message(status)}\n{log}")
            binary = any(re.fullmatch(r"(--gpu-architecture|-arch)=sm_\w+", option) for option in options)
            code = self._read(program, "CUBIN") if binary else self._read(program, "PTX").rstrip(b"\0")
            return Compiled(code, log)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _message(self, status: int) -> str:
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return str(self._library.nvrtcGetErrorString(status).decode())

    def _check(self, status: int) -> None:
        if status != SUCCESS:
            raise CompilationError(f"{self.path.name}: {self._message(status)}")


def installed() -> Iterator[Path]:
    """The libraries that wheels of NVIDIA have brought, newest first."""
    package = importlib.util.find_spec("nvidia")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*") if ".alt." not in path.name]
    yield from sorted(found, key=lambda path: int(path.suffix[1:]), reverse=True)


@cache
def newest() -> Nvrtc:
    """The newest NVRTC of the wheels, else the system's.

    Raises:
      ConfigError: there is none.

    """
    for path in installed():
        return Nvrtc(path)
    system = ctypes.util.find_library("nvrtc")
    if system is None:
        raise ConfigError(MISSING)
    return Nvrtc(system)
