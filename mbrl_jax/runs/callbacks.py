"""What follows a run while it goes on: JSON lines, checkpoints and, where asked for, TensorBoard or Weights & Biases.

A run tells every :class:`Callback` of its beginning, its rounds, its chunks and its end. The display is one too.
"""

import dataclasses
import errno
import hashlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax import strict_json
from mbrl_jax.config import ConfigError, RunConfig
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.metrics import Entry
from mbrl_jax.runs.run import Seconds


@dataclasses.dataclass
class SoFar:
    """The progress of a run, on the host."""

    config: RunConfig
    agents: int
    rounds: int  # of the whole run
    done: int = 0  # of these
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(Seconds._fields, 0.0))
    collected: Any = None  # [agents, N], NaN where no episode ended
    fit: Any = None  # leaves [agents, ...]
    chunks: list[Any] = dataclasses.field(default_factory=list)  # metrics, leaves [agents, n, ...] of n successive rounds

    def metrics(self) -> Any:
        """Leaves [agents, rounds, ...]."""
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *self.chunks)


class Callback:
    """Follows a run. A subclass overrides what it needs."""

    def begin(self, so_far: SoFar) -> None:
        """The first round begins, or the first of those that are left."""

    def round(self, entry: Entry) -> None:
        """A round is done. An OSError is reported once; the run goes on."""

    def chunk(self, snapshot: Callable[[], Checkpoint], must: bool) -> None:
        """A call of the devices has begun.

        Args:
          snapshot: waits for it and copies the run as it is then; the copy does not change any more.
          must: no other call follows in this process: it is the last one, or the run was asked to stop.

        """

    def end(self) -> None:
        """All rounds are done and evaluated."""

    def close(self) -> None:
        """Release what it holds, whether the run has ended or failed; called by whoever made it."""


class Checkpoints(Callback):
    """Saves a run in a thread while it goes on; one that cannot be written is reported, and the one before stays."""

    def __init__(self, root: Path, about: Mapping[str, Any], saved: int, every: float, keep: int, say: Callable[[str], None]):
        """Save every ``every`` seconds and keep the last ``keep``; ``saved`` is the round that the run goes on after."""
        self.saved = saved  # the last round that a checkpoint holds
        self._root, self._about, self._every, self._keep, self._say = root, about, every, keep, say
        self._last = time.monotonic()
        self._writing: threading.Thread | None = None

    def chunk(self, snapshot: Callable[[], Checkpoint], must: bool) -> None:
        """Save the run if it is time to, or if nothing follows."""
        if must or time.monotonic() - self._last >= self._every:
            self.save(snapshot())

    def save(self, taken: Checkpoint) -> None:
        """Write a checkpoint while the caller goes on."""
        self.wait()

        def work() -> None:
            try:
                about = {**taken.about, "run": self._about}
                checkpoint.write(self._root, taken.round, taken.arrays, about, self._keep)
                self.saved = taken.round
            except OSError as error:
                kept = f"the one of round {self.saved} is kept" if self.saved else "there is none yet"
                self._say(f"the checkpoint of round {taken.round} could not be written ({error}); {kept}, and the run goes on")

        self._writing = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._writing.start()
        self._last = time.monotonic()

    def wait(self) -> int:
        """Wait until a checkpoint that is being written is whole; return the last round that is saved."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        return self.saved

    def close(self) -> None:
        """Wait for the last checkpoint."""
        self.wait()


class JsonLines(Callback):
    """A line for every round: an :class:`mbrl_jax.runs.metrics.Entry` and ``saved``; null for a value that is not finite."""

    def __init__(self, path: Path, after: int, saved: Callable[[], int] = lambda: 0):
        """Go on after the round ``after``, dropping lines of later rounds; ``saved`` gives the last round of a checkpoint."""
        lines = [strict_json.dumps(line) for line in read_lines(path) if line["round"] <= after]
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
        self._file, self._saved = path.open("ab", buffering=0), saved

    def round(self, entry: Entry) -> None:
        """Write the whole line at once, or none of it. Raises OSError: it cannot be written."""
        line, before = strict_json.dumps({**entry.as_json(), "saved": self._saved()}).encode() + b"\n", self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that :class:`JsonLines` wrote, without a last one that a killed process left unfinished.

    Among ``values``, None stands for a number that was not finite.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [strict_json.loads(line) for line in whole]


def require(package: str, extra: str) -> None:
    """Refuse to go without an optional package. Raises ConfigError: it is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{extra}: {error}; install the extra `mbrl-jax[{extra}]`") from error


class TensorBoard(Callback):
    """Event files for TensorBoard, one point a round, over the steps of the main loop."""

    def __init__(self, folder: Path, after: int):
        """Go on after the step ``after`` in a run's folder. Raises ConfigError: the package is not installed."""
        require("tensorboardX", "tensorboard")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def round(self, entry: Entry) -> None:
        """Add a point to every curve."""
        for name, value in entry.values.items():
            self._writer.add_scalar(name.replace(".", "/", 1), value, entry.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class WeightsAndBiases(Callback):
    """A run of Weights & Biases; where and whether it is sent follows WANDB_MODE, as always there."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        """Begin or go on; the run's id follows from its folder.

        Raises ConfigError: the package is not installed, or does not let the run begin.
        """
        require("wandb", "wandb")
        import wandb

        identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        try:
            self._run = wandb.init(project=project, name=folder.name, id=identity, resume="allow", config=config, dir=str(folder))
        except wandb.errors.Error as error:
            advice = "log in with `wandb login`, or set WANDB_MODE=offline, and begin again with --resume"
            raise ConfigError(f"wandb: {error}; {advice}") from error

    def round(self, entry: Entry) -> None:
        """Log the values of a round."""
        self._run.log({name.replace(".", "/", 1): value for name, value in entry.values.items()}, step=entry.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
