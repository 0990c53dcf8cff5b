"""From a kernel's source and sizes to PTX that XLA can launch, kept in the user's cache folder.

XLA takes PTX alone, not binaries, and the driver assembles it. A driver refuses PTX of a version newer than itself, whatever
instructions it has. So the version is lowered to the oldest one that has the architecture and the instructions used here.

cuda.core has a cache of compiled programs as well. It is not used: its entries carry no checksum, its compiler asks the driver
before it gives PTX, so that no machine without a GPU could test this, and it adds 48 MB to every installation.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.config import ConfigError, expand
from mbrl_jax.cuda import nvrtc
from mbrl_jax.cuda.nvrtc import Nvrtc

OPTIONS = ("--std=c++17", "-default-device", "--disable-warnings")
OLDEST_PTX = (7, 8)  # has mma.sync, ldmatrix, cp.async and movmatrix
FIRST_PTX = {"100": (8, 6), "101": (8, 6), "120": (8, 7), "103": (8, 8), "121": (8, 8), "110": (9, 0)}
"""The PTX versions that brought the architectures which OLDEST_PTX does not have."""
NEWEST_ARCHITECTURE = 121  # of those above; PTX of later ones keeps the version that the compiler gave it

Macros = Mapping[str, int]


class Source(NamedTuple):
    """A kernel's text and the files that it may include."""

    name: str  # of the file
    text: str
    headers: tuple[tuple[str, str], ...] = ()  # (name, text)


@cache
def shipped(name: str) -> Source:
    """The source of this package with the file name ``name``."""
    files = {entry.name: entry.read_text() for entry in resources.files("mbrl_jax.cuda").joinpath("source").iterdir()}
    return Source(name, files[name], tuple(sorted((key, text) for key, text in files.items() if not key.endswith(".cu"))))


def options_of(macros: Macros, target: str) -> list[str]:
    """The compiler's options; ``target`` is ``compute_90`` for PTX, ``sm_90`` for a binary."""
    return [*OPTIONS, f"--gpu-architecture={target}", *(f"-D{name}={value}" for name, value in sorted(macros.items()))]


def ptx_of(source: Source, macros: Macros, architecture: str, compiler: Nvrtc | None = None, folder: Path | None = None) -> str:
    """PTX for an architecture such as ``90``, from the cache where it is there.

    Args:
      source: the kernel.
      macros: its sizes.
      architecture: compute capability without the point.
      compiler: none takes the newest that is installed.
      folder: of the cache; none takes the user's.

    Raises:
      CompilationError: the source cannot be compiled with these sizes.
      ConfigError: no compiler is installed.

    """
    compiler = nvrtc.newest() if compiler is None else compiler
    options = options_of(macros, f"compute_{architecture}")
    file = _file(source, options, compiler, cache_folder() if folder is None else folder)
    kept = None if file is None else _read(file)
    if kept is not None:
        return lowered(kept, architecture)
    made = compiler.compile(source.text, source.name, dict(source.headers), options).code.decode()
    if file is not None:
        _write(file, made)
    return lowered(made, architecture)


def lowered(ptx: str, architecture: str) -> str:
    """The same PTX with the oldest version that has the architecture, or its own where that is older or the architecture new."""
    if int(architecture) > NEWEST_ARCHITECTURE:
        return ptx
    oldest = FIRST_PTX.get(architecture, OLDEST_PTX)

    def lower(found: re.Match[str]) -> str:
        own = (int(found[1]), int(found[2]))
        return ".version {}.{}".format(*min(own, oldest))

    return re.sub(r"^\.version (\d+)\.(\d+)", lower, ptx, count=1, flags=re.MULTILINE)


def cache_folder() -> Path | None:
    """Where compiled kernels are kept; none where the home folder is not known, and nothing is kept."""
    with contextlib.suppress(ConfigError):
        return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mbrl_jax" / "cuda"
    return None


def key_of(source: Source, options: list[str], about: object) -> str:
    """A name for what a compiler makes: a digest of the source, its headers, the options, and what else decides it."""
    return hashlib.sha256(repr((source, options, about)).encode()).hexdigest()


def _file(source: Source, options: list[str], compiler: Nvrtc, folder: Path | None) -> Path | None:
    return None if folder is None else folder / f"{key_of(source, options, compiler.version)}.ptx"


def _read(file: Path) -> str | None:
    """What was kept; none where nothing was, or it is not what was written."""
    try:
        digest, _, text = file.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if digest == hashlib.sha256(text.encode()).hexdigest() else None


def _write(file: Path, text: str) -> None:
    """Keep a text under its digest, all of it or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".", delete=False) as temporary:
            temporary.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        os.replace(temporary.name, file)
    except OSError as error:
        warnings.warn(f"a compiled kernel could not be kept ({error}); it is compiled again at the next start", stacklevel=3)
