"""The fused updates, interpreted, beside the plain ones: equal to float32 rounding, which Adam's first steps magnify to 1e-6."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import replay
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.config import QLearningConfig
from mbrl_jax.environment import EnvironmentSpec
from mbrl_jax.kernels.steps import run

SPEC = EnvironmentSpec("probe", observation_size=4, action_count=3, time_limit=10, observation_scale=(2.4, 2.0, 0.21, 2.0))
SEEDS, ROWS = 3, 300


def learner(**changes):
    return make_q_learner(replace(QLearningConfig(hidden=(64, 64), batch_size=100), **changes), SPEC)


def scenario(learner, updates, weights=1.0):
    def seed(key):
        keys = jax.random.split(key, 8)
        rows = replay.Rows(
            observation=jax.random.normal(keys[0], (ROWS, 4)),
            next_observation=jax.random.normal(keys[1], (ROWS, 4)),
            action=jax.random.randint(keys[2], (ROWS,), 0, 3),
            reward=10 * jax.random.normal(keys[3], (ROWS,)),
            terminated=jax.random.uniform(keys[4], (ROWS,)) < 0.3,
            weight=weights * (jax.random.uniform(keys[5], (ROWS,)) < 0.8).astype(jnp.float32),
            depth=jnp.zeros(ROWS, jnp.int32),
        )
        state = learner.init(keys[6])._replace(target=learner.init(keys[7]).online)
        index = jax.random.randint(keys[5], (updates, 1, learner.config.batch_size), 0, ROWS)
        return state, replay.pack(rows), index

    return jax.jit(jax.vmap(seed))(jax.random.split(jax.random.key(0), SEEDS))


def both(learner, states, rows, index):
    """The fused and the plain updates of every seed: states and logs."""
    progress = jnp.linspace(0, 1, index.shape[1])
    rate = learner.config.learning_rate * (1 - learner.config.learning_rate_decay * progress)

    def fused(state, rows, index):
        return run(learner, state, rows, index, rate, interpret=True)[:2]

    def plain(state, rows, index):
        def update(state, given):
            index, progress = given
            return learner.update(state, replay.unpack(rows[index]), progress=progress)

        state, log = jax.lax.scan(update, state, (index[:, 0], progress))
        return state, jax.tree.map(lambda x: x[:, None], log)

    return [jax.jit(jax.vmap(function))(states, rows, index) for function in (fused, plain)]


def assert_alike(fused, plain, tolerance):
    told = jax.tree_util.tree_leaves_with_path(plain)
    for (path, right), got in zip(told, jax.tree.leaves(fused), strict=True):
        name = jax.tree_util.keystr(path)
        assert got.dtype == right.dtype, name
        np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("updates", [1, 20])
def test_every_parameter_moment_and_loss_is_that_of_the_plain_updates_for_each_of_three_seeds(updates):
    which = learner(learning_rate_decay=0.5)
    fused, plain = both(which, *scenario(which, updates))
    assert_alike(fused, plain, 3e-6)
    assert plain[0].updates.tolist() == [updates] * SEEDS
    assert np.all(np.asarray(plain[1].loss[:, 0]) > 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "max", "hidden": (40, 20, 8), "input_scale": (1.0, 3.0, 1.0, 0.5)},
        {"loss": "huber", "huber_delta": 2.0, "hidden": (32,), "batch_size": 7, "discount": 0.5, "target_rate": 0.2},
    ],
)
def test_other_settings_are_those_of_the_plain_updates(changes):
    which = learner(**changes)
    fused, plain = both(which, *scenario(which, 5))
    assert_alike(fused, plain, 3e-6)


def test_a_minibatch_of_weight_zero_moves_nothing_but_the_target():
    which = learner()
    states, rows, index = scenario(which, 2, weights=0.0)
    fused, plain = both(which, states, rows, index)
    assert_alike(fused, plain, 1e-6)
    assert_alike(fused[0].online, states.online, 0)


def test_a_seed_that_goes_non_finite_is_frozen_as_the_plain_path_freezes_it_and_its_neighbours_are_not():
    which = learner()
    states, rows, index = scenario(which, 3)
    rows = rows.at[1, :, 8 + 1].set(jnp.inf)  # every reward of the second seed
    fused, plain = both(which, states, rows, index)
    assert fused[0].frozen.tolist() == plain[0].frozen.tolist() == [False, True, False]
    assert fused[0].updates.tolist() == plain[0].updates.tolist() == [3, 0, 3]
    assert_alike(fused[0], plain[0], 3e-6)
    assert_alike(jax.tree.map(lambda x: x[1], fused[0].online), jax.tree.map(lambda x: x[1], states.online), 0)
