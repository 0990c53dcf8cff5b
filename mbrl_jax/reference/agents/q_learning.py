"""The Q-learner: targets, loss, update."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from mbrl_jax.reference.model.ensemble import World, predict, transition
from mbrl_jax.reference.networks import QNetwork
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import QLearningConfig

VARIANCE_FLOOR = 1e-8

LossFunction = Callable[[QNetwork, QNetwork, Transition, "QLearningConfig", World | None], tuple[Tensor, Tensor]]


class Learner:
    """The networks and their optimiser, changed in place by :func:`update`."""

    def __init__(self, online: QNetwork, config: "QLearningConfig") -> None:
        self.online = online
        self.target = copy.deepcopy(online).requires_grad_(False)
        self.parameters = list(online.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
        self.frozen = False
        """Whether an update went non-finite; then nothing changes any more."""
        self.updates = 0
        """Updates made before that."""

    def optimised(self) -> list[Tensor]:
        """What an optimiser step changes: parameters, moments, step counts."""
        states = [self.optimiser.state[parameter] for parameter in self.parameters]
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "step") if state]
        return [parameter.detach() for parameter in self.parameters] + moments


def member_values(target: QNetwork, batch: Transition, world: World, discount: float) -> Tensor:
    """[M, B] each member's r_e + γ (1 - d_e) max_a Q̄(s'_e, a), from its mean prediction at the batch's (s, a)."""
    members = world.ensemble.members
    observation, action = batch.observation.expand(members, -1, -1), batch.action.expand(members, -1)
    moved = transition(world, predict(world, observation, action), observation, action, None)
    reward = moved.reward if world.ensemble.learned_reward else batch.reward
    value = target(moved.next_observation).amax(-1)
    return reward + discount * (1 - moved.terminated.to(value.dtype)) * value


@torch.no_grad()
def targets(
    online: QNetwork, target: QNetwork, batch: Transition, config: "QLearningConfig", world: World | None = None
) -> Tensor:
    """[B] what Q(s, a) is regressed on.

    Args:
      online: chooses the next action if ``config.target`` is double.
      target: values it.
      batch: [B] rows.
      config: which target, and its numbers.
      world: the dynamics that the targets quantile and mean_std ask.

    Raises:
      ValueError: such a target was asked for without a world.

    """
    if config.target in ("quantile", "mean_std"):
        if world is None:
            raise ValueError(f"agent.target: {config.target!r} needs a model")
        values = member_values(target, batch, world, config.discount)
        if config.target == "quantile":
            return torch.quantile(values, config.target_quantile, dim=0)
        return values.mean(0) - config.target_beta * values.std(0, correction=0)
    value = target(batch.next_observation)
    if config.target == "double":
        best = online(batch.next_observation).argmax(-1, keepdim=True)
        value = value.gather(-1, best).squeeze(-1)
    else:
        value = value.amax(-1)
    return batch.reward + config.discount * (1 - batch.terminated.to(value.dtype)) * value


def loss(online: QNetwork, batch: Transition, y: Tensor, config: "QLearningConfig") -> tuple[Tensor, Tensor]:
    """([] weighted mean loss of Q(s, a) against ``y`` [B], [] the same divided by the weighted variance of ``y``).

    Both are 0 if all weights are; gradients belong to the first.
    """
    value = online(batch.observation).gather(-1, batch.action[:, None]).squeeze(-1)
    error = value - y
    if config.loss == "huber":
        size = error.abs()
        delta = config.huber_delta
        losses = torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))
    else:
        losses = error.square()
    total = batch.weight.sum()
    share = batch.weight / torch.where(total > 0, total, 1.0)
    mean_loss = (share * losses).sum()
    variance = (share * (y - (share * y).sum()).square()).sum()
    return mean_loss, mean_loss.detach() / variance.clamp(min=VARIANCE_FLOOR)


def target_loss(
    online: QNetwork, target: QNetwork, batch: Transition, config: "QLearningConfig", world: World | None
) -> tuple[Tensor, Tensor]:
    """:func:`loss` against :func:`targets`."""
    return loss(online, batch, targets(online, target, batch, config, world), config)


def learning_rate(config: "QLearningConfig", progress: float) -> float:
    """Adam's step size when the share ``progress`` of the run is over."""
    return config.learning_rate * (1 - config.learning_rate_decay * progress)


def update(
    learner: Learner,
    batch: Transition,
    config: "QLearningConfig",
    progress: float,
    world: World | None = None,
    loss_function: LossFunction = target_loss,
) -> tuple[Tensor, Tensor]:
    """One optimiser step and one step of the target network, in place; returns the loss before it, plain and scaled.

    A frozen learner computes its loss and stays as it is. If the step makes a parameter non-finite, it is undone and the learner
    is frozen.
    """
    learner.optimiser.zero_grad()
    mean_loss, scaled = loss_function(learner.online, learner.target, batch, config, world)
    if learner.frozen:
        return mean_loss.detach(), scaled
    mean_loss.backward()
    before = [tensor.clone() for tensor in learner.optimised()]
    learner.optimiser.param_groups[0]["lr"] = learning_rate(config, progress)
    learner.optimiser.step()
    if not parameters_to_vector(learner.parameters).detach().isfinite().all():
        after = learner.optimised()
        # before the very first step there were no moments: all of them began at zero
        before += [torch.zeros_like(tensor) for tensor in after[len(before) :]]
        for tensor, old in zip(after, before, strict=True):
            tensor.copy_(old)
        learner.frozen = True
        return mean_loss.detach(), scaled
    with torch.no_grad():
        for slow, fast in zip(learner.target.parameters(), learner.online.parameters(), strict=True):
            slow.lerp_(fast, config.target_rate)
    learner.updates += 1
    return mean_loss.detach(), scaled
