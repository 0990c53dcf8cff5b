"""Folders in which one process works at a time: a run's, a sweep's, a comparison's.

Whoever works in a folder holds a lock on its file ``.lock``, and removes it in the end.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mbrl_jax.config import ConfigError, expand
from mbrl_jax.runs import interruption

try:
    import fcntl
except ImportError:
    HAS_LOCKS = False  # Windows
else:
    HAS_LOCKS = True

LOCK = ".lock"
BEGINNING = ".run.json."  # what a process writes in a folder first has a name that begins so


class InUseError(ConfigError):
    """Another process works in the folder."""


@contextlib.contextmanager
def claimed(path: str | Path, resume: bool = False) -> Iterator[bool]:
    """Work in a folder alone: in a new one, or by ``resume`` where a run or a sweep was begun; yield whether one was.

    A new folder is removed again, with those above it that were made for it, if nothing is left in it in the end, be it by an
    error or by a signal.

    Raises ConfigError: there is something in a folder that should be new, another process works in it, or it cannot be made or
    locked.
    """
    require_locks()
    path = expand(path)
    missing = [each for each in (path, *path.parents) if not os.path.isdir(each)]  # the innermost first

    def withdraw() -> None:
        for each in filter(os.path.isdir, missing):  # Path.is_dir raises where one may not look
            if any(each.iterdir()):
                return
            each.rmdir()

    def is_begun() -> bool:
        begun = not is_untouched(path)
        if begun and not resume:
            raise ConfigError(f"out: {str(path)!r} exists already and is left as it is; name a new folder")
        return begun

    with interruption.on_leaving(withdraw), contextlib.ExitStack() as leaving:
        leaving.callback(withdraw)
        try:
            is_begun()
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: {str(path)!r} cannot be made: {error}") from error
        with hold(path):
            yield is_begun()


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process.

    Raises ConfigError: another process holds it, or the folder or its file system cannot have a lock.
    """
    require_locks()
    place, descriptor = path / LOCK, -1
    while descriptor < 0:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            told = f"another process works on the run in {str(path)!r}; wait for it or name a new folder"
            raise InUseError(f"out: {told}") from None
        except OSError as error:
            if descriptor >= 0:  # it is there, and nobody can lock it
                os.close(descriptor)
                place.unlink(missing_ok=True)
            raise ConfigError(f"out: {str(path)!r} cannot be locked: {error}") from error
        if not _is_at(descriptor, place):  # whoever held it has just removed it
            os.close(descriptor)
            descriptor = -1
    try:
        with interruption.on_leaving(lambda: place.unlink() if is_untouched(path) else None):
            yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def is_untouched(path: Path) -> bool:
    """Whether there is no such folder, or nothing in it but what a process has there that is about to begin a run, or was killed
    when it was.
    """
    if not path.is_dir():
        return not path.exists()
    return all(each.name.startswith((LOCK, BEGINNING)) for each in path.iterdir())


def require_locks() -> None:
    """Refuse to go without file locks. Raises ConfigError: this system has none."""
    if not HAS_LOCKS:
        raise ConfigError(
            "out: this system has no file locks (fcntl), which a run's folder needs; Linux and macOS have them, and so has WSL "
            "on Windows. From Python, mbrl_jax.run trains without a folder"
        )


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether an open file is the one at a place."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False
