"""What commands print of a run: its figures, and what went wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from mbrl_jax import statistics
from mbrl_jax.runs import results, terminal
from mbrl_jax.runs.run import Run
from mbrl_jax.statistics import Estimate


def of_run(run: Run, summary: Mapping[str, Any]) -> list[str | Table]:
    """The figures of a finished run with its ``summary.json``, and what diverged."""
    marks, rows = summary["fraction_at_least"], []
    for arm in ("chosen", "last"):
        iqm = Estimate.from_json(summary["iqm"][arm])
        if iqm is not None:
            rows.append((arm, str(iqm), *(f"{share[arm]:.0%}" for share in marks.values())))
    title = f"{summary['algorithm']}, {summary['protocol']}, {summary['seeds']} seeds, {summary['backend']}"
    return [
        *([] if summary["note"] is None else [summary["note"]]),
        terminal.table(("policy", "IQM", *(f">= {mark}" for mark in marks)), rows, title=title),
        f"compiled in {run.seconds.compile:.0f} s, ran in {run.seconds.run:.0f} s: "
        f"{summary['real_steps_per_second']:,.0f} steps/s, "
        f"{summary['imagined_transitions_per_second']:,.0f} imagined transitions/s",
        *_divergence(run, summary),
    ]


def _divergence(run: Run, summary: Mapping[str, Any]) -> list[str]:
    """What went non-finite, and the setting to blame: a model that breaks takes the learner with it."""
    seeds, frozen, lines = summary["seeds"], summary["frozen_seeds"], []
    model = {"has numbers": summary["diverged_model_seeds"], "predicts numbers": _overflowing_seeds(run)}
    for fault, broken in model.items():
        if broken:
            which = "every seed" if len(broken) == seeds else f"seeds {broken}"
            lines.append(f"the world model of {which} {fault} that are not finite; try a smaller model.learning_rate")
            break
    if len(frozen) == seeds:
        hint = "" if lines else "; try a smaller agent.learning_rate"
        lines.append(f"every seed went non-finite and rests at its last finite parameters{hint}")
    elif frozen:
        lines.append(f"went non-finite and rest at their last finite parameters: seeds {frozen}")
    return lines


def _overflowing_seeds(run: Run) -> list[int]:
    """Seeds with a fit or a refit of the model whose error on held-out rows is not finite."""
    logs = [log for log in (run.result.fit, getattr(run.result.metrics, "refit", None)) if log]
    errors = [np.asarray(leaf) for log in logs for leaf in jax.tree.leaves(log.holdout_mse)]
    broken = [~np.isfinite(error.reshape(len(error), -1)).all(axis=1) for error in errors]
    return [int(seed) for seed in np.flatnonzero(np.logical_or.reduce(broken))] if broken else []


def of_episodes(returns: Mapping[str, np.ndarray], marks: Sequence[float], title: str) -> Table:
    """Returns [seeds, episodes] of policies by name, a row for each."""
    rows = []
    for name, each in returns.items():
        scores = results.per_seed(each)
        shares = (f"{statistics.fraction_at_least(mark)(scores):.0%}" for mark in marks)
        average = (f"{scores.mean():.1f}", f"{statistics.median(scores):.1f}", str(statistics.estimate(scores)))
        rows.append((name, str(len(scores)), *average, *shares))
    return terminal.table(("policy", "seeds", "mean", "median", "IQM", *(f">= {mark}" for mark in marks)), rows, title=title)
