"""The figure of logged transitions: how long episodes are, what they return, and where observations, actions and rewards lie."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mbrl_jax.environments import view_of
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.report.figures import COLOURS, new_figure

MOST_AXES = 12  # of observations that are drawn


def draw_audit(audit: Audit, path: Path) -> None:
    """Draw what the transitions hold."""
    size = min(len(audit.observation.low), MOST_AXES)
    count = 4 + size
    figure, axes = new_figure(4, -(-count // 4))
    sample, rows = audit.sample, axes[count:]
    _histogram(axes[0], audit.lengths.astype(float), "steps of an episode", "episodes")
    _histogram(axes[1], audit.returns[np.isfinite(audit.returns)], "return of an episode", "episodes")
    _histogram(axes[2], sample.reward, "reward", "rows of the sample")
    if audit.action_counts is not None:
        axes[3].bar(np.arange(len(audit.action_counts)), audit.action_counts, color=COLOURS["baseline"])
        axes[3].set_xlabel("action")
        axes[3].set_ylabel("rows")
    else:
        for number, column in enumerate(sample.action.T):
            _histogram(axes[3], column, "action", "rows of the sample", label=f"axis {number}")
        axes[3].legend(frameon=False, fontsize=7)
    names = view_of("" if audit.task is None else audit.task.spec.name, len(audit.observation.low)).axes
    for axis in range(size):
        _histogram(axes[4 + axis], sample.observation[:, axis], f"observation: {names[axis]}", "rows of the sample")
    for ax in rows:
        ax.set_visible(False)
    ended = f"{audit.terminated:,} terminated, {audit.truncated:,} truncated"
    figure.suptitle(f"{audit.rows:,} transitions of {audit.episodes:,} episodes: {ended}", fontsize=9)
    figure.savefig(path)


def _histogram(ax: Axes, values: np.ndarray, what: str, count: str, label: str | None = None) -> None:
    finite = values[np.isfinite(values)]
    ax.hist(finite, bins=40, color=COLOURS["baseline"] if label is None else None, alpha=0.8, label=label)
    ax.set_xlabel(what)
    ax.set_ylabel(count)
