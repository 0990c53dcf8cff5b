"""Playing in the real environment, scoring in imagination, and choosing the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import stored, world_of

from mbrl_jax import draws, evaluation
from mbrl_jax.reference import evaluation as reference

from .agreement import Agreement, tensor
from .lockstep import simulator_states
from .twins import LearnerTwins, ModelTwins, random_rows


def test_greedy_real_episodes_earn_the_same_returns(rng: np.random.Generator, agree: Agreement) -> None:
    for _ in range(3):
        twins = LearnerTwins(rng)
        starts = twins.environment.draw_resets(jax.random.key(int(rng.integers(2**31))), (20,))

        def ours(params: object, starts: object, twins: LearnerTwins = twins) -> jax.Array:
            return evaluation.play(twins.environment, lambda s: twins.learner.greedy(params, s), starts)

        theirs = reference.play(twins.reference.online, twins.task, simulator_states(starts))
        agree("returns of greedy real episodes", jax.jit(ours)(twins.state.online, starts), theirs, 0)


def test_first_observations_are_drawn_from_the_same_episodes(rng: np.random.Generator, agree: Agreement) -> None:
    ours, theirs = random_rows(rng, 70)
    world, replay = world_of(ModelTwins(rng).ensemble, 100)
    real = stored(replay, ours)
    firsts = reference.first_observations(theirs.observation, theirs.depth)
    assert 0 < len(firsts) < 70
    bits = rng.integers(2**32, size=40, dtype=np.uint32)
    chosen = jax.jit(lambda bits: world.features(world.first(None, real, bits)))(jnp.asarray(bits))
    agree("first observations of real episodes", chosen, firsts[tensor((bits % len(firsts)).astype(np.int64))], 0)


@pytest.mark.parametrize(
    "settings", [{"prediction": "gaussian"}, {"prediction": "deterministic"}, {"reward": "learned", "termination": "learned"}]
)
def test_imagined_episodes_score_a_policy_alike(rng: np.random.Generator, agree: Agreement, settings: dict[str, str]) -> None:
    model, learner = ModelTwins(rng, hidden=(16, 16), **settings), LearnerTwins(rng)
    slow = model.normaliser._replace(target_mean=0 * model.normaliser.target_mean, target_std=0.05 * model.normaliser.target_std)
    members = model.members._replace(normaliser=slow)
    world = model.world._replace(normaliser=type(model.world.normaliser)(*(tensor(x) for x in slow)))
    learned, _ = world_of(model.ensemble, 1, by="ts_infinity")
    key, steps = jax.random.key(int(rng.integers(2**31))), 60
    first = 0.05 * rng.normal(size=(20, 4))

    def ours(params: object, first: jax.Array) -> jax.Array:
        greedy = lambda s: learner.learner.greedy(params, s)  # noqa: E731
        return evaluation.play_imagined(learned, members, greedy, first, key, steps)

    returns = jax.jit(ours)(learner.state.online, jnp.asarray(first))
    starts = tensor(first).view(model.config.members, -1, 4)
    noise = tensor(draws.normal(key, (steps, *starts.shape))) if settings.get("prediction") != "deterministic" else None
    score = reference.score(learner.reference.online, world, starts, noise, steps)
    assert len(np.unique(returns)) > 1
    agree("scores of imagined episodes", jnp.mean(returns), score, 1e-12)
    with torch.no_grad():  # one lane alone, so that a mean cannot hide two errors
        alone = reference.score(learner.reference.online, world, starts[:, :1], None if noise is None else noise[:, :, :1], steps)
    agree("scores of imagined episodes", returns.reshape(model.config.members, -1)[:, 0].mean(), alone, 1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_world_that_is_not_finite_scores_minus_infinity_on_both_sides(
    rng: np.random.Generator, agree: Agreement, value: float
) -> None:
    model, learner = ModelTwins(rng, hidden=(16, 16), prediction="deterministic"), LearnerTwins(rng)
    broken = model.normaliser._replace(target_mean=model.normaliser.target_mean.at[3].set(value))
    members = model.members._replace(normaliser=broken)
    world = model.world._replace(normaliser=type(model.world.normaliser)(*(tensor(x) for x in broken)))
    first = 0.05 * rng.normal(size=(10, 4))
    greedy = lambda s: learner.learner.greedy(learner.state.online, s)  # noqa: E731
    learned, _ = world_of(model.ensemble, 1, by="ts_infinity")
    returns = evaluation.play_imagined(learned, members, greedy, jnp.asarray(first), jax.random.key(0), 30)
    score = reference.score(learner.reference.online, world, tensor(first).view(model.config.members, -1, 4), None, 30)
    assert float(score) == -np.inf
    agree("scores of a world that is not finite", jnp.mean(returns), score, 0)
