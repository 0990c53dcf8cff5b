"""Every combination of values of some settings, times seeds: ``mbrl-jax sweep``.

What differs in traced settings alone runs together in one compiled program; every combination of static ones is compiled once.
All combinations have the same seeds, so they are paired. A grid leaves a numbered folder for each combination, as
:mod:`mbrl_jax.runs.results` writes them, ``sweep.png``, and ``sweep.json``: for each folder its ``name``, its ``settings``, its
``state`` (``waiting``, ``finished``, or ``failed`` with an ``error``), what was asked for, and once it is finished its summary.
A combination is written as soon as it is trained, and one that fails does not end the others.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from matplotlib.axes import Axes
from rich.table import Table

from mbrl_jax.config import ConfigError, ImaginingConfig, RunConfig, algorithm_name, check, from_dict, to_dict
from mbrl_jax.config.files import RepeatedKeyError
from mbrl_jax.config.files import parse as parse_yaml
from mbrl_jax.runs import execution, figures, interruption, results, runner, strict_json, terminal
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.runner import Run
from mbrl_jax.runs.sweep import mean_depth
from mbrl_jax.statistics import Estimate

TABLE = "sweep.json"


class Cell(NamedTuple):
    """A combination."""

    settings: dict[str, Any]  # by dotted path, in the order in which they were given
    config: RunConfig

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ",".join(f"{path}={_text(value)}" for path, value in self.settings.items())


def cells(config: RunConfig, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination of the values of some settings, put into ``config``.

    Raises:
      ConfigError: there is no such setting, it has no values or one of them twice, or a combination cannot work.

    """
    if not grid:
        raise ConfigError("grid: it is empty; name at least one setting with its values, as in agent.learning_rate=1e-4,1e-3")
    for path, given in grid.items():
        if not given:
            raise ConfigError(f"{path}: [] has no values; give at least one")
    made = []
    for values in itertools.product(*grid.values()):
        content = to_dict(config)
        for path, value in zip(grid, values, strict=True):
            _put(content, path, value)
        config_of_cell = from_dict(content)
        check(config_of_cell)
        flat = results.flat_settings(config_of_cell)
        made.append(Cell({path: flat[path] for path in grid}, config_of_cell))
    labels = [cell.label for cell in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"grid: {label} is given twice; each value must be given once")
    return made


def names(made: Sequence[Cell]) -> list[str]:
    """The folder of each combination: its number, as short as the longest one."""
    digits = len(str(len(made) - 1))
    return [f"{place:0{digits}d}" for place in range(len(made))]


def parse(words: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that words like ``agent.learning_rate=1e-4,1e-3`` or ``agent.hidden=[64,64],[32]`` say.

    Raises:
      ConfigError: a word says none, or a setting is given twice.

    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        path, equals, values = word.partition("=")
        path = path.strip().replace("-", "_")  # as flags may be written
        try:
            read = parse_yaml(f"[{values}]") if equals else None
        except RepeatedKeyError as error:
            raise ConfigError(f"grid: {word!r}: {error}") from error
        except yaml.YAMLError:
            read = None
        if not path or not isinstance(read, list):
            raise ConfigError(f"grid: {word!r} must be a setting with its values, as in agent.learning_rate=1e-4,1e-3")
        if path in grid:
            raise ConfigError(f"grid: {path} is given twice; put all its values into one list")
        grid[path] = read
    return grid


def run(
    made: Sequence[Cell],
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    memory: int | None = None,
    devices: int | None = None,
    leave: Callable[[int, Run], None] = lambda place, run: None,
    failed: Callable[[Sequence[int], Exception], None] | None = None,
) -> dict[int, Run]:
    """Train ``seeds`` agents for every combination, those that differ in traced settings alone in one compiled program.

    Args:
      made: the combinations.
      seeds: as in :func:`mbrl_jax.runs.runner.run_together`, and so are the arguments up to ``devices``.
      base_seed: of all combinations.
      display: shows progress.
      memory: bytes that may be used.
      devices: how many to use.
      leave: called with a combination's place and run as soon as all of its seeds are trained.
      failed: called with the places of the combinations that an error has cost and the error; the others go on. None raises it.

    Returns:
      The runs by their places.

    Raises:
      ConfigError: as :func:`mbrl_jax.runs.runner.run_together`.

    """
    runs: dict[int, Run] = {}
    for places in _groups(made):
        left = list(places)
        try:
            configs = [made[place].config for place in places]
            together = runner.train_together(configs, seeds, base_seed=base_seed, display=display, memory=memory, devices=devices)
            for place, one in zip(places, together, strict=True):
                leave(place, one)
                runs[place] = one
                left.remove(place)
        except Exception as error:
            if failed is None:
                raise
            failed(left, error)
    return runs


def command(
    config: RunConfig,
    words: Sequence[str],
    seeds: int,
    out: Path,
    seed: int,
    memory: int | None = None,
    devices: int | None = None,
    resume: bool = False,
) -> None:
    """Train a grid, print its figures, and write its folder. Exits with 1 if a combination failed.

    Args:
      config: what all combinations share.
      words: of the grid.
      seeds: for every combination.
      out: a new folder.
      seed: the base seed.
      memory: as in :func:`run`.
      devices: as in :func:`run`.
      resume: train what an earlier call with the same arguments has left undone in the folder, if there was one.

    Raises:
      ConfigError: as :func:`cells`, :func:`parse` and :func:`run`, or the folder cannot be used.

    """
    made = cells(config, parse(words))
    execution.use_all_cores()
    execution.check_jax()
    groups = _groups(made)
    for places in groups:  # refuse what cannot work before anything is trained
        runner.make_train_together([made[place].config for place in places])
    there = resume and not results.is_untouched(out)
    table = _Table(out, made, seeds, seed)
    with (
        contextlib.nullcontext() if there else results.new_folder(out),
        interruption.on_leaving(table.withdraw),
        Display.standard("sweep") as display,
    ):
        runs = table.take_up() if there else table.begin()
        spent = _train(table, made, runs, seeds, seed, display, memory, devices)
    finished, told = sorted(runs), []
    if finished:
        shown, ended = [made[place] for place in finished], [runs[place] for place in finished]
        draw(shown, ended, out / "sweep.png")
        told.append(as_table(shown, ended))
    failures = [f"failed: {names(made)[place]}, {made[place].label}: {error}" for place, error in table.failures().items()]
    terminal.show(*told, f"{len(finished)} of {len(made)} combinations in {spent:.0f} s; written to {out}", *failures)
    if len(finished) < len(made):
        raise SystemExit(1)


def _train(
    table: "_Table",
    made: Sequence[Cell],
    runs: dict[int, Run],
    seeds: int,
    seed: int,
    display: Display,
    memory: int | None,
    devices: int | None,
) -> float:
    """Train the combinations that ``runs`` lacks, put them there and into the table, and return the seconds it took."""
    left = [place for place in range(len(made)) if place not in runs]
    started, before = time.perf_counter(), len(runs)

    def failed(places: Sequence[int], error: Exception) -> None:
        if isinstance(error, ConfigError) and len(runs) == before == 0 and places[0] == 0:
            raise error  # nothing is lost, and most likely none of them can work
        table.fail([left[place] for place in places], error)
        display.say(f"{len(places)} of {len(made)} combinations failed: {error!r}; the others go on")

    def leave(place: int, one: Run) -> None:
        table.finish(left[place], one)
        runs[left[place]] = one

    try:
        options = {"base_seed": seed, "display": display, "memory": memory, "devices": devices}
        run([made[place] for place in left], seeds, leave=leave, failed=failed, **options)  # type: ignore[arg-type]
    except BaseException:
        table.withdraw()
        raise
    return time.perf_counter() - started


class _Table:
    """The folder of a grid and its ``sweep.json``."""

    def __init__(self, folder: Path, made: Sequence[Cell], seeds: int, seed: int):
        """Of combinations with these seeds; nothing is written yet."""
        self.folder, self.names = folder, names(made)
        self._asked = [
            {"name": name, "settings": cell.settings, "config": to_dict(cell.config), "seeds": seeds, "base_seed": seed}
            for name, cell in zip(self.names, made, strict=True)
        ]
        self._entries: list[dict[str, Any]] = [{**asked, "state": "waiting"} for asked in self._asked]

    def begin(self) -> dict[int, Run]:
        """Make the folders and the table in a folder that is there; no run is.

        Raises:
          ConfigError: something cannot be written there.

        """
        try:
            for name in self.names:
                (self.folder / name).mkdir()
            self._write()
        except OSError as error:
            self.withdraw()
            raise ConfigError(f"out: nothing can be written to {str(self.folder)!r}: {error}") from error
        return {}

    def take_up(self) -> dict[int, Run]:
        """The finished runs of an earlier call, by their places.

        Raises:
          ConfigError: the folder holds no grid, or another one.

        """
        try:
            there = strict_json.loads((self.folder / TABLE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"out: {str(self.folder)!r} holds no sweep that could go on: {error}") from error
        theirs = [{name: each.get(name) for name in self._asked[0]} for each in there]
        if theirs != strict_json.loads(strict_json.dumps(self._asked)):
            raise ConfigError(
                f"out: {str(self.folder)!r} does not fit; the sweep in it was asked for with another grid, preset, --seeds or "
                "--seed, and goes on only with the same"
            )
        runs = {}
        for place, (name, entry) in enumerate(zip(self.names, there, strict=True)):
            if entry["state"] == "finished":
                self._entries[place], runs[place] = entry, results.read(self.folder / name)
            (self.folder / name).mkdir(exist_ok=True)
        return runs

    def finish(self, place: int, run: Run) -> None:
        """Write a run into its folder."""
        summary = results.write(run, self.folder / self.names[place])
        self._entries[place] = {**self._asked[place], "state": "finished", **summary}
        self._write()

    def fail(self, places: Sequence[int], error: Exception) -> None:
        """Note what an error has cost."""
        for place in places:
            self._entries[place] |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        self._write()

    def failures(self) -> dict[int, str]:
        """The errors by the places of what failed."""
        return {place: entry["error"] for place, entry in enumerate(self._entries) if entry["state"] == "failed"}

    def withdraw(self) -> None:
        """Remove what :meth:`begin` made if nothing was trained."""
        if any(entry["state"] != "waiting" for entry in self._entries):
            return
        (self.folder / TABLE).unlink(missing_ok=True)
        for folder in (self.folder / name for name in self.names):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _write(self) -> None:
        with results.new_file(self.folder / TABLE) as path:
            strict_json.write(path, self._entries)


def as_table(made: Sequence[Cell], runs: Sequence[Run]) -> Table:
    """The figures of a grid for a terminal: a row for each combination."""
    based = any(isinstance(cell.config, ImaginingConfig) for cell in made)
    seeds, config = len(runs[0].result.outcome.frozen), made[0].config
    rows = []
    for cell, each in zip(made, runs, strict=True):
        row = [*(_text(value) for value in cell.settings.values()), *(str(estimate) for estimate in _arms(each).values())]
        rows.append([*row, *((f"{mean_depth(each):.2f}",) if based else ())])
    return terminal.table(
        (*made[0].settings, *(("chosen",) if based else ()), "last", *(("depth",) if based else ())),
        rows,
        title=f"{algorithm_name(config)}, {config.protocol}, {seeds} seeds for each row",
        caption="IQM over seeds with 95 % bootstrap intervals" + ("; depth: mean of the imagined rows kept" if based else ""),
        numbers=True,
    )


def draw(made: Sequence[Cell], runs: Sequence[Run], path: Path) -> None:
    """The returns of a grid: over the values of one number, or a row for each combination."""
    figure, (ax,) = figures.new_figure(1)
    only = list(made[0].settings)
    values = [cell.settings[only[0]] for cell in made]
    arms = [_arms(each) for each in runs]
    if len(only) == 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        _draw_line(ax, only[0], values, arms)
        ax.legend(frameon=False, fontsize=7)
    else:
        figure.set_size_inches(6.5, 1.4 + 0.2 * len(made) * (1 + len(only)))
        texts = ("\n".join(f"{path} = {_text(value)}" for path, value in cell.settings.items()) for cell in made)
        _draw_rows(ax, list(texts), arms)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    seeds = len(runs[0].result.outcome.frozen)
    figure.suptitle(f"{made[0].config.environment.name}, {seeds} seeds each, IQM with 95 % intervals", fontsize=9)
    figure.savefig(path)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _draw_line(ax: Axes, path: str, values: Sequence[float], arms: Sequence[Mapping[str, Estimate]]) -> None:
    order = np.argsort(values)
    x = np.asarray(values, np.float64)[order]
    for arm in arms[0]:
        value, low, high = np.array([arms[place][arm] for place in order]).T
        ax.plot(x, value, "o-", color=figures.COLOURS[arm], label=f"{arm} policy", linewidth=1.4, markersize=3.5)
        ax.fill_between(x, low, high, color=figures.COLOURS[arm], alpha=0.18, linewidth=0)
    if x[0] > 0 and x[-1] / x[0] >= 10:
        ax.set_xscale("log")
    ax.set_xlabel(path)
    ax.set_ylabel("final return, IQM over seeds")


def _draw_rows(ax: Axes, names: Sequence[str], arms: Sequence[Mapping[str, Estimate]]) -> None:
    for shift, arm in zip((-0.12, 0.12), arms[0], strict=False):
        y = np.arange(len(names)) + shift
        value, low, high = np.array([each[arm] for each in arms]).T
        error = np.stack([value - low, high - value])
        ax.errorbar(
            value, y, xerr=error, fmt="o", color=figures.COLOURS[arm], label=f"{arm} policy", markersize=3.5, linewidth=1.4
        )
    ax.set_yticks(np.arange(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("final return, IQM over seeds")


def _arms(each: Run) -> dict[str, Estimate]:
    """The IQM of the final returns by policy."""
    outcome = each.result.outcome
    told = {"chosen": outcome.returns_chosen, "last": outcome.returns_last}
    return {arm: results.estimate(results.per_seed(returns)) for arm, returns in told.items() if returns is not None}


def _groups(made: Sequence[Cell]) -> list[list[int]]:
    """The places of the combinations that compile to one program."""
    groups: dict[Any, list[int]] = {}
    for place, cell in enumerate(made):
        groups.setdefault(jax.tree.structure(cell.config), []).append(place)  # type: ignore[operator]
    return list(groups.values())


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Put a value in place of the one at a dotted path."""
    *groups, name = path.split(".")
    place: Any = content
    for group in groups:
        place = place.get(group) if isinstance(place, dict) else None
    if not isinstance(place, dict) or name not in place:
        raise ConfigError(f"{path}: there is no such setting; `mbrl-jax train CONFIG --help` lists them")
    if isinstance(place[name], dict):
        inner = ", ".join(f"{path}.{each}" for each in place[name])
        raise ConfigError(f"{path}: it is a group of settings; name one of {inner}")
    place[name] = value


def _text(value: Any) -> str:
    """A value as it is written in a name: a list without blanks, a number without more digits than it needs."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
