"""The figures of a sweep: a table for a terminal, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.table import Table

from mbrl_jax import statistics
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import algorithm_name
from mbrl_jax.config.grid import Cell, text_of
from mbrl_jax.report import figures
from mbrl_jax.report.measures import mean_depth
from mbrl_jax.runs import results, terminal
from mbrl_jax.runs.run import Run
from mbrl_jax.statistics import Estimate

NOTHING = Estimate(np.nan, np.nan, np.nan)  # of a policy that a run does not have


def as_table(made: Sequence[Cell], runs: Sequence[Run]) -> Table:
    """The figures of a grid for a terminal: a row for each combination."""
    imagined = any(algorithm_of(cell.config).imagines for cell in made)
    arms = [_arms(each) for each in runs]
    policies = _policies(arms)
    seeds, config = len(runs[0].result.outcome.frozen), made[0].config
    rows = []
    for cell, each, arm in zip(made, runs, arms, strict=True):
        row = [*(text_of(value) for value in cell.settings.values()), *(str(arm.get(policy, "-")) for policy in policies)]
        rows.append([*row, *((f"{mean_depth(each):.2f}",) if imagined else ())])
    return terminal.table(
        (*made[0].settings, *policies, *(("depth",) if imagined else ())),
        rows,
        title=f"{algorithm_name(config)}, {config.protocol}, {seeds} seeds for each row",
        caption="IQM over seeds with 95 % bootstrap intervals" + ("; depth: mean of the imagined rows kept" if imagined else ""),
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
        texts = ("\n".join(f"{path} = {text_of(value)}" for path, value in cell.settings.items()) for cell in made)
        _draw_rows(ax, list(texts), arms)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    seeds = len(runs[0].result.outcome.frozen)
    figure.suptitle(f"{made[0].config.environment.name}, {seeds} seeds each, IQM with 95 % intervals", fontsize=9)
    figure.savefig(path)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _draw_line(ax: Axes, path: str, values: Sequence[float], arms: Sequence[Mapping[str, Estimate]]) -> None:
    order = np.argsort(values)
    x = np.asarray(values, np.float64)[order]
    for arm in _policies(arms):
        value, low, high = np.array([arms[place].get(arm, NOTHING) for place in order]).T
        ax.plot(x, value, "o-", color=figures.COLOURS[arm], label=f"{arm} policy", linewidth=1.4, markersize=3.5)
        ax.fill_between(x, low, high, color=figures.COLOURS[arm], alpha=0.18, linewidth=0)
    if x[0] > 0 and x[-1] / x[0] >= 10:
        ax.set_xscale("log")
    ax.set_xlabel(path)
    ax.set_ylabel("final return, IQM over seeds")


def _draw_rows(ax: Axes, names: Sequence[str], arms: Sequence[Mapping[str, Estimate]]) -> None:
    for shift, arm in zip((-0.12, 0.12), _policies(arms), strict=False):
        y = np.arange(len(names)) + shift
        value, low, high = np.array([each.get(arm, NOTHING) for each in arms]).T
        error = np.stack([value - low, high - value])
        ax.errorbar(
            value, y, xerr=error, fmt="o", color=figures.COLOURS[arm], label=f"{arm} policy", markersize=3.5, linewidth=1.4
        )
    ax.set_yticks(np.arange(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("final return, IQM over seeds")


def _policies(arms: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """The policies that some run has, the chosen one first."""
    return [policy for policy in ("chosen", "last") if any(policy in arm for arm in arms)]


def _arms(each: Run) -> dict[str, Estimate]:
    """The IQM of the final returns by policy."""
    outcome = each.result.outcome
    told = {"chosen": outcome.returns_chosen, "last": outcome.returns_last}
    return {arm: statistics.estimate(results.per_seed(returns)) for arm, returns in told.items() if returns is not None}
