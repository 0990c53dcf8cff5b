"""Paths as people write them."""

import os
from pathlib import Path

from mbrl_jax.config.fields import ConfigError


def expand(path: str | os.PathLike[str], name: str = "path") -> Path:
    """``path`` with the home folder in place of a leading ``~`` or ``~user``.

    Raises:
      ConfigError: that home folder is not known, or ``path`` is no path; ``name`` is what to call it.

    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{name}: {path!r} does not fit; it must be a path")
    if path == "":
        raise ConfigError(f"{name}: '' does not fit; it must name a place")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{os.fspath(path)}: the home folder is not known; write the path in full") from error
