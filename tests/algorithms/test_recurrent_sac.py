"""Soft actor-critic with a memory: the loop around it, and its policies on the host side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms.memories import cue
from algorithms.stages import stages_of

from mbrl_jax.agents.recurrent import Recurrent
from mbrl_jax.algorithms import recurrent_sac
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    ConfigError,
    EnvironmentConfig,
    EvaluationConfig,
    RecurrentConfig,
    RecurrentSACConfig,
    check,
    from_dict,
    to_dict,
)
from mbrl_jax.environments import make_environment

CONFIG = RecurrentSACConfig(
    random_transitions=200,
    steps=1200,
    round_steps=600,
    metric_steps=100,
    update_steps=2,
    agent=RecurrentConfig(
        units=16,
        hidden=(16,),
        sequence=6,
        learning_rate=5e-3,
        critic_learning_rate=1e-2,
        target_rate=0.1,
        discount=0.9,
        temperature=0.05,
    ),
    evaluation=EvaluationConfig(episodes=20, curve_episodes=4),
)


@pytest.fixture(scope="module")
def trained():
    """Two seeds of the cue: their metrics after each of two rounds, how they ended, and their last state."""
    algorithm = recurrent_sac.make_train(CONFIG, environment=cue())
    stages = stages_of(algorithm, CONFIG, seed_keys(0, 2), algorithm.axes)
    state, _ = stages.init(seed_keys(0, 2))
    rounds = []
    for _ in range(2):
        state, metrics = stages.advance(state, CONFIG)
        rounds.append(jax.device_get(metrics))
    return rounds, jax.device_get(stages.finish(state, CONFIG)), jax.device_get(state._replace(key=())), stages


def test_it_learns_what_only_a_memory_can_know(trained):
    rounds, outcome, _, _ = trained
    assert (outcome.returns_last.mean(axis=1) > 0.9).all()  # of what has no memory it is 0
    assert not outcome.frozen.any()
    assert (outcome.updates == CONFIG.steps / CONFIG.update_steps).all()
    assert rounds[0].update.loss.shape == (2, 6)
    assert (rounds[1].update.loss[:, -1] < rounds[0].update.loss[:, 0]).all()


def test_a_real_step_is_stored_as_it_was_made_and_remembered(trained):
    state = trained[2]
    rows = state.real.rows[0, CONFIG.random_transitions :]
    depth, reward, action = rows[:, -1], rows[:, -4], rows[:, 4]
    second = depth == 1
    assert second.mean() == pytest.approx(0.5, abs=0.01)
    cues = np.concatenate([[np.nan], rows[:-1, 0]])[second]
    np.testing.assert_array_equal(reward[second][1:], (cues * (2 * action[second] - 1))[1:])
    np.testing.assert_array_equal(state.memory.first[0, 0], second[-1])
    assert state.memory.action[0, 0] == action[-1]
    assert state.time == CONFIG.steps


def test_a_seed_has_the_same_numbers_whoever_is_beside_it(trained):
    rounds, _, _, stages = trained
    state, _ = stages.init(seed_keys(0, 2)[::-1])
    swapped = jax.device_get(stages.advance(state, CONFIG)[1])
    for found, expected in zip(jax.tree.leaves(swapped.update), jax.tree.leaves(rounds[0].update), strict=True):
        np.testing.assert_allclose(found[::-1, 0], expected[:, 0], rtol=1e-3)
        assert (found[0] != found[1]).any()


def test_a_policy_is_the_actor_with_its_memory(trained):
    """What a saved policy does along an episode is what its parts do by hand."""
    _, outcome, state, _ = trained
    policy, learner = recurrent_sac.policy_of(CONFIG, cue()), Recurrent(CONFIG.agent, cue().spec)
    params, actor = jax.tree.map(lambda leaf: leaf[0], (outcome.last, state.agent.actor))
    seen = np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)
    act, recall = jax.jit(policy.act), jax.jit(lambda *each: learner.recall(actor.trunk, *each))
    memory, hidden = policy.begin(params, jax.random.key(0), 3), np.full((3, 16), 9.0, np.float32)
    action = np.ones(3, np.int32)  # neither it nor the memory above is an episode's
    for step in range(3):
        hidden = recall(hidden, action, learner.code(actor.trunk, seen[step]), np.full(3, step == 0))
        memory, action = act(params, memory, seen[step])
        np.testing.assert_allclose(memory.hidden, hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(action, learner.greedy(actor, hidden))


def test_a_run_of_continuous_actions_is_told_apart_from_one_of_discrete_ones():
    config = dataclasses.replace(CONFIG, environment=EnvironmentConfig(name="Pendulum-v1", observed="positions"))
    assert from_dict(to_dict(config)) == config
    algorithm = recurrent_sac.make_train(config)
    after, metrics = jax.eval_shape(lambda key: algorithm.advance(algorithm.init(key)[0], config), jax.random.key(0))
    assert metrics.update.value.shape == (6,)
    policy, params = algorithm_of(config).policy(config, make_environment(config.environment)), algorithm.policies(after)[0]
    memory = jax.eval_shape(lambda params: policy.begin(params, jax.random.key(0), 3), params)
    after, action = jax.eval_shape(policy.act, params, memory, jnp.zeros((3, 2)))
    assert action.shape == (3, 1)
    assert str(after) == str(memory)
    assert algorithm_of(config).remembers


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "batch"}, "protocol: 'batch' does not fit; it acts, so it must be 'interactive'"),
        ({"metric_steps": 25, "update_steps": 2}, "metric_steps: 25 does not fit; .* update_steps"),
        ({"random_transitions": 5}, "agent.sequence: 6 does not fit; .* so it must be at most 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        check(dataclasses.replace(CONFIG, **change), RecurrentSACConfig)


def test_a_task_that_the_host_steps_is_refused():
    told = "'a cue' does not fit; the host steps it, and 'recurrent_sac' acts by its memory on the devices"
    with pytest.raises(ConfigError, match=told):
        recurrent_sac.make_train(CONFIG, environment=cue()._replace(host=object()))
