"""The report's section on returns: learning curves, final returns of all seeds, profiles, and comparisons of runs."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl_jax.report import markup
from mbrl_jax.report.entries import Entry, by_task, seeds_of
from mbrl_jax.report.figures import draw_band
from mbrl_jax.report.markup import Figures, new_axes, plain
from mbrl_jax.report.measures import chosen_so_far, performance_profile, probability_of_improvement
from mbrl_jax.report.overview import marks_of
from mbrl_jax.statistics import Estimate, bootstrap

PROFILE_POINTS = 201
HALF_WIDTH = 0.24  # of the band that a strip's dots are spread over, in rows


class Comparison(NamedTuple):
    """How likely a seed of one run is to return more than one of another."""

    ours: Entry
    theirs: Entry
    policies: str
    probability: Estimate


def section(entries: Sequence[Entry], figures: Figures) -> str:
    """How the runs learned and what their policies return in the end."""
    parts = []
    tasks = by_task(entries)
    for task, runs in tasks.items():
        if len(tasks) > 1:
            parts.append(markup.heading(task))
        parts.append(markup.side_by_side(*_curves(runs, figures), _strip(runs, figures), _profile(runs, figures)))
        parts.append(_comparisons(runs, figures))
    return markup.section("returns", "Returns", *parts)


# ------------------------------------------------------------------------------------------------------------ learning curves


def steps_of(entry: Entry, *, real: bool) -> np.ndarray:
    """[rounds] what had been done by the end of each round: steps of the main loop, or real transitions."""
    config = entry.run.config
    steps = np.arange(1, config.steps // config.round_steps + 1) * config.round_steps
    return steps + (config.random_transitions if real else 0)


def step_axis(entries: Sequence[Entry]) -> tuple[bool, str]:
    """Whether runs are drawn against real transitions, which they are if all of them go on acting, and the axis's name."""
    real = all(entry.run.config.protocol == "interactive" for entry in entries)
    return real, "real transitions" if real else "steps of the main loop"


def _curves(entries: Sequence[Entry], figures: Figures) -> Iterator[str]:
    episodes = sorted({entry.run.config.evaluation.curve_episodes for entry in entries})
    counted = f"{' or '.join(map(str, episodes))} greedy real episodes at the end of every round, which teach the agent nothing"
    curves = {entry.label: entry.run.result.metrics.curve_return for entry in entries}
    top = max(float(np.max(curve)) for curve in curves.values())
    figure, ax = _curve_axes(entries, curves)
    _same_height(ax, top)
    yield figures.add(
        figure,
        f"Learning curves of the last policy of {', '.join(curves)}",
        f"Learning curves of the last policy: mean return of {counted}; IQM over seeds and its 95 % bootstrap interval at each "
        f"point, {seeds_of(entries)}.",
    )
    modelled = [entry for entry in entries if entry.chooses]
    if not modelled:
        yield markup.paragraph("No policy was chosen in imagination.")
        return
    chosen = {entry.label: np.asarray(chosen_so_far(entry.run)) for entry in modelled}
    figure, ax = _curve_axes(modelled, chosen)
    _same_height(ax, top)
    yield figures.add(
        figure,
        f"Learning curves of the policy chosen so far of {', '.join(chosen)}",
        "The same of the policy chosen so far, the snapshot that imagination had scored best by then. Choosing it costs no real "
        f"transition; IQM over seeds and its 95 % bootstrap interval, {seeds_of(modelled)}.",
    )


def _curve_axes(entries: Sequence[Entry], curves: dict[str, np.ndarray]) -> tuple[Figure, Axes]:
    real, label = step_axis(entries)
    figure, (ax,) = new_axes()
    for entry in entries:
        draw_band(ax, steps_of(entry, real=real), curves[entry.label], plain(entry.label), entry.colour)
    ax.set_xlabel(label)
    ax.set_ylabel("return, IQM over seeds")
    markup.legend(figure)
    return figure, ax


def _same_height(ax: Axes, top: float) -> None:
    """Axes from 0, or for negative returns from wherever they begin, to the same end in both figures."""
    low = min(0.0, ax.get_ylim()[0])
    ax.set_ylim(low, max(top * 1.04, 0.0) if top > 0 else 0.0)


# -------------------------------------------------------------------------------------------------------------- final returns


def _strip(entries: Sequence[Entry], figures: Figures) -> str:
    arms = [(entry, policy, returns) for entry in entries for policy, returns in entry.returns.items()]
    figure, (ax,) = new_axes(0.9 + 0.55 * len(arms))
    for row, (entry, policy, returns) in enumerate(arms):
        filled = entry.colour if policy == entry.shown else "none"
        dots = row - 0.14 + spread(returns)
        ax.scatter(returns, dots, s=14, facecolors=filled, edgecolors=entry.colour, linewidths=0.9, alpha=0.65)
        middle, low, high = bootstrap(returns)
        ax.plot([low, high], [row + 0.3, row + 0.3], color="black", linewidth=1.6, solid_capstyle="butt")
        ax.plot([middle, middle], [row + 0.18, row + 0.42], color="black", linewidth=2.2)
    ax.set_yticks(range(len(arms)), [markup.tick(f"{entry.label}, {policy}") for entry, policy, _ in arms], fontsize=markup.TEXT)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel("final return of a seed")
    _marks(ax, entries)
    episodes = sorted({entry.run.config.evaluation.episodes for entry in entries})
    return figures.add(
        figure,
        f"Final returns of every seed of {', '.join(entry.label for entry in entries)}",
        f"Final returns: every dot is a seed, the mean of {' or '.join(map(str, episodes))} greedy real episodes; the black "
        f"mark below is the IQM, its line the 95 % bootstrap interval, {seeds_of(entries)}. Filled: the policy that a run hands "
        "over, the chosen one where there is a model.",
    )


def spread(returns: np.ndarray) -> np.ndarray:
    """[seeds] by how much each dot of a strip is moved aside, so that equal returns [seeds] do not hide each other."""
    span = max(float(np.ptp(returns)), 1e-9)
    bins = np.floor((returns - returns.min()) / span * 40).astype(int)
    aside = np.zeros(len(returns))
    for which in np.unique(bins):
        inside = np.flatnonzero(bins == which)
        aside[inside] = np.linspace(-1, 1, len(inside)) * HALF_WIDTH * min(1.0, len(inside) / 8) if len(inside) > 1 else 0.0
    return aside


def _profile(entries: Sequence[Entry], figures: Figures) -> str:
    figure, (ax,) = new_axes()
    everything = np.concatenate([returns for entry in entries for returns in entry.returns.values()])
    marks = np.linspace(min(0.0, float(everything.min())), max(0.0, float(everything.max())), PROFILE_POINTS)
    for entry in entries:
        for policy, returns in entry.returns.items():
            share, low, high = performance_profile(returns, marks)
            style = "-" if policy == entry.shown else "--"
            label = plain(f"{entry.label}, {policy}")
            ax.step(marks, share, where="pre", color=entry.colour, linestyle=style, linewidth=1.6, label=label)
            ax.fill_between(marks, low, high, step="pre", color=entry.colour, alpha=0.12, linewidth=0)
    _marks(ax, entries)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("final return of at least")
    ax.set_ylabel("fraction of seeds")
    markup.legend(figure)
    dotted = f" Dotted: {' and '.join(map(str, marks_of(entries[0])))}." if marks_of(entries[0]) else ""
    return figures.add(
        figure,
        f"Performance profiles of {', '.join(entry.label for entry in entries)}",
        "Performance profiles: the fraction of seeds whose final return is at least as high, with pointwise 95 % bootstrap "
        f"intervals, {seeds_of(entries)}. A curve that lies above another everywhere belongs to the better run.{dotted}",
    )


def _marks(ax: Axes, entries: Sequence[Entry]) -> None:
    for mark in marks_of(entries[0]):
        ax.axvline(mark, color="0.4", linewidth=0.8, linestyle=":", zorder=0)


# ---------------------------------------------------------------------------------------------------------------- comparisons


def compare(entries: Sequence[Entry]) -> list[Comparison]:
    """Every pair of runs: what each hands over, and, where that is not the same, their last policies."""
    found = []
    for ours, theirs in itertools.combinations(entries, 2):
        pairs = dict.fromkeys([(ours.shown, theirs.shown), ("last", "last")])
        for mine, other in pairs:
            probability = probability_of_improvement(ours.returns[mine], theirs.returns[other])
            found.append(Comparison(ours, theirs, mine if mine == other else f"{mine} against {other}", probability))
    return found


def _comparisons(entries: Sequence[Entry], figures: Figures) -> str:
    if len(entries) < 2:
        return markup.paragraph("There is one run of this task, so there is nothing to compare it with.")
    found = compare(entries)
    figure, (ax,) = new_axes(0.9 + 0.5 * len(found))
    for row, (ours, _, _, probability) in enumerate(found):
        ax.plot([probability.low, probability.high], [row, row], color=ours.colour, linewidth=2.5)
        ax.plot([probability.value], [row], color=ours.colour, marker="o", markersize=6)
    ax.axvline(0.5, color="0.4", linewidth=0.8, linestyle=":")
    ticks = [markup.tick(f"{ours.label} > {theirs.label}, {policies}") for ours, theirs, policies, _ in found]
    ax.set_yticks(range(len(found)), ticks, fontsize=markup.TEXT - 1)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("probability of improvement")
    rows = [
        [f"{ours.label} > {theirs.label}", policies, f"{value:.2f} [{low:.2f}, {high:.2f}]"]
        for ours, theirs, policies, (value, low, high) in found
    ]
    told = (
        "Probability of improvement P(X > Y) + P(X = Y) / 2: how often a seed of the first run returns more than a seed of the "
        "second, over all pairs of seeds (Agarwal et al. 2021); 95 % intervals by resampling the seeds of each run, "
        f"{seeds_of(entries)}. An interval that holds one half, dotted, does not tell the runs apart."
    )
    drawn = figures.add(figure, f"Probabilities of improvement between {len(entries)} runs", told)
    return markup.side_by_side(drawn, markup.table(["runs", "policies", "probability"], rows, "Probability of improvement"))
