"""The dynamics ensemble as one batched network, and the world that it makes together with what is known of the task."""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl_jax.reference.environment import Task

if TYPE_CHECKING:
    from mbrl_jax.config import ModelConfig

MINIMUM_LOG_VARIANCE, MAXIMUM_LOG_VARIANCE = -10.0, 0.5
SILENT_LOG_VARIANCE = -60.0 + math.log(2)
"""Of a target that does not vary: that of a member whose bounds are both -60."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "relu": torch.relu,
}


class Normaliser(NamedTuple):
    """Statistics per axis; with ``input_scale: task``, no mean and the task's scale for s.

    A std of s below 1e-6 counts as 1, that of a target as 0 if it is below 1e-6 of the target's mean, or of 1 if that is larger.
    """

    mean: Tensor
    """[D] of s"""
    std: Tensor
    """[D]"""
    target_mean: Tensor
    """[D'] of s' - s and, where it is learned, the reward"""
    target_std: Tensor
    """[D'], 0 where a target does not vary"""

    @property
    def target_scale(self) -> Tensor:
        """[D'] what to divide a target by: its std, or 1 where it does not vary."""
        return torch.where(self.target_std == 0, 1.0, self.target_std)


class Prediction(NamedTuple):
    """What members say about normalised targets."""

    mean: Tensor
    """[..., D']"""
    log_variance: Tensor | None
    """[..., D'] bounded; none from deterministic members."""
    termination: Tensor | None
    """[...] a logit; none where termination is known."""


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exactly: torch's turns linear at 20, which shows in float64."""
    return functional.softplus(x, threshold=40.0)


def bound_log_variance(log_variance: Tensor, minimum: Tensor, maximum: Tensor) -> Tensor:
    """``log_variance`` pressed softly below ``maximum``, then above ``minimum``; shapes broadcast."""
    below = maximum - softplus(maximum - log_variance)
    return minimum + softplus(below - minimum)


def measure(observation: Tensor, target: Tensor) -> Normaliser:
    """The statistics, ddof 0, of observations [n, D] and raw targets [n, D']."""
    std, mean, target_std = observation.std(dim=0, correction=0), target.mean(dim=0), target.std(dim=0, correction=0)
    low, high = target.amin(dim=0), target.amax(dim=0)
    smallest = 1e-6 * mean.abs().clamp(min=1.0)
    equal = high - low < smallest
    return Normaliser(
        observation.mean(dim=0),
        torch.where(std < 1e-6, 1.0, std),
        torch.where(equal, low + (high - low) / 2, mean),
        torch.where(equal | (target_std < smallest), 0.0, target_std),
    )


def encode(observation: Tensor, action: Tensor, normaliser: Normaliser, actions: int) -> Tensor:
    """[..., in] the network's input from observations [..., D] and actions [...] out of ``actions`` many.

    Two actions become -1 and 1, more become one-hot. Actions may also come as weights [..., actions] of sum 1.
    """
    state = (observation - normaliser.mean) / normaliser.std
    if action.is_floating_point():
        coded = action[..., 1:] - action[..., :1] if actions == 2 else action
    else:
        coded = (2 * action - 1).unsqueeze(-1) if actions == 2 else functional.one_hot(action, actions)
    return torch.cat([state, coded.to(state.dtype)], dim=-1)


class Ensemble(nn.Module):
    """E MLPs side by side: from inputs [E, B, in] to predictions [E, B, ...].

    A member's outputs are, in this order, D' means, a termination logit if it is learned, D' log-variances if it is gaussian.
    """

    def __init__(self, config: "ModelConfig", task: Task, members: int) -> None:
        super().__init__()
        self.task = task
        self.scaled_by_task = config.input_scale == "task"
        self.gaussian = config.prediction == "gaussian"
        self.learned_reward = config.reward == "learned"
        self.learned_termination = config.termination == "learned"
        self.targets = task.observation_size + self.learned_reward
        self.activation = ACTIVATIONS[config.activation]
        inputs = task.observation_size + (1 if task.actions == 2 else task.actions)
        outputs = self.targets * (1 + self.gaussian) + self.learned_termination
        sizes = [inputs, *config.hidden, outputs]
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(torch.zeros(members, before, after) for before, after in pairs)
        self.biases = nn.ParameterList(torch.zeros(members, 1, after) for _, after in pairs)
        bounds = torch.empty(members, self.targets)
        self.minimum = nn.Parameter(torch.full_like(bounds, MINIMUM_LOG_VARIANCE), requires_grad=config.learn_bounds)
        self.maximum = nn.Parameter(torch.full_like(bounds, MAXIMUM_LOG_VARIANCE), requires_grad=config.learn_bounds)

    @property
    def members(self) -> int:
        """E"""
        return len(self.minimum)

    def outputs(self, x: Tensor) -> Tensor:
        """[E, B, outputs] as they leave the last layer."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = self.activation(x)
        return x

    def means(self, x: Tensor) -> Tensor:
        """[E, B, D'] the means alone."""
        return self.outputs(x)[..., : self.targets]

    def forward(self, x: Tensor) -> Prediction:
        """What each member says about its own inputs."""
        outputs = self.outputs(x)
        log_variance = termination = None
        if self.gaussian:
            log_variance = bound_log_variance(outputs[..., -self.targets :], self.minimum[:, None], self.maximum[:, None])
        if self.learned_termination:
            termination = outputs[..., self.targets]
        return Prediction(outputs[..., : self.targets], log_variance, termination)

    @torch.no_grad()
    def take_members(self, other: "Ensemble", members: Tensor) -> None:
        """Become the ``members`` [M] of ``other``, in that order."""
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs[members])


class World(NamedTuple):
    """The dynamics that imagination uses."""

    ensemble: Ensemble
    """Its M members: the elites, best first, or all."""
    normaliser: Normaliser

    @property
    def task(self) -> Task:
        """The task whose known functions fill in what is not learned."""
        return self.ensemble.task


class Moved(NamedTuple):
    """Where an imagined step leads."""

    next_observation: Tensor
    """[..., D]"""
    reward: Tensor
    """[...]"""
    terminated: Tensor
    """[...] boolean"""


def predict(world: World, observation: Tensor, action: Tensor) -> Prediction:
    """[M, B, ...] what member m says about its own rows, observations [M, B, D] and actions [M, B].

    About a target that does not vary, all say the same: a mean of 0, and as good as no variance.
    """
    prediction: Prediction = world.ensemble(encode(observation, action, world.normaliser, world.task.actions))
    still = world.normaliser.target_std == 0
    mean = torch.where(still, 0.0, prediction.mean)
    if prediction.log_variance is None:
        return prediction._replace(mean=mean)
    return prediction._replace(mean=mean, log_variance=torch.where(still, SILENT_LOG_VARIANCE, prediction.log_variance))


def decode(prediction: Prediction, normaliser: Normaliser, observation: Tensor, noise: Tensor | None) -> Tensor:
    """[..., D] the next observation of ``observation`` [..., D], in its own units.

    ``noise`` [..., D], standard normal, is scaled by the predicted deviation; none, or a prediction without one, gives the mean.
    """
    size = observation.shape[-1]
    change = prediction.mean[..., :size]
    if noise is not None and prediction.log_variance is not None:
        change = change + torch.exp(0.5 * prediction.log_variance[..., :size]) * noise
    return observation + normaliser.target_mean[:size] + normaliser.target_std[:size] * change


def transition(world: World, prediction: Prediction, observation: Tensor, action: Tensor, noise: Tensor | None) -> Moved:
    """The imagined step from observations [..., D] by actions [...]; noise moves the state only, known functions judge it."""
    task, normaliser = world.task, world.normaliser
    next_observation = decode(prediction, normaliser, observation, noise)
    if world.ensemble.learned_reward:
        reward = normaliser.target_mean[-1] + normaliser.target_std[-1] * prediction.mean[..., -1]
    else:
        reward = task.reward(observation, action, next_observation)
    if prediction.termination is not None:
        terminated = prediction.termination > 0
    else:
        terminated = task.terminated(observation, action, next_observation)
    return Moved(next_observation, reward, terminated)
