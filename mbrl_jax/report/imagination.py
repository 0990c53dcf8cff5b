"""The report's section on imagination: what was learned from it, how long its rollouts got, and how far it can be believed."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl_jax import statistics
from mbrl_jax.algorithms.registry import TD
from mbrl_jax.config import ImaginingConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.diagnosis import map_coordinates
from mbrl_jax.imagination.lanes import DEPTH_EDGES
from mbrl_jax.report import markup
from mbrl_jax.report.entries import Entry, left_out, only, seeds_of
from mbrl_jax.report.figures import LOSS_MARK, LOSS_MARK_TRANSITIONS, draw_band, draw_loss, loss_name, losses_of
from mbrl_jax.report.horizon_figures import draw_map
from mbrl_jax.report.markup import Figures, new_axes, plain
from mbrl_jax.report.measures import finite_seeds
from mbrl_jax.report.returns import step_axis, steps_of
from mbrl_jax.report.tasks import side_name

GROWTH = {
    "compounded_error": ("compounded error", "#b0413e"),
    "one_step_error": ("one-step error", "#e08e45"),
    "disagreement": ("disagreement", "#5b5f97"),
}


def _instead(entry: Entry) -> str:
    """What a run does that chooses nothing in imagination."""
    if entry.latent:
        return "learns in imagined latent states, and chooses nothing there"
    return "plans, and learns nothing in imagination" if entry.has_model else "imagines nothing"


def section(entries: Sequence[Entry], figures: Figures) -> str:
    """Imagination in the runs that have a model."""
    modelled = [entry for entry in entries if entry.imagines]
    parts = [markup.paragraph(f"{entry.label} {_instead(entry)}.") for entry in entries if not entry.imagines]
    if modelled:
        parts.append(
            markup.paragraph(
                "A policy that is scored in imagination may exploit what the model gets wrong, and be overrated: it surfs on the "
                "model's error. Where snapshots are scored, points below the diagonal and a difference above zero say by how "
                "much."
            )
        )
        drawn = [_loss(entry, figures) for entry in modelled]
        drawn += [_horizons(modelled, figures), _depths(modelled, figures)]
        scored = [entry for entry in modelled if entry.chooses]
        drawn += [_scores(entry, figures) for entry in scored]
        drawn += [_surfing(scored, figures)] if scored else []
        parts.append(markup.side_by_side(*drawn))
    for entry in modelled:
        parts.append(_diagnosis(entry, figures))
    return markup.section("imagination", "Imagination", *parts)


def _none(what: str) -> str:
    return markup.paragraph(f"No seed has finite numbers of {what}, so there is nothing to draw.")


def _loss(entry: Entry, figures: Figures) -> str:
    curves, name = losses_of(entry.run), loss_name(entry.run.config)
    if not curves:
        return markup.paragraph(f"The agent of {entry.label} logs no loss.")
    kept = finite_seeds(*curves.values())
    if not kept.any():
        return _none(f"the {name} of {entry.label}")
    figure, (ax,) = new_axes()
    draw_loss(ax, only(entry.run, kept))
    markup.legend(figure, columns=2)
    mark = ""
    if name == TD:
        told = f"a loss of {LOSS_MARK} by {LOSS_MARK_TRANSITIONS:,} transitions, the mark of the tutorial that the method is from"
        mark = f" Dotted: {told}."
    return figures.add(
        figure,
        f"Imagined {name} of {entry.label} against imagined transitions",
        f"{entry.label}: {name} on imagined transitions against their number, and the same over the variance of its targets, "
        f"which takes out their growth; median and quartiles of {kept.sum()} seeds.{mark}{left_out(kept)}",
    )


def _bands(
    entries: Sequence[Entry], curves_of: Callable[[Entry], np.ndarray], draw: Callable[[Axes, Entry, np.ndarray], None]
) -> tuple[Figure, Axes, str] | None:
    """Axes with curves [seeds, points] of each run, of the seeds where they are finite, and the end of the caption; none without
    such a seed.
    """
    curves = {entry.label: curves_of(entry) for entry in entries}
    kept = {label: finite_seeds(each) for label, each in curves.items()}
    if not any(seeds.any() for seeds in kept.values()):
        return None
    figure, (ax,) = new_axes()
    for entry in entries:
        if kept[entry.label].any():
            draw(ax, entry, curves[entry.label][kept[entry.label]])
    told = [f" {label}:{left_out(seeds)}" for label, seeds in kept.items() if not seeds.all()]
    return figure, ax, "".join(told)


def _horizons(entries: Sequence[Entry], figures: Figures) -> str:
    real, label = step_axis(entries)

    def draw(ax: Axes, entry: Entry, curves: np.ndarray) -> None:
        draw_band(ax, steps_of(entry, real=real), curves, plain(entry.label), entry.colour)

    made = _bands(entries, realised_horizons, draw)
    if made is None:
        return _none("the realised horizon")
    figure, ax, told = made
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
    ax.set_xlabel(label)
    ax.set_ylabel("realised horizon, imagined steps")
    markup.legend(figure)
    limits = "; ".join(f"{entry.label}: {_controller(entry)}" for entry in entries)
    return figures.add(
        figure,
        f"Realised horizon over training of {', '.join(entry.label for entry in entries)}",
        "Realised horizon: mean length of the imagined rollouts in each round, whatever ended them (the controller, the cap, or "
        f"the end of an imagined episode); IQM over seeds with its 95 % bootstrap interval, {seeds_of(entries)}. {limits}.{told}",
    )


def realised_horizons(entry: Entry) -> np.ndarray:
    """[seeds, rounds] mean length of rollouts; where none ended in a round, as many steps as a round's lanes were advanced by."""
    config = entry.run.config
    assert isinstance(config, ImaginingConfig)
    ended = np.asarray(entry.run.result.metrics.lanes.ended, np.float64).mean(axis=2)
    return 1 / np.maximum(ended, 1 / (config.round_steps * config.imagination.steps))


def _controller(entry: Entry) -> str:
    config = entry.run.config
    assert isinstance(config, ImaginingConfig)
    numbers = ", ".join(f"{name} {value:g}" for name, value in config.imagination.controller.numbers.items())
    return f"{config.imagination.controller.kind}{f' ({numbers})' if numbers else ''}, cap {config.imagination.cap}"


def _depths(entries: Sequence[Entry], figures: Figures) -> str:
    bins = itertools.pairwise((0, *DEPTH_EDGES))
    edges = [*(f"{high}" if high == low + 1 else f"{low + 1}-{high}" for low, high in bins), f"> {DEPTH_EDGES[-1]}"]

    def shares(entry: Entry) -> np.ndarray:
        return np.asarray(entry.run.result.metrics.lanes.histogram, np.float64).mean(axis=(1, 2))

    def draw(ax: Axes, entry: Entry, curves: np.ndarray) -> None:
        middle, low, high = statistics.running_interval(curves, statistics.mean)
        x = np.arange(len(edges)) + (entries.index(entry) - (len(entries) - 1) / 2) * 0.8 / len(entries)
        errors = np.maximum([middle - low, high - middle], 0)
        ax.bar(
            x, middle, 0.8 / len(entries), yerr=errors, color=entry.colour, label=plain(entry.label), error_kw={"linewidth": 0.8}
        )

    made = _bands(entries, shares, draw)
    if made is None:
        return _none("the depth of imagined transitions")
    figure, ax, told = made
    ax.set_xticks(range(len(edges)), edges, fontsize=markup.TEXT, rotation=45)
    ax.set_xlabel("depth, imagined steps from the root")
    ax.set_ylabel("share of imagined transitions")
    markup.legend(figure)
    return figures.add(
        figure,
        f"Share of imagined transitions by depth of {', '.join(entry.label for entry in entries)}",
        "Depth of the imagined transitions that were kept for learning, as a share of all that were imagined in the whole run; "
        f"mean over seeds with its 95 % bootstrap interval, {seeds_of(entries)}.{told}",
    )


def _scores(entry: Entry, figures: Figures) -> str:
    metrics = entry.run.result.metrics
    kept = finite_seeds(metrics.score, metrics.curve_return)
    if not kept.any():
        return _none(f"the imagined scores of {entry.label}")
    score, real = metrics.score[kept], metrics.curve_return[kept]
    when = np.broadcast_to(steps_of(entry, real=False), score.shape)
    figure, (ax,) = new_axes()
    both = np.concatenate([score.ravel(), real.ravel()])
    ends = [min(0.0, float(both.min())), max(0.0, float(both.max()))]
    ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=":")
    points = ax.scatter(
        score.ravel(), real.ravel(), c=when.ravel(), s=6, alpha=0.6, linewidths=0, cmap="viridis", rasterized=True
    )
    bar = figure.colorbar(points, ax=ax)
    bar.set_label("steps of the main loop", fontsize=markup.TEXT)
    _rasterise(bar.ax)
    ax.set_xlabel("imagined return of a snapshot")
    ax.set_ylabel("its real return")
    config = entry.run.config
    assert isinstance(config, ImaginingConfig)
    return figures.add(
        figure,
        f"Imagined against real return of the snapshots of {entry.label}",
        f"{entry.label}: every dot is a snapshot, {score.shape[1]} of each of {kept.sum()} seeds; mean of "
        f"{config.selection.episodes} imagined episodes, cut after {config.selection.steps} steps, against the mean of "
        f"{config.evaluation.curve_episodes} real ones. Dotted: equal.{left_out(kept)}",
    )


def _surfing(entries: Sequence[Entry], figures: Figures) -> str:
    real, label = step_axis(entries)

    def difference(entry: Entry) -> np.ndarray:
        metrics = entry.run.result.metrics
        return np.asarray(metrics.score, np.float64) - np.asarray(metrics.curve_return, np.float64)

    def draw(ax: Axes, entry: Entry, curves: np.ndarray) -> None:
        draw_band(ax, steps_of(entry, real=real), curves, plain(entry.label), entry.colour)

    made = _bands(entries, difference, draw)
    if made is None:
        return _none("the imagined less the real return")
    figure, ax, told = made
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xlabel(label)
    ax.set_ylabel("imagined minus real return")
    markup.legend(figure)
    return figures.add(
        figure,
        f"Imagined minus real return over training of {', '.join(entry.label for entry in entries)}",
        "Surfing: imagined minus real return of the snapshot of each round; IQM over seeds with its 95 % bootstrap interval, "
        f"{seeds_of(entries)}. Above zero imagination overrates the policy.{told}",
    )


# ------------------------------------------------------------------------------------------------------------------ diagnosis


def _diagnosis(entry: Entry, figures: Figures) -> str:
    if entry.run.diagnosis is None:
        return markup.paragraph(
            f"How wrong the model of {entry.label} is by depth was not measured; training with the flag diagnose does that."
        )
    kept = finite_seeds(*entry.run.diagnosis.map)
    if not kept.any():
        return _none(f"the diagnosis of {entry.label}")
    measured, error_map = (type(part)(*(leaf[kept] for leaf in part)) for part in entry.run.diagnosis)
    medians = {name: np.median(leaf, axis=0) for name, leaf in error_map._asdict().items()}
    figure, (ax,) = new_axes()
    longest = 0
    for name, (label, colour) in GROWTH.items():
        middle, low, high = by_depth(getattr(measured, name))
        depth = np.arange(1, len(middle) + 1)
        longest = max(longest, len(middle))
        ax.plot(depth, middle, color=colour, label=label, linewidth=1.5, marker="o" if len(middle) < 12 else None, markersize=4)
        ax.fill_between(depth, low, high, color=colour, alpha=0.16, linewidth=0)
    markup.readable_log(ax)
    if longest < 12:
        ax.set_xticks(range(1, longest + 1))
    ax.set_xlabel("depth, imagined steps from the root")
    ax.set_ylabel("error, in deviations")
    markup.legend(figure, columns=2)
    grown = figures.add(
        figure,
        f"Errors of the final model of {entry.label} by depth",
        f"{entry.label}: errors of the final model along the rollouts of the last policy, by depth, as far as rollouts of half "
        "of the seeds get: of one step from an imagined state, compounded since the root by the same actions, and what the "
        "members disagree about; root mean square over axes, in deviations of the data's state change; median and quartiles of "
        f"{kept.sum()} seeds.{left_out(kept)}",
    )
    maps = [_map(entry, medians, name, label, int(kept.sum()), figures) for name, (label, _) in list(GROWTH.items())[1:]]
    return markup.heading(f"Errors of the model of {entry.label}") + markup.side_by_side(grown, *maps)


def by_depth(values: np.ndarray) -> np.ndarray:
    """[3, depths] median and quartiles of [seeds, L] at the depths that at least half of the seeds have a value for."""
    enough = np.mean(np.isfinite(values), axis=0) >= 0.5
    return np.array([np.nanquantile(values[:, i], [0.5, 0.25, 0.75]) for i in np.flatnonzero(enough)]).reshape(-1, 3).T


def _map(entry: Entry, error_map: dict[str, Any], what: str, label: str, seeds: int, figures: Figures) -> str:
    figure, (ax,) = new_axes()
    draw_map(ax, error_map, what, "", entry.run.config.environment)
    if entry.task != "CartPole-v1":  # whose axes are drawn already
        spec = make_environment(entry.run.config.environment).spec
        first, second = (side_name(entry.task, spec.observation_size, side.axes) for side in map_coordinates(spec))
        ax.set_xlabel(first)
        ax.set_ylabel(second)
    for bar in figure.axes[1:]:
        bar.yaxis.label.set_fontsize(markup.TEXT)
        _rasterise(bar)
    return figures.add(
        figure,
        f"Map of the {label} of {entry.label} over the state space",
        f"{entry.label}: decadic logarithm of the {label} of the final model over a plane of the state space, all other axes at "
        f"0, mean over actions, median of {seeds} seeds. The maps of a run share their colours.",
    )


def _rasterise(bar: Axes) -> None:
    """Draw a bar of colours as a picture; its hundreds of cells would be as many shapes."""
    for drawn in bar.collections:
        drawn.set_rasterized(True)
