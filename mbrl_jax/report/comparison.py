"""The comparison of the model-based arm with the model-free one on the same real data."""

import math
from typing import Any

from rich.table import Table

from mbrl_jax import statistics
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, ImaginingConfig, RunConfig
from mbrl_jax.environments import success_marks
from mbrl_jax.runs import terminal
from mbrl_jax.runs.results import per_seed
from mbrl_jax.runs.run import Run
from mbrl_jax.statistics import Estimate, estimate, fraction_at_least


def check_arms(model_based: RunConfig, model_free: RunConfig) -> None:
    """Refuse arms that would not share their real data and their number of updates.

    Raises:
      ConfigError: naming what differs.

    """
    if not algorithm_of(model_based).imagines or algorithm_of(model_free).has_model:
        raise ConfigError(
            "algorithm: the first arm must learn in imagination, as 'dyna_q' does, and the second none, as 'model_free_q'"
        )
    if isinstance(model_based, ImaginingConfig) and not model_based.selection.choose:
        raise ConfigError("selection.choose: False does not fit; the comparison is of the policy that was chosen in imagination")
    for field in ("protocol", "environment", "random_transitions", "steps"):
        ours, theirs = getattr(model_based, field), getattr(model_free, field)
        if ours != theirs:
            raise ConfigError(f"{field}: {ours!r} and {theirs!r} differ; both arms must have the same")


def compare(model_based: Run, model_free: Run) -> dict[str, Any]:
    """The arms' figures and the paired differences between them, seed by seed.

    Both are there: last policy against last policy, and chosen against last, since a model-free agent has nothing to choose with.
    """
    chosen = per_seed(model_based.result.outcome.returns_chosen)
    last = per_seed(model_based.result.outcome.returns_last)
    baseline = per_seed(model_free.result.outcome.returns_last)

    marks = success_marks(model_based.config.environment.name)

    def arm(returns: Any, run: Run) -> dict[str, Any]:
        return {
            "mean": estimate(returns, statistics.mean),
            "median": estimate(returns, statistics.median),
            "iqm": estimate(returns),
            **{f"at_least_{mark}": estimate(returns, fraction_at_least(mark)) for mark in marks},
            "seconds": run.seconds.run,
        }

    def difference(ours: Any) -> dict[str, Estimate]:
        return {"mean": estimate(ours - baseline, statistics.mean), "iqm": estimate(ours - baseline)}

    return {
        "arms": {
            "model-based, chosen": {**arm(chosen, model_based), "paired_difference": difference(chosen)},
            "model-based, last": {**arm(last, model_based), "paired_difference": difference(last)},
            "model-free, last": {**arm(baseline, model_free), "paired_difference": None},
        },
        "marks": list(marks),
        "seeds": len(baseline),
    }


def as_json(figures: Any) -> Any:
    """:func:`compare`'s figures as plain JSON."""
    if isinstance(figures, Estimate):
        return figures.as_json()
    if isinstance(figures, dict):
        return {name: as_json(value) for name, value in figures.items()}
    return figures


def as_table(figures: dict[str, Any], title: str) -> Table:
    """:func:`compare`'s figures for a terminal of 80 columns or more: a column for each policy."""
    arms = figures["arms"]

    def interval(estimate: Estimate | None) -> str:
        if estimate is None:
            return ""
        return str(estimate).replace(" ", "\n", 1)

    def column(arm: dict[str, Any]) -> dict[str, str]:
        return {
            "mean": _shown(arm["mean"], ".1f"),
            "median": _shown(arm["median"], ".1f"),
            "IQM": interval(arm["iqm"]),
            **{f">= {mark}": _shown(arm[f"at_least_{mark}"], ".0%") for mark in figures["marks"]},
            "difference": interval(arm["paired_difference"] and arm["paired_difference"]["mean"]),
            "seconds": f"{arm['seconds']:.0f}",
        }

    columns = [column(arm) for arm in arms.values()]
    return terminal.table(
        ("", *arms),
        [(name, *(cells[name] for cells in columns)) for name in columns[0]],
        title=title,
        caption="brackets: 95 % bootstrap intervals; difference: mean over seeds of own return minus model-free",
        numbers=True,
    )


def _shown(told: Estimate, form: str) -> str:
    """An estimate's value alone, a dash where there is no number."""
    return "-" if math.isnan(told.value) else format(told.value, form)
