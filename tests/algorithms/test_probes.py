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
STATES = ((1, 0), (-1, 0), (1, 1))
VALUES = {  # of both actions, in the states that the probe has
    "constant reward": {(1, 0): (1, 1), (-1, 0): (1, 1)},
    "value from the observation": {(1, 0): (1, 1), (-1, 0): (-1, -1)},
    "discounting": {(1, 0): (DISCOUNT, DISCOUNT), (1, 1): (1, 1)},
    "action value": {(1, 0): (-1, 1), (-1, 0): (-1, 1)},
    "both": {(1, 0): (-1, 1), (-1, 0): (1, -1)},
    "endless": {(1, 0): (1 / (1 - DISCOUNT), 1 / (1 - DISCOUNT))},
}


def values_in(algorithm, config, environment):
    """[3, 2] what one seed has learned that the actions in ``STATES`` are worth."""
    outcome = algorithm.make_train(config, environment=environment).train(seed_keys(0, 1)[0]).outcome
    learner = make_q_learner(config.agent, environment.spec)
    return learner.values(outcome.last, jnp.array(STATES, jnp.float32))


def values_in_all(algorithm, config):
    """``{probe: {state: values}}``, learned in all probes by one program."""
    learn = jax.jit(jax.vmap(lambda which: values_in(algorithm, config, probes.number(which))))
    learned = np.asarray(learn(np.arange(len(probes.KINDS), dtype=np.int32)))
    return {name: dict(zip(STATES, values, strict=True)) for name, values in zip(probes.KINDS, learned, strict=True)}


@pytest.fixture(scope="module")
def without_a_model():
    return values_in_all(model_free_q, MODEL_FREE)


@pytest.fixture(scope="module")
def with_a_model():
    return values_in_all(dyna_q, MODEL_BASED)


def assert_known(learned, name, tolerance):
    known = VALUES[name]
    size = max(1, np.abs(list(known.values())).max())
    np.testing.assert_allclose([learned[name][state] for state in known], list(known.values()), atol=tolerance * size)


@pytest.mark.parametrize("name", VALUES)
def test_model_free_q_learning_finds_the_known_values(without_a_model, name):
    assert_known(without_a_model, name, 0.08)


@pytest.mark.parametrize("name", VALUES)
def test_dyna_q_finds_the_known_values_from_imagined_transitions_alone(with_a_model, name):
    assert_known(with_a_model, name, 0.12)


def test_every_probe_has_known_values():
    assert list(VALUES) == list(probes.KINDS)


def test_a_learned_model_never_learns_time_limits():
    config = replace(MODEL_BASED, model=replace(MODEL_BASED.model, termination="learned", reward="learned"))
    environment = probes.make("endless")
    state, _ = jax.jit(dyna_q.make_train(config, environment=environment).init)(seed_keys(0, 1)[0])
    rows = rows_of(make_replay(environment.spec, config.real_transitions), state.real)
    assert rows.reward.shape == (config.random_transitions,)
    assert int(jnp.sum(rows.depth == probes.TIME_LIMIT - 1)) > 10  # episodes were cut
    assert not bool(jnp.any(rows.terminated))
    learned = jax.jit(lambda: values_in(dyna_q, config, environment))()
    np.testing.assert_allclose(learned[0], [1 / (1 - DISCOUNT)] * 2, rtol=0.1)
