"""Blocks of logged transitions, as every kind of file gives them.

The columns of a transition are one table, in each kind of file by the first of these names that is there:

* ``observation`` (observations, obs): D numbers, s;
* ``action`` (actions): a whole number of a discrete task, else A numbers in the task's own units;
* ``reward`` (rewards);
* ``next_observation`` (next_observations, next_obs): s', true also at an episode's end. Without it s' is the next row's s, and
  the last row of each episode, whose s' nobody recorded, is left out;
* ``terminated`` (terminals, terminations): the task itself ended;
* ``truncated`` (truncations, timeouts): a time limit or whatever else cut the episode;
* ``episode`` (episode_id): in place of ``truncated`` or beside it, a number that changes where an episode ends.

Rows are in the order in which they happened. In a table D numbers are a list, or D columns ``observation.0`` and so on.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError

BLOCK = 65_536  # rows that are read at a time
NAMES: dict[str, tuple[str, ...]] = {
    "observation": ("observation", "observations", "obs"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_observation": ("next_observation", "next_observations", "next_obs"),
    "terminated": ("terminated", "terminals", "terminations"),
    "truncated": ("truncated", "truncations", "timeouts"),
    "episode": ("episode", "episode_id"),
}
REQUIRED = ("observation", "action", "reward", "terminated")


class Block(NamedTuple):
    """Successive rows as a file has them."""

    observation: np.ndarray  # [n, D] float32
    action: np.ndarray  # [n] int64, or [n, A] float32 in the task's own units
    reward: np.ndarray  # [n] float32
    next_observation: np.ndarray | None  # [n, D] float32
    terminated: np.ndarray  # [n] bool
    truncated: np.ndarray | None  # [n] bool
    episode: np.ndarray | None  # [n]


class LogFile(NamedTuple):
    """An open file of logged transitions."""

    path: str
    rows: int  # as its head says
    blocks: Callable[[], Iterator[Block]]  # read from the first row on, each time it is called
    action_count: int | None = None  # of a discrete task, where the file says it
    action_scale: tuple[float, ...] | None = None  # largest magnitude of continuous actions, where the file says it


def find_columns(path: str, there: Any) -> dict[str, list[str]]:
    """The names in a file of each of :data:`NAMES` that is there, one or, of a vector in numbered columns, several.

    Raises:
      ConfigError: a column is missing.

    """
    there, found = set(there), dict[str, list[str]]()
    for name, known in NAMES.items():
        for each in known:
            if each in there:
                found[name] = [each]
            elif f"{each}.0" in there:
                size = next(number for number in range(len(there) + 1) if f"{each}.{number}" not in there)
                found[name] = [f"{each}.{number}" for number in range(size)]
            if name in found:
                break
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        told = "; a 'done' does not tell a termination from a truncation" if {"done", "dones"} & there else ""
        called = " or ".join(NAMES[missing[0]])
        raise ConfigError(
            f"data: {path!r} has no column {missing[0]!r}; it must be called {called}; there are {_list(there)}{told}"
        )
    if "truncated" not in found and "episode" not in found:
        right = "it must say where episodes were cut, or a column 'episode' must number them"
        raise ConfigError(f"data: {path!r} has no column 'truncated'; {right}; there are {_list(there)}")
    return found


def as_block(path: str, columns: dict[str, np.ndarray], first: int) -> Block:
    """The block of numpy columns [n, ...], whose first row is number ``first`` of its file.

    Raises:
      ConfigError: a column has a dtype or a shape that it cannot have.

    """
    count = len(columns["reward"])

    def refuse(name: str, found: str, right: str) -> None:
        raise ConfigError(f"data: {path!r}, column {name!r}, rows from {first}: {found} does not fit; it must be {right}")

    for name, values in columns.items():
        if len(values) != count:
            raise ConfigError(f"data: {path!r}: {name!r} has {len(values)} rows and 'reward' {count}; they must be as many")

    def vector(name: str) -> np.ndarray:
        values = columns[name]
        if values.dtype.kind not in "fiu" or values.ndim != 2:
            refuse(name, f"{values.dtype}{list(values.shape[1:])}", "D numbers a row")
        return values.astype(np.float32)

    def flag(name: str) -> np.ndarray:
        values = columns[name]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        whole = values.dtype.kind in "iu" and bool(np.all((values == 0) | (values == 1)))
        if values.ndim != 1 or not (values.dtype == bool or whole):
            refuse(name, f"{values.dtype}{list(values.shape[1:])}", "true or false")
        return values.astype(bool)

    reward, action = columns["reward"], columns["action"]
    if reward.ndim == 2 and reward.shape[1] == 1:
        reward = reward[:, 0]
    if reward.dtype.kind not in "fiu" or reward.ndim != 1:
        refuse("reward", f"{reward.dtype}{list(reward.shape[1:])}", "one number a row")
    if action.dtype.kind in "iu" and action.ndim == 2 and action.shape[1] == 1:
        action = action[:, 0]
    if action.dtype.kind == "f" and action.ndim == 1:
        action = action[:, None]
    if (action.dtype.kind, action.ndim) not in (("i", 1), ("u", 1), ("f", 2)):
        refuse("action", f"{action.dtype}{list(action.shape[1:])}", "a whole number or A floats a row")
    return Block(
        observation=vector("observation"),
        action=action.astype(np.float32 if action.ndim == 2 else np.int64),
        reward=reward.astype(np.float32),
        next_observation=vector("next_observation") if "next_observation" in columns else None,
        terminated=flag("terminated"),
        truncated=flag("truncated") if "truncated" in columns else None,
        episode=columns.get("episode"),
    )


def _list(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def require(package: str) -> Any:
    """Import a package of the extra ``data``."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"data: this file needs {package}, which is not installed: pip install 'mbrl-jax[data]'") from error
