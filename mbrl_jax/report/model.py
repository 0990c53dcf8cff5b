"""The report's section on the learned model: how it was fitted, and whether its uncertainty can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mbrl_jax import statistics
from mbrl_jax.algorithms.registry import world_of
from mbrl_jax.environments import make_environment
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.report import latent, markup, measures, rollouts
from mbrl_jax.report.entries import Entry, left_out
from mbrl_jax.report.figures import draw_band
from mbrl_jax.report.markup import Figures, new_axes
from mbrl_jax.report.returns import steps_of
from mbrl_jax.report.rollouts import Predicted
from mbrl_jax.report.tasks import axis_names

COLOURS = {"own policy": "#0b6e4f", "random policy": "#e08e45"}
NLL, LOSS, MSE = "#0b6e4f", "#5b5f97", "#b0413e"
PARTS = {"value": ("value function", "#5b5f97"), "model": ("model, on held-out data", "#0b6e4f"), "shift": ("shift", "#e08e45")}


def section(entries: Sequence[Entry], figures: Figures) -> str:
    """The models of the runs that have one."""
    parts = []
    modelled = [entry for entry in entries if entry.has_model and not entry.latent]
    for entry in entries:
        if not entry.has_model:
            parts.append(markup.paragraph(f"{entry.label} learns without a model."))
        if entry.latent:
            drawn = [*latent.fits(entry, figures), *latent.followed(entry, figures)]
            parts += [markup.heading(entry.label), markup.side_by_side(*drawn)]
    if modelled:
        parts += [markup.paragraph(text) for text in _meaning(modelled)]
    for entry in modelled:
        parts.append(markup.heading(entry.label))
        parts.append(markup.side_by_side(*_fits(entry, figures)))
        if entry.run.config.protocol == "batch":
            parts.append(markup.paragraph("In the batch protocol the model is fitted once and never again."))
        parts += mismatch(entry, figures)
        parts += mixing(entry, figures)
        parts.append(_calibration(entry, figures))
    return markup.section("model", "Model", *parts)


def _meaning(entries: Sequence[Entry]) -> list[str]:
    """How to read the calibration."""
    told = [
        "A member predicts a Gaussian for every axis of the state change. It is calibrated if the truth falls into its central "
        "50 % interval half of the time, and so on at every level. Below the diagonal it is overconfident: it promises more "
        "precision than it has. Above it, it is underconfident: it is better than it says. A root-mean-square z-score says the "
        "same in one number, 1 for calibrated, more for overconfident, less for underconfident.",
        "The dynamics of these tasks have no noise, so there is no randomness to predict: the right variance is that of the "
        "member's own error, and a member that fits ever better must either say so or be underconfident. Away from the data that "
        "error grows, which a member's own variance seldom knows; what the members disagree about, which the mixture adds, is "
        "there to make up for it.",
    ]
    if any(entry.run.config.environment.observation_noise > 0 for entry in entries):
        told.append(
            "Where the random transitions were measured with noise, the predictions are still compared with the true states, so "
            "a member that predicts the noise rightly looks underconfident here."
        )
    return told


# -------------------------------------------------------------------------------------------------------------------- fitting


def _fits(entry: Entry, figures: Figures) -> list[str]:
    config = entry.run.config
    log = entry.run.result.fit
    epochs = np.arange(1, np.shape(log.loss)[1] + 1)
    drawn = _draw_fit(entry, log, epochs, "epoch of the first fit", figures)
    if config.protocol == "interactive":
        drawn += _draw_fit(entry, entry.run.result.metrics.refit, steps_of(entry, real=True), "real transitions", figures)
    return drawn


def _draw_fit(entry: Entry, log: FitLog, x: np.ndarray, label: str, figures: Figures) -> list[str]:
    """Likelihood and error of a fit, or of refits, [seeds, points, E] against x [points]."""
    kept = measures.finite_seeds(*log)
    when = "over the epochs of the first fit" if label.startswith("epoch") else "at each refit"
    if not kept.any():
        return [markup.paragraph(f"No seed has a finite error {when}, so there is nothing to draw.")]
    loss, mse, nll = (np.asarray(leaf, np.float64)[kept].mean(axis=2) for leaf in log)
    gaussian = _has_variance(entry)
    told = f"mean over members, IQM over seeds with its 95 % bootstrap interval, {kept.sum()} seeds.{left_out(kept)}"

    figure, (ax,) = new_axes()
    draw_band(ax, x, nll, "holdout NLL" if gaussian else "half the holdout MSE", NLL)
    draw_band(ax, x, loss, "training loss", LOSS)
    ax.set_xlabel(label)
    ax.set_ylabel("nats, summed over axes" if gaussian else "squared deviations")
    markup.legend(figure, columns=2)
    what = "Negative log-likelihood" if gaussian else "Squared error of deterministic members"
    likelihood = figures.add(
        figure,
        f"{what} of {entry.label} {when}",
        f"{what} {when}, on held-out rows (without its constant) and as the loss that was trained, which holds the penalties "
        f"too; {told}",
    )
    figure, (ax,) = new_axes()
    draw_band(ax, x, mse, "holdout MSE", MSE)
    markup.readable_log(ax)
    ax.set_xlabel(label)
    ax.set_ylabel("holdout MSE")
    error = figures.add(
        figure,
        f"Holdout squared error of {entry.label} {when}",
        f"Squared error of the mean on held-out rows {when}, in squared deviations of the data's state change and summed over "
        f"its axes; {told}",
    )
    return [likelihood, error]


# ------------------------------------------------------------------------------------------------------------------- mismatch


def mismatch(entry: Entry, figures: Figures) -> list[str]:
    """Where the error of the agent's value came from, round by round; nothing where that was not measured."""
    told = getattr(entry.run.result.metrics, "mismatch", None)
    if told is None:
        return []
    kept = measures.finite_seeds(*told)
    if not kept.any():
        return [markup.paragraph(f"No seed of {entry.label} has a finite error of its value, so there is nothing to draw.")]
    real, seeds = entry.run.config.protocol == "interactive", f"{kept.sum()} seeds.{left_out(kept)}"
    x, label = steps_of(entry, real=real), "real transitions" if real else "steps of the main loop"
    curves = {name: np.asarray(leaf, np.float64)[kept] for name, leaf in told._asdict().items()}

    figure, (ax,) = new_axes()
    for name, (meaning, colour) in PARTS.items():
        draw_band(ax, x, curves[name], meaning, colour)
    draw_band(ax, x, curves["total"], "total", "#222222")
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xlabel(label)
    ax.set_ylabel("error of the value, return")
    markup.legend(figure, columns=2)
    parts = figures.add(
        figure,
        f"Parts of the error of the value of {entry.label}",
        "Mean one-step error of the agent's value where its policy goes, told apart: what the value function has not learned in "
        "the model, the model's error at held-out real states, and how much larger that is where the policy goes. Above 0 a "
        f"state is valued too highly. IQM over seeds with its 95 % bootstrap interval, {seeds}",
    )
    figure, (ax,) = new_axes()
    draw_band(ax, x, curves["model_share"], "model", PARTS["model"][1])
    ax.set_ylim(0, 1)
    ax.set_xlabel(label)
    ax.set_ylabel("the model's share")
    share = figures.add(
        figure,
        f"The model's share of the error of the value of {entry.label}",
        "Mean magnitude of the model's part of the value's error over that and the value function's, where the policy goes: near "
        f"1 the model limits the value, near 0 learning does. IQM over seeds with its 95 % bootstrap interval, {seeds}",
    )
    return [markup.side_by_side(parts, share)]


# --------------------------------------------------------------------------------------------------------------------- mixing


def mixing(entry: Entry, figures: Figures) -> list[str]:
    """The model's share that a real share or a horizon rule has followed, round by round; nothing where none has."""
    told = getattr(entry.run.result.metrics, "model_share", None)
    if told is None:
        return []
    shares = np.asarray(told, np.float64)
    kept = measures.finite_seeds(shares)
    if not kept.any():
        return [markup.paragraph(f"No seed of {entry.label} has a finite share of the model, so there is nothing to draw.")]
    config: Any = entry.run.config
    real = config.protocol == "interactive"
    x = steps_of(entry, real=real)
    figure, (ax,) = new_axes()
    draw_band(ax, x, shares[kept], "the model's share", PARTS["model"][1])
    if config.mixing.rule == "adaptive":
        least, most = config.mixing.least, config.mixing.most
        draw_band(ax, x, least + (most - least) * shares[kept], "real rows of a minibatch", PARTS["value"][1])
    ax.set_ylim(0, 1)
    ax.set_xlabel("real transitions" if real else "steps of the main loop")
    ax.set_ylabel("share")
    markup.legend(figure, columns=2)
    return [
        figures.add(
            figure,
            f"What the mixing of {entry.label} follows",
            "The model's share in the error of the agent's value, measured at held-out real transitions after every fit, without "
            f"the real dynamics. IQM over seeds with its 95 % bootstrap interval, {kept.sum()} seeds.{left_out(kept)}",
        )
    ]


# ---------------------------------------------------------------------------------------------------------------- calibration


def _on_held_out(entry: Entry) -> str:
    """What the model gets wrong on held-out episodes, where nothing real may be asked."""
    told = f"{entry.label} was trained without an environment, so nothing is asked of one here."
    measured = (entry.summary.get("data") or {}).get("held_out")
    if measured is None or measured["coverage"] is None:
        return told
    covered = ", ".join(f"{float(level):.0%} intervals cover {share:.0%}" for level, share in measured["coverage"].items())
    errors = measured["error_after_steps"]
    return (
        f"{told} On held-out episodes, means over members and seeds: of the next states the members' {covered}; a member's own "
        f"rollout is off by {errors[0]:.2g} deviations of the state change after one step and by {errors[4]:.2g} after five."
    )


def _calibration(entry: Entry, figures: Figures) -> str:
    config, model = entry.run.config, entry.run.result.outcome.model
    if model is None:
        return markup.paragraph(f"The model of {entry.label} was not saved, so its predictions cannot be checked.")
    if not _has_variance(entry):
        return markup.paragraph(
            "The members are deterministic: they predict a mean and no variance, so there is nothing to be calibrated."
        )
    if config.evaluation.where == "model":
        return markup.paragraph(_on_held_out(entry))
    predicted = rollouts.calibration(config, entry.policies, model)
    kept = measures.finite_seeds(*(leaf for each in predicted.values() for leaf in each))
    if not kept.any():
        return markup.paragraph("No seed has finite predictions, so there is nothing to be calibrated.")
    predicted = {name: Predicted(*(leaf[kept] for leaf in each)) for name, each in predicted.items()}
    count, steps = int(kept.sum()), rollouts.CALIBRATION_STEPS
    asked = (
        f"States are of {steps} real steps of the {entry.shown} policy, greedy, and {steps} of the random policy, {count} seeds"
        f"{f' (the first {len(kept)} of {entry.seeds})' if len(kept) < entry.seeds else ''}.{left_out(kept)}"
    )
    return markup.side_by_side(_reliability(entry, predicted, asked, figures), _scores(entry, predicted, asked, figures))


def _has_variance(entry: Entry) -> bool:
    """Whether the members predict one."""
    config = entry.run.config
    return world_of(config, make_environment(config.environment)).spec.has_variance


def _reliability(entry: Entry, predicted: Mapping[str, Predicted], asked: str, figures: Figures) -> str:
    figure, (ax,) = new_axes(4.0)
    ax.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=":")
    for name, each in predicted.items():
        for position, who, style in zip(measures.positions(*each), ("member", "mixture"), ("-", "--"), strict=True):
            middle, low, high = statistics.running_interval(measures.coverage(position), statistics.mean)
            label = f"{who}, {name}"
            ax.plot(measures.LEVELS, middle, style, color=COLOURS[name], linewidth=1.5, marker="o", markersize=3, label=label)
            ax.fill_between(measures.LEVELS, low, high, color=COLOURS[name], alpha=0.14, linewidth=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.01)
    ax.set_xlabel("nominal level of the central interval")
    ax.set_ylabel("share of truths inside")
    markup.legend(figure, columns=2)
    return figures.add(
        figure,
        f"Reliability curves of the predictions of {entry.label}",
        "Reliability: how often the real next state lies in the central predicted interval of each level, of a member's Gaussian "
        "and of the equal mixture of all members; mean over axes, steps, members and seeds, with 95 % bootstrap intervals over "
        f"seeds; dotted is calibrated. {asked}",
    )


def _scores(entry: Entry, predicted: Mapping[str, Predicted], asked: str, figures: Figures) -> str:
    figure, (ax,) = new_axes(3.6)
    names = axis_names(entry.task, next(iter(predicted.values())).truth.shape[-1])
    arms = {
        (f"{who}, {name}"): (score(*each), COLOURS[name], marker)
        for name, each in predicted.items()
        for who, marker, score in (("member", "o", measures.member_scores), ("mixture", "s", measures.mixture_scores))
    }
    for place, (label, (scores, colour, marker)) in enumerate(arms.items()):
        middle, low, high = _interval(measures.root_mean_square(scores))
        x = np.arange(len(names)) + (place - 1.5) * 0.16
        filled = colour if marker == "o" else "white"
        errors = np.maximum([middle - low, high - middle], 0)
        ax.errorbar(
            x, middle, errors, color=colour, marker=marker, markersize=5, linestyle="none", label=label, markerfacecolor=filled
        )
    ax.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
    markup.readable_log(ax)
    ax.set_xticks(range(len(names)), names, fontsize=markup.TEXT, rotation=0 if len(names) < 5 else 45)
    ax.set_ylabel("RMS z-score")
    markup.legend(figure, columns=2)
    return figures.add(
        figure,
        f"Root-mean-square z-scores of {entry.label} for every state axis",
        "Root-mean-square z-score of the real next state for each axis of the state, by a member's variance and by the whole "
        "variance of the mixture (the members' own and their disagreement); IQM over seeds with its 95 % bootstrap interval. "
        f"Dotted: 1, calibrated; above it overconfident, below it underconfident. {asked}",
    )


def _interval(values: ArrayLike) -> np.ndarray:
    """[3, D] the IQM over seeds of [seeds, D] and its interval."""
    return statistics.running_interval(values)
