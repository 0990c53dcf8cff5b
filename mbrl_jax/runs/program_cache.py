"""Compiled programs for the next start, which then need not be traced.

JAX's own cache saves compiling, but a program must be traced before it is found there, and that takes longer than to read it.
Here the functions of a program are found by what they follow from: the source of this package, the versions of what it builds on,
JAX's settings, the static settings of a run and the shapes of the traced ones, how many agents there are, and the devices. Traced
numbers are arguments of the functions, so the same ones serve other numbers.
"""

import functools
import hashlib
import os
import pickle
import platform
import secrets
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import serialize_executable

import mbrl_jax
from mbrl_jax.imagination.horizon import CONTROLLERS

PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # that programs and figures depend on
ENTRIES = 100  # that are kept, the ones used last


class Kept(NamedTuple):
    """A compiled function as it is kept."""

    executable: bytes
    out: Any  # shapes and dtypes of what it returns


class ProgramCache(NamedTuple):
    """A folder of compiled programs. Whatever is in it may be deleted at any time."""

    folder: Path

    def read(self, key: str) -> dict[str, Kept]:
        """The functions of the program of that key by name, none if it is not there."""
        path = self._path(key)
        if not path.exists():
            return {}
        try:
            found: dict[str, Kept] = pickle.loads(path.read_bytes())
            path.touch()
        except Exception as error:  # whatever a damaged file makes pickle raise
            warnings.warn(f"{path} cannot be read and is compiled anew: {error!r}", stacklevel=2)
            path.unlink(missing_ok=True)
            return {}
        return found

    def write(self, key: str, functions: Mapping[str, tuple[jax.stages.Compiled, Any]]) -> None:
        """Keep compiled functions and the shapes that they return.

        They must have been compiled by this process: what was read from a cache lacks some of its code when it is written again.
        """
        kept = {name: Kept(serialize_executable.serialize(call)[0], out) for name, (call, out) in functions.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f".{secrets.token_hex(8)}.new"
        new.write_bytes(pickle.dumps(kept))
        new.replace(self._path(key))
        by_age = sorted(self.folder.glob("*.program"), key=lambda path: -path.stat().st_mtime)
        for path in by_age[ENTRIES:]:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.program"


_IN_USE: list[ProgramCache] = []  # one or none


def use(folder: Path) -> None:
    """Keep this process's programs in a folder from now on."""
    if not _IN_USE:
        jax.monitoring.register_event_listener(_note)
    _IN_USE[:] = [ProgramCache(folder)]


def in_use() -> ProgramCache | None:
    """The cache, none if there is none, or nothing here may come from it: where one of several hosts compiles, whose devices are
    not all its own, or where a controller has been named whose source is not this package's.
    """
    ours = all(function.__module__.startswith("mbrl_jax.") for function in CONTROLLERS.values())
    return _IN_USE[0] if _IN_USE and ours and jax.process_count() == 1 else None


def key_of(hyper: Any, devices: Sequence[jax.Device], *said: object) -> str:
    """The key of a program.

    Args:
      hyper: the config with its traced numbers, each one number or one for each agent.
      devices: that it is for.
      said: whatever else it follows from.

    """
    shapes = jax.tree.map(lambda leaf: str(jax.typeof(leaf)) if isinstance(leaf, jax.Array) else type(leaf).__name__, hyper)
    where = [(device.platform, device.device_kind, device.id) for device in devices]
    return hashlib.sha256(repr((shapes, where, said, _surroundings())).encode()).hexdigest()


def load(kept: Kept, arguments: tuple[Any, ...], devices: Sequence[jax.Device]) -> jax.stages.Compiled:
    """The function, to be called with ``arguments`` or others of their shapes."""
    before, after = jax.tree.structure((arguments, {})), jax.tree.structure(kept.out)
    return serialize_executable.deserialize_and_load(kept.executable, before, after, execution_devices=devices)


def compiled_here(compile_: Callable[[], Any]) -> tuple[Any, bool]:
    """What a function returns that compiles a program, and whether it really did so and wrote it to JAX's cache."""
    before = getattr(_WRITTEN, "count", 0)
    made = compile_()
    return made, getattr(_WRITTEN, "count", 0) > before


_WRITTEN = threading.local()


def _note(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_misses":  # told by the thread that compiled a program and wrote it
        _WRITTEN.count = getattr(_WRITTEN, "count", 0) + 1


def _surroundings() -> tuple[object, ...]:
    """All that every program follows from, besides what it is of."""
    settings = sorted((name, repr(value)) for name, value in jax.config.values.items() if "cache" not in name)
    return _source(), _versions(), settings, os.environ.get("XLA_FLAGS", ""), platform.python_version()


@functools.cache
def _source() -> str:
    root = Path(mbrl_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(f"{name} {metadata.version(name)}" for name in PACKAGES)
