"""A planner for one state: candidates, what they earn, how they are weighed, what is fitted to them."""

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mbrl_jax.reference.model.ensemble import World, predict, transition

if TYPE_CHECKING:
    from mbrl_jax.config import PlanningConfig

SMALLEST_PROBABILITY = 1e-6


class Plan(NamedTuple):
    """A distribution over sequences of H actions."""

    centre: Tensor
    """[H, A] probabilities of discrete actions, means of continuous ones"""
    spread: Tensor | None
    """[H, A] deviations of continuous actions"""


def blank(config: "PlanningConfig", actions: int, *, continuous: bool, dtype: torch.dtype) -> Plan:
    """Before anything is known, of ``actions`` discrete actions or as many numbers."""
    if continuous:
        centre = torch.zeros(config.horizon, actions, dtype=dtype)
        return Plan(centre, torch.full_like(centre, config.deviation))
    return Plan(torch.full((config.horizon, actions), 1 / actions, dtype=dtype), None)


def middle(plan: Plan) -> Tensor:
    """[H] or [H, A] the sequence that the plan is about."""
    return plan.centre.argmax(-1) if plan.spread is None else plan.centre


def candidates(config: "PlanningConfig", plan: Plan, uniform: Tensor) -> Tensor:
    """[N, H, ...] by uniform numbers of that shape, the first replaced by the middle; or all sequences there are."""
    horizon, actions = plan.centre.shape
    if config.method == "enumeration":
        return torch.tensor(list(itertools.product(range(actions), repeat=horizon)))
    drawn = plan
    if config.method == "random_shooting":
        drawn = blank(config, actions, continuous=plan.spread is not None, dtype=plan.centre.dtype)
    if drawn.spread is None:
        edges = drawn.centre.cumsum(-1)[:, :-1]
        found = (uniform[..., None] >= edges).sum(-1)
    else:
        gaussian = torch.distributions.Normal(drawn.centre, drawn.spread)
        low, high = gaussian.cdf(torch.full_like(drawn.centre, -1.0)), gaussian.cdf(torch.full_like(drawn.centre, 1.0))
        share = (low + uniform * (high - low)).clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        found = gaussian.icdf(share).clamp(-1, 1)
    found[0] = middle(plan)
    return found


@torch.no_grad()
def returns(
    config: "PlanningConfig", world: World, observation: Tensor, actions: Tensor, deal: Tensor, noise: Tensor | None
) -> Tensor:
    """[N] mean over particles of what the candidates [N, H] earn from one state [D].

    ``deal`` [H, P] is the order of particles at each step, [H, 0] where they stay as they are; ``noise`` [H, P, D] is the same
    for all candidates.
    """
    count, horizon = actions.shape[:2]
    particles, members = config.particles, world.ensemble.members
    state = observation.expand(particles, count, -1)
    running = torch.ones(particles, count, dtype=torch.bool)
    earned = torch.zeros(particles, count, dtype=observation.dtype)
    for t in range(horizon):
        if config.propagation == "ts1":
            state, running, earned = (x[deal[t]] for x in (state, running, earned))
        at = state.reshape(members, -1, state.shape[-1])
        action = actions[:, t].expand(particles, count).reshape(members, -1)
        now = None if noise is None else noise[t][:, None].expand_as(state).reshape(at.shape)
        moved = transition(world, predict(world, at, action), at, action, now)
        earned = earned + torch.where(running, config.discount**t * moved.reward.reshape(particles, count), 0.0)
        running = running & ~moved.terminated.reshape(particles, count)
        state = moved.next_observation.reshape(state.shape)
    mean = earned.mean(0)
    return torch.where(mean.isfinite(), mean, -torch.inf)


def weights(config: "PlanningConfig", returns: Tensor) -> Tensor:
    """[N] of sum 1."""
    if config.method == "cem":
        finite = returns.isfinite()
        elite = returns >= returns.sort(descending=True).values[config.elites - 1]
        elite = (elite & finite if finite.any() else elite).to(returns.dtype)
        return elite / elite.sum()
    if config.method == "mppi":
        if not returns.isfinite().any():
            return torch.full_like(returns, 1 / len(returns))
        return torch.softmax(returns / config.temperature, dim=0)
    return functional.one_hot(returns.argmax(), len(returns)).to(returns.dtype)


def fit(config: "PlanningConfig", plan: Plan, actions: Tensor, weight: Tensor) -> Plan:
    """The plan after candidates [N, H, ...] have been weighed."""
    each = actions if plan.spread is not None else functional.one_hot(actions, plan.centre.shape[-1]).to(weight.dtype)
    centre = torch.einsum("n,nha->ha", weight, each)
    spread, kept = plan.spread, config.momentum
    if spread is not None and config.method == "cem":
        variance = torch.einsum("n,nha->ha", weight, (each - centre).square())
        spread = (kept * spread + (1 - kept) * variance.sqrt()).clamp(min=config.least_deviation)
    if config.method in ("cem", "mppi"):
        centre = kept * plan.centre + (1 - kept) * centre
    return Plan(centre, spread)


def shifted(config: "PlanningConfig", plan: Plan) -> Plan:
    """What the next step begins with."""
    fresh = blank(config, plan.centre.shape[1], continuous=plan.spread is not None, dtype=plan.centre.dtype)
    later = torch.cat([plan.centre[1:], fresh.centre[-1:]])
    return Plan(torch.lerp(fresh.centre, later, config.warm_start), fresh.spread)


def plan(
    config: "PlanningConfig", world: World, begin: Plan, observation: Tensor, uniform: Tensor, deal: Tensor, noise: Tensor | None
) -> tuple[Plan, Tensor]:
    """(the plan of the next step to begin with, the action to take) by uniform numbers [iterations, N, H, ...]."""
    now = begin
    for one in uniform:
        actions = candidates(config, now, one)
        now = fit(config, now, actions, weights(config, returns(config, world, observation, actions, deal, noise)))
    return shifted(config, now), middle(now)[0]
