"""Random actions anywhere, and where a filter is surprised."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import dreamer, exploring
from mbrl_jax.algorithms.training import Stream, seed_keys, stream
from mbrl_jax.config import RandomActionsConfig, from_dict
from mbrl_jax.environments import make_environment
from mbrl_jax.model.protocol import WorldModel


def test_a_surprise_above_the_mark_makes_an_action_random_and_raises_it():
    config = RandomActionsConfig(rule="surprise", share=0.2)
    surprise = np.array([0.5, 2.0, 2.1], np.float32)
    random, mark = jax.vmap(partial(exploring.explore, config), in_axes=(None, 0, None))(
        jnp.float32(2.0), surprise, jnp.float32(0.0)
    )
    np.testing.assert_array_equal(random, [False, False, True])
    np.testing.assert_allclose(mark, 2 * np.exp([-0.01, -0.01, 0.04]), rtol=1e-6)
    random, mark = exploring.explore(
        RandomActionsConfig(rule="uniform", share=0.2), jnp.float32(2.0), 9.0, jnp.float32([0.1, 0.2])
    )
    np.testing.assert_array_equal(random, [True, False])
    assert mark == 2.0


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_mark_follows_the_quantile_of_surprises_whatever_their_size(share):
    drawn = np.random.default_rng(0).lognormal(1.0, 1.0, 4000).astype(np.float32)
    drawn[2000:] *= 30
    config = RandomActionsConfig(rule="surprise", share=share)

    @jax.jit
    def follow(surprises):
        def step(mark, surprise):
            random, mark = exploring.explore(config, mark, surprise, jnp.float32(0.0))
            return mark, (random, mark)

        return jax.lax.scan(step, jnp.float32(exploring.FIRST_MARK), surprises)[1]

    random, marks = jax.device_get(follow(drawn))
    for part in (slice(1000, 2000), slice(3000, 4000)):
        assert random[part].mean() == pytest.approx(share, abs=0.03)
        assert np.log(marks[part]).mean() == pytest.approx(np.log(np.quantile(drawn[part], 1 - share)), abs=0.35)


def test_actions_that_are_to_be_random_are_those_of_the_random_policy():
    content = {
        **{"algorithm": "dreamer", "environment": {"name": "Pendulum-v1", "observed": "positions", "time_limit": 20}},
        **{"random_transitions": 60, "steps": 8, "round_steps": 8, "metric_steps": 2, "update_steps": 2},
        "model": {
            "deterministic": 4,
            "hidden": [4],
            "variables": 2,
            "classes": 2,
            "sequence": 4,
            "batch_size": 2,
            "fit_batches": 10,
        },
        "imagination": {"lanes": 3, "steps": 2, "cap": 2, "restart": "per_step", "controller": {"kind": "fixed", "length": 2}},
        "random_actions": {"rule": "uniform", "share": 1.0},
        "agent": {"hidden": [4], "estimator": "pathwise"},
    }
    config = from_dict(content)
    task, key = make_environment(config.environment), seed_keys(0, 1)[0]
    algorithm = dreamer.make_train(config, environment=task)

    @jax.jit
    def run(key):
        state, logs = algorithm.learn(algorithm.init(key)[0], config, 8)
        world: WorldModel = dreamer.phases.world_of(config, task)
        drawn = dreamer.draw(config, task, world, stream(key, Stream.ROUND, 0), 4)
        return state.real.rows[60:], state.mark, logs[-1], drawn.behaviour.action

    rows, mark, explored, actions = jax.device_get(run(key))
    np.testing.assert_allclose(rows[:, 4], actions.reshape(-1), rtol=1e-6)
    np.testing.assert_array_equal(explored.share, 1)
    assert mark == exploring.FIRST_MARK
