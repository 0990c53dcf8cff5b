import functools
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from algorithms.stages import stages_of

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.replay import AXES, make_replay

SEEDS = 2


@pytest.fixture(scope="module")
def batch(tiny):
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


@functools.cache
def stages(config):
    """The stages of all seeds."""
    algorithm = model_free_q.make_train(config)
    return stages_of(algorithm, config, seed_keys(0, SEEDS), algorithm.axes)


@functools.cache
def whole_run(config):
    """Of all seeds in one program."""
    return jax.jit(jax.vmap(model_free_q.make_train(config).train))(seed_keys(0, SEEDS))


def test_both_arms_collect_the_same_real_data_seed_by_seed(tiny, batch):
    keys = seed_keys(5, SEEDS)
    based = dyna_q.make_train(tiny)
    state_free, returns_free = stages(batch).init(keys)
    state_based, returns_based = jax.jit(jax.vmap(based.init, out_axes=(based.axes, 0)))(keys)
    jax.tree.map(np.testing.assert_array_equal, state_free.real, state_based.real)
    np.testing.assert_array_equal(returns_free, returns_based)
    rows = np.asarray(state_free.real.rows)
    assert not np.allclose(rows[0], rows[1])


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_a_run_in_chunks_is_the_whole_run(batch, protocol):
    config = replace(batch, protocol=protocol)
    whole, (init, _, advance, finish) = whole_run(config), stages(config)
    state, _ = init(seed_keys(0, SEEDS))
    for number in range(config.steps // config.round_steps):
        state, metrics = advance(state, config)
        np.testing.assert_allclose(metrics.update.loss, whole.metrics.update.loss[:, number], rtol=1e-4, atol=1e-6)
    outcome = finish(state, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), outcome, whole.outcome)
    assert int(state.real.written) == config.real_transitions
    task = make_environment(config.environment)
    rows, valid = jax.vmap(make_replay(task.spec, config.real_transitions).contents, in_axes=(AXES,))(state.real)
    assert rows.reward.shape == (SEEDS, config.real_transitions)
    assert np.asarray(valid).all()


def test_there_is_no_chosen_policy_without_a_model(batch):
    outcome = whole_run(batch).outcome
    assert outcome.chosen is None
    assert outcome.returns_chosen is None


def test_ensemble_targets_are_refused_without_a_model(batch):
    with pytest.raises(ConfigError, match="agent.target: 'quantile'"):
        model_free_q.make_train(replace(batch, agent=replace(batch.agent, target="quantile")))
