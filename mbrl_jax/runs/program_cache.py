"""Compiled programs for the next start, which then need not be traced.

JAX's own cache saves compiling, but a function must be traced before it is found there, and that takes longer than to read it.
Here the functions of a program are found by what they follow from: the source of this package, the versions of what it builds on,
JAX's settings, the static settings of a run and the shapes of the traced ones, how many agents there are, and the devices. Traced
numbers are arguments of the functions, so the same ones serve other numbers. Where any of that is new, if only a comment in the
source, the functions are traced, and what is still the same to the letter is not compiled again.
"""

import contextlib
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
from typing import Any, NamedTuple, TypeVar

import jax
from jax.experimental import serialize_executable

import mbrl_jax
from mbrl_jax.imagination.horizon import CONTROLLERS

T = TypeVar("T")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # that programs and figures depend on
FILES = 400  # of each kind that are kept, those used last


class Known(NamedTuple):
    """What is known of a function without tracing it."""

    fingerprint: str
    out: Any  # shapes and dtypes of what it returns


class ProgramCache(NamedTuple):
    """A folder of compiled functions. Whatever is in it may be deleted at any time."""

    folder: Path

    def find(self, key: str) -> dict[str, Known]:
        """What is known of the functions of a program by their names, nothing if one of them is not there."""
        found: dict[str, Known] = self._read(f"{key}.program", pickle.loads) or {}
        return found if all((self.folder / f"{each.fingerprint}.function").exists() for each in found.values()) else {}

    def note(self, key: str, functions: Mapping[str, Known]) -> None:
        """Let a program be found by its key."""
        self._write(f"{key}.program", pickle.dumps(dict(functions)))

    def load(self, fingerprint: str, before: Any, after: Any, devices: Sequence[jax.Device]) -> jax.stages.Compiled | None:
        """A function, none if it is not there.

        Args:
          fingerprint: by which it was kept.
          before: the tree of its arguments, ``((…), {})``.
          after: the tree of what it returns.
          devices: that it runs on.

        """

        def loaded(data: bytes) -> jax.stages.Compiled:
            return serialize_executable.deserialize_and_load(data, before, after, execution_devices=devices)

        return self._read(f"{fingerprint}.function", loaded)

    def keep(self, fingerprint: str, call: jax.stages.Compiled) -> None:
        """Keep a function that this process compiled. One that was read from a cache lacks some code when it is written again."""
        self._write(f"{fingerprint}.function", serialize_executable.serialize(call)[0])

    def _read(self, name: str, understood: Callable[[bytes], T]) -> T | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            with contextlib.suppress(OSError):  # a folder that may only be read
                path.touch()
            return understood(data)
        except Exception as error:  # whatever a damaged file makes pickle and XLA raise
            warnings.warn(f"{path} cannot be read and is made anew: {error!r}", stacklevel=3)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _write(self, name: str, data: bytes) -> None:
        new = self.folder / f".{secrets.token_hex(8)}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new.write_bytes(data)
            new.replace(self.folder / name)
        except OSError as error:
            warnings.warn(f"{self.folder} cannot be written, the next start compiles again: {error!r}", stacklevel=3)
            with contextlib.suppress(OSError):
                new.unlink()
            return
        for path in sorted(self.folder.glob(f"*{Path(name).suffix}"), key=_last_use, reverse=True)[FILES:]:
            path.unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


_IN_USE: list[ProgramCache] = []  # one or none
_WRITTEN = threading.local()  # by each thread, to JAX's cache


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
    return _digest(shapes, said, _source(), _surroundings(devices))


def fingerprint_of(traced: jax.stages.Lowered, devices: Sequence[jax.Device], options: object) -> str:
    """The fingerprint of a function that has been traced, to be compiled with these options."""
    return _digest(traced.as_text(), options, _surroundings(devices))


def compiled_here(compile_: Callable[[], Any]) -> tuple[Any, bool]:
    """What a function returns that compiles, and whether it really did so and wrote it to JAX's cache, not read it there."""
    before = getattr(_WRITTEN, "count", 0)
    made = compile_()
    return made, getattr(_WRITTEN, "count", 0) > before


def _note(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_misses":  # told by the thread that compiled a program and wrote it
        _WRITTEN.count = getattr(_WRITTEN, "count", 0) + 1


def _digest(*said: object) -> str:
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _surroundings(devices: Sequence[jax.Device]) -> tuple[object, ...]:
    """What every compiled function follows from, besides what it computes."""
    where = [(device.platform, device.device_kind, device.id) for device in devices]
    settings = sorted((name, repr(value)) for name, value in jax.config.values.items() if "cache" not in name)
    return where, _versions(), settings, os.environ.get("XLA_FLAGS", ""), platform.python_version()


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
