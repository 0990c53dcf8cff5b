"""The report's section of animations: the policy in the real environment, and as each member of the ensemble imagines it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mbrl_jax.environments import TaskView, make_environment, view_of
from mbrl_jax.report import markup, measures, rollouts
from mbrl_jax.report.entries import Entry
from mbrl_jax.report.markup import Figures, new_axes
from mbrl_jax.report.rollouts import Episode

MARK = 0.1  # share of an axis's scale by which a member must be off to have left the real trajectory
IMAGINED_STEPS = 200  # that are shown of an imagined episode
REAL = "#111111"
MEMBERS = ("#d1495b", "#2e86ab", "#edae49", "#66a182", "#8d5fd3", "#c06fa8", "#8f6b2f", "#3aa6a6")
DIGITS = 4  # that states are rounded to


def section(entries: Sequence[Entry], figures: Figures) -> str:
    """Each run's policy of the median seed at work."""
    parts = [
        markup.paragraph(
            "The policies are those of the seed with the median return, never of the best one, in one episode from a start drawn "
            "for this page. The line over the curves is the step that is shown."
        )
    ]
    for entry in entries:
        parts += [markup.heading(entry.label), *_of_run(entry, figures)]
    return markup.section("animations", "Policies at work", *parts)


def _of_run(entry: Entry, figures: Figures) -> list[str]:
    seed = measures.median_seed(entry.returns[entry.shown])
    config, model = entry.run.config, entry.run.result.outcome.model
    if config.evaluation.where == "model":
        return [markup.paragraph(f"{entry.label} was trained without an environment in which its policies could be shown.")]
    members = None if model is None else jax.tree.map(lambda leaf: leaf[seed], model)
    played = rollouts.episode(config, jax.tree.map(lambda leaf: leaf[seed], entry.policies), members)
    view = view_of(entry.task, played.real.shape[1])
    parts = []
    if view.drawing == "lines":
        parts.append(markup.paragraph(f"There is no drawing of {entry.task}; its state axes are shown as lines."))
    parts.append(_real(entry, seed, played, view, figures))
    if not entry.has_model:
        parts.append(markup.paragraph(f"{entry.label} has no model that could imagine the same episode."))
    elif entry.latent:
        parts.append(markup.paragraph(f"The model of {entry.label} imagines latent states, which are no observations to draw."))
    elif not played.imagined:
        parts.append(markup.paragraph(f"The model of {entry.label} was not saved, so nobody can imagine the same episode."))
    elif not all(np.all(np.isfinite(states)) for states in played.imagined):
        parts.append(markup.paragraph("A member imagines numbers that are not finite, so what is imagined is not drawn."))
    else:
        parts.append(_imagined(entry, seed, played, view, figures))
    return parts


def _real(entry: Entry, seed: int, played: Episode, view: TaskView, figures: Figures) -> str:
    figure, axes = new_axes(1.1 + 1.3 * len(view.curves), len(view.curves), sharex=True)
    steps = np.arange(len(played.real))
    for ax, (label, curve) in zip(axes, view.curves.items(), strict=True):
        ax.plot(steps, curve(played.real), color=REAL, linewidth=1.3)
        ax.set_ylabel(label)
    axes[-1].set_xlabel("step")
    figure.align_ylabels()
    typical = entry.returns[entry.shown][seed]
    return figures.animate(
        figure,
        f"Animation: the {entry.shown} policy of {entry.label}, seed {seed}, in {entry.task}",
        f"{entry.label}, {entry.shown} policy of seed {seed}, the median one of {entry.seeds} (its final episodes return "
        f"{typical:.1f} on average), greedy in the real environment: {_end(played)}.",
        _data(played.real, [], view, view.rate),
    )


def _imagined(entry: Entry, seed: int, played: Episode, view: TaskView, figures: Figures) -> str:
    whole = make_environment(entry.run.config.environment).spec.observation_scale
    places = list(view.places)
    scale = [whole[place] for place in places]
    real = played.real[: IMAGINED_STEPS + 1]
    imagined = [states[: len(real)] for states in played.imagined]
    label, curve = next(iter(view.curves.items()))
    figure, (above, below) = new_axes(4.2, 2, sharex=True)
    above.plot(np.arange(len(real)), curve(real), color=REAL, linewidth=1.6, label="real", zorder=3)
    left = []
    smallest = MARK / 1_000
    for number, states in enumerate(imagined):
        colour = MEMBERS[number % len(MEMBERS)]
        steps = np.arange(len(states))
        above.plot(steps, curve(states), color=colour, linewidth=1, alpha=0.8, label=f"member {number}")
        apart = measures.distances(real[: len(states), places], states[:, places], scale)
        below.plot(steps, np.maximum(apart, smallest), color=colour, linewidth=1, alpha=0.8)
        left.append(measures.departure(real[:, places], states[:, places], scale, MARK))
        if left[-1] is not None:
            above.plot(left[-1], curve(states)[left[-1]], color=colour, marker="o", markersize=5)
    shown, span = curve(real), float(np.ptp(curve(real))) + 1e-3
    above.set_ylim(float(shown.min()) - span, float(shown.max()) + span)
    below.axhline(MARK, color="0.4", linewidth=0.8, linestyle=":")
    below.set_yscale("log")
    below.set_ylim(bottom=smallest)
    below.set_ylabel("distance")
    below.set_xlabel("step")
    above.set_ylabel(label)
    figure.align_ylabels()
    markup.legend(figure, columns=3)
    return figures.animate(
        figure,
        f"Animation: the same episode of {entry.label} as each member imagines it",
        f"The first {len(real) - 1} steps from the same start by the same policy, in the real environment (black) and as each "
        "member imagines them by its mean prediction (in colour), at half speed. Distance is the largest difference in "
        f"{_scale(scale, view)}, in units of that. A member leaves the real trajectory, at a dot, where the distance exceeds "
        f"{MARK:g}, dotted, or where its episode ends too early: {departures(left, len(real) - 1)}. From there on the policy "
        "takes other actions in it.",
        _data(real, imagined, view, view.rate / 2),
    )


def departures(left: Sequence[int | None], steps: int) -> str:
    """When each member left, in words."""
    told = [
        f"member {number} {f'at step {step}' if step is not None else f'never within the {steps} steps'}"
        for number, step in enumerate(left)
    ]
    return ", ".join(told)


def _scale(scale: Sequence[float], view: TaskView) -> str:
    return " or ".join(f"{view.axes[place]} (scale {unit:g})" for place, unit in zip(view.places, scale, strict=True))


def _end(played: Episode) -> str:
    steps = len(played.real) - 1
    return f"{steps} steps, then it {'terminates' if played.terminated else 'is cut by the time limit'}"


def _data(real: np.ndarray, imagined: Sequence[np.ndarray], view: TaskView, rate: float) -> dict[str, Any]:
    """What the page's script draws, rounded."""
    colours = [MEMBERS[number % len(MEMBERS)] for number in range(len(imagined))]
    return {
        "drawing": view.drawing,
        "rate": rate,
        "real": _rounded(real),
        "members": [_rounded(states) for states in imagined],
        "colours": [REAL, *colours],
    }


def _rounded(states: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in state] for state in states.tolist()]
