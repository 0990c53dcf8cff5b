"""Which export is served, and how another one takes its place without a request being dropped."""

import logging
from pathlib import Path
from typing import Any

from mbrl_jax.errors import ConfigError
from mbrl_jax.serving.contract import NAME
from mbrl_jax.serving.server.served import Served, same_task

log = logging.getLogger("mbrl_jax.serving")


def locate(folder: Path) -> Path:
    """The export that a folder is, or the last by name of those in it.

    Raises:
      ConfigError: there is none.

    """
    if (folder / NAME).exists():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"[!.]*/{NAME}"))
    if not inside:
        raise ConfigError(f"{str(folder)!r}: there is no export; mbrl-jax export writes one, with a {NAME}")
    return inside[-1]


class Exports:
    """The export that is served at present.

    Whoever answers a request takes ``current`` once; an export that has been replaced goes on for those that have it.
    """

    def __init__(self, folder: Path, precision: str = "float32"):
        """Load the export in a folder. Raises ConfigError: there is none that can be served."""
        self.folder, self.precision = folder, precision
        place = locate(folder)
        self._seen = self._stamp(place)
        self.current = Served(place, precision)

    def changed(self) -> bool:
        """Whether there is another export than the one that was looked at last."""
        try:
            return self._stamp(locate(self.folder)) != self._seen
        except (ConfigError, OSError):
            return False  # what is served stays until there is something in its place

    def reload(self) -> Served:
        """Load the export that is there now and serve it.

        Raises:
          ConfigError: it cannot be served; the old one is served on.

        """
        place = locate(self.folder)
        self._seen = self._stamp(place)
        fresh = Served(place, self.precision)
        if not same_task(self.current.contract, fresh.contract):
            ours, theirs = self.current.task, fresh.task
            raise ConfigError(
                f"{str(place)!r}: it is of {theirs.name!r} with {theirs.observation_size} numbers, and {ours.name!r} with "
                f"{ours.observation_size} is served; serve it by another process"
            )
        self.current = fresh
        log.info("serves %s, policy %s", place, fresh.digest[:12])
        return fresh

    @staticmethod
    def _stamp(place: Path) -> Any:
        found = (place / NAME).stat()
        return place, found.st_mtime_ns, found.st_size, found.st_ino
