"""A round in the fused kernel, interpreted, beside the plain one: equal to float32 rounding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import EnvironmentConfig, EvaluationConfig, ModelFreeQConfig

TOLERANCE = 1e-5  # of an imagined state after some steps, and of parameters learned from it


def assert_alike(fused, plain, tolerance=TOLERANCE):
    for (path, right), got in zip(jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(fused), strict=True):
        name = jax.tree_util.keystr(path)
        assert got.dtype == right.dtype, name
        if jnp.issubdtype(right.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance, err_msg=name)


def rounds(config, count, seeds=3):
    """State and metrics of every seed after some rounds, by the plain path and by the kernel."""
    results = []
    for kernels in ("xla", "pallas_interpret"):
        which = replace(config, kernels=kernels)
        train = dyna_q.make_train(which)

        def go(key, train=train, which=which):
            state = train.fit(train.init(key)[0], which)[0]
            return jax.lax.scan(lambda state, _: train.advance(state, which), state, None, length=count)

        results.append(jax.jit(jax.vmap(go, out_axes=(train.axes, 0)))(seed_keys(0, seeds)))
    return results


def test_one_real_step_leaves_the_state_of_the_plain_step(tiny):
    config = replace(tiny, steps=1, round_steps=1, metric_steps=1)
    plain, fused = rounds(config, 1)
    assert_alike(fused, plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cap": 2, "controller_settings": {"length": 5}, "epsilon": 1.0},
        {"sampling": "ts_infinity", "epsilon": 0.0},
        {"lanes": 16, "steps": 1, "capacity": 48},
    ],
)
def test_two_rounds_leave_the_state_and_the_metrics_of_the_plain_ones(tiny, changes):
    config = replace(tiny, imagination=replace(tiny.imagination, **changes), agent=replace(tiny.agent, updates_per_step=2))
    plain, fused = rounds(config, 2)
    assert int(plain[0].imagined.written) == 20 * config.imagination.lanes * config.imagination.steps
    assert int(plain[0].imagined.written) > config.imagination.capacity  # the ring has gone round
    assert_alike(fused, plain)
    assert plain[0].agent.updates.tolist() == [40] * 3


def test_the_sizes_of_the_preset_give_the_plain_state_after_twenty_steps(tiny):
    config = replace(
        tiny,
        round_steps=20,
        model=replace(tiny.model, members=5, hidden=(64, 64)),
        imagination=replace(tiny.imagination, lanes=25, steps=3, capacity=1_000),
        agent=replace(tiny.agent, hidden=(64, 64), batch_size=256, learning_rate=1e-3),
        selection=replace(tiny.selection, episodes=5),
    )
    plain, fused = rounds(config, 1)
    assert_alike(fused, plain, 2e-5)


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCar-v0"])
def test_tasks_of_three_actions_give_the_plain_state(tiny, name):
    config = replace(tiny, environment=EnvironmentConfig(name=name, time_limit=30), steps=10)
    plain, fused = rounds(config, 1)
    assert_alike(fused, plain, 5e-5)


def test_a_whole_run_with_the_kernel_gives_the_outcome_and_the_metrics_without_it(tiny):
    plain, fused = (
        jax.jit(jax.vmap(dyna_q.make_train(replace(tiny, kernels=kernels)).train))(seed_keys(3, 2))
        for kernels in ("xla", "pallas_interpret")
    )
    assert_alike(fused, plain, 2e-5)


def test_a_grid_of_traced_settings_goes_through_the_kernel(tiny):
    config = replace(tiny, kernels="pallas_interpret", steps=10)
    train = dyna_q.make_train(config)
    rates = jnp.array([1e-4, 1e-2])
    hyper = replace(config, agent=replace(config.agent, learning_rate=rates))
    axes = jax.tree.map(lambda _: None, config)
    axes = replace(axes, agent=replace(axes.agent, learning_rate=0))
    losses = jax.jit(jax.vmap(lambda hyper: train.train(seed_keys(0, 1)[0], hyper).metrics.update.loss, in_axes=(axes,)))(hyper)
    alone = jax.jit(train.train)(seed_keys(0, 1)[0], replace(config, agent=replace(config.agent, learning_rate=1e-2)))
    np.testing.assert_allclose(losses[1], alone.metrics.update.loss, rtol=1e-4)
    assert not np.allclose(losses[0], losses[1], rtol=1e-2)


def test_the_model_free_learner_learns_as_without_the_kernel():
    config = ModelFreeQConfig(
        random_transitions=100,
        steps=20,
        round_steps=10,
        metric_steps=5,
        environment=EnvironmentConfig(time_limit=30),
        evaluation=EvaluationConfig(episodes=3, curve_episodes=2),
    )
    config = replace(config, agent=replace(config.agent, hidden=(16, 16), batch_size=32, updates_per_step=3))
    plain, fused = (
        jax.jit(jax.vmap(model_free_q.make_train(replace(config, kernels=kernels)).train))(seed_keys(0, 3))
        for kernels in ("xla", "pallas_interpret")
    )
    assert_alike(fused, plain)
