from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.replay import AXES, make_replay

SEEDS = 2


@pytest.fixture(scope="module")
def batch(tiny):
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


def test_both_arms_collect_the_same_real_data_seed_by_seed(tiny, batch):
    keys = seed_keys(5, SEEDS)
    free = model_free_q.make_train(batch)
    based = dyna_q.make_train(tiny)
    state_free, returns_free = jax.vmap(free.init, out_axes=(free.axes, 0))(keys)
    state_based, returns_based = jax.vmap(based.init, out_axes=(based.axes, 0))(keys)
    jax.tree.map(np.testing.assert_array_equal, state_free.real, state_based.real)
    np.testing.assert_array_equal(returns_free, returns_based)
    rows = np.asarray(state_free.real.rows)
    assert not np.allclose(rows[0], rows[1])


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_a_run_in_chunks_is_the_whole_run(batch, protocol):
    config = replace(batch, protocol=protocol)
    algorithm = model_free_q.make_train(config)
    keys, axes = seed_keys(0, SEEDS), algorithm.axes
    whole = jax.jit(jax.vmap(algorithm.train))(keys)
    state, _ = jax.jit(jax.vmap(algorithm.init, out_axes=(axes, 0)))(keys)
    advance = jax.jit(jax.vmap(algorithm.advance, in_axes=(axes, None), out_axes=(axes, 0)))
    for number in range(algorithm.rounds):
        state, metrics = advance(state, config)
        np.testing.assert_allclose(metrics.update.loss, whole.metrics.update.loss[:, number], rtol=1e-4, atol=1e-6)
    outcome = jax.jit(jax.vmap(algorithm.finish, in_axes=(axes, None)))(state, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), outcome, whole.outcome)
    assert int(state.real.written) == config.real_transitions
    task = make_environment(config.environment)
    rows, valid = jax.vmap(make_replay(task.spec, config.real_transitions).contents, in_axes=(AXES,))(state.real)
    assert rows.reward.shape == (SEEDS, config.real_transitions)
    assert np.asarray(valid).all()


def test_there_is_no_chosen_policy_without_a_model(batch):
    outcome = jax.jit(model_free_q.make_train(batch).train)(seed_keys(0, 1)[0]).outcome
    assert outcome.chosen is None
    assert outcome.returns_chosen is None


def test_ensemble_targets_are_refused_without_a_model(batch):
    with pytest.raises(ConfigError, match="agent.target: 'quantile'"):
        model_free_q.make_train(replace(batch, agent=replace(batch.agent, target="quantile")))
