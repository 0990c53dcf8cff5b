"""A run's folder while the run goes on: who works in it, what was asked for, how far it is, and how it is taken up again.

* ``run.json``: what was asked for, written once, before anything else;
* ``.lock``: the process that works on the run holds a lock on it, and removes it in the end;
* ``metrics.jsonl``: a line for every round (:class:`mbrl_jax.runs.callbacks.JsonLines`);
* ``checkpoints/``: the last few (:mod:`mbrl_jax.runs.checkpoint`), gone when the run is finished;
* ``shards/0000`` and so on, where not all seeds are trained at once: a run of some of them in each, in place of the lines and
  checkpoints, gone when they are one run (:mod:`mbrl_jax.runs.shards`);
* ``transitions/``: what the host's simulators gave so far (:mod:`mbrl_jax.runs.transitions`), gone when the run is finished;
* what :mod:`mbrl_jax.runs.results` writes, once it is.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax import packages
from mbrl_jax.config import ConfigError, RunConfig, algorithm_name, flat_settings, from_dict, to_dict
from mbrl_jax.runs import checkpoint, execution, results
from mbrl_jax.runs.callbacks import Checkpoints, JsonLines, read_lines
from mbrl_jax.runs.checkpoint import Checkpoint, DamagedError
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.results import CHECKPOINTS, FORMAT, RUN

LINES = "metrics.jsonl"


class Asked(NamedTuple):
    """What a run is of. Two processes that ask for the same may take turns at it."""

    config: RunConfig
    seeds: int
    base_seed: int
    diagnose: bool
    first: int = 0  # number of the first seed: not 0 in a shard

    @property
    def numbers(self) -> range:
        """Of its seeds."""
        return range(self.first, self.first + self.seeds)

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted path."""
        return {**flat_settings(self.config), **{name: getattr(self, name) for name in self._fields if name != "config"}}

    def as_json(self) -> dict[str, Any]:
        """As in ``run.json``."""
        return {**self._asdict(), "config": to_dict(self.config)}


class RunFolder(NamedTuple):
    """The folder of a run that this process works on, and no other."""

    path: Path
    found: Checkpoint | None  # where the run goes on; none begins it
    checkpoints: Checkpoints
    lines: JsonLines

    def finished(self) -> None:
        """Remove the checkpoints: the results are written."""
        self.checkpoints.wait()
        root = self.path / CHECKPOINTS
        checkpoint.clear(root, after=-1)
        if root.is_dir():
            root.rmdir()


# --------------------------------------------------------------------------------------------- to begin a run, and to go on


@contextlib.contextmanager
def opened(path: Path, asked: Asked, command: str, *, resume: bool = False, **options: Any) -> Iterator[RunFolder]:
    """Begin a run in a new folder, or by ``resume`` go on with the one there, if there is one.

    Options are those of :func:`followed`. Raises ConfigError: as there, or the folder is in use or cannot be made.
    """
    with claimed(path, resume) as begun:
        if not begun:
            begin(path, asked, command)
        with followed(path, asked, begun, **options) as there:
            yield there


def begin(path: Path, asked: Asked, command: str, at_once: int | None = None) -> None:
    """Write ``run.json`` into a folder whose lock is held; ``at_once`` seeds, if not all, are trained together.

    Raises ConfigError: nothing can be written there.
    """
    content = {"format": FORMAT, "command": command, **asked.as_json(), "versions": packages.versions(execution.PACKAGES)}
    content |= {"git": packages.git_revision(), "at_once": asked.seeds if at_once is None else at_once}
    try:
        results.write_json(path / RUN, content)
    except OSError as error:
        raise ConfigError(f"out: nothing can be written to {str(path)!r}: {error}") from error


@contextlib.contextmanager
def followed(
    path: Path,
    asked: Asked,
    begun: bool,
    number: int | None = None,
    every: float = 300.0,
    keep: int = 2,
    say: Callable[[str], None] = print,
) -> Iterator[RunFolder]:
    """Open a run's lines and checkpoints, in a folder whose lock is held.

    Args:
      path: the folder, with its ``run.json``.
      asked: what the run is of.
      begun: an earlier process began the run: go on from its checkpoint.
      number: the round of that checkpoint; none takes the last one.
      every: seconds between checkpoints.
      keep: checkpoints that are kept.
      say: tells the person what goes wrong.

    Raises:
      ConfigError: the run is of something else or finished, or its checkpoint is damaged or gone.

    """
    found = None
    if begun:
        found = take_up(path, asked, number)
        say("there is no checkpoint yet: the run begins anew" if found is None else f"goes on after round {found.round}")
    saved = found.round if found else 0
    checkpoints = Checkpoints(path / CHECKPOINTS, results.read_run(path), saved, every, keep, say)
    with contextlib.closing(checkpoints), contextlib.closing(JsonLines(path / LINES, saved, lambda: checkpoints.saved)) as lines:
        yield RunFolder(path, found, checkpoints, lines)


def take_up(path: Path, asked: Asked, number: int | None = None) -> Checkpoint | None:
    """The checkpoint from which a run goes on, in a folder whose lock is held; none if there never was one.

    What a killed process left half written is removed, and so are checkpoints of later rounds.

    Raises ConfigError: the run is of something else or finished, or its checkpoint is damaged or gone.
    """
    check_same(path, asked)
    if is_finished(path):
        raise ConfigError(f"out: the run in {str(path)!r} is finished already; there is nothing left to do")
    clear(path)
    found = _find(path, number)
    checkpoint.clear(path / CHECKPOINTS, after=found.round if found else None)
    return found


@contextlib.contextmanager
def writing(path: Path, again: str) -> Iterator[None]:
    """Say of results that cannot be written how to go on. Raises ConfigError: in place of an OSError."""
    try:
        yield
    except OSError as error:
        told = f"the results cannot be written to {str(path)!r}: {error}. Then go on with: {again}"
        raise ConfigError(f"out: {told}") from error


def clear(path: Path) -> None:
    """Remove what a killed process left half written, in a folder whose lock is held."""
    for each in path.iterdir():
        if each.name.startswith(".") and each.name.endswith(".new") and each.is_file():
            each.unlink(missing_ok=True)
    checkpoint.clear(path / CHECKPOINTS)


# --------------------------------------------------------------------------------------------------- what a folder holds


def is_finished(path: Path) -> bool:
    """Whether the folder holds the results of a run that came to its end."""
    return (path / "summary.json").exists()


def asked_of(path: Path) -> Asked:
    """What the run in a folder is of.

    Raises ConfigError: there is none, or it was written by a version that this one does not read.
    """
    content = results.read_run(path)
    try:
        config = from_dict(content["config"])
        return Asked(config, content["seeds"], content["base_seed"], content["diagnose"], content.get("first", 0))
    except (KeyError, ConfigError) as error:
        raise ConfigError(f"{path / RUN}: {error}; {results.written_by(content)}") from error


def at_once(path: Path) -> int:
    """How many of its seeds the run in a folder trains together. Raises ConfigError: there is no run."""
    content = results.read_run(path)
    return int(content.get("at_once", content["seeds"]))


def check_same(path: Path, asked: Asked) -> None:
    """Refuse to go on with a run of something else. Raises ConfigError: naming every setting that differs."""
    asked_before = asked_of(path)
    named = [algorithm_name(each.config) for each in (asked_before, asked)]
    if named[0] != named[1]:
        raise ConfigError(f"algorithm: {named[1]!r} does not fit; the run in {str(path)!r} is of {named[0]!r}")
    problems = [
        f"{name}: {now!r} does not fit; the run in {str(path)!r} has {before!r}, and goes on only with that"
        for name, (before, now) in differing(asked_before.settings(), asked.settings()).items()
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, with both values."""
    both = {name: (ours.get(name), theirs.get(name)) for name in sorted({*ours, *theirs})}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _find(path: Path, number: int | None) -> Checkpoint | None:
    """The checkpoint to go on from, none if there never was one."""
    root = path / CHECKPOINTS
    there = checkpoint.rounds(root)
    if number is not None:
        if number not in there:
            raise ConfigError(f"resume_from: {number} does not fit; there are checkpoints of the rounds {there or 'none'}")
        return _read(path, number)
    if not there:
        saved = max((line["saved"] for line in read_lines(path / LINES)), default=0)
        if saved:
            raise ConfigError(
                f"out: the checkpoints of {str(path)!r} have vanished; one of round {saved} was written to {str(root)!r}; "
                f"bring them back, or delete {LINES} there to begin the run anew"
            )
        if results_there := [name for name in ("policies.npz", "outcome.npz") if (path / name).exists()]:
            told = f"results ({', '.join(results_there)}) and neither summary.json nor a checkpoint"
            raise ConfigError(f"out: {str(path)!r} holds {told}; bring summary.json back, or name a new folder")
        return None
    try:
        return _read(path, there[-1])
    except DamagedError as error:
        offered = "no other is whole; delete the folder of checkpoints and metrics.jsonl to begin the run anew"
        for earlier in reversed(there[:-1]):
            with contextlib.suppress(DamagedError):
                checkpoint.verify(root / f"{earlier:08d}")
                offered = f"the one of round {earlier} is whole: --resume-from {earlier} goes on from there"
                break
        raise DamagedError(f"{error}; {offered}") from error


def _read(path: Path, number: int) -> Checkpoint:
    """A checkpoint of the run in this folder, not of one that was copied into it."""
    found = checkpoint.read(path / CHECKPOINTS, number)
    theirs = found.about.get("run", {})
    named = [name for name in Asked._fields if results.read_run(path).get(name) != theirs.get(name)]
    if named:
        place = path / CHECKPOINTS / f"{number:08d}"
        raise DamagedError(f"{place}: it is of another run; that differs in {', '.join(named)}")
    return found
