"""Both algorithms on probe environments, whose exact values are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import probes
from ensembles import rows_of

from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    DynaQConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    ModelFreeQConfig,
    QLearningConfig,
    SelectionConfig,
)
from mbrl_jax.replay import make_replay

DISCOUNT = 0.8
AGENT = QLearningConfig(hidden=(32, 32), learning_rate=3e-3, target_rate=0.05, batch_size=64, discount=DISCOUNT)
COMMON = {
    "random_transitions": 400,
    "steps": 1_000,
    "round_steps": 1_000,
    "agent": AGENT,
    "evaluation": EvaluationConfig(episodes=2, curve_episodes=2),
}
MODEL_FREE = ModelFreeQConfig(**COMMON)
MODEL_BASED = DynaQConfig(
    **COMMON,
    model=ModelConfig(members=2, hidden=(16, 16), batch_size=64, epochs=40, prediction="deterministic", learning_rate=3e-3),
    imagination=ImaginationConfig(lanes=8, steps=2, capacity=1_600, epsilon=1.0),
    selection=SelectionConfig(episodes=2, steps=20),
)
CASES = [
    (probes.constant_reward, {(1, 0): (1, 1), (-1, 0): (1, 1)}),
    (probes.observation_value, {(1, 0): (1, 1), (-1, 0): (-1, -1)}),
    (probes.discounting, {(1, 0): (DISCOUNT, DISCOUNT), (1, 1): (1, 1)}),
    (probes.action_value, {(1, 0): (-1, 1), (-1, 0): (-1, 1)}),
    (probes.observation_and_action, {(1, 0): (-1, 1), (-1, 0): (1, -1)}),
    (probes.endless, {(1, 0): (1 / (1 - DISCOUNT), 1 / (1 - DISCOUNT))}),
]


def learned_values(algorithm, config, environment, states):
    train = algorithm.make_train(config, environment=environment).train
    outcome = jax.jit(train)(seed_keys(0, 1)[0]).outcome
    learner = make_q_learner(config.agent, environment.spec)
    return np.asarray(learner.values(outcome.last, jnp.asarray(states, jnp.float32)))


@pytest.mark.parametrize(("make", "values"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_model_free_q_learning_finds_the_known_values(make, values):
    learned = learned_values(model_free_q, MODEL_FREE, make(), list(values))
    np.testing.assert_allclose(learned, list(values.values()), atol=0.08 * max(1, np.abs(list(values.values())).max()))


@pytest.mark.parametrize(("make", "values"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_dyna_q_finds_the_known_values_from_imagined_transitions_alone(make, values):
    learned = learned_values(dyna_q, MODEL_BASED, make(), list(values))
    np.testing.assert_allclose(learned, list(values.values()), atol=0.12 * max(1, np.abs(list(values.values())).max()))


def test_a_learned_model_never_learns_time_limits():
    config = replace(MODEL_BASED, model=replace(MODEL_BASED.model, termination="learned", reward="learned"))
    environment = probes.endless()
    state, _ = jax.jit(dyna_q.make_train(config, environment=environment).init)(seed_keys(0, 1)[0])
    rows = rows_of(make_replay(environment.spec, config.real_transitions), state.real)
    assert rows.reward.shape == (config.random_transitions,)
    assert int(jnp.sum(rows.depth == probes.TIME_LIMIT - 1)) > 10  # episodes were cut
    assert not bool(jnp.any(rows.terminated))
    learned = learned_values(dyna_q, config, environment, [(1, 0)])
    np.testing.assert_allclose(learned, [[1 / (1 - DISCOUNT)] * 2], rtol=0.1)
