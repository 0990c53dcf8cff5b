"""The tasks: gymnasium's own simulators, stepped through their state, and their known reward and termination functions.

The simulators run in float64; an observation takes the run's dtype where it enters a tensor.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mbrl_jax.reference import dynamics
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import ModelFreeQConfig

Judge = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of (s [..., D], a [...], s' [..., D]) that gives [...]."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task and what is known about it."""

    name: str
    observation_size: int
    actions: int
    time_limit: int
    """Steps since reset at which an episode is truncated."""
    input_scale: tuple[float, ...]
    """[D] what a Q-network divides each observation axis by."""
    initial_low: tuple[float, ...]
    """[S] simulator states begin uniformly between this ..."""
    initial_high: tuple[float, ...]
    """[S] ... and this."""
    observe: Callable[[np.ndarray], np.ndarray]
    """From simulator states [..., S] to observations [..., D]."""
    reward: Judge
    terminated: Judge
    """Boolean."""
    dynamics: Callable[[Tensor, Tensor], Tensor]
    """From observations [..., D] and actions [...] to the true next observations, for research."""


def _cart_pole_terminated(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    position, angle = next_observation[..., 0], next_observation[..., 2]
    return (position.abs() > 2.4) | (angle.abs() > 12 * 2 * math.pi / 360)


def _cart_pole_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return torch.ones_like(next_observation[..., 0])


def _acrobot_terminated(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    cos1, sin1, cos2, sin2 = next_observation[..., :4].unbind(-1)
    return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0


def _acrobot_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return _acrobot_terminated(observation, action, next_observation).to(next_observation.dtype) - 1.0


def _mountain_car_terminated(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    position, velocity = next_observation[..., 0], next_observation[..., 1]
    return (position >= 0.5) & (velocity >= 0.0)


def _mountain_car_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return torch.full_like(next_observation[..., 0], -1.0)


def _acrobot_observe(state: np.ndarray) -> np.ndarray:
    angle1, angle2, velocity1, velocity2 = np.moveaxis(state, -1, 0)
    return np.stack([np.cos(angle1), np.sin(angle1), np.cos(angle2), np.sin(angle2), velocity1, velocity2], axis=-1)


TASKS = {
    "CartPole-v1": Task(
        name="CartPole-v1",
        observation_size=4,
        actions=2,
        time_limit=500,
        input_scale=(2.4, 2.0, 0.21, 2.0),
        initial_low=(-0.05,) * 4,
        initial_high=(0.05,) * 4,
        observe=np.copy,
        reward=_cart_pole_reward,
        terminated=_cart_pole_terminated,
        dynamics=dynamics.cart_pole,
    ),
    "Acrobot-v1": Task(
        name="Acrobot-v1",
        observation_size=6,
        actions=3,
        time_limit=500,
        input_scale=(1.0, 1.0, 1.0, 1.0, 12.57, 28.27),
        initial_low=(-0.1,) * 4,
        initial_high=(0.1,) * 4,
        observe=_acrobot_observe,
        reward=_acrobot_reward,
        terminated=_acrobot_terminated,
        dynamics=dynamics.acrobot,
    ),
    "MountainCar-v0": Task(
        name="MountainCar-v0",
        observation_size=2,
        actions=3,
        time_limit=200,
        input_scale=(1.2, 0.07),
        initial_low=(-0.6, 0.0),
        initial_high=(-0.4, 0.0),
        observe=np.copy,
        reward=_mountain_car_reward,
        terminated=_mountain_car_terminated,
        dynamics=dynamics.mountain_car,
    ),
}


def make_task(name: str, time_limit: int | None = None) -> Task:
    """The task of that name, with a time limit other than its own if one is given.

    Raises:
      ValueError: there is no such task here.

    """
    if name not in TASKS:
        raise ValueError(f"environment.name: {name!r} is not among the reference's tasks: {', '.join(TASKS)}")
    task = TASKS[name]
    return task if time_limit is None else dataclasses.replace(task, time_limit=time_limit)


class Simulator:
    """One real episode at a time in gymnasium's environment, whose state is set from outside."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps = 0
        """Steps since the reset."""
        self.env: Any = gymnasium.make(task.name, disable_env_checker=True).unwrapped

    def reset(self, state: np.ndarray) -> np.ndarray:
        """Begin an episode at the simulator state [S]; returns the observation [D]."""
        self.env.state = np.array(state, np.float64)
        self.env.steps_beyond_terminated = None  # CartPole counts them, and warns; the other tasks ignore it
        self.steps = 0
        return self.observation

    @property
    def observation(self) -> np.ndarray:
        """[D] float64."""
        return self.task.observe(np.asarray(self.env.state, np.float64))

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        """Take ``action``; returns (true next observation [D], reward, terminated, truncated), the last two independent."""
        _, reward, terminated, _, _ = self.env.step(action)
        self.steps += 1
        return self.observation, float(reward), bool(terminated), self.steps >= self.task.time_limit


def collect(simulator: Simulator, first: np.ndarray, actions: np.ndarray, resets: np.ndarray) -> tuple[Transition, np.ndarray]:
    """Real transitions by prescribed actions; the last episode is left as it is, to be gone on with.

    Args:
      simulator: where.
      first: [S] the state that the first episode begins at.
      actions: [n].
      resets: [n, S] the states that the next episode begins at if one ends at that step.

    Returns:
      the rows [n], float64 on the CPU, and [n] the return of the episode that ended at each step, NaN where none did.

    """
    rows, finished, episode_return = [], np.full(len(actions), np.nan), 0.0
    observation = simulator.reset(first)
    for i, action in enumerate(actions.tolist()):
        depth = simulator.steps
        next_observation, reward, terminated, truncated = simulator.step(action)
        rows.append((observation, action, reward, next_observation, terminated, 1.0, depth))
        observation, episode_return = next_observation, episode_return + reward
        if terminated or truncated:
            finished[i], episode_return = episode_return, 0.0
            observation = simulator.reset(resets[i])
    columns = zip(*rows, strict=True)
    return Transition(*(torch.from_numpy(np.stack([np.asarray(field) for field in column])) for column in columns)), finished


def seen_through_noise(
    config: "ModelFreeQConfig", task: Task, rows: Transition, before: np.ndarray, after: np.ndarray
) -> Transition:
    """Collected rows as they are seen with ``environment.observation_noise``, in the units of the task's scale.

    Rewards and terminations stay true. What was seen after a step is what is seen before the next one of the episode.

    Args:
      config: how much noise, and the protocol, which must be batch.
      task: whose scale it is.
      rows: [n] in their order.
      before: [n, D] standard normal, where an episode begins.
      after: [n, D] standard normal.

    Raises:
      ValueError: the protocol is another.

    """
    sigma = config.environment.observation_noise
    if config.protocol != "batch":
        raise ValueError(f"environment.observation_noise: {sigma!r} does not fit protocol {config.protocol!r}; it must be 0.0")
    scale = sigma * torch.tensor(task.input_scale, dtype=torch.float64)
    next_observation = rows.next_observation + scale * torch.from_numpy(after)
    observation = rows.observation + scale * torch.from_numpy(before)
    going_on = (rows.depth > 0).nonzero().squeeze(-1)
    observation[going_on] = next_observation[going_on - 1]
    return rows._replace(observation=observation, next_observation=next_observation)


def real_row(simulator: Simulator, action: int, reset: np.ndarray) -> Transition:
    """Take ``action`` and, if the episode ended, begin another at the state ``reset`` [S]; returns the row [1]."""
    observation, depth = simulator.observation, simulator.steps
    next_observation, reward, terminated, truncated = simulator.step(action)
    if terminated or truncated:
        simulator.reset(reset)
    fields = (observation, action, reward, next_observation, terminated, 1.0, depth)
    return Transition(*(torch.from_numpy(np.asarray(field)[None]) for field in fields))
