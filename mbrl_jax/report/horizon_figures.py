"""What happened in imagination, in numbers and pictures: how long rollouts got, how wrong they were, and what came of it.

An *arm* is a mapping of figures that :func:`describe` makes of a run; each drawing names those that it reads.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mbrl_jax import statistics
from mbrl_jax.config import EnvironmentConfig, ImaginingConfig, from_dict, to_dict
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.diagnosis import Coordinate, map_coordinates
from mbrl_jax.imagination.lanes import DEPTH_EDGES
from mbrl_jax.report.figures import new_figure
from mbrl_jax.runs.run import Run

Arms = Mapping[str, Mapping[str, Any]]

SHOWN = ("fixed 3", "fixed 50", "threshold_quantile", "macura", "m2ac", "infoprop", "three_model", "oracle")
"""The arms that are drawn where all of them would be a thicket."""
COLOURS = matplotlib.color_sequences["tab20"]
MARKERS = "osD^v<>PX*phd8HP"


NOWHERE = statistics.Estimate(np.nan, np.nan, np.nan)


def describe(run: Run) -> dict[str, Any]:
    """What happened in the imagination of a model-based run, in means over seeds.

    ``realised_horizon`` is the mean length of a rollout in imagined steps and ``horizon_by_round`` the same [rounds];
    ``kept`` and ``stopped`` are shares of the imagined steps; ``histogram`` [10] is the share of rows that were kept, by depth.
    ``surfing`` is the imagined less the real return of the policies on the way, mean over the run with its interval over seeds,
    and ``surfing_by_round`` [3, rounds], of the seeds whose world was finite and NaN if none was; both are left out where no
    snapshot is scored. Of a diagnosed run also ``by_depth`` and ``map``, medians over seeds of
    :class:`mbrl_jax.imagination.diagnosis.Diagnosis`.
    """
    assert isinstance(run.config, ImaginingConfig)
    metrics = run.result.metrics
    lanes = metrics.lanes
    ended = np.asarray(lanes.ended, np.float64).mean(axis=2)  # [seeds, rounds]
    told: dict[str, Any] = {
        "config": to_dict(run.config),
        "realised_horizon": float(1 / ended.mean()),
        "horizon_by_round": 1 / ended.mean(axis=0),
        "kept": float(np.mean(lanes.kept)),
        "stopped": float(np.mean(lanes.stopped)),
        "histogram": np.asarray(lanes.histogram, np.float64).mean(axis=(0, 1, 2)),
    }
    if metrics.score is not None:
        surfing = np.asarray(metrics.score, np.float64) - np.asarray(metrics.curve_return, np.float64)  # [seeds, rounds]
        sound = surfing[np.isfinite(surfing).all(axis=1)]  # a world that is not finite scores minus infinity
        unknown = np.full((3, surfing.shape[1]), np.nan)
        told |= {
            "surfing": statistics.bootstrap(sound.mean(axis=1), statistics.mean) if len(sound) else NOWHERE,
            "surfing_by_round": statistics.running_interval(sound, statistics.mean) if len(sound) else unknown,
        }
    if run.diagnosis is not None:
        by_depth, error_map = run.diagnosis.by_depth, run.diagnosis.map
        told["by_depth"] = {name: _middle(getattr(by_depth, name)) for name in by_depth._fields}
        told["map"] = {name: np.median(getattr(error_map, name), axis=0) for name in error_map._fields}
    return told


def _middle(values: np.ndarray) -> list[float | None]:
    """The median over seeds [seeds, n] of those that have a value, none where fewer than half have one."""
    enough = np.mean(np.isfinite(values), axis=0) >= 0.5
    return [float(np.nanmedian(values[:, i])) if enough[i] else None for i in range(values.shape[1])]


def draw_imagination(run: Run, path: Path) -> None:
    """The figure :func:`draw_setting` of one diagnosed run."""
    assert isinstance(run.config, ImaginingConfig)
    seeds = len(run.result.outcome.frozen)
    draw_setting({run.config.imagination.controller.kind: describe(run)}, f"{run.config.protocol} protocol, {seeds} seeds", path)


def draw_setting(arms: Arms, title: str, path: Path) -> None:
    """One setting: horizons over training and over depth, errors and disagreement by depth, surfing, and two maps.

    Args:
      arms: with ``horizon_by_round``, ``histogram``, ``by_depth``, ``surfing_by_round``, ``config``, and at least one of them
        with a ``map``, of which the last is drawn.
      title: of the setting.
      path: of the picture.

    """
    shown = {name: arms[name] for name in SHOWN if name in arms} or dict(arms)
    figure, axes = new_figure(4, 2)
    draw_horizons(axes[0], shown)
    draw_depths(axes[1], shown)
    draw_growth(axes[2], shown, "compounded_error", "compounded error")
    draw_surfing(axes[3], shown)
    draw_growth(axes[4], shown, "disagreement", "disagreement")
    draw_growth(axes[5], shown, "one_step_error", "true one-step error")
    mapped = [name for name in shown if "map" in shown[name]][-1]
    for ax, what, label in ((axes[6], "disagreement", "disagreement"), (axes[7], "one_step_error", "true one-step error")):
        environment = from_dict(shown[mapped]["config"]).environment
        draw_map(ax, shown[mapped]["map"], what, f"{label} (model of {mapped.replace('_', ' ')})", environment)
    handles = [Line2D([], [], color=_colour(name, shown), label=name.replace("_", " ")) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(f"{title}; errors are medians of seeds in deviations of the data's state change", fontsize=10)
    figure.savefig(path)


def draw_horizons(ax: Axes, arms: Arms) -> None:
    """The realised horizon over training."""
    for name, arm in arms.items():
        horizon, steps = arm["horizon_by_round"], arm["config"]["round_steps"]
        ax.plot((np.arange(len(horizon)) + 1) * steps, horizon, color=_colour(name, arms), linewidth=1.4)
    ax.set_yscale("log")
    ax.set_ylim(1, max(60, ax.get_ylim()[1]))
    ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("updates")
    ax.set_ylabel("realised horizon")


def draw_depths(ax: Axes, arms: Arms) -> None:
    """The share of imagined rows by depth."""
    labels, lower = [], 1
    for edge in DEPTH_EDGES:
        labels.append(f"{edge}" if edge == lower else f"{lower}-{edge}")
        lower = edge + 1
    labels.append(f">{DEPTH_EDGES[-1]}")
    for name, arm in arms.items():
        ax.plot(range(len(labels)), arm["histogram"], color=_colour(name, arms), linewidth=1.4, marker="o", markersize=3)
    ax.set_xticks(range(len(labels)), labels, fontsize=7, rotation=45)
    ax.set_xlabel("depth")
    ax.set_ylabel("share of imagined rows, kept")


def draw_growth(ax: Axes, arms: Arms, what: str, label: str) -> None:
    """An error of the final model by depth, as far as rollouts of each arm get in half of the seeds."""
    positive = False
    for name, arm in arms.items():
        values = np.array([np.nan if value is None else value for value in arm["by_depth"][what]])
        depth = np.arange(1, len(values) + 1)
        few = np.isfinite(values).sum() < 2  # a line of one point is invisible
        ax.plot(depth, values, color=_colour(name, arms), linewidth=1.4, marker="o" if few else None, markersize=4)
        positive |= bool(np.any(values > 0))
    ax.set_xscale("log")
    if positive:  # else there is nothing to scale, as of a model that is not finite
        ax.set_yscale("log")
    ax.set_xlabel("depth")
    ax.set_ylabel(label)


def draw_surfing(ax: Axes, arms: Arms) -> None:
    """Imagined return minus real return of the snapshots over training, mean over seeds with its interval."""
    for name, arm in arms.items():
        middle, low, high = np.array(arm["surfing_by_round"])
        steps = (np.arange(len(middle)) + 1) * arm["config"]["round_steps"]
        ax.plot(steps, middle, color=_colour(name, arms), linewidth=1.4)
        ax.fill_between(steps, low, high, color=_colour(name, arms), alpha=0.12, linewidth=0)
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xlabel("updates")
    ax.set_ylabel("imagined minus real return")


def _side(side: Coordinate) -> tuple[str, float]:
    """What a side of the map is called, and where it ends, in those units."""
    if len(side.axes) == 1:
        return f"axis {side.axes[0]} of the state", side.limit
    return f"angle of axes {side.axes[0]} and {side.axes[1]} [degrees]", math.degrees(side.limit)


def draw_map(ax: Axes, error_map: Mapping[str, Any], what: str, label: str, environment: EnvironmentConfig) -> None:
    """Disagreement or true error over the plane that is mapped, on CartPole that of cart position and pole angle."""
    if environment.name == "CartPole-v1":
        names, ends = ("cart position [m]", "pole angle [degrees]"), (2.4, 12.0)
    else:
        first, second = map_coordinates(make_environment(environment).spec)
        (name, end), (other_name, other_end) = _side(first), _side(second)
        names, ends = (name, other_name), (end, other_end)
    both = [np.array(error_map[name]) for name in ("disagreement", "one_step_error")]
    known = np.concatenate([x[np.isfinite(x)] for x in both])  # none of a model that is not finite
    low, high = (np.log10(np.maximum(extreme, 1e-6)) for extreme in ((known.min(), known.max()) if len(known) else (0.0, 1.0)))
    image = ax.imshow(
        np.log10(np.maximum(np.array(error_map[what]), 1e-6)),
        origin="lower",
        extent=(-ends[0], ends[0], -ends[1], ends[1]),
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
    )
    ax.grid(visible=False)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.set_title(label, fontsize=8)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("log10", fontsize=7)


def draw_lengths(settings: Mapping[str, Arms], lengths: Sequence[int], controllers: Sequence[str], path: Path) -> None:
    """Return against realised horizon in every setting, fixed horizons as a line and controllers as points.

    Args:
      settings: arms by the setting's title, with ``realised_horizon``, ``iqm_last`` and ``iqm_chosen``.
      lengths: the fixed horizons, whose arms are called ``fixed 3`` and so on.
      controllers: the other arms.
      path: of the picture.

    """
    figure, axes = new_figure(len(settings), 2)
    for row, policy in enumerate(("chosen", "last")):
        for column, (title, arms) in enumerate(settings.items()):
            ax = axes[row * len(settings) + column]
            fixed = [arms[f"fixed {length}"] for length in lengths]
            x = [arm["realised_horizon"] for arm in fixed]
            middle, low, high = np.array([arm[f"iqm_{policy}"] for arm in fixed]).T
            ax.plot(x, middle, color="0.25", linewidth=1.4)
            ax.fill_between(x, low, high, color="0.25", alpha=0.15, linewidth=0)
            for place, name in enumerate(controllers):
                if name not in arms:
                    continue
                value, below, above = arms[name][f"iqm_{policy}"]
                error = [[max(value - below, 0.0)], [max(above - value, 0.0)]]
                marker = MARKERS[place % len(MARKERS)]
                colour = COLOURS[place % len(COLOURS)]
                at = arms[name]["realised_horizon"]
                ax.errorbar(at, value, error, color=colour, marker=marker, markersize=5, linewidth=0.9, linestyle="none")
            _horizon_axis(ax)
            ax.set_ylabel(f"return of the {policy} policy, IQM" if column == 0 else "")
            ax.set_title(title, fontsize=9)
            ax.set_ylim(0, 515)
    handles: list[Any] = [Line2D([], [], color="0.25", label="fixed")]
    for place, name in enumerate(controllers):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        if any(name in arms for arms in settings.values()):
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=name.replace("_", " ")))
    ncols = min(9, max(2, 3 * len(settings)))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)
    figure.savefig(path)


def draw_families(arms: Arms, families: Mapping[str, str], path: Path) -> None:
    """Return against realised horizon, one line for each family of arms that differ in one number.

    Args:
      arms: with ``realised_horizon``, ``iqm_last``, ``iqm_chosen`` and ``surfing``.
      families: what the names of their arms begin with, by label.
      path: of the picture.

    """
    figure, axes = new_figure(3)
    for place, (label, begin) in enumerate(families.items()):
        family = sorted((arm for name, arm in arms.items() if name.startswith(begin)), key=lambda arm: arm["realised_horizon"])
        x = [arm["realised_horizon"] for arm in family]
        colour = matplotlib.color_sequences["tab10"][place]
        for ax, what in zip(axes, ("iqm_chosen", "iqm_last", "surfing"), strict=True):
            middle, low, high = np.array([arm[what] for arm in family]).T
            ax.plot(x, middle, color=colour, label=label.replace("_", " "), marker="o", markersize=4, linewidth=1.4)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    labels = ("return of the chosen policy, IQM", "return of the last policy, IQM", "imagined minus real return")
    for ax, label in zip(axes, labels, strict=True):
        _horizon_axis(ax)
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw_mismatch(models: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Holdout likelihood of models against the return that each yields (Lambert et al. 2020, arXiv:2002.04523).

    Args:
      models: each with ``learning_rate``, and over seeds ``holdout_nll``, ``return_chosen`` and ``return_last``.
      path: of the picture.

    """
    figure, axes = new_figure(2)
    rates = sorted({model["learning_rate"] for model in models})
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rates)))
    for ax, policy in zip(axes, ("chosen", "last"), strict=True):
        for model in models:
            ax.scatter(
                model["holdout_nll"],
                model[f"return_{policy}"],
                s=10,
                alpha=0.7,
                color=colours[rates.index(model["learning_rate"])],
                linewidths=0,
            )
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("holdout NLL of the model (lower is likelier)")
        ax.set_ylabel(f"real return of the {policy} policy")
        ax.set_ylim(0, 515)
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="none", label=f"rate {rate:g}")
        for rate, colour in zip(rates, colours, strict=True)
    ]
    axes[0].legend(handles=handles, frameon=False, fontsize=7)
    figure.savefig(path)


def _horizon_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("realised horizon, imagined steps")


def _colour(name: str, arms: Arms) -> Any:
    if name.startswith("fixed"):
        return {"fixed 3": "0.15", "fixed 50": "0.6"}.get(name, "0.4")
    coloured = [colour for place, colour in enumerate(matplotlib.color_sequences["tab10"]) if place != 7]  # grey is for the fixed
    return coloured[list(arms).index(name) % len(coloured)]
