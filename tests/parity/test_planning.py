"""Planners: what candidates earn, and the plans that are made of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import world_of

from mbrl_jax.config import PlanningConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.planning.planners import Plan, Planner
from mbrl_jax.planning.rollouts import ParticleDraws, returns_of
from mbrl_jax.reference import planning as reference
from mbrl_jax.reference.model.ensemble import Normaliser

from .agreement import FLOAT64, Agreement, tensor
from .twins import ModelTwins

SIZES: dict[str, Any] = {"candidates": 24, "horizon": 6, "particles": 10, "elites": 5, "discount": 0.95}
METHODS: dict[str, dict[str, Any]] = {
    "random shooting": {"method": "random_shooting"},
    "CEM": {
        "method": "cem",
        "iterations": 2,
        "momentum": 0.7,
        "warm_start": 0.3,
        "horizon": 12,
    },  # no sequence twice, or rounding would decide
    "CEM, TS1": {"method": "cem", "propagation": "ts1", "iterations": 2, "momentum": 0.7, "warm_start": 0.3, "horizon": 12},
    "MPPI": {"method": "mppi", "iterations": 2, "temperature": 0.1},
    "enumeration": {"method": "enumeration"},
}


def world(rng: np.random.Generator, task: str) -> ModelTwins:
    """A world that moves slowly, and whose reward is learned: no two candidates tie, which rounding would have to decide."""
    twins = ModelTwins(rng, task, hidden=(16, 16), reward="learned")
    slow = twins.normaliser._replace(target_mean=0 * twins.normaliser.target_mean, target_std=0.05 * twins.normaliser.target_std)
    twins.members = twins.members._replace(normaliser=slow)
    twins.world = twins.world._replace(normaliser=Normaliser(*(tensor(x) for x in slow)))
    return twins


def planner_of(config: PlanningConfig, twins: ModelTwins) -> Planner:
    """The planner in the twins' world, in which a particle stays with its member."""
    return Planner(config, twins.environment.spec, world_of(twins.ensemble, 1, by="ts_infinity")[0])


def deal_of(drawn: ParticleDraws) -> torch.Tensor:
    """The order in which particles are dealt, empty where they stay with their members."""
    return torch.zeros(0).long() if drawn.deal is None else tensor(drawn.deal).long()


@pytest.mark.parametrize(("name", "task"), [*((name, "CartPole-v1") for name in METHODS), ("CEM", "Acrobot-v1")])
def test_plans_are_the_references(rng: np.random.Generator, agree: Agreement, name: str, task: str) -> None:
    config = PlanningConfig(**{**SIZES, **METHODS[name]})
    twins = world(rng, task)
    planner = planner_of(config, twins)
    mine = planner.init()
    theirs = reference.blank(config, twins.environment.spec.action_count, continuous=False, dtype=torch.float64)
    plan, moved = jax.jit(planner.plan), 0
    for step in range(4):
        observation = 0.05 * rng.normal(size=twins.environment.spec.observation_size)
        drawn = planner.draw(jax.random.key(step), ())
        uniform, deal, noise = tensor(drawn.candidates), deal_of(drawn.particles), tensor(drawn.particles.model.noise)
        mine, action, _ = plan(twins.members, mine, jnp.asarray(observation), drawn)
        theirs, expected = reference.plan(config, twins.world, theirs, tensor(observation), uniform, deal, noise)
        agree(f"plans: {name}", mine.centre, theirs.centre, FLOAT64)
        agree(f"planned actions: {name}", action, expected, 0)
        moved += int(np.ptp(np.asarray(mine.centre)) > 0.01)
    assert moved


@pytest.mark.parametrize("propagation", ["ts1", "ts_infinity"])
def test_what_candidates_earn_is_the_references(rng: np.random.Generator, agree: Agreement, propagation: Any) -> None:
    config = PlanningConfig(**{**SIZES, "propagation": propagation, "horizon": 12})
    twins = world(rng, "CartPole-v1")
    planner = planner_of(config, twins)
    drawn = planner.draw(jax.random.key(3), ()).particles
    actions, observation = rng.integers(0, 2, (24, 12)), 0.05 * rng.normal(size=4)

    def ours(observation: jax.Array, actions: jax.Array) -> jax.Array:
        return returns_of(config, planner.world, twins.members, observation, actions, drawn)

    found = jax.jit(ours)(jnp.asarray(observation), jnp.asarray(actions, jnp.int32))
    theirs = reference.returns(
        config, twins.world, tensor(observation), tensor(actions), deal_of(drawn), tensor(drawn.model.noise)
    )
    assert len(np.unique(found)) > 12
    agree(f"returns of candidates: {propagation}", found, theirs, FLOAT64)


@pytest.mark.parametrize("method", ["random_shooting", "cem", "mppi"])
def test_continuous_candidates_and_what_is_fitted_to_them_are_the_references(
    rng: np.random.Generator, agree: Agreement, method: Any
) -> None:
    config = PlanningConfig(**{**SIZES, "method": method, "momentum": 0.2})
    twins = ModelTwins(rng)
    spec = EnvironmentSpec("two numbers", 4, 0, 10, (1.0,) * 4, action_size=2)
    planner = planner_of(config, twins)._replace(spec=spec)
    shape = (config.horizon, 2)
    centre, spread = rng.uniform(-1, 1, shape), rng.uniform(0.1, 1, shape)
    uniform, returns = rng.random((config.candidates, *shape)), rng.normal(size=config.candidates)
    mine, theirs = Plan(jnp.asarray(centre), jnp.asarray(spread)), reference.Plan(tensor(centre), tensor(spread))
    actions = jax.jit(planner.candidates)(mine, jnp.asarray(uniform))
    other = reference.candidates(config, theirs, tensor(uniform))
    agree(f"continuous candidates: {method}", actions, other, 1e-9)
    fitted = jax.jit(planner.fit)(mine, jnp.asarray(other.numpy()), planner.weights(jnp.asarray(returns)))
    expected = reference.fit(config, theirs, other, reference.weights(config, tensor(returns)))
    agree(f"continuous plans: {method}", tuple(fitted), tuple(expected), FLOAT64)
    agree(f"shifted plans: {method}", tuple(planner.shifted(fitted)), tuple(reference.shifted(config, expected)), FLOAT64)
