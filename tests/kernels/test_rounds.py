"""A round in the fused kernel, interpreted, beside the plain one: equal to float32 rounding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

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
    """Every seed's state after each of some rounds, [count, ...], and their metrics, by the plain path and by the kernel."""
    train, results = dyna_q.make_train(config), []
    axes = train.axes
    state = jax.jit(jax.vmap(lambda key: train.fit(train.init(key)[0], config)[0], out_axes=axes))(seed_keys(0, seeds))
    for kernels in ("xla", "pallas_interpret"):
        which = replace(config, kernels=kernels)
        advance = dyna_q.make_train(which).advance

        def one(state, _, advance=advance, which=which):
            state, metrics = advance(state, which)
            return state, (state, metrics)

        go = jax.vmap(lambda state, one=one: jax.lax.scan(one, state, None, count)[1], in_axes=(axes,), out_axes=(axes, 0))
        results.append(jax.jit(go)(state))
    return results


def test_at_the_sizes_of_the_preset_the_first_and_the_twentieth_step_leave_the_plain_state(tiny):
    config = replace(
        tiny,
        round_steps=1,
        metric_steps=1,
        model=replace(tiny.model, members=5, hidden=(64, 64)),
        imagination=replace(tiny.imagination, lanes=25, steps=3, capacity=1_000),
        agent=replace(tiny.agent, hidden=(64, 64), batch_size=256, learning_rate=1e-3),
        selection=replace(tiny.selection, episodes=5),
    )
    plain, fused = rounds(config, 20)
    first = [jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x[0], state) for state in (fused[0].agent, plain[0].agent)]
    assert_alike(*first, 2e-6)
    assert_alike(fused, plain, 2e-5)
    assert plain[0].agent.updates[:, -1].tolist() == [20] * 3


def test_rounds_of_many_steps_leave_the_plain_state_where_the_cap_ends_rollouts_and_the_ring_goes_round(tiny):
    imagination = replace(tiny.imagination, cap=2, controller_settings={"length": 5}, epsilon=0.5)
    config = replace(tiny, imagination=imagination, agent=replace(tiny.agent, updates_per_step=2))
    plain, fused = rounds(config, 2)
    assert int(plain[0].imagined.written[-1]) == 160 > config.imagination.capacity
    assert_alike(fused, plain)
    assert plain[0].agent.updates[:, -1].tolist() == [40] * 3
    stopped, ended = plain[1].lanes.stopped, plain[1].lanes.ended
    assert float(stopped.max()) == 0 < float(ended.min())  # the cap ends them, not the controller


def test_three_actions_members_of_ones_own_and_lanes_that_need_no_padding_leave_the_plain_state(tiny):
    config = replace(
        tiny,
        steps=10,
        environment=EnvironmentConfig(name="Acrobot-v1", time_limit=30),
        imagination=replace(tiny.imagination, sampling="ts_infinity", lanes=16, capacity=320, epsilon=0.3),
        agent=replace(tiny.agent, target="max", loss="huber"),
    )
    plain, fused = rounds(config, 1)
    assert_alike(fused, plain, 5e-5)


def test_whole_runs_at_different_learning_rates_have_the_outcome_and_the_metrics_of_the_plain_ones(tiny):
    rates = jnp.array([1e-4, 1e-2])
    results = []
    for kernels in ("xla", "pallas_interpret"):
        config = replace(tiny, kernels=kernels)
        axes = jax.tree.map(lambda _: None, config)
        axes = replace(axes, agent=replace(axes.agent, learning_rate=0))
        hyper = replace(config, agent=replace(config.agent, learning_rate=rates))
        results.append(jax.jit(jax.vmap(dyna_q.make_train(config).train, in_axes=(0, axes)))(seed_keys(3, 2), hyper))
    assert_alike(results[1], results[0], 2e-5)


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
