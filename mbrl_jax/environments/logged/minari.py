"""Minari datasets of logged episodes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.blocks import BLOCK, Block, LogFile, as_block, require

MINARI = "minari:"


def minari_dataset(path: str) -> LogFile:
    """A Minari dataset: ``minari:ID`` from where Minari keeps them, or the folder of one."""
    minari = require("minari")
    from gymnasium import spaces

    try:
        name = path.removeprefix(MINARI)
        dataset = minari.load_dataset(name) if path.startswith(MINARI) else minari.MinariDataset(Path(path) / "data")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"data: {path!r} is no Minari dataset that can be read: {error}") from error
    seen, action = dataset.observation_space, dataset.action_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise ConfigError(f"data: {path!r}: observations of {seen} do not fit; they must be vectors, as of Box(shape=(4,))")
    count = scale = None
    if isinstance(action, spaces.Discrete) and action.start == 0:
        count = int(action.n)
    elif isinstance(action, spaces.Box) and len(action.shape) == 1:
        largest = np.maximum(np.abs(action.low), np.abs(action.high))
        if np.all(np.isfinite(largest)) and np.all(largest > 0):
            scale = tuple(float(each) for each in largest)
    else:
        raise ConfigError(f"data: {path!r}: actions of {action} do not fit; they must be Discrete from 0 or a vector")

    def blocks() -> Iterator[Block]:
        waiting, first, held = list[dict[str, np.ndarray]](), 0, 0
        for number, episode in enumerate(dataset.iterate_episodes()):
            steps = len(episode.rewards)
            columns = {
                "observation": episode.observations[:-1],
                "action": episode.actions,
                "reward": episode.rewards,
                "next_observation": episode.observations[1:],
                "terminated": episode.terminations,
                "truncated": episode.truncations,
                "episode": np.full(steps, number),
            }
            waiting.append({name: np.asarray(values) for name, values in columns.items()})
            held += steps
            if held >= BLOCK:
                yield _joined(path, waiting, first)
                waiting, first, held = [], first + held, 0
        if waiting:
            yield _joined(path, waiting, first)

    return LogFile(path, int(dataset.total_steps), blocks, count, scale)


def _joined(path: str, episodes: list[dict[str, np.ndarray]], first: int) -> Block:
    return as_block(path, {name: np.concatenate([each[name] for each in episodes]) for name in episodes[0]}, first)
