"""The runs that a report is on, as its sections need them."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError
from mbrl_jax.networks import Params
from mbrl_jax.runs import results
from mbrl_jax.runs.results import per_seed
from mbrl_jax.runs.run import Run

COLOURS = ("#0b6e4f", "#e08e45", "#5b5f97", "#b0413e", "#3a9bc1", "#8f6b2f", "#c06fa8", "#555555")  # apart for the colour-blind
MORE_COLOURS = matplotlib.color_sequences["tab20"]  # where there are more runs


class Entry(NamedTuple):
    """A run in the report."""

    label: str
    folder: Path
    run: Run
    summary: Mapping[str, Any]
    command: str  # that repeats it
    colour: Any

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.run.result.outcome.updates)

    @property
    def has_model(self) -> bool:
        """Whether a model was learned."""
        return algorithm_of(self.run.config).has_model

    @property
    def latent(self) -> bool:
        """Whether its world is a latent one, whose states are no observations."""
        return hasattr(self.run.result.metrics, "world")

    @property
    def imagines(self) -> bool:
        """Whether a policy was learned in imagined lanes."""
        return algorithm_of(self.run.config).imagines

    @property
    def chooses(self) -> bool:
        """Whether snapshots were scored in imagination, and the best of them chosen."""
        return self.run.result.outcome.chosen is not None

    @property
    def task(self) -> str:
        """The name of the environment."""
        return self.run.config.environment.name

    @property
    def returns(self) -> dict[str, np.ndarray]:
        """[seeds] mean returns of the final episodes of the ``chosen`` policy, if there is one, and the ``last``."""
        outcome = self.run.result.outcome
        arms = {"chosen": outcome.returns_chosen, "last": outcome.returns_last}
        return {name: per_seed(returns) for name, returns in arms.items() if returns is not None}

    @property
    def shown(self) -> str:
        """The policy that is played in the report: the chosen one, or the last where nothing was chosen."""
        return "last" if self.run.result.outcome.chosen is None else "chosen"

    @property
    def policies(self) -> Params:
        """Its parameters [seeds, ...]."""
        outcome = self.run.result.outcome
        return outcome.last if outcome.chosen is None else outcome.chosen


def read(folders: Sequence[Path]) -> list[Entry]:
    """The runs in some folders.

    Raises:
      ConfigError: there are no folders, one is named twice, or one holds no finished run.

    """
    if not folders:
        raise ConfigError("runs: [] is too few; name at least one folder of a finished run")
    named = labels(folders)
    colours = COLOURS if len(folders) <= len(COLOURS) else MORE_COLOURS
    return [_read(*each) for each in zip(folders, named, itertools.cycle(colours), strict=False)]


def labels(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as much of the path before them as makes every one its own.

    Raises:
      ConfigError: two are the same folder.

    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(folder for i, folder in enumerate(folders) if paths[i] in paths[:i])
        raise ConfigError(f"runs: {str(twice)!r} is there twice; name each folder once")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        named = [Path(*path.parts[-depth:]).as_posix() for path in paths]
        if len(set(named)) == len(named):
            break
    return named


def by_task(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The runs of each task, and of each time limit that is not the task's own, whose returns can be compared."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries:
        limit = entry.run.config.environment.time_limit
        tasks.setdefault(entry.task + (f" (at most {limit} steps)" if limit is not None else ""), []).append(entry)
    return tasks


def seeds_of(entries: Sequence[Entry]) -> str:
    """How many seeds the runs have, in words."""
    counts = {entry.seeds for entry in entries}
    if len(counts) == 1:
        return _count(counts.pop()) + (" each" if len(entries) > 1 else "")
    return ", ".join(f"{_count(entry.seeds)} of {entry.label}" for entry in entries)


def only(run: Run, kept: np.ndarray) -> Run:
    """The run of those seeds [seeds] that are kept."""
    result, diagnosis = jax.tree.map(lambda leaf: leaf[kept], (run.result, run.diagnosis))
    return run._replace(result=result, diagnosis=diagnosis)


def left_out(kept: np.ndarray) -> str:
    """How many seeds are not kept, as the end of a caption."""
    missing = int(np.sum(~kept))
    return f" Left out: {_count(missing)} with numbers that are not finite." if missing else ""


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def _read(folder: Path, label: str, colour: Any) -> Entry:
    try:
        run, summary = results.read(folder), results.read_summary(folder)
    except ConfigError as error:
        inside = ", ".join(repr(str(each)) for each in _runs_below(folder))
        raise ConfigError(f"runs: {error}" + (f"; below it there are {inside}" if inside else "")) from error
    return Entry(label, folder, run, summary, command_of(folder, run), colour)


def _runs_below(folder: Path) -> Iterator[Path]:
    """Runs in the folders of this one, as a comparison or a sweep leaves them."""
    if folder.is_dir() and not (folder / "summary.json").exists():
        yield from sorted(each.parent for each in folder.glob("*/summary.json"))


def command_of(folder: Path, run: Run) -> str:
    """The command that repeats a run: the one that was given, or one that reads the settings that it left."""
    if (folder / results.RUN).exists():
        return str(results.read_run(folder)["command"])
    seeds = len(run.result.outcome.updates)
    words = ["mbrl-jax", "train" if run.backend.name == "jax" else "reference", str(folder / "config.yaml")]
    words += ["--seeds", str(seeds), "--seed", str(run.base_seed), *(["--diagnose"] if run.diagnosis is not None else [])]
    return shlex.join([*words, "--out", "DIR"])
