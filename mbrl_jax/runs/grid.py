"""Every combination of values of some settings, times seeds: ``mbrl-jax sweep``.

What differs in traced settings alone runs together in one compiled program; every combination of static ones is compiled once.
All combinations have the same seeds, so they are paired. A grid leaves a folder for each combination, as
:mod:`mbrl_jax.runs.results` writes them, ``sweep.json``, a list of the combinations' summaries, each with its ``settings``, and
``sweep.png``.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from mbrl_jax.config import ConfigError, ImaginingConfig, RunConfig, algorithm_name, check, from_dict, to_dict
from mbrl_jax.runs import execution, figures, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.runner import Run
from mbrl_jax.runs.sweep import mean_depth
from mbrl_jax.statistics import Estimate, bootstrap


class Cell(NamedTuple):
    """A combination."""

    settings: dict[str, Any]  # by dotted path, in the order in which they were given
    config: RunConfig

    @property
    def name(self) -> str:
        """What tells it from the others, fit for a folder."""
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
    names = [cell.name for cell in made]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"grid: {name} is given twice; each value must be given once")
    return made


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
            read = yaml.safe_load(f"[{values}]") if equals else None
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
) -> list[Run]:
    """Train ``seeds`` agents for every combination, those that differ in traced settings alone in one compiled program.

    Arguments as of :func:`mbrl_jax.runs.runner.run_together`.

    Raises:
      ConfigError: as :func:`mbrl_jax.runs.runner.run_together`.

    """
    runs: dict[int, Run] = {}
    for places in _groups(made):
        configs = [made[place].config for place in places]
        together = runner.run_together(configs, seeds, base_seed=base_seed, display=display, memory=memory, devices=devices)
        runs |= dict(zip(places, together, strict=True))
    return [runs[place] for place in range(len(made))]


def command(
    config: RunConfig,
    words: Sequence[str],
    seeds: int,
    out: Path,
    seed: int,
    memory: int | None = None,
    devices: int | None = None,
) -> None:
    """Train a grid, print its figures, and write its folder.

    Args:
      config: what all combinations share.
      words: of the grid.
      seeds: for every combination.
      out: a new folder.
      seed: the base seed.
      memory: as in :func:`run`.
      devices: as in :func:`run`.

    Raises:
      ConfigError: as :func:`cells`, :func:`parse` and :func:`run`, or the folder cannot be used.

    """
    made = cells(config, parse(words))
    execution.use_all_cores()
    execution.check_jax()
    groups = _groups(made)
    for places in groups:  # refuse what cannot work before anything is trained
        runner.make_train_together([made[place].config for place in places])
    with results.new_folder(out) as folder, Display.standard("sweep") as display:
        runs = run(made, seeds, base_seed=seed, display=display, memory=memory, devices=devices)
    summaries = []
    for cell, each in zip(made, runs, strict=True):
        (folder / cell.name).mkdir()
        summaries.append({"settings": cell.settings, **results.write(each, folder / cell.name)})
    (folder / "sweep.json").write_text(json.dumps(summaries, indent=1) + "\n", encoding="utf-8")
    draw(made, runs, folder / "sweep.png")
    console = Console()
    console.print(as_table(made, runs))
    compiling, running = (sum(getattr(each.seconds, name) for each in runs) for name in ("compile", "run"))
    programs = f"{len(groups)} program{'s' if len(groups) > 1 else ''}"
    console.print(f"compiled {programs} in {compiling:.0f} s, ran in {running:.0f} s; written to {folder}")


def as_table(made: Sequence[Cell], runs: Sequence[Run]) -> Table:
    """The figures of a grid for a terminal: a row for each combination."""
    based = any(isinstance(cell.config, ImaginingConfig) for cell in made)
    seeds, config = len(runs[0].result.outcome.frozen), made[0].config
    table = Table(
        title=f"{algorithm_name(config)}, {config.protocol}, {seeds} seeds for each row",
        caption="IQM over seeds with 95 % bootstrap intervals" + ("; depth: mean of the imagined rows kept" if based else ""),
    )
    for column in (*made[0].settings, *(("chosen",) if based else ()), "last", *(("depth",) if based else ())):
        table.add_column(column, justify="right", overflow="fold")
    for cell, each in zip(made, runs, strict=True):
        arms = _arms(each)
        row = [*(_text(value) for value in cell.settings.values()), *(str(estimate) for estimate in arms.values())]
        table.add_row(*row, *((f"{mean_depth(each):.2f}",) if based else ()))
    return table


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
    return {arm: bootstrap(results.per_seed(returns)) for arm, returns in told.items() if returns is not None}


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
