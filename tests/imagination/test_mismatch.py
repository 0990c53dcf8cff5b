"""Where the error of a value comes from: the parts by hand, and in a whole run."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbrl_jax
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, check, from_dict, read_preset, to_dict
from mbrl_jax.imagination import mismatch
from mbrl_jax.model.protocol import Imagined
from mbrl_jax.runs import metrics

DISCOUNT, BIASES = 0.9, (0.1, 0.3)


def task_of(limit=5, end=10.0):
    """A point that moves by its action, from 0 on, until it is beyond ``end``; the reward is where it stood."""
    return SimpleNamespace(
        spec=SimpleNamespace(name="walk", time_limit=limit),
        dynamics=lambda s, a: s + a[..., None],
        reward=lambda s, a, after: s[..., 0],
        terminated=lambda s, a, after: after[..., 0] > end,
        draw_resets=lambda key, shape: SimpleNamespace(observation=jnp.zeros((*shape, 1))),
    )


def world_of(task, biases=BIASES):
    """Members that each step too far by a number of their own, as far out as the state is."""
    wrong = jnp.asarray(biases, jnp.float32)

    def expect(params, belief, action):
        after = task.dynamics(belief, action) + wrong[:, None, None] * belief
        reward, over = task.reward(belief, action, after), task.terminated(belief, action, after)
        return Imagined(after, reward, over, jnp.zeros(over.shape, jnp.int32), None)

    return SimpleNamespace(
        spec=SimpleNamespace(members=len(biases)), expect=expect, features=lambda belief: belief, belief=lambda features: features
    )


def decompose(task, world, held_out, weight):
    def greedy(s):
        return jnp.ones(s.shape[:-1])

    def value(s):
        return 2 * s[..., 0] + 3

    def told(held_out, weight, key):
        return mismatch.decompose(task, world, None, greedy, value, DISCOUNT, held_out, weight, key)

    return jax.tree.map(
        float, jax.jit(told)(jnp.asarray(held_out, jnp.float32), jnp.asarray(weight, jnp.float32), jax.random.key(0))
    )


def test_the_parts_are_those_of_a_line_that_can_be_worked_out_by_hand():
    found = decompose(task_of(), world_of(task_of()), [[1.0], [-3.0], [50.0]], [1, 1, 0])
    there = np.arange(5.0)  # where an episode of five steps goes
    real = there + DISCOUNT * (2 * (there + 1) + 3)
    model = DISCOUNT * 2 * 0.2 * there  # 0.2 is the members' mean bias
    rest = 2 * there + 3 - real - model
    on_data = DISCOUNT * 2 * 0.2 * np.asarray([1.0, -3.0])
    expected = mismatch.Mismatch(
        total=(2 * there + 3 - real).mean(),
        value=rest.mean(),
        model=on_data.mean(),
        shift=model.mean() - on_data.mean(),
        model_size=np.abs(on_data).mean(),
        visited_size=np.abs(model).mean(),
        model_share=np.abs(model).mean() / (np.abs(model).mean() + np.abs(rest).mean()),
    )
    for name, one, other in zip(mismatch.Mismatch._fields, found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4), name
    assert found.total == pytest.approx(found.value + found.model + found.shift, rel=1e-4)


def test_after_a_termination_nothing_is_counted_and_nothing_bootstrapped():
    """The third step ends the episode in reality, the second in the model: 1 + 1 + 0.2 is beyond 2.1."""
    task = task_of(end=2.1)
    found = decompose(task, world_of(task, (0.2,)), [[0.0]], [1])
    value = np.asarray([3.0, 5.0, 7.0])
    real = np.asarray([0 + DISCOUNT * 5, 1 + DISCOUNT * 7, 2])
    imagined = np.asarray([0 + DISCOUNT * 5, 1, 2])
    assert found.total == pytest.approx((value - real).mean(), rel=1e-5)
    assert found.value == pytest.approx((value - imagined).mean(), rel=1e-5)
    assert found.shift == pytest.approx((imagined - real).mean(), rel=1e-5)


def test_a_perfect_model_has_no_part_in_the_error():
    found = decompose(task_of(), world_of(task_of(), (0.0, 0.0)), [[1.0], [2.0]], [1, 1])
    assert (found.model, found.shift, found.model_share) == (0, 0, 0)
    assert found.total == found.value != 0


def asked(config, **changes):
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, mismatch=True), **changes)


def test_a_run_that_tells_its_mismatch_learns_what_it_would_without_and_keeps_the_columns(tiny, tmp_path):
    plain = dataclasses.replace(tiny, protocol="interactive")
    keys, results = mbrl_jax.seed_keys(0, 2), []
    for config in (plain, asked(plain)):
        results.append(jax.device_get(jax.jit(jax.vmap(algorithm_of(config).make_train(config).train))(keys)))
    without, found = results
    told = found.metrics.mismatch
    assert without.metrics.mismatch is None
    jax.tree.map(np.testing.assert_array_equal, without.metrics, found.metrics._replace(mismatch=None))
    jax.tree.map(np.testing.assert_array_equal, without.outcome, found.outcome)
    assert all(leaf.shape == (2, 2) and np.isfinite(leaf).all() for leaf in told)
    np.testing.assert_allclose(told.total, told.value + told.model + told.shift, rtol=1e-4, atol=1e-5)
    assert (told.model_size > 0).all()
    table = metrics.as_table(asked(plain), found.collected, found.fit, found.metrics)
    metrics.write(tmp_path / "metrics.parquet", table)
    read = metrics.read(tmp_path / "metrics.parquet", asked(plain))[2]
    jax.tree.map(np.testing.assert_array_equal, read.mismatch, told)


@pytest.mark.parametrize("preset", ["cartpole_mpc", "cartpole_batch_model_free", "pendulum_dmo", "cartpole_positions"])
def test_an_algorithm_that_would_not_tell_it_refuses_it(preset):
    config = read_preset(preset)
    asks = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, mismatch=True))
    with pytest.raises(ConfigError, match="evaluation.mismatch: True does not fit; .* 'dyna_q' and 'imagined_pg'"):
        check(asks)


def test_a_policy_gradient_tells_its_mismatch_too():
    config = asked(read_preset("pendulum_pg"))
    assert jax.eval_shape(algorithm_of(config).make_train(config).train, jax.random.key(0)).metrics.mismatch.total.shape == (
        config.steps // config.round_steps,
    )


def test_what_cannot_be_told_is_refused(tiny, cartpole):
    config = asked(tiny)
    with pytest.raises(ConfigError, match="evaluation.mismatch: True does not fit; CartPole-v1 does not tell its dynamics"):
        algorithm_of(config).make_train(config, environment=cartpole._replace(dynamics=None))
    content = to_dict(asked(read_preset("pendulum_pg")))
    config = from_dict({**content, "agent": {**content["agent"], "baseline": "none"}})
    with pytest.raises(ConfigError, match="evaluation.mismatch: True needs an agent with a value and a discount"):
        algorithm_of(config).make_train(config)
