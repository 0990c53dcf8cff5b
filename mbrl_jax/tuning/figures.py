"""The figures of a search: which settings matter, and where the good trials lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from mbrl_jax.report import figures
from mbrl_jax.tuning.space import Choice, Range, Space

MOST = 6  # lines that are drawn above all others: the best trials


def draw_importance(importances: Mapping[str, float], path: Path) -> None:
    """The share of each setting in what the trials reached, the largest on top."""
    figure, (ax,) = figures.new_figure(1)
    figure.set_size_inches(6.5, 1.2 + 0.3 * len(importances))
    ordered = sorted(importances.items(), key=lambda each: each[1])
    bars = ax.barh([name for name, _ in ordered], [share for _, share in ordered], color=figures.COLOURS["chosen"], height=0.6)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
    ax.set_xlim(0, 1.08 * max(share for _, share in ordered) or 1)
    ax.set_xlabel("importance (PED-ANOVA, all trials)")
    ax.grid(visible=False, axis="y")
    figure.savefig(path)


def draw_parallel(space: Space, reached: Sequence[tuple[Mapping[str, Any], float]], label: str, path: Path) -> None:
    """A line for each trial (parameters, value) through its settings, coloured by its value; the best lie on top."""
    figure, (ax,) = figures.new_figure(1)
    figure.set_size_inches(2.2 + 1.5 * len(space), 4.2)
    ordered = sorted(reached, key=lambda each: each[1])
    values = np.array([value for _, value in ordered])
    heights = np.array([[_height(domain, params[name]) for name, domain in space.items()] for params, _ in ordered])
    if len(space) == 1:
        heights = np.repeat(heights, 2, axis=1)  # a line needs two ends
    places = np.arange(heights.shape[1])
    lines = [np.column_stack([places, line]) for line in heights]
    widths = np.where(np.arange(len(lines)) >= len(lines) - MOST, 1.8, 0.7)
    colours = matplotlib.colormaps["viridis"]
    drawn = LineCollection(lines, cmap=colours, norm=Normalize(values[0], values[-1]), linewidths=widths, alpha=0.8)
    drawn.set_array(values)
    ax.add_collection(drawn)
    for place, domain in enumerate(space.values()):
        ax.axvline(place, color="0.3", linewidth=0.8, zorder=0)
        for height, text in _ticks(domain):
            ax.annotate(text, (place, height), xytext=(3, 0), textcoords="offset points", fontsize=6.5, va="center")
    ax.set_xlim(-0.1, places[-1] + 0.35)
    ax.set_ylim(-0.06, 1.06)
    ax.set_yticks([])
    ax.set_xticks(places[: len(space)], [name.replace(".", ".\n") for name in space], fontsize=7)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(drawn, ax=ax, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _height(domain: Range | Choice, stored: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if isinstance(domain, Choice):
        return domain.names.index(stored) / max(len(domain.names) - 1, 1)
    scale = np.log if domain.log else float
    low, high, value = (float(scale(number)) for number in (domain.low, domain.high, stored))
    return (value - low) / (high - low)


def _ticks(domain: Range | Choice) -> list[tuple[float, str]]:
    """Heights on an axis and what is written there."""
    if isinstance(domain, Choice):
        return [(_height(domain, name), str(name)) for name in domain.names]
    ends = (domain.low, domain.high)
    middle = np.sqrt(ends[0] * ends[1]) if domain.log else (ends[0] + ends[1]) / 2
    if domain.kind == "int":
        middle = round(middle)
    return [(_height(domain, value), f"{value:.3g}") for value in dict.fromkeys((ends[0], middle, ends[1]))]
