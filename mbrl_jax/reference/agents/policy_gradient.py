"""The policy gradient: returns, losses, update; and the pathwise loss of imagined lanes."""

import copy
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parameters_to_vector

from mbrl_jax.reference.model.ensemble import World, predict, transition
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import PolicyGradientConfig

VARIANCE_FLOOR = 1e-8
LOG_STD_BOUNDS = (-3.0, 1.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "relu": torch.relu,
}


class Network(nn.Module):
    """An MLP of observations [..., D] over the task's scale."""

    input_scale: Tensor

    def __init__(self, config: "PolicyGradientConfig", input_scale: tuple[float, ...], outputs: int) -> None:
        super().__init__()
        sizes = [len(input_scale), *config.hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        self.activation = ACTIVATIONS[config.activation]
        self.register_buffer("input_scale", torch.tensor(input_scale, dtype=torch.float64), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., outputs]."""
        x = observation / self.input_scale
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        outputs: Tensor = last(x)
        return outputs


class Segment(NamedTuple):
    """T successive steps of K trajectories."""

    rows: Transition  # leaves [T, K, ...]
    ended: Tensor  # [T, K] bool


class Learner:
    """Actor and critic with their slow copies and their optimisers, changed in place by :func:`update`."""

    def __init__(self, actor: Network, critic: Network, config: "PolicyGradientConfig") -> None:
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic = (copy.deepcopy(each).requires_grad_(False) for each in (actor, critic))
        self.optimisers = [torch.optim.Adam(each.parameters(), betas=(0.9, 0.999), eps=1e-8) for each in (actor, critic)]
        self.frozen, self.updates = False, 0


def lambda_returns(segment: Segment, next_value: Tensor, discount: float, decay: float) -> Tensor:
    """[T, K] by their recursion, from the last step back; ``next_value`` [T, K] is what s' is worth."""
    rows, later, found = segment.rows, next_value[-1], []
    for t in reversed(range(len(next_value))):
        mixed = (1 - decay) * next_value[t] + decay * later
        follows = torch.where(segment.ended[t], next_value[t], mixed)
        later = rows.reward[t] + discount * (1 - rows.terminated[t]) * follows
        found.append(later)
    return torch.stack(found[::-1])


def horizon(config: "PolicyGradientConfig") -> float:
    """What the critic's output is multiplied by."""
    return 1 / max(1 - config.discount, 1e-3)


def values(critic: Network, observation: Tensor, config: "PolicyGradientConfig") -> Tensor:
    """[...] of observations [..., D]."""
    return horizon(config) * critic(observation)[..., 0]


def mean(x: Tensor, weight: Tensor) -> Tensor:
    """[] by weights, 0 if there are none."""
    total = weight.sum()
    return (x * weight).sum() / torch.where(total > 0, total, 1.0)


@torch.no_grad()
def returns(critic: Network, segment: Segment, config: "PolicyGradientConfig") -> Tensor:
    """[T, K] λ-returns with the slow critic, or what the segment holds of the rewards."""
    if config.baseline == "none":
        return lambda_returns(segment, torch.zeros_like(segment.rows.reward), config.discount, 1.0)
    return lambda_returns(segment, values(critic, segment.rows.next_observation, config), config.discount, config.decay)


@torch.no_grad()
def advantages(critic: Network, segment: Segment, wanted: Tensor, config: "PolicyGradientConfig") -> Tensor:
    """[T, K] what each log-probability is weighted by."""
    advantage, weight = wanted, segment.rows.weight
    if config.baseline == "value":
        advantage = wanted - values(critic, segment.rows.observation, config)
    if config.normalise:
        centred = advantage - mean(advantage, weight)
        advantage = centred / (mean(centred.square(), weight) + 1e-8).sqrt()
    return advantage


def policy(actor: Network, observation: Tensor, continuous: bool) -> tuple[Distribution, Tensor]:
    """The distribution over actions in observations [..., D], and its entropy [...], of a squashed Gaussian that before."""
    outputs = actor(observation)
    if not continuous:
        categorical = torch.distributions.Categorical(logits=outputs)
        return categorical, categorical.entropy()
    mean, free = outputs.chunk(2, dim=-1)
    low, high = LOG_STD_BOUNDS
    gaussian = torch.distributions.Normal(mean, torch.exp(low + (high - low) * torch.sigmoid(free)))
    squashed = torch.distributions.TransformedDistribution(gaussian, torch.distributions.TanhTransform())
    return torch.distributions.Independent(squashed, 1), gaussian.entropy().sum(-1)


def score_loss(actor: Network, segment: Segment, advantage: Tensor, config: "PolicyGradientConfig") -> tuple[Tensor, Tensor]:
    """([] the loss, [] the mean entropy)."""
    rows = segment.rows
    chooses, entropies = policy(actor, rows.observation, rows.action.is_floating_point())
    entropy = mean(entropies, rows.weight)
    return -mean(chooses.log_prob(rows.action) * advantage, rows.weight) - config.entropy_weight * entropy, entropy.detach()


def pathwise_loss(
    actor: Network,
    critic: Network,
    world: World,
    roots: Tensor,
    uniform: Tensor,
    noise: Tensor | None,
    cap: int,
    config: "PolicyGradientConfig",
) -> tuple[Tensor, Tensor]:
    """([] minus the mean return of K lanes of T imagined steps, differentiable in the actor, [] the mean entropy).

    Lane k stays with member k // (K / M). A lane that terminates or has ``cap`` steps behind it goes on from the next of its
    ``roots`` [T, K, D]. Discrete actions are drawn by ``uniform`` [T, K] and differentiated as if they were probabilities;
    ``noise`` is [T, K, D].
    """
    steps, lanes, members = *uniform.shape, world.ensemble.members
    depth = torch.zeros(lanes, dtype=torch.long)
    state, found, entropies = roots[0], [], []
    for t in range(steps):
        state = torch.where((depth == 0)[:, None], roots[t], state)
        probability = actor(state).softmax(-1)
        with torch.no_grad():
            choice = (uniform[t][:, None] >= probability.cumsum(-1)[:, :-1]).sum(-1)
            chosen = nn.functional.one_hot(choice, probability.shape[-1]) - probability
        by_member = (members, lanes // members)
        at, action = state.reshape(*by_member, -1), (chosen + probability).reshape(*by_member, -1)
        now = None if noise is None else noise[t].reshape(at.shape)
        moved = transition(world, predict(world, at, action), at, choice.reshape(by_member), now)
        after, reward, terminated = (x.reshape(lanes, *x.shape[2:]) for x in moved)
        entropies.append(policy(actor, state.detach(), continuous=False)[1])
        ended = terminated | (depth + 1 >= cap)
        found.append((state, choice, reward, after, terminated.to(reward.dtype), torch.ones_like(reward), depth, ended))
        state, depth = after, torch.where(ended, 0, depth + 1)
    *rows, ends = (torch.stack(column) for column in zip(*found, strict=True))
    ends[-1] = True
    segment = Segment(Transition(*rows), ends)
    gained = lambda_returns(segment, values(critic, segment.rows.next_observation, config), config.discount, config.decay)
    entropy = torch.stack(entropies).mean()
    return -gained.mean() - config.entropy_weight * entropy, entropy.detach()


def critic_loss(critic: Network, segment: Segment, wanted: Tensor, config: "PolicyGradientConfig") -> Tensor:
    """[] in units of the return."""
    return mean((values(critic, segment.rows.observation, config) - wanted).square(), segment.rows.weight)


def update(
    learner: Learner, segment: Segment, config: "PolicyGradientConfig", progress: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of everything, in place; ([] critic's loss, [] over the variance of its targets, [] entropy) before it.

    If a parameter becomes non-finite the networks are put back, and the learner is frozen.
    """
    wanted = returns(learner.target_critic, segment, config)
    advantage = advantages(learner.critic, segment, wanted, config)
    for optimiser, rate in zip(learner.optimisers, (config.learning_rate, config.critic_learning_rate), strict=True):
        optimiser.zero_grad()
        optimiser.param_groups[0]["lr"] = rate * (1 - config.learning_rate_decay * progress)
    loss, entropy = score_loss(learner.actor, segment, advantage, config)
    loss.backward()
    error = torch.zeros_like(entropy)
    if config.baseline == "value":
        error = critic_loss(learner.critic, segment, wanted, config)
        (error / horizon(config) ** 2).backward()
    variance = mean((wanted - mean(wanted, segment.rows.weight)).square(), segment.rows.weight)
    told = error.detach(), error.detach() / variance.clamp(min=VARIANCE_FLOOR), entropy
    if learner.frozen:
        return told
    before = [copy.deepcopy(each.state_dict()) for each in (learner.actor, learner.critic)]
    for optimiser in learner.optimisers[: 2 if config.baseline == "value" else 1]:
        optimiser.step()
    networks = (learner.actor, learner.critic)
    if not all(parameters_to_vector(network.parameters()).isfinite().all() for network in networks):
        for network, old in zip(networks, before, strict=True):
            network.load_state_dict(old)
        learner.frozen = True
        return told
    with torch.no_grad():
        for slow_network, network in zip((learner.target_actor, learner.target_critic), networks, strict=True):
            for slow, fast in zip(slow_network.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, config.target_rate)
    learner.updates += 1
    return told
