"""Imagined rollouts: who moves which lane, where lanes begin anew, what controllers decide."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import stored, world_of

from mbrl_jax.config import ImaginationConfig
from mbrl_jax.imagination import horizon, lanes
from mbrl_jax.imagination.horizon.depth import fixed, schedule
from mbrl_jax.reference.imagination import disagreement as reference_disagreement
from mbrl_jax.reference.imagination import horizon as reference_horizon
from mbrl_jax.reference.imagination import lanes as reference
from mbrl_jax.reference.imagination import penalties as reference_penalties
from mbrl_jax.replay import Rows

from .agreement import Agreement, tensor
from .lockstep import lane_draws
from .twins import LearnerTwins, ModelTwins, random_rows

STEPS, H = 250, 4
RESTARTS = ("streaming", "per_step")


def spread_penalty() -> horizon.HorizonController:
    """A controller that uses all of the protocol: a state, calibration, every member's prediction, keep, stop and penalty."""

    def calibrate(state: Any, world: Any, params: Any, rows: Rows, valid: jax.Array) -> Any:
        seen = jnp.sum(jnp.where(valid[:, None], rows.observation, 0.0)) / jnp.sum(valid.astype(rows.reward.dtype))
        return (state[0], 1.2 + 0.1 * jnp.tanh(seen))

    def step(state: Any, view: horizon.View) -> tuple[Any, horizon.Decision]:
        used, limit = state
        spread = jnp.std(view.everyone.mean, axis=0).mean(-1)
        typical = jnp.mean(spread)
        used = jnp.where(view.depth == 0, 0.0, used) + spread
        far = jnp.abs(view.next_observation - view.root).sum(-1)
        penalty = 0.1 * far + 0.01 * view.member.astype(far.dtype)
        return (used, limit), horizon.Decision(keep=spread < limit * typical, stop=used > 2.5 * limit * typical, penalty=penalty)

    init = lambda k, _: (jnp.zeros(k), jnp.ones(()))  # noqa: E731
    return horizon.HorizonController(init, calibrate, step, needs_members=True)


class SpreadPenalty:
    """The same in torch."""

    needs_members = True
    needs_truth = False

    def init(self, count: int) -> Any:
        return torch.zeros(count, dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def calibrate(self, state: Any, world: Any, rows: Any) -> Any:
        return state[0], 1.2 + 0.1 * torch.tanh(rows.observation.sum(-1).mean())

    def step(self, state: Any, view: reference_horizon.View) -> tuple[Any, reference_horizon.Decision]:
        used, limit = state
        assert view.everyone is not None
        spread = view.everyone.mean.std(0, correction=0).mean(-1)
        typical = spread.mean()
        used = torch.where(view.depth == 0, 0.0, used) + spread
        far = (view.next_observation - view.root).abs().sum(-1)
        keep, stop = spread < limit * typical, used > 2.5 * limit * typical
        decision = reference_horizon.Decision(keep, stop, 0.1 * far + 0.01 * view.member.to(far.dtype))
        return (used, limit), decision


SCHEDULE = {"start": 20, "end": 200, "first": 1, "last": 9}
JUDGES: dict[str, dict[str, float]] = {
    "threshold": {"mark": 1.0},
    "threshold_quantile": {"quantile": 0.6},
    "accumulated": {"budget": 2.7},
    "macura": {"scale": 1.03, "percentile": 70, "memory": 30},  # lanes of one root are not at the mark itself
    "m2ac": {"length": 3, "penalty": 0.01},
    "infoprop": {"high": 0.8, "low": 0.7, "length": 5, "resolution": 0.02},
    "three_model": {"low": 0.8, "high": 0.9, "first": 2, "limit": 6},
    "oracle": {"mark": 1.0},
}


def twins_of(
    world: Any, rows: Any, name: str, numbers: dict[str, float], measure: str = "std", penalty: str = "none", weight: float = 0.0
) -> Any:
    """A registered controller with a penalty, on both sides; marks, budgets and three models' bounds are in units of what the
    measure's median is on the real rows."""
    everyone, member = reference_disagreement.on_real_rows(world, rows)
    typical = 1.03 * reference_disagreement.MEASURES[measure](everyone, member).median()  # no row is at the mark itself
    if name == "oracle":
        moved = (
            everyone.mean[0] * world.normaliser.target_std + rows.observation - world.task.dynamics(rows.observation, rows.action)
        )
        typical = (moved / world.normaliser.target_std).square().mean(-1).sqrt().median()
    in_units = ("mark", "budget", "low", "high") if name != "infoprop" else ()
    numbers = {key: value * float(typical) if key in in_units else value for key, value in numbers.items()}
    ours = horizon.penalised(horizon.make_controller(name, numbers, measure), penalty=penalty, weight=weight, measure=measure)
    theirs = reference_horizon.make_controller(name, numbers, measure)
    return ours, reference_penalties.penalised(theirs, penalty, weight, measure)


CONTROLLERS: dict[str, Any] = {
    "fixed": lambda world, rows: (fixed(length=3), reference_horizon.Fixed(length=3)),
    "schedule": lambda world, rows: (schedule(**SCHEDULE), reference_horizon.Schedule(**SCHEDULE)),
    "all of the protocol": lambda world, rows: (spread_penalty(), SpreadPenalty()),
    **{name: lambda world, rows, name=name: twins_of(world, rows, name, JUDGES[name]) for name in JUDGES},
    "threshold, max_pairwise, mopo": lambda *seen: twins_of(*seen, "threshold", {"mark": 1.0}, "max_pairwise", "mopo", 0.3),
    "threshold, max_pairwise, halt": lambda *seen: twins_of(*seen, "threshold", {"mark": 1.0}, "max_pairwise", "halt", 2.0),
    "accumulated, gjs, disagreement": lambda *seen: twins_of(*seen, "accumulated", {"budget": 2.5}, "gjs", "disagreement", 0.3),
    "threshold_quantile, one_vs_rest, halt": lambda *seen: twins_of(
        *seen, "threshold_quantile", {"quantile": 0.6}, "one_vs_rest", "halt", 2.0
    ),
    "threshold, max_aleatoric, halt": lambda *seen: twins_of(*seen, "threshold", {"mark": 1.0}, "max_aleatoric", "halt", 0.0),
}
BASIC = ("fixed", "schedule", "all of the protocol")
CASES = [
    *((sampling, restart, name) for sampling in ("ts1", "ts_infinity", "mean") for restart in RESTARTS for name in BASIC),
    *(("ts1", "streaming", name) for name in CONTROLLERS if name not in BASIC),
    *(("ts1", "per_step", name) for name in ("macura", "m2ac", "three_model")),
    *((sampling, "streaming", "infoprop") for sampling in ("infoprop", "fused")),
    ("infoprop", "per_step", "m2ac"),
]


def compare_lanes(rng: np.random.Generator, agree: Agreement, sampling: str, restart: str, controller: str, steps: int) -> None:
    """The lanes of both sides over ``steps`` real steps of the same random numbers."""
    config = ImaginationConfig(lanes=20, steps=H, cap=7, sampling=sampling, restart=restart, epsilon=0.3)
    config = dataclasses.replace(config, capacity=20 * H)
    model, learner = ModelTwins(rng, hidden=(16, 16)), LearnerTwins(rng, hidden=(16, 16))
    # a world in which the pole falls after a few steps, not at once
    scale = jax.tree.map(np.asarray, model.normaliser)
    scale = scale._replace(target_mean=0 * scale.target_mean, target_std=0.05 * scale.target_std)
    members = model.members._replace(normaliser=jax.device_put(scale))
    world = model.world._replace(normaliser=type(model.world.normaliser)(*(tensor(x) for x in scale)))
    mine, other = random_rows(rng, 50)
    near = np.array([[0.5, 0.5, 0.08, 0.5]])
    learned, replay = world_of(model.ensemble, 80, by=sampling)
    real = stored(replay, mine._replace(observation=near * np.asarray(mine.observation)))
    other = other._replace(observation=tensor(near) * other.observation)

    ours, theirs = CONTROLLERS[controller](world, other)
    if restart == "per_step" and controller == "fixed":
        ours, theirs = fixed(length=H), reference_horizon.Fixed(length=H)
    draw = jax.jit(lambda key: lanes.draw(config, model.environment.spec, learned, key, (steps,)))
    draws = jax.tree.map(np.asarray, draw(jax.random.key(int(rng.integers(2**31)))))

    def act(observation: Any, explore: Any, random_action: Any) -> Any:
        return learner.learner.act(learner.state.online, observation, config.epsilon, explore, random_action)

    def step(carry: Any, draw: Any) -> Any:
        state, time = carry
        dynamics = model.environment.dynamics
        state, rows, log = lanes.advance(config, learned, ours, state, members, act, real, time, draw, dynamics)
        return (state, time + 1), (rows, log)

    def run(draws: Any) -> Any:
        start = lanes.init(config, ours, learned, members, real)
        start = lanes.calibrated(start, ours, learned, members, replay, real)
        return jax.lax.scan(step, (start, jnp.zeros((), jnp.int32)), draws)

    (end, _), (rows, log) = jax.jit(run)(draws)

    state = theirs.calibrate(theirs.init(20), world, other)
    at = reference.start(20, 4, state, dtype=torch.float64, device=torch.device("cpu"))
    made, logs = [], []
    for t in range(steps):
        at, imagined = reference.at_real_step(at, restart), []
        for h in range(H):
            numbers = lane_draws(jax.tree.map(lambda x, i=(t, h): x[i], draws), 50)
            roots = other.observation[numbers.root]
            at, moved = reference.step(
                at, world, learner.reference.online, theirs, config, roots, numbers, torch.tensor(t, dtype=torch.float64)
            )
            imagined.append(moved)
        made += imagined
        logs.append(reference.log(imagined))
    expected = {name: torch.cat([getattr(moved.rows, name) for moved in made]) for name in rows._fields}
    got = {name: np.asarray(column).reshape(expected[name].shape) for name, column in rows._asdict().items()}
    depth = got["depth"]
    longest = {"fixed": 3, "schedule": config.cap}.get(controller, 2)  # the others stop as they see fit
    assert depth.max() + 1 >= min(longest, H if restart == "per_step" else longest)
    if controller not in BASIC and restart == "streaming":  # a rule that never or always applies would prove nothing
        assert 0 < np.asarray(log.stopped).mean() < 1
    whole = ("action", "terminated", "weight", "depth")
    agree(
        f"1,000 imagined steps of 20 lanes ({sampling}), decisions",
        {n: got[n] for n in whole},
        {n: expected[n] for n in whole},
        0,
    )
    exact = ("observation", "next_observation", "reward")
    agree(
        f"1,000 imagined steps of 20 lanes ({sampling}), rows",
        {n: got[n] for n in exact},
        {n: expected[n] for n in exact},
        1e-9,
    )
    columns = {name: torch.stack([getattr(entry, name) for entry in logs]) for name in log._fields}
    agree("logs of imagined steps", log._asdict(), columns, 1e-9)
    agree("where lanes stand", (end.belief, end.root), (at.observation, at.root), 1e-9)
    agree("where lanes stand, depths", (end.depth, end.idle), (at.depth, at.idle), 0)


@pytest.mark.parametrize(("sampling", "restart", "controller"), CASES)
def test_a_thousand_imagined_steps_give_the_same_rows_depths_and_roots(
    rng: np.random.Generator, agree: Agreement, sampling: str, restart: str, controller: str
) -> None:
    compare_lanes(rng, agree, sampling, restart, controller, STEPS)
