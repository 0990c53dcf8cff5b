"""The report's part on latent worlds: how they were learned, how far their beliefs drift, and what they see."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mbrl_jax.imagination.lanes import DEPTH_EDGES
from mbrl_jax.model.rssm import RSSMConfig
from mbrl_jax.report import beliefs, markup, measures
from mbrl_jax.report.beliefs import Beliefs
from mbrl_jax.report.entries import Entry, left_out
from mbrl_jax.report.figures import draw_band
from mbrl_jax.report.markup import Figures, new_axes

PARTS = {
    "reconstruction": ("decoded observation, squared error", "#0b6e4f"),
    "reward": ("reward, squared error", "#e08e45"),
    "termination": ("termination, cross-entropy", "#b0413e"),
}
SURPRISE = "#5b5f97"
MEASURES = {
    "novelty": ("novelty, a quantile", "#0b6e4f"),
    "round_trip": ("round trip of the latents", "#e08e45"),
    "divergence": ("divergence, nats", SURPRISE),
}
BINS = 24  # a side of the map over the true state
OPEN, CLOSED = "#b0413e", "#0b6e4f"


def fits(entry: Entry, figures: Figures) -> list[str]:
    """The first fit of a latent world and what it learned from then on, step by step."""
    told, config = entry.run.result.metrics.world, entry.run.config
    kept = measures.finite_seeds(*told)
    if not kept.any():
        return [markup.paragraph(f"No seed of {entry.label} has a finite loss of its model, so there is nothing to draw.")]
    curves = {name: np.asarray(leaf, np.float64)[kept].reshape(kept.sum(), -1) for name, leaf in told._asdict().items()}
    x = config.random_transitions + (np.arange(curves["loss"].shape[1]) + 1) * config.metric_steps
    about = f"IQM over seeds with its 95 % bootstrap interval, {kept.sum()} seeds.{left_out(kept)}"

    figure, (ax,) = new_axes()
    for name, (label, colour) in PARTS.items():
        draw_band(ax, x, curves[name], label, colour)
    markup.readable_log(ax)
    ax.set_xlabel("real transitions")
    ax.set_ylabel("error in the minibatches")
    markup.legend(figure, columns=1)
    errors = figures.add(
        figure,
        f"What the latent world of {entry.label} tells of its minibatches",
        "Errors of what is decoded from filtered beliefs: the observation on the task's scale, summed over its axes, the reward, "
        f"and the termination; {about}",
    )
    figure, (ax,) = new_axes()
    draw_band(ax, x, curves["divergence"], "surprise", SURPRISE)
    ax.set_xlabel("real transitions")
    ax.set_ylabel("nats")
    surprise = figures.add(
        figure,
        f"Surprise of the filter of {entry.label}",
        f"Divergence of the belief after an observation from the belief that expected it, a mean over the minibatches; {about}",
    )
    return [errors, surprise]


def followed(entry: Entry, figures: Figures) -> list[str]:
    """How the model follows episodes of the last policy, with and without the observations."""
    config: Any = entry.run.config
    model = entry.run.result.outcome.model
    if not isinstance(config.model, RSSMConfig):
        return []
    if model is None:
        return [markup.paragraph(f"The model of {entry.label} was not saved, so its beliefs cannot be followed.")]
    told = beliefs.ask(config, entry.policies, model)
    kept = measures.finite_seeds(told.marks, told.exceeded)
    reached = ~np.isnan(told.closed[kept]).any(axis=0) if kept.any() else np.zeros(beliefs.DEPTH, bool)
    if not reached.any():
        return [markup.paragraph(f"No open loop of {entry.label} has a finite error, so there is nothing to draw.")]
    about = f"{kept.sum()} seeds, IQM with its 95 % bootstrap interval.{left_out(kept)}"
    drawn = [_errors(entry, told, kept, reached, about, figures), _drift(entry, told, kept, reached, about, figures)]
    if told.places is not None:
        drawn.append(_map(entry, told.places, figures))
    drawn.append(_alarm(entry, told, figures))
    if told.frames is not None:
        drawn.append(_frames(entry, told.frames, figures))
    return drawn


def _errors(entry: Entry, told: Beliefs, kept: np.ndarray, reached: np.ndarray, about: str, figures: Figures) -> str:
    x = np.flatnonzero(reached) + 1
    figure, (ax,) = new_axes()
    draw_band(ax, x, told.drift["error"][kept][:, reached], "open loop, no observations", OPEN)
    draw_band(ax, x, told.closed[kept][:, reached], "closed loop, filtered", CLOSED)
    markup.readable_log(ax)
    ax.set_xlabel("steps after the filter stopped seeing")
    ax.set_ylabel("squared error of the observation")
    markup.legend(figure, columns=1)
    return figures.add(
        figure,
        f"Errors of decoded observations of {entry.label}, open loop and closed loop",
        f"Squared error of the decoded observation, on the task's scale and summed over its axes, along the actions of the last "
        f"policy's episodes: the open loop saw {beliefs.WARM} steps and none after them, the closed loop sees all; {about}",
    )


def _drift(entry: Entry, told: Beliefs, kept: np.ndarray, reached: np.ndarray, about: str, figures: Figures) -> str:
    x = np.flatnonzero(reached) + 1
    figure, axes = new_axes(6.0, rows=4, sharex=True)
    for ax, (name, (label, colour)) in zip(axes, MEASURES.items(), strict=False):
        draw_band(ax, x, told.drift[name][kept][:, reached], label, colour)
        ax.set_ylabel(label.replace(", ", ",\n").replace(" of the latents", ",\nlatents"))
    depths, share = going_on(np.asarray(entry.run.result.metrics.lanes.histogram)[:, -1].mean(axis=(0, 1)))
    shown = depths <= x[-1]
    axes[3].step(depths[shown], share[shown], where="post", color="#333333", linewidth=1.4)
    axes[3].set_ylim(0, 1.05)
    axes[3].set_ylabel("imagined\nrollouts")
    axes[3].set_xlabel("depth of the open loop")
    return figures.add(
        figure,
        f"Drift of the beliefs of {entry.label} by depth, and where its rollouts ended",
        "Open loops along the actions of the last policy: how far the belief is from real ones, how far it moves when it is "
        "decoded and encoded again, and the divergence of the filtered belief from it. Below: the share of the last "
        "round's imagined rollouts that still went on at a depth, from 6 on as means over several, by the controller's stops and "
        "imagined terminations; "
        f"{about}",
    )


def _map(entry: Entry, places: beliefs.Places, figures: Figures) -> str:
    figure, axes = new_axes(5.2, rows=2, sharex=True)
    ends = [np.quantile(each, (0.01, 0.99)) for each in places.states.T]
    edges = [np.linspace(low, max(high, low + 1e-6), BINS + 1) for low, high in ends]
    for ax, values, label in ((axes[0], places.novelty, "novelty"), (axes[1], places.error, "squared error")):
        image = ax.pcolormesh(*edges, binned(places.states, values, edges).T, cmap="magma_r")
        figure.colorbar(image, ax=ax, label=label)
        ax.set_ylabel(places.names[1])
    axes[1].set_xlabel(places.names[0])
    return figures.add(
        figure,
        f"Where the beliefs of {entry.label} drift, over the true state",
        f"Open loops of all depths up to {beliefs.DEPTH} along the actions of the last policies: mean distance of the belief "
        "from real ones, and mean squared error of the decoded observation, by two coordinates of the true state, which the "
        "policy need not see. White: no open loop was there. States beyond the 1 % and 99 % quantiles are left out.",
    )


def binned(states: np.ndarray, values: np.ndarray, edges: list[np.ndarray]) -> np.ndarray:
    """[n, m] means of finite values [N] by bins of states [N, 2] with n + 1 and m + 1 edges; NaN where there is none."""
    finite = np.isfinite(values)
    (x, y), weights = states[finite].T, np.asarray(values, np.float64)[finite]
    count = np.histogram2d(x, y, bins=edges)[0]
    total = np.histogram2d(x, y, bins=edges, weights=weights)[0]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def going_on(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths [n] at which bins of rows kept begin, and the share [n] of rollouts that got there, from shares of rows [bins].

    A bin of several depths has their mean.
    """
    edges = np.asarray(DEPTH_EDGES)
    width = np.diff(edges, prepend=0)
    rows = histogram[: len(edges)] / width
    return edges - width + 1, rows / max(rows[0], np.finfo(np.float64).tiny)


def _alarm(entry: Entry, told: Beliefs, figures: Figures) -> str:
    ends = np.flatnonzero(told.begins[1:]) + 1
    length = int(ends[0]) if len(ends) else len(told.surprise)
    surprise, mark = told.surprise[:length], float(told.marks[0])
    over = np.flatnonzero(surprise > mark)
    figure, (ax,) = new_axes()
    ax.plot(np.arange(1, length + 1), surprise, color=SURPRISE, linewidth=1.2, label="surprise")
    ax.axhline(mark, color=OPEN, linewidth=1.0, linestyle="--", label="mark of the alarm")
    ax.plot(over + 1, surprise[over], linestyle="none", marker="o", markersize=4, color=OPEN, label="alarm")
    ax.set_xlabel("step of the episode")
    ax.set_ylabel("nats")
    markup.legend(figure, columns=3)
    rates = ", ".join(f"{value:.1%}" for value in told.exceeded)
    return figures.add(
        figure,
        f"Surprise of the filter of {entry.label} along an episode, and its alarm",
        f"Surprise of the filter after each observation of an episode of the first seed's last policy. The mark is exceeded in "
        f"{beliefs.RATE:.0%} of the steps of other episodes of the same policy; in those that it is not set on it is exceeded in "
        f"{rates} of the steps, seed by seed.",
    )


def _frames(entry: Entry, frames: beliefs.Frames, figures: Figures) -> str:
    names = {"truth": "true", "filtered": "closed loop", "dreamt": "open loop"}
    figure = Figure(figsize=(markup.WIDTH, markup.WIDTH * len(names) / len(beliefs.FRAMES) + 0.5), layout="constrained")
    axes = figure.subplots(len(names), len(beliefs.FRAMES), squeeze=False)
    high = float(frames.truth.max())
    for row, (field, name) in enumerate(names.items()):
        for column, depth in enumerate(beliefs.FRAMES):
            ax = axes[row, column]
            if frames.valid[column]:
                ax.imshow(getattr(frames, field)[column], cmap="gray_r", vmin=0, vmax=high, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"{depth}", fontsize=markup.TEXT)
            if column == 0:
                ax.set_ylabel(name, fontsize=markup.TEXT)
    return figures.add(
        figure,
        f"Frames of {entry.label}, true and decoded, by the depth of an open loop",
        "What was to be seen in an episode of the first seed's last policy, what is decoded from the filtered belief that has "
        "seen it, and what is decoded from a belief that has not seen anything for as many steps as the number above says. "
        "Nothing is drawn where the episode has ended.",
    )
