"""The report's first section: what was run, on what, what came of it, and how to run it again."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from mbrl_jax.config import flat_settings, to_dict
from mbrl_jax.environments import success_marks
from mbrl_jax.report import markup
from mbrl_jax.report.entries import Entry, by_task
from mbrl_jax.statistics import Estimate

NOTHING = "-"


def section(entries: Sequence[Entry]) -> str:
    """What the runs are and what they reached."""
    parts = [
        markup.paragraph(
            "Returns are those of greedy episodes in the real environment. IQM is the mean of the middle half of the seeds; "
            "brackets hold 95 % percentile-bootstrap intervals over seeds (Agarwal et al. 2021, arXiv:2108.13264). Nothing "
            "on this page is of the best seed."
        ),
        *(markup.paragraph(text, "warning") for entry in entries for text in _warnings(entry)),
        *(markup.paragraph(_about_the_reference(entry)) for entry in entries if entry.run.backend.name == "pytorch"),
        markup.table(["", *(entry.label for entry in entries)], _rows(entries), "The runs and what they reached"),
        markup.heading("To repeat a run"),
        '<pre class="commands">' + "".join(f"<code>{markup.escape(entry.command)}</code>" for entry in entries) + "</pre>",
        markup.heading("Settings"),
    ]
    if len(entries) > 1:
        parts.append(_differences(entries))
    for entry in entries:
        settings = yaml.safe_dump(to_dict(entry.run.config), sort_keys=False)
        parts.append(markup.details(f"All settings of {entry.label}", settings))
    return markup.section("runs", "Runs", *parts)


def title(entries: Sequence[Entry]) -> str:
    """What the page is called."""
    return f"{', '.join(by_task(entries))}: {', '.join(entry.label for entry in entries)}"


def one_line(entry: Entry) -> str:
    """A run in a line."""
    config, summary = entry.run.config, entry.summary
    shown = entry.shown
    reached = _estimate(summary["iqm"][shown])
    return (
        f"{summary['algorithm']} on {entry.task}, {config.protocol} protocol, {summary['real_transitions']:,} real transitions, "
        f"{entry.seeds} seeds: the {shown} policy returns {reached} (IQM)."
    )


def _warnings(entry: Entry) -> list[str]:
    """What a reader must know before anything else about a run."""
    told = []
    if entry.run.config.evaluation.where == "model":
        told.append(
            f"{entry.label}: no real return was measured. Its policies were judged in the learned model: wherever this page has "
            "a return of it, the return is an imagined one."
        )
    diverged = entry.summary.get("diverged_model_seeds", [])  # runs of earlier versions do not tell
    if diverged:
        told.append(
            f"{entry.label}: the world model of {len(diverged)} of {entry.seeds} seeds has numbers that are not finite: "
            f"{', '.join(map(str, diverged))}. In such a world every policy scores minus infinity."
        )
    frozen = entry.summary["frozen_seeds"]
    if len(frozen) == entry.seeds:
        told.append(
            f"{entry.label}: the learner of every seed went non-finite. What is reported are the last finite parameters of each; "
            "no conclusion about the method can be drawn from them."
        )
    elif frozen:
        told.append(
            f"{entry.label}: the learner went non-finite on {len(frozen)} of {entry.seeds} seeds: {', '.join(map(str, frozen))}. "
            "They rest at their last finite parameters and are counted in all figures."
        )
    return told


def _about_the_reference(entry: Entry) -> str:
    return (
        f"{entry.label} was computed by the PyTorch reference, one seed after another: its seconds are sums over seeds, its "
        "rates those of one process, and the memory of a seed was not measured."
    )


def marks_of(entry: Entry) -> tuple[float, ...]:
    """The returns that count as success on the run's task and that its time limit lets an episode reach."""
    limit = entry.run.config.environment.time_limit
    return tuple(mark for mark in success_marks(entry.task) if limit is None or mark <= limit)


def _rows(entries: Sequence[Entry]) -> list[list[str]]:
    """The table, without rows that say nothing of any run."""
    rows: dict[str, Callable[[Entry], str]] = {
        "algorithm": lambda e: e.summary["algorithm"],
        "protocol": lambda e: e.run.config.protocol,
        "task": lambda e: e.task,
        "seeds": lambda e: f"{e.seeds} (base seed {e.run.base_seed})",
        "real transitions": lambda e: f"{e.summary['real_transitions']:,}",
        "imagined transitions": lambda e: f"{e.summary['imagined_transitions']:,}" if e.has_model else NOTHING,
        "updates": lambda e: f"{e.summary['updates']:,}",
        "return of the random policy, mean": lambda e: _number(e.summary["random_return"], ",.1f"),
        "return of the last policy, IQM": lambda e: _estimate(e.summary["iqm"]["last"]),
        "return of the chosen policy, IQM": lambda e: _estimate(e.summary["iqm"]["chosen"]),
        **{
            f"seeds ≥ {mark}, {arm} policy": functools.partial(_share, mark=mark, arm=arm)
            for mark in dict.fromkeys(mark for entry in entries for mark in marks_of(entry))
            for arm in ("last", "chosen")
        },
        "seconds of compilation": lambda e: _number(e.summary["seconds"]["compile"], ",.1f"),
        "seconds of the run": lambda e: _number(e.summary["seconds"]["run"], ",.1f"),
        "steps per second": lambda e: _number(e.summary["real_steps_per_second"], ",.0f"),
        "imagined transitions per second": lambda e: (
            _number(e.summary["imagined_transitions_per_second"], ",.0f") if e.has_model else NOTHING
        ),
        "memory of a seed": lambda e: _megabytes(e.summary["bytes_per_seed"]["state"]),
        "frozen seeds": lambda e: ", ".join(map(str, e.summary["frozen_seeds"])) or "none",
        "device": lambda e: e.run.backend.device,
        "precision": lambda e: e.run.backend.precision,
        "versions": lambda e: ", ".join(f"{name} {version}" for name, version in e.summary["versions"].items()),
        "git revision": lambda e: e.summary["git"] or "not from a checkout",
    }
    full = [[name, *(tell(entry) for entry in entries)] for name, tell in rows.items()]
    return [row for row in full if any(cell != NOTHING for cell in row[1:])]


def _differences(entries: Sequence[Entry]) -> str:
    rows, partial = differing([flat_settings(entry.run.config) for entry in entries])
    told = []
    if rows:
        told.append(markup.table(["setting", *(entry.label for entry in entries)], rows, "Settings that differ"))
    if partial:
        groups = ", ".join(dict.fromkeys(name.partition(".")[0] for name in partial))
        told.append(
            markup.paragraph(f"Only some of the runs have settings of {groups}; those not listed are the same where they are.")
        )
    return "\n".join(told) or markup.paragraph("The runs do not differ in any setting.")


def differing(flat: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """The settings that differ among the runs that have them, as rows of a table, and the names of those that only some have."""
    rows, partial = [], []
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [str(settings[name]) if name in settings else NOTHING for settings in flat]
        if len(set(values) - {NOTHING}) > 1:
            rows.append([name, *values])
        elif NOTHING in values:
            partial.append(name)
    return rows, partial


def _estimate(told: Mapping[str, Any] | None) -> str:
    estimate = Estimate.from_json(told)
    return NOTHING if estimate is None else str(estimate)


def _share(entry: Entry, mark: float, arm: str) -> str:
    told = entry.summary["fraction_at_least"].get(str(mark))  # a run may have been saved before its task had this mark
    share = None if told is None or mark not in marks_of(entry) else told[arm]
    return NOTHING if share is None else f"{share:.0%}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _megabytes(count: int | None) -> str:
    return "not measured" if count is None else f"{count / 1e6:,.2f} MB"
