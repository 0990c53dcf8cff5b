"""Logged transitions in place of random ones: what a run learns from when its config names files.

:func:`settle` writes into a config what follows from its files, so that the config alone tells what was trained: how many
transitions there are, and the sizes and scales of a task of which nothing else is known. :func:`load` reads the transitions.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mbrl_jax.config import ConfigError, EnvironmentConfig, RunConfig, expand, holdout_stride
from mbrl_jax.environments.logged.audit import Audit, scaled_actions
from mbrl_jax.environments.logged.episodes import Episodes, Logged, concatenate
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.findings import LEAST_EPISODES, require_sound
from mbrl_jax.environments.logged.minari import MINARI
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, no_simulator
from mbrl_jax.environments.registry import make_environment, register

C = TypeVar("C", bound=RunConfig)

NOTHING = "none"  # the name of the environment that is not there
MOST = 2_000_000  # transitions that a run learns from; they are part of its compiled program


class Data(NamedTuple):
    """Logged transitions [N] as a run learns from them, in the order of the files."""

    rows: Logged  # with actions as learners see them: int32 [N], or [N, A] from -1 to 1
    returns: np.ndarray  # [N] float32, return of the episode that ended at each row, minus infinity where none did
    holdout: np.ndarray  # [h] int32 numbers of the rows of the held-out episodes


def settle(config: C, environment: Environment | None = None) -> C:
    """The config with everything that follows from the files that it names; as it is if it names none.

    Paths become absolute, ``random_transitions`` the number of transitions. Without an environment policies are judged in the
    model, and what the task's settings leave open is taken from the data.

    Raises:
      ConfigError: the files cannot be read, hold data with which no training could be right, or do not fit the config.

    """
    if config.data is None:
        return config
    files = tuple(_absolute(path) for path in config.data)
    audit = _audit(files, _stamps(files), None if config.environment.name == NOTHING else config.environment, environment)
    if audit.task is not None and audit.task.host is not None:
        right = "with data it must be a task that a device steps, or 'none'; the policies can be played in it afterwards"
        raise ConfigError(f"environment.name: {config.environment.name!r} does not fit; {right}")
    require_sound(audit)
    wanted = config.data_transitions
    if wanted is not None and wanted > audit.rows:
        raise ConfigError(f"data_transitions: {wanted:,} does not fit; the files have {audit.rows:,}")
    rows = audit.rows if wanted is None else wanted
    if rows > MOST:
        raise ConfigError(
            f"data: {rows:,} transitions are more than one run learns from; data_transitions must name at most {MOST:,} of them"
        )
    changes: dict[str, Any] = {"data": files, "random_transitions": rows}
    if config.environment.name == NOTHING and environment is None:
        changes["environment"] = _described(config.environment, audit)
        changes["evaluation"] = dataclasses.replace(config.evaluation, where="model")
    return dataclasses.replace(config, **changes)


def load(config: RunConfig, task: Environment) -> Data:
    """The transitions of a settled config, chosen and held out as all its seeds see them.

    Raises:
      ConfigError: the files cannot be read, or are not what they were when the config was settled.

    """
    assert config.data is not None, "only a config that names files has data"
    files = config.data
    return _load(files, _stamps(files), config.random_transitions, holdout_stride(config), task.spec)


def choose_episodes(lengths: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Numbers of the first episodes in a random order that have ``rows`` rows or more together.

    Args:
      lengths: [episodes].
      rows: wanted, at most all.
      seed: of the order.

    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    return order[: int(np.searchsorted(np.cumsum(lengths[order]), rows)) + 1]


def hold_out(elapsed: np.ndarray, stride: int) -> np.ndarray:
    """[h] int32 numbers of the rows that validate a model: whole episodes, about one row in ``stride`` of all [N].

    At least one episode is held out and at least one is not.
    """
    starts = np.flatnonzero(elapsed == 0)
    lengths = np.diff(starts, append=len(elapsed))
    chosen = choose_episodes(lengths, max(1, len(elapsed) // stride), seed=1)[: len(lengths) - 1]
    held = np.zeros(len(lengths), bool)
    held[chosen] = True
    return np.flatnonzero(np.repeat(held, lengths)).astype(np.int32)


def _make_nothing(config: EnvironmentConfig) -> Environment:
    """The task of which there are only logged transitions: sizes, no simulator, reward and termination unknown."""
    scale, count, action_scale = config.observation_scale, config.actions, config.action_scale
    if scale is None or (count is None) == (action_scale is None):
        raise ConfigError(
            "environment.name: 'none' does not fit without logged transitions: data must name files of them, or environment must "
            "have observation_scale and either actions or action_scale"
        )
    spec = EnvironmentSpec(
        name=NOTHING,
        observation_size=len(scale),
        action_count=count or 0,
        time_limit=config.time_limit or 1,
        observation_scale=scale,
        action_size=len(action_scale or ()),
        action_scale=action_scale or (),
    )
    return Environment(spec, no_simulator, no_simulator)


register(NOTHING, _make_nothing)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _absolute(path: str) -> str:
    return path if path.startswith(MINARI) else os.fspath(Path(expand(path, "data")).absolute())


def _stamps(files: Sequence[str]) -> tuple[Any, ...]:
    """What changes where a file does."""
    places = [None if path.startswith(MINARI) or not os.path.exists(path) else os.stat(path) for path in files]
    return tuple(None if place is None else (place.st_size, place.st_mtime_ns) for place in places)


@functools.lru_cache(maxsize=2)
def _audit(files: tuple[str, ...], stamps: Any, config: EnvironmentConfig | None, environment: Environment | None) -> Audit:
    """The audit of files, kept because a command asks more than once."""
    task = None
    if environment is not None:
        task = environment
    elif config is not None:
        task = make_environment(config)
    return Audit([open_log(path) for path in files], task)


@functools.lru_cache(maxsize=2)
def _load(files: tuple[str, ...], stamps: Any, wanted: int, stride: int, spec: EnvironmentSpec) -> Data:
    blocks = Episodes([open_log(path) for path in files])
    ends = [(part.elapsed[part.terminated | part.truncated] + 1).astype(np.int64) for part in blocks]
    lengths = np.concatenate(ends) if ends else np.empty(0, np.int64)
    there = int(lengths.sum())
    if wanted > there:
        raise ConfigError(
            f"data: {', '.join(map(repr, files))} have {there:,} transitions, and the run had {wanted:,}; the files must be as "
            "they were"
        )
    rows = _subsample(blocks, lengths, wanted)
    if int(np.sum(rows.elapsed == 0)) < LEAST_EPISODES:
        raise ConfigError(
            f"data_transitions: {wanted:,} are of one episode alone; it must be more than that, so that one can be held out"
        )
    total, ends_at = np.cumsum(rows.reward, dtype=np.float64), np.flatnonzero(rows.terminated | rows.truncated)
    returns = np.full(wanted, -np.inf, np.float32)
    returns[ends_at] = np.diff(total[ends_at], prepend=0.0)
    return Data(rows._replace(action=scaled_actions(rows.action, spec)), returns, hold_out(rows.elapsed, stride))


def _subsample(blocks: Iterable[Logged], lengths: np.ndarray, wanted: int) -> Logged:
    """``wanted`` rows of whole episodes drawn at random, in their order; the last one drawn is cut where they are enough.

    Only these are held in memory.
    """
    chosen = choose_episodes(lengths, wanted, seed=0)
    steps = np.zeros(len(lengths), np.int64)  # that are used of each episode
    steps[chosen] = lengths[chosen]
    steps[chosen[-1]] -= steps.sum() - wanted
    kept, number = list[Logged](), -1
    for part in blocks:
        episode = number + np.cumsum(part.elapsed == 0)
        number = int(episode[-1])
        cut = part.elapsed == steps[episode] - 1
        truncated = part.truncated | (cut & ~part.terminated)
        kept.append(part._replace(truncated=truncated).part(part.elapsed < steps[episode]))
    return concatenate(kept)


def _described(config: EnvironmentConfig, audit: Audit) -> EnvironmentConfig:
    """The settings of a task of which only the data are known, as far as a person has not given them."""
    count, scale = audit.actions()
    changes: dict[str, Any] = {}
    if config.observation_scale is None:
        changes["observation_scale"] = tuple(_round(each) for each in audit.observation.largest)
    elif len(config.observation_scale) != len(audit.observation.largest):
        raise ConfigError(
            f"environment.observation_scale: {config.observation_scale!r} does not fit; observations in the data have "
            f"{len(audit.observation.largest)} numbers"
        )
    if audit.continuous:
        _check_scale(config, audit)
        changes["actions"], changes["action_scale"] = None, config.action_scale or tuple(_round(each) for each in scale)
    else:
        if config.action_scale is not None:
            raise ConfigError(f"environment.action_scale: {config.action_scale!r} does not fit; actions in the data are discrete")
        if config.actions is not None and config.actions < count:
            raise ConfigError(
                f"environment.actions: {config.actions!r} does not fit; it must be at least {count}, as the data have action "
                f"{count - 1}"
            )
        changes["actions"] = config.actions or count
    if config.time_limit is None:
        changes["time_limit"] = int(audit.lengths.max())
    return dataclasses.replace(config, **changes)


def _check_scale(config: EnvironmentConfig, audit: Audit) -> None:
    """Refuse a count, or a scale that actions in the data exceed."""
    if config.actions is not None:
        raise ConfigError(f"environment.actions: {config.actions!r} does not fit; actions in the data are continuous")
    scale, largest = config.action_scale, audit.action.largest
    if scale is not None and (len(scale) != len(largest) or np.any(largest > np.asarray(scale) * (1 + 1e-4))):
        right = f"{len(largest)} numbers, at least {', '.join(f'{each:g}' for each in largest)}"
        raise ConfigError(f"environment.action_scale: {scale!r} does not fit the actions in the data; it must be {right}")


def _round(value: float) -> float:
    """A scale to three digits, upwards; 1 for an axis that is always 0."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.6g}")
