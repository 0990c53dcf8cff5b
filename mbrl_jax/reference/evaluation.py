"""Greedy episodes in the real environment, and the scoring of a policy in imagination."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbrl_jax.reference.environment import Simulator, Task
from mbrl_jax.reference.model.ensemble import Moved, World, predict, transition
from mbrl_jax.reference.networks import QFunction, greedy


def play(network: QFunction, task: Task, starts: np.ndarray) -> np.ndarray:
    """[n] returns of greedy real episodes from the simulator states ``starts`` [n, S]."""
    scale = network.input_scale
    simulators = [Simulator(task) for _ in starts]
    observations = np.stack([simulator.reset(start) for simulator, start in zip(simulators, starts, strict=True)])
    returns, running = np.zeros(len(starts)), list(range(len(starts)))
    while running:
        actions = greedy(network, torch.as_tensor(observations[running], dtype=scale.dtype, device=scale.device)).tolist()
        going_on = []
        for i, action in zip(running, actions, strict=True):
            observations[i], reward, terminated, truncated = simulators[i].step(action)
            returns[i] += reward
            if not (terminated or truncated):
                going_on.append(i)
        running = going_on
    return returns


def first_observations(observation: Tensor, depth: Tensor) -> Tensor:
    """[n, D] the first observations of real episodes, in their order, among rows [B, D] of depths [B]."""
    return observation[depth == 0]


@torch.no_grad()
def imagine_greedily(network: QFunction, world: World, observation: Tensor, noise: Tensor | None) -> Moved:
    """One greedy imagined step of episodes at ``observation`` [M, n/M, D], the m-th row of them moved by member m."""
    action = greedy(network, observation)
    return transition(world, predict(world, observation, action), observation, action, noise)


def score(
    network: QFunction,
    world: World,
    starts: Tensor,
    noise: Tensor | None,
    steps: int,
    step_function: Callable[[QFunction, World, Tensor, Tensor | None], Moved] = imagine_greedily,
) -> Tensor:
    """[] the mean return of greedy imagined episodes, which end at termination or after ``steps``.

    It is minus infinity if an observation or a reward of an episode is not finite.

    Args:
      network: the policy.
      world: the dynamics; its member m moves the episodes ``starts[m]`` from beginning to end.
      starts: [M, n/M, D] first observations.
      noise: [steps, M, n/M, D] standard normal; none where members are deterministic.
      steps: at which an episode is cut.
      step_function: :func:`imagine_greedily` or its compiled form.

    """
    observation = starts
    alive = torch.ones(starts.shape[:-1], dtype=torch.bool, device=starts.device)
    returns = torch.zeros(starts.shape[:-1], dtype=starts.dtype, device=starts.device)
    for step in range(steps):
        moved = step_function(network, world, observation, None if noise is None else noise[step])
        observation = moved.next_observation
        sound = observation.isfinite().all(dim=-1) & moved.reward.isfinite()
        returns = torch.where(alive, torch.where(sound, returns + moved.reward, -torch.inf), returns)
        alive &= sound & ~moved.terminated
        if not alive.any():
            break
    return returns.mean()
