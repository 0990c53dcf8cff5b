"""Figures of runs, with intervals over seeds. Drawn without a window, and without global plotting state."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mbrl_jax.algorithms.registry import TD, algorithm_of
from mbrl_jax.config import ImaginingConfig, RunConfig
from mbrl_jax.environments import success_marks
from mbrl_jax.report.measures import chosen_so_far
from mbrl_jax.runs.results import per_seed
from mbrl_jax.runs.run import Run
from mbrl_jax.statistics import interquartile_mean, running_interval

LOSS_MARK = 0.15  # the imagined TD loss that the tutorial names
LOSS_MARK_TRANSITIONS = 10_000  # and by when
COLOURS = {"chosen": "#0b6e4f", "last": "#e08e45", "baseline": "#5b5f97", "score": "#b0413e"}  # apart for the colour-blind too


def new_figure(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with plain axes, side by side."""
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows), dpi=150, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def draw_band(ax: Axes, x: np.ndarray, curves: Any, label: str, colour: str, statistic: Any = interquartile_mean) -> None:
    """The IQM over seeds of curves [seeds, points], with its 95 % interval as a band."""
    middle, low, high = running_interval(curves, statistic)
    ax.plot(x, middle, color=colour, label=label, linewidth=1.6)
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def draw_learning_curve(ax: Axes, run: Run, *, last: str, colour: str) -> None:
    """Returns of greedy episodes against steps, of the present policy and, with a model, of the one chosen so far."""
    config = run.config
    steps = np.arange(1, config.steps // config.round_steps + 1) * config.round_steps
    offset = config.random_transitions if config.protocol == "interactive" else 0
    draw_band(ax, steps + offset, run.result.metrics.curve_return, last, colour)
    chosen = chosen_so_far(run)
    if chosen is not None:
        draw_band(ax, steps + offset, chosen, "model-based, chosen in imagination", COLOURS["chosen"])
    ax.set_xlabel("real transitions" if config.protocol == "interactive" else "updates")
    ax.set_ylabel("imagined return, IQM over seeds" if config.evaluation.where == "model" else "return, IQM over seeds")
    if run.result.metrics.curve_return.min() >= 0:
        ax.set_ylim(bottom=0)


def draw_profile(ax: Axes, arms: dict[str, tuple[np.ndarray, str]], task: str) -> None:
    """The share of seeds whose final return is at least so much, for arms of (returns [seeds], colour), and the task's marks."""
    for label, (returns, colour) in arms.items():
        ordered = np.sort(returns)
        share = 1 - np.arange(len(ordered)) / len(ordered)
        left, right = (0.0 if ordered[0] >= 0 else ordered[0]), ordered[-1]
        x, y = np.concatenate([[left], ordered, [right]]), np.concatenate([[1.0], share, [0.0]])
        ax.step(x, y, where="pre", color=colour, label=label, linewidth=1.6)
    for mark in success_marks(task):
        ax.axvline(mark, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xlabel("final return at least")
    ax.set_ylabel("fraction of seeds")
    ax.set_ylim(0, 1.02)


def loss_name(config: RunConfig) -> str:
    """What is called the loss of an update."""
    return algorithm_of(config).loss


def losses_of(run: Run) -> dict[str, np.ndarray]:
    """What an agent logs of its loss and of the loss over the variance of its targets, [seeds, blocks] by what it is called."""
    name = loss_name(run.config)
    called = {"loss": name, "scaled_loss": f"{name} / variance of target"}
    logged = {label: getattr(run.result.metrics.update, field, None) for field, label in called.items()}
    return {label: np.asarray(each).reshape(len(each), -1) for label, each in logged.items() if each is not None}


def draw_loss(ax: Axes, run: Run) -> None:
    """The imagined loss against imagined transitions, and over the targets' variance; for Dyna-Q with the tutorial's mark."""
    config, name = run.config, loss_name(run.config)
    assert isinstance(config, ImaginingConfig)
    per_step = config.imagination.lanes * config.imagination.steps
    x = (np.arange(config.steps // config.metric_steps) + 1) * config.metric_steps * per_step
    for (label, curves), colour in zip(losses_of(run).items(), (COLOURS["chosen"], COLOURS["last"]), strict=False):
        low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        ax.plot(x, middle, color=colour, label=label, linewidth=1.2)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if name == TD:
        ax.axhline(LOSS_MARK, color="0.4", linewidth=0.8, linestyle=":")
        ax.axvline(LOSS_MARK_TRANSITIONS, color="0.4", linewidth=0.8, linestyle=":")
        ax.annotate(
            f"{LOSS_MARK} by {LOSS_MARK_TRANSITIONS:,}", (x[0], LOSS_MARK), xytext=(0, 3), textcoords="offset points", fontsize=7
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("imagined transitions")
    ax.set_ylabel("loss, median and quartiles of seeds")


def draw_run(run: Run, path: Path) -> None:
    """One run: its learning curve and final returns; with a model also the loss and how well imagination predicts."""
    outcome = run.result.outcome
    with_loss = algorithm_of(run.config).imagines and len(losses_of(run)) > 0
    in_model = run.config.evaluation.where == "model"
    with_score = getattr(run.result.metrics, "score", None) is not None and not in_model
    figure, axes = new_figure(2, 2 if with_loss or with_score else 1)
    draw_learning_curve(axes[0], run, last="last policy", colour=COLOURS["last"])
    arms = {"last policy": (per_seed(outcome.returns_last), COLOURS["last"])}
    if outcome.returns_chosen is not None:
        arms["chosen policy"] = (per_seed(outcome.returns_chosen), COLOURS["chosen"])
    draw_profile(axes[1], arms, "" if in_model else run.config.environment.name)
    if in_model:
        axes[1].set_xlabel("final imagined return at least")
    if with_loss:
        draw_loss(axes[2], run)
    if with_score:
        _draw_scores(axes[3], run)
    for ax in axes[:2] + (axes[2:3] if with_loss else []):
        ax.legend(frameon=False, fontsize=7)
    for ax, is_drawn in zip(axes[2:], (with_loss, with_score), strict=False):
        ax.set_visible(is_drawn)
    figure.savefig(path)


def _draw_scores(ax: Axes, run: Run) -> None:
    """The real return of every snapshot against its imagined one."""
    real, score = run.result.metrics.curve_return, run.result.metrics.score
    known = np.isfinite(score)  # a world that is not finite scores minus infinity
    real, score = real[known], score[known]
    ends = [min(0.0, real.min(initial=0.0), score.min(initial=0.0)), max(0.0, real.max(initial=0.0), score.max(initial=0.0))]
    ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=":")
    ax.scatter(score.ravel(), real.ravel(), s=5, alpha=0.3, color=COLOURS["chosen"], linewidths=0, rasterized=True)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("imagined return of a snapshot")
    ax.set_ylabel("its real return")


def draw_comparison(model_based: Run, model_free: Run, path: Path) -> None:
    """Both arms: learning curves with intervals, and the final distribution of returns."""
    figure, axes = new_figure(2)
    draw_learning_curve(axes[0], model_based, last="model-based, last policy", colour=COLOURS["last"])
    draw_learning_curve(axes[0], model_free, last="model-free, last policy", colour=COLOURS["baseline"])
    chosen = model_based.result.outcome.returns_chosen
    draw_profile(
        axes[1],
        {
            "model-based, chosen": (per_seed(chosen), COLOURS["chosen"]),
            "model-based, last": (per_seed(model_based.result.outcome.returns_last), COLOURS["last"]),
            "model-free, last": (per_seed(model_free.result.outcome.returns_last), COLOURS["baseline"]),
        },
        model_based.config.environment.name,
    )
    axes[0].legend(frameon=False, fontsize=7)
    seeds = len(model_free.result.outcome.updates)
    figure.suptitle(
        f"{model_based.config.environment.name}, {model_based.config.protocol} protocol, "
        f"{model_based.config.real_transitions:,} real transitions, {seeds} seeds, 95 % intervals",
        fontsize=9,
    )
    figure.savefig(path)
