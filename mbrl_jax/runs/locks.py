"""Locks on files, which end with the process that holds them. Systems without ``fcntl``, as Windows, have none."""

import os
from pathlib import Path

from mbrl_jax.config import ConfigError

try:
    import fcntl
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True


def require() -> None:
    """Refuse to go without locks.

    Raises:
      ConfigError: this system has none.

    """
    if not AVAILABLE:
        raise ConfigError(
            "out: this system has no file locks (fcntl), which a run's folder needs; Linux and macOS have them, and so has WSL "
            "on Windows. From Python, mbrl_jax.run trains without a folder"
        )


def lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file until it is closed.

    Args:
      descriptor: of the file.
      shared: with others who share it; otherwise nobody else has it.
      wait: until those that have it give it up, instead of being refused.

    Raises:
      BlockingIOError: another process holds it.
      ConfigError: this system has no locks.
      OSError: the file system has none.

    """
    require()
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def open_locked(path: Path) -> int:
    """A descriptor of a file, made if it is not there, that holds its lock until it is closed; waits for the lock.

    Raises:
      ConfigError: this system has no locks.
      OSError: the file cannot be opened, or its file system has no locks.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
