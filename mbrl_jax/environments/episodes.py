"""Episodes in simulators that the host steps, one beside another: recorded for learning, and played to judge policies."""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from mbrl_jax.environments.protocol import Transition
from mbrl_jax.simulators.copies import Copies


class Episodes:
    """The episodes in progress of n simulators; one that ends is followed by another.

    Attributes:
      copies: the simulators.
      observation: [n, D] float32.
      elapsed: [n] int32, steps since the reset.
      begins: [n] bool, whether the step to come is an episode's first.
      made: [n] bool, which simulators made the last step.

    """

    def __init__(self, copies: Copies, seeds: list[int]):
        """Begin one in every simulator, seeded by ``seeds`` [n]."""
        self.copies, count = copies, copies.num_envs
        self.observation, _ = copies.reset(seed=seeds)
        self.elapsed, self.begins, self.made = np.zeros(count, np.int32), np.ones(count, bool), np.zeros(count, bool)

    @property
    def running(self) -> np.ndarray:
        """[n] bool, which simulators have not failed."""
        return np.array([place not in self.copies.failures for place in range(self.copies.num_envs)])

    def step(self, action: np.ndarray, active: np.ndarray | None = None) -> Any:
        """Step all, or those that are ``active`` [n], and reset what has ended: the transitions [n]."""
        before, elapsed = self.observation, self.elapsed
        after, reward, terminated, truncated, _ = self.copies.step(action, active=active)
        self.made = self.running if active is None else self.running & active
        ended = terminated | truncated
        self.observation, self.elapsed, self.begins = after, np.where(ended, 0, elapsed + 1).astype(np.int32), ended
        if ended.any():
            fresh, _ = self.copies.reset(options={"reset_mask": ended})
            self.observation = np.where(ended[:, None], fresh, after)
        reward = reward.astype(before.dtype)
        return cast(Any, Transition)(before, action, reward, after, terminated, truncated, elapsed)


Choose = Callable[[Episodes, int], tuple[np.ndarray, Any]]  # (episodes, step) -> (actions [n, ...], what is told of them)


def record(episodes: Episodes, choose: Choose, steps: int) -> tuple[Any, Any, np.ndarray]:
    """Make ``steps`` steps.

    Returns:
      The transitions [n, steps], what was told of the actions, stacked along the second axis, and which of them were made,
      [n, steps] bool: none from where a simulator has failed on.

    """
    taken, told, made = [], [], []
    for step in range(steps):
        action, said = choose(episodes, step)
        taken.append(episodes.step(action))
        told.append(said)
        made.append(episodes.made)
    recorded, saying = (jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *each) for each in (taken, told))
    return recorded, saying, np.stack(made, axis=1)


def play(episodes: Episodes, choose: Callable[[Episodes], np.ndarray], count: int) -> np.ndarray:
    """[n, count] float32 returns of successive episodes in every simulator, NaN where one has failed before their end."""
    simulators = episodes.copies.num_envs
    returns, done, total = np.full((simulators, count), np.nan, np.float32), np.zeros(simulators, int), np.zeros(simulators)
    while (active := (done < count) & episodes.running).any():
        made = episodes.step(choose(episodes), active)
        total += np.where(active, made.reward, 0.0)
        ended = active & (made.terminated | made.truncated)
        returns[ended, done[ended]] = total[ended]
        done, total = done + ended, np.where(ended, 0.0, total)
    return returns
