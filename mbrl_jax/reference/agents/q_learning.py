"""The Q-learner: targets, loss, update."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from mbrl_jax.reference.model.ensemble import World, predict, transition
from mbrl_jax.reference.networks import QFunction, QNetwork, greedy, networks_of
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import QLearningConfig

VARIANCE_FLOOR = 1e-8

LossFunction = Callable[[QFunction, QFunction, Transition, "QLearningConfig", World | None], tuple[Tensor, Tensor]]


class Learner:
    """The networks and their optimiser, changed in place by :func:`update`."""

    def __init__(self, online: QFunction, config: "QLearningConfig") -> None:
        if config.gradient_clip is not None:
            raise ValueError(f"agent.gradient_clip: {config.gradient_clip!r} does not fit; the reference does not clip gradients")
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


def member_values(target: QFunction, batch: Transition, world: World, discount: float) -> Tensor:
    """[M, B] each member's r_e + γ (1 - d_e) max_a Q̄(s'_e, a), from its mean prediction at the batch's (s, a)."""
    members = world.ensemble.members
    observation, action = batch.observation.expand(members, -1, -1), batch.action.expand(members, -1)
    moved = transition(world, predict(world, observation, action), observation, action, None)
    reward = moved.reward if world.ensemble.learned_reward else batch.reward
    value: Tensor = target(moved.next_observation).amax(-1)
    return reward + discount * (1 - moved.terminated.to(value.dtype)) * value


def steve_values(online: QFunction, target: QFunction, batch: Transition, world: World, discount: float, steps: int) -> Tensor:
    """[H + 1, M, Q, B] the returns of h = 0 ... H further imagined steps and then a value, by member and target network.

    Each member imagines by its own mean predictions, from the rows' next observations, what the online networks' greedy policy
    does; each target network values the best action where that has led.
    """
    members = world.ensemble.members
    observation = batch.next_observation.expand(members, -1, -1)
    alive = (1 - batch.terminated.to(batch.reward.dtype)).expand(members, -1)
    earned, factor, values = batch.reward.expand(members, -1), discount, []
    for h in range(steps + 1):
        best = torch.stack([network(observation).amax(-1) for network in networks_of(target)], dim=1)
        values.append(earned[:, None] + factor * alive[:, None] * best)
        if h < steps:
            action = greedy(online, observation)
            moved = transition(world, predict(world, observation, action), observation, action, None)
            earned = earned + factor * alive * moved.reward
            alive = alive * (1 - moved.terminated.to(alive.dtype))
            observation, factor = moved.next_observation, factor * discount
    return torch.stack(values)


def steve_mixture(values: Tensor) -> Tensor:
    """[B] the means over members and networks of ``values`` [H + 1, M, Q, B], weighted by their inverse variances."""
    each = values.flatten(1, 2)
    weight = 1 / (each.var(1, correction=0) + VARIANCE_FLOOR)
    return (weight / weight.sum(0) * each.mean(1)).sum(0)


@torch.no_grad()
def targets(
    online: QFunction, target: QFunction, batch: Transition, config: "QLearningConfig", world: World | None = None
) -> Tensor:
    """[B] what Q(s, a) is regressed on.

    Args:
      online: chooses the next action if ``config.target`` is double, and all imagined ones if it is steve.
      target: values it.
      batch: [B] rows.
      config: which target, and its numbers.
      world: the dynamics that the targets quantile, mean_std and steve ask.

    Raises:
      ValueError: such a target was asked for without a world, or steve with a single network.

    """
    if config.target in ("quantile", "mean_std", "steve"):
        if world is None:
            raise ValueError(f"agent.target: {config.target!r} needs a model")
        if config.target == "steve":
            networks = len(networks_of(target))
            if networks < 2:
                raise ValueError(f"agent.members: {networks!r} does not fit agent.target 'steve'; it must be at least 2")
            return steve_mixture(steve_values(online, target, batch, world, config.discount, config.target_steps))
        values = member_values(target, batch, world, config.discount)
        if config.target == "quantile":
            return torch.quantile(values, config.target_quantile, dim=0)
        return values.mean(0) - config.target_beta * values.std(0, correction=0)
    value: Tensor = target(batch.next_observation)
    if config.target == "double":
        best = online(batch.next_observation).argmax(-1, keepdim=True)
        value = value.gather(-1, best).squeeze(-1)
    else:
        value = value.amax(-1)
    return batch.reward + config.discount * (1 - batch.terminated.to(value.dtype)) * value


def network_loss(network: QNetwork, batch: Transition, y: Tensor, config: "QLearningConfig") -> tuple[Tensor, Tensor]:
    """:func:`loss` of one network."""
    value = network(batch.observation).gather(-1, batch.action[:, None]).squeeze(-1)
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


def loss(online: QFunction, batch: Transition, y: Tensor, config: "QLearningConfig") -> tuple[Tensor, Tensor]:
    """([] weighted mean loss of Q(s, a) against ``y`` [B], [] the same divided by the weighted variance of ``y``).

    Of several networks, which all regress on ``y``, the first is the sum, as each has gradients of its own, and the second the
    mean. Both are 0 if all weights are; gradients belong to the first.
    """
    losses, scaled = zip(*(network_loss(network, batch, y, config) for network in networks_of(online)), strict=True)
    return torch.stack(losses).sum(), torch.stack(scaled).mean()


def target_loss(
    online: QFunction, target: QFunction, batch: Transition, config: "QLearningConfig", world: World | None
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

    Of several networks it is the mean loss that is returned. A frozen learner computes its loss and stays as it is. If the step
    makes a parameter non-finite, it is undone and the learner is frozen.
    """
    learner.optimiser.zero_grad()
    total, scaled = loss_function(learner.online, learner.target, batch, config, world)
    mean_loss = total.detach() / len(networks_of(learner.online))
    if learner.frozen:
        return mean_loss, scaled
    total.backward()
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
        return mean_loss, scaled
    with torch.no_grad():
        for slow, fast in zip(learner.target.parameters(), learner.online.parameters(), strict=True):
            slow.lerp_(fast, config.target_rate)
    learner.updates += 1
    return mean_loss, scaled
