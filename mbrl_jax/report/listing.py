"""The runs below a folder: how far they are, in which settings they differ, and what they reached."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from mbrl_jax.config import ConfigError, expand, flat_settings, from_dict
from mbrl_jax.runs import folder as folders
from mbrl_jax.runs import results, terminal
from mbrl_jax.runs.callbacks import read_lines
from mbrl_jax.runs.folder import LINES
from mbrl_jax.runs.program import split
from mbrl_jax.runs.results import CHECKPOINTS, RUN, SHARDS
from mbrl_jax.statistics import Estimate


class Listed(NamedTuple):
    """A run as it stands."""

    name: str  # its path below the folder that was searched
    settings: dict[str, Any]  # by dotted path, the seeds among them
    state: str  # finished, or how far it is
    chosen: Estimate | None  # IQM of the final returns
    last: Estimate | None
    note: str  # what is wrong with it, if anything is


def find(folder: Path) -> list[Listed]:
    """The runs in a folder and below it, links to folders followed, by their paths. A run that has several is listed once.

    Raises ConfigError: there is no such folder, or no run in it.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise ConfigError(f"directory: {str(folder)!r} is no folder; name one that runs were written below")
    runs = [_look(folder, place) for place in sorted(_places(folder))]
    if not runs:
        raise ConfigError(f"directory: there are no runs in {str(folder)!r} or below it")
    return runs


def _places(root: Path) -> Iterator[Path]:
    """The folders of runs. Each folder is visited once, by the path that takes the fewest links, so links in a circle end."""
    visited: set[str] = set()
    waiting = [root]
    while waiting:
        links = []
        for start in waiting:
            for name, below, files in os.walk(start):
                place, real = Path(name), os.path.realpath(name)
                kept = [] if real in visited else [each for each in below if each not in (CHECKPOINTS, SHARDS)]
                links += [place / each for each in kept if (place / each).is_symlink()]
                below[:] = kept  # into which os.walk goes next, but for links
                if real not in visited and {"summary.json", RUN} & set(files):
                    yield place
                visited.add(real)
        waiting = sorted(links)


def _look(root: Path, place: Path) -> Listed:
    name = str(place.relative_to(root)) if place != root else place.name
    try:
        if (place / "summary.json").exists():
            return _finished(name, results.read_summary(place))
        return _unfinished(name, place)
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
        return Listed(name, {}, "unreadable", None, None, str(error).partition("\n")[0])


def _finished(name: str, summary: dict[str, Any]) -> Listed:
    settings = {**flat_settings(from_dict(summary["config"])), "algorithm": summary["algorithm"]}
    settings |= {"seeds": summary["seeds"], "seed": summary["base_seed"]}
    chosen, last = (Estimate.from_json(summary["iqm"][arm]) for arm in ("chosen", "last"))
    frozen = len(summary["frozen_seeds"])
    notes = ["imagined returns"] if summary.get("evaluated_in") == "model" else []
    notes += [f"{frozen} seeds went non-finite"] if frozen else []
    return Listed(name, settings, "finished", chosen, last, ", ".join(notes))


def _unfinished(name: str, place: Path) -> Listed:
    asked = results.read_run(place)
    config = from_dict(asked["config"])
    settings = {**flat_settings(config), "seeds": asked["seeds"], "seed": asked["base_seed"]}
    if folders.at_once(place) < asked["seeds"]:
        shards = len(split(asked["seeds"], folders.at_once(place)))
        done = sum(folders.is_finished(shard) for shard in (place / SHARDS).glob("*"))
        return Listed(name, settings, f"{done} of {shards} shards", None, None, "")
    lines, rounds = read_lines(place / LINES), config.steps // config.round_steps
    done = lines[-1]["round"] if lines else 0
    return Listed(name, settings, f"round {done} of {rounds}", None, None, _curve_note(lines[-1]) if lines else "")


def _curve_note(line: dict[str, Any]) -> str:
    """What a round's line of ``metrics.jsonl`` says of the return."""
    reached = line["values"]["curve_return"]
    return "no finite return by its curve" if reached is None else f"IQM {reached:.0f} by its curve"


def as_table(runs: Sequence[Listed]) -> Table:
    """For a terminal: a column for each setting in which the runs differ."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    differing = [path for path in paths if len({repr(run.settings.get(path)) for run in runs if run.settings}) > 1]

    def row(run: Listed) -> list[str]:
        shown = ("" if path not in run.settings else str(run.settings[path]) for path in differing)
        returns = ("" if each is None else str(each) for each in (run.chosen, run.last))
        return [run.name, run.state, *shown, *returns, run.note]

    caption = "IQM over seeds with 95 % bootstrap intervals; settings that all runs share are not shown"
    return terminal.table(("run", "state", *differing, "chosen", "last", "note"), map(row, runs), caption=caption)
