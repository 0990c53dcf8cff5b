"""Where the figures of every round go while a run goes on: JSON lines and, where asked for, TensorBoard or Weights & Biases."""

import errno
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any, Protocol

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import strict_json
from mbrl_jax.runs.metrics import Entry


class Journal(Protocol):
    """Takes the entry of every round."""

    def write(self, entry: Entry, saved: int) -> None:
        """Note an entry; ``saved`` is the last round that a checkpoint holds, 0 if there is none."""

    def close(self) -> None:
        """Nothing follows."""


def require(package: str, extra: str) -> None:
    """Refuse to go without an optional package.

    Raises:
      ConfigError: it is not installed.

    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{extra}: {error}; install the extra `mbrl-jax[{extra}]`") from error


class JsonLines:
    """A line for every round: an :class:`mbrl_jax.runs.metrics.Entry` and ``saved``; null for a value that is not finite."""

    def __init__(self, path: Path, after: int):
        """Go on after the round ``after``; what an earlier process wrote of later ones is dropped."""
        lines = [strict_json.dumps(line) for line in read_lines(path) if line["round"] <= after]
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("ab", buffering=0)

    def write(self, entry: Entry, saved: int) -> None:
        """Note an entry, at once to be read by others, or none of it.

        Raises:
          OSError: it cannot be written.

        """
        line, before = strict_json.dumps({**entry.as_json(), "saved": saved}).encode() + b"\n", self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that :class:`JsonLines` wrote, without a last one that a killed process left unfinished.

    Among ``values``, None stands for a number that was not finite.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [strict_json.loads(line) for line in whole]


class TensorBoard:
    """Event files for TensorBoard, one point a round, over the steps of the main loop."""

    def __init__(self, folder: Path, after: int):
        """Go on after the step ``after`` in a run's folder.

        Raises:
          ConfigError: the package is not installed.

        """
        require("tensorboardX", "tensorboard")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, entry: Entry, saved: int) -> None:
        """Add a point to every curve."""
        for name, value in entry.values.items():
            self._writer.add_scalar(name.replace(".", "/", 1), value, entry.step)
        self._writer.flush()

    def close(self) -> None:
        """Nothing follows."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; where and whether it is sent follows WANDB_MODE, as always there."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        """Begin or go on; the run's id follows from its folder.

        Raises:
          ConfigError: the package is not installed, or does not let the run begin.

        """
        require("wandb", "wandb")
        import wandb

        identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        try:
            self._run = wandb.init(project=project, name=folder.name, id=identity, resume="allow", config=config, dir=str(folder))
        except wandb.errors.Error as error:
            advice = "log in with `wandb login`, or set WANDB_MODE=offline, and begin again with --resume"
            raise ConfigError(f"wandb: {error}; {advice}") from error

    def write(self, entry: Entry, saved: int) -> None:
        """Log the values of a round."""
        self._run.log({name.replace(".", "/", 1): value for name, value in entry.values.items()}, step=entry.step)

    def close(self) -> None:
        """Nothing follows."""
        self._run.finish()
