"""What logged transitions hold: one pass over the files, in bounded memory."""

from collections.abc import Sequence

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.blocks import LogFile
from mbrl_jax.environments.logged.columns import Column, Hashes
from mbrl_jax.environments.logged.episodes import Episodes, Logged, concatenate
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, in_units

KEPT_ROWS = 20_000  # for figures
MOST_ACTIONS = 10_000  # discrete ones, counted one by one
COMPARED = 4_096  # rows of a block that are set beside the task's own functions
ROUNDING = 1e-3  # share of the largest reward by which a logged one may differ


class Audit:
    """What there is in files of logged transitions.

    Attributes:
      files: their paths.
      rows: transitions.
      lengths: [episodes] int64 steps.
      returns: [episodes] float64.
      terminated: rows that are terminations.
      truncated: rows at which an episode was cut.
      lost: rows that were left out because their s' was not recorded.
      lost_terminated: those of them that are terminations.
      broken: rows whose s' is not the s of the row that follows within the episode.
      first_broken: number of the first of them.
      out_of_range: actions that cannot be.
      first_out_of_range: row and value of the first of them.
      compared: rows that were set beside the task's own functions.
      rewards_differ: those of them with another reward.
      terminations_differ: those with another termination.
      observation, next_observation, reward, action: their statistics.
      step: statistics of the magnitude of s' - s.
      continuous: whether actions are.
      action_counts: [A] how often each discrete action was taken, none for continuous actions.
      duplicates: share of the rows that repeat another one, estimated by hashes.
      sample: rows for figures, evenly spaced over all of them.

    """

    def __init__(self, files: Sequence[LogFile], task: Environment | None = None):
        """Read the files to their end.

        Args:
          files: open ones.
          task: whose transitions they should be; none where that is not known.

        Raises:
          ConfigError: they cannot be read, or are of another task's spaces.

        """
        self.files = tuple(file.path for file in files)
        self.task = task
        self.rows = self.terminated = self.truncated = self.broken = 0
        self.first_broken: int | None = None
        self._lengths, self._returns, self._open = list[np.ndarray](), list[np.ndarray](), 0.0
        self.action_counts: np.ndarray | None = None
        self._hashes = Hashes()
        self.rewards_differ = self.terminations_differ = self.compared = self.out_of_range = 0
        self.first_out_of_range: tuple[int, float] | None = None
        episodes, spacing, kept = Episodes(files), max(1, sum(file.rows for file in files) // KEPT_ROWS), list[Logged]()
        self.action_count, self.action_scale = _declared(files)
        for rows in episodes:
            if not self.rows:
                size, actions = rows.observation.shape[1], rows.action.reshape(len(rows.reward), -1).shape[1]
                self.continuous = rows.action.ndim == 2
                self.observation, self.next_observation, self.step = (Column.of(size) for _ in range(3))
                self.reward, self.action = Column.of(1), Column.of(actions)
                if task is not None:
                    check_spaces(self.files[0], rows, task)
            self._add(rows)
            kept.append(rows.part(np.arange((-self.rows) % spacing, len(rows.reward), spacing)))  # copies, not views of the block
            self.rows += len(rows.reward)
        self.lost, self.lost_terminated = episodes.lost, episodes.lost_terminated
        if not self.rows:
            raise ConfigError(f"data: {', '.join(map(repr, self.files))} holds no transitions; it must hold some")
        self.sample = concatenate(kept)
        self.lengths, self.returns = np.concatenate(self._lengths), np.concatenate(self._returns)
        self.duplicates = self._hashes.duplicates()

    @property
    def episodes(self) -> int:
        """How many there are."""
        return len(self.lengths)

    @property
    def columns(self) -> dict[str, Column]:
        """Statistics of what a file has, by its name there."""
        return {name: getattr(self, name) for name in ("observation", "next_observation", "reward", "action")}

    def right_actions(self) -> str:
        """What actions must be."""
        count, scale = self.actions()
        if count:
            return f"whole numbers from 0 to {count - 1}"
        return f"of a magnitude of at most {', '.join(f'{each:g}' for each in scale)}"

    def actions(self) -> tuple[int, tuple[float, ...]]:
        """How many discrete actions there are, or 0 and the scale of continuous ones.

        Of the task, or as the files say, or as far as the data go.
        """
        if self.task is not None:
            spec = self.task.spec
            return spec.action_count, largest_actions(spec)
        if self.continuous:
            return 0, self.action_scale or tuple(
                float(each) for each in np.where(self.action.largest > 0, self.action.largest, 1)
            )
        return self.action_count or int(self.action.high[0]) + 1, ()

    # -------------------------------------------------------------------------------------------------------------- pieces

    def _add(self, rows: Logged) -> None:
        first = self.rows
        self.observation.add(rows.observation, first)
        self.next_observation.add(rows.next_observation, first)
        with np.errstate(invalid="ignore"):
            self.step.add(np.abs(rows.next_observation - rows.observation), first)
        self.reward.add(rows.reward[:, None], first)
        self.action.add(rows.action.reshape(len(rows.reward), -1).astype(np.float64), first)
        self.terminated += int(rows.terminated.sum())
        self.truncated += int(rows.truncated.sum())
        if rows.broken.any():
            self.broken += int(rows.broken.sum())
            self.first_broken = first + int(np.argmax(rows.broken)) if self.first_broken is None else self.first_broken
        self._add_episodes(rows)
        self._add_actions(rows)
        self._hashes.add(rows)
        if self.task is not None:
            self._compare(rows, self.task)

    def _add_episodes(self, rows: Logged) -> None:
        ends = np.flatnonzero(rows.terminated | rows.truncated)
        total = np.cumsum(rows.reward, dtype=np.float64)
        at_ends = total[ends]
        if len(ends):
            returns = np.diff(at_ends, prepend=0.0)
            returns[0] += self._open
            self._lengths.append(rows.elapsed[ends].astype(np.int64) + 1)
            self._returns.append(returns)
            self._open = float(total[-1] - at_ends[-1])
        else:
            self._open += float(total[-1])

    def _add_actions(self, rows: Logged) -> None:
        if self.continuous:
            if self.task is None and self.action_scale is None:
                return
            scale = np.asarray(self.actions()[1])
            with np.errstate(invalid="ignore"):
                out = (np.abs(rows.action) > scale * (1 + 1e-4)).any(axis=1)
            wrong = np.abs(rows.action).max(axis=1)
        else:
            limit = MOST_ACTIONS if self.task is None and self.action_count is None else self.actions()[0]
            wrong = rows.action
            out = (wrong < 0) | (wrong >= limit)
            before = np.zeros(0, np.int64) if self.action_counts is None else self.action_counts
            counts = np.bincount(wrong[~out], minlength=len(before))
            counts[: len(before)] += before
            self.action_counts = counts
        if out.any():
            self.out_of_range += int(out.sum())
            if self.first_out_of_range is None:
                place = int(np.argmax(out))
                self.first_out_of_range = self.rows + place, float(wrong[place])

    def _compare(self, rows: Logged, task: Environment) -> None:
        """Set logged rewards and terminations beside those of the task's own functions."""
        part = rows.part(slice(0, COMPARED))
        action = scaled_actions(part.action, task.spec)
        self.compared += len(part.reward)
        if task.reward is not None:
            true = np.asarray(task.reward(part.observation, action, part.next_observation))  # type: ignore[arg-type]
            size = max(1.0, float(np.abs(true).max(initial=0.0)))
            self.rewards_differ += int((np.abs(true - part.reward) > ROUNDING * size).sum())
        if task.terminated is not None:
            over = np.asarray(task.terminated(part.observation, action, part.next_observation))  # type: ignore[arg-type]
            self.terminations_differ += int((over != part.terminated).sum())


def check_spaces(path: str, rows: Logged, task: Environment) -> None:
    """Refuse rows of other spaces than a task's.

    Raises:
      ConfigError: naming what they have and what the task has.

    """
    spec = task.spec
    size, continuous = rows.observation.shape[1], rows.action.ndim == 2
    if size != spec.observation_size:
        raise ConfigError(
            f"data: {path!r}: observations of {size} numbers do not fit; those of {spec.name} have {spec.observation_size}"
        )
    if continuous != spec.continuous or (continuous and rows.action.shape[1] != spec.action_size):
        there = f"{rows.action.shape[1]} numbers" if continuous else "whole numbers"
        right = f"{spec.action_size} numbers" if spec.continuous else f"whole numbers below {spec.action_count}"
        raise ConfigError(f"data: {path!r}: actions that are {there} do not fit; those of {spec.name} are {right}")


def scaled_actions(action: np.ndarray, spec: EnvironmentSpec) -> np.ndarray:
    """Actions as learners see them, [n] int32 or [n, A] from -1 to 1, from those in the task's own units."""
    if not spec.continuous:
        return action.astype(np.int32)
    high, centre = (in_units(spec, np.full((1, spec.action_size), each, np.float32)) for each in (1.0, 0.0))
    return np.clip((action - centre) / (high - centre), -1.0, 1.0).astype(np.float32)


def largest_actions(spec: EnvironmentSpec) -> tuple[float, ...]:
    """Largest magnitude of each number of a continuous action, in the task's own units."""
    low, high = (in_units(spec, np.full((1, spec.action_size), each)) for each in (-1.0, 1.0))
    return tuple(np.maximum(np.abs(low), np.abs(high))[0].tolist())


def _declared(files: Sequence[LogFile]) -> tuple[int | None, tuple[float, ...] | None]:
    """The actions' count and scale that the files agree on; none where none says it.

    Raises:
      ConfigError: two files say different things.

    """
    found = []
    for name in ("action_count", "action_scale"):
        declared = {getattr(file, name): file.path for file in files if getattr(file, name) is not None}
        if len(declared) > 1:
            said = ", ".join(f"{value} in {path!r}" for value, path in declared.items())
            raise ConfigError(f"data: the files differ in {name}: {said}; they must be of one task")
        found.append(next(iter(declared), None))
    return found[0], found[1]
