"""What is wrong, or looks wrong, with logged transitions."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.audit import Audit

LEAST_ROWS, LEAST_EPISODES = 32, 2
DUPLICATES = (0.01, 0.5)  # shares of repeated rows that are a warning and an error
DISAGREEMENT = 1e-3  # share of the rows that may have another reward or termination than the task's, by rounding
OUT_OF_UNITS = 10.0  # times the task's scale, above which an axis is not in the task's units
UNLIKE = 1e3  # how many times as large as the middle one an axis may be, or as small
WRAP = 0.8  # share of its range by which an angle that wraps changes in one step
MOSTLY_STILL = 0.1  # share of its range that such an axis changes by on average, at the most


class Finding(NamedTuple):
    """Something that a person should know of the data."""

    level: Literal["error", "warning", "note"]  # an error is what no training could be right with
    text: str


def find(audit: Audit) -> list[Finding]:
    """Everything that is to be said of the data, errors first."""
    found = [Finding("error", text) for text in _errors(audit)]
    found += [Finding("warning", text) for text in _doubts(audit)]
    return found + [Finding("note", text) for text in _notes(audit)]


def require_sound(audit: Audit) -> None:
    """Refuse data with which no training could be right.

    Raises:
      ConfigError: naming everything that is wrong, its value and what would be right.

    """
    files = ", ".join(map(repr, audit.files))
    wrong = [f"data: {files}: {text}" for text in _errors(audit)]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _errors(audit: Audit) -> Iterator[str]:
    for name, column in audit.columns.items():
        if column.missing:
            yield (
                f"{name}: {column.missing:,} rows have a number that is not finite, the first is row {column.first_missing:,}; "
                "they must be filled in, or left out and the episode cut before them"
            )
    if audit.first_out_of_range is not None:
        row, value = audit.first_out_of_range
        yield (
            f"action: {audit.out_of_range:,} are out of range, the first is {value:g} in row {row:,}; they must be "
            f"{audit.right_actions()}"
        )
    if audit.broken:
        yield (
            f"next_observation: {audit.broken:,} rows, the first is row {audit.first_broken:,}, do not lead to the observation "
            "of the next row, and no end of an episode is marked there; rows must be in the order in which they happened, and "
            "truncated where an episode was cut"
        )
    if audit.episodes < LEAST_EPISODES:
        yield f"episodes: {audit.episodes} does not fit; there must be at least {LEAST_EPISODES}, one to hold out for validation"
    if audit.rows < LEAST_ROWS:
        yield f"rows: {audit.rows} do not fit; there must be at least {LEAST_ROWS}"
    if audit.action.still.all():
        yield "action: it never varies, so that nothing tells what actions do; behaviour must vary"
    if audit.step.count and not audit.step.high.any():
        yield "next_observation: it is always the observation; it must be the one after the step"
    known = audit.task is not None and audit.task.terminated is not None  # then the task tells good from bad
    if audit.reward.still.all() and not audit.terminated and not known:
        yield (
            f"reward: it is {audit.reward.low[0]:g} in every row and none is a termination, so that nothing tells good from bad; "
            "one of them must vary"
        )
    if audit.duplicates >= DUPLICATES[1]:
        yield f"rows: {audit.duplicates:.0%} repeat another row; each transition must be there once"
    if audit.terminations_differ > DISAGREEMENT * audit.compared:
        yield (
            f"terminated: it differs from the task's own in {audit.terminations_differ:,} of {audit.compared:,} rows that were "
            "compared; observations must be in the task's units, and a cut episode truncated"
        )
    if audit.rewards_differ > DISAGREEMENT * audit.compared:
        yield (
            f"reward: it differs from the task's own in {audit.rewards_differ:,} of {audit.compared:,} rows that were compared; "
            "it must be the task's, or environment.name none"
        )


def _doubts(audit: Audit) -> Iterator[str]:
    seen, largest, change = audit.observation, audit.observation.largest, audit.step.high
    for axis in np.flatnonzero(seen.still):
        yield f"observation axis {axis} never varies: it is {seen.low[axis]:g} in every row"
    middle = float(np.quantile(largest[~seen.still], 0.5, method="lower")) if not seen.still.all() else 0.0
    for axis in np.flatnonzero(~seen.still):
        if not middle / UNLIKE <= largest[axis] <= middle * UNLIKE:
            yield f"observation axis {axis} reaches {largest[axis]:g}, the middle one {middle:g}: in the right units?"
        width = float(seen.high[axis] - seen.low[axis])
        if change[axis] > WRAP * width and audit.step.mean[axis] < MOSTLY_STILL * width:
            yield (
                f"observation axis {axis} jumps by {change[axis]:g}, of a range of {width:g}, in one step: an angle that wraps? "
                "its cosine and sine can be learned, a jump cannot"
            )
    if audit.task is not None:
        times = largest / np.asarray(audit.task.spec.observation_scale)
        for axis in np.flatnonzero(times > OUT_OF_UNITS):
            told = f"{times[axis]:.3g} times the task's scale"
            yield f"observation axis {axis} reaches {largest[axis]:g}, {told}: in the right units?"
    if audit.continuous and not audit.action.still.all():
        for axis in np.flatnonzero(audit.action.still):
            yield f"action axis {axis} never varies: it is {audit.action.low[axis]:g} in every row"
    if audit.action_counts is not None:
        never = [action for action in range(audit.actions()[0]) if not np.any(audit.action_counts[action : action + 1])]
        if never:
            yield f"action {', '.join(map(str, never))} was never taken: nothing is known of what it does"
    if audit.lost:
        yield (
            f"{audit.lost:,} rows at the ends of episodes are left out, {audit.lost_terminated:,} of them terminations: their "
            "next_observation was not recorded"
        )
    if DUPLICATES[0] <= audit.duplicates < DUPLICATES[1]:
        yield f"{audit.duplicates:.1%} of the rows repeat another row"


def _notes(audit: Audit) -> Iterator[str]:
    if audit.reward.still.all():
        yield f"the reward is {audit.reward.low[0]:g} in every row: only terminations tell good from bad"
    if not audit.terminated:
        yield "no row is a termination: every episode was cut, and a value goes on behind each of them"
