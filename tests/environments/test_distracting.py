"""Numbers of the observation that have nothing to do with the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax import environments as env
from mbrl_jax.algorithms.dyna_q import make_train
from mbrl_jax.config import ConfigError, DynaQConfig, EnvironmentConfig
from mbrl_jax.environments import distracting

STEPS = 300  # of random CartPole, in which many episodes end


def make(**settings):
    return env.make_environment(EnvironmentConfig(**settings))


@pytest.fixture(scope="module")
def walks():
    """The same random actions from the same resets with and without distractors."""
    tasks = {"plain": make(time_limit=20), "distracted": make(time_limit=20, distractors=4)}

    @jax.jit
    def walk(key):
        return {name: env.collect(task, env.draw_collection(task, key, STEPS))[1:] for name, task in tasks.items()}

    return jax.tree.map(np.asarray, walk(jax.random.key(3)))


def test_distractors_change_nothing_else(walks):
    (plain, returns), (seen, same) = walks["plain"], walks["distracted"]
    np.testing.assert_array_equal(returns, same)
    np.testing.assert_array_equal(seen.observation[:, :4], plain.observation)
    np.testing.assert_array_equal(seen.next_observation[:, :4], plain.next_observation)
    for field in ("action", "reward", "terminated", "truncated", "elapsed"):
        np.testing.assert_array_equal(getattr(seen, field), getattr(plain, field), err_msg=field)


def test_distractors_are_gaussian_random_walks_from_0_in_every_episode(walks):
    seen, _ = walks["distracted"]
    before, after = seen.observation[:, 4:], seen.next_observation[:, 4:]
    begins = seen.elapsed == 0
    assert begins.sum() > 10
    assert (before[begins] == 0).all()
    goes_on = ~begins[1:]
    np.testing.assert_array_equal(before[1:][goes_on], after[:-1][goes_on])
    moved = after - before
    assert scipy.stats.kstest(moved.ravel() / distracting.STEP, "norm").pvalue > 0.01
    assert len(np.unique(moved[begins][:, 0])) == begins.sum()  # episodes have random numbers of their own
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.2


def test_the_known_reward_and_termination_do_not_see_distractors(walks):
    seen, _ = walks["distracted"]
    task, rows = make(time_limit=20, distractors=4), jax.tree.map(jnp.asarray, seen)
    assert task.dynamics is None
    arguments = rows.observation, rows.action, rows.next_observation
    np.testing.assert_array_equal(task.reward(*arguments), seen.reward)
    np.testing.assert_array_equal(task.terminated(*arguments), seen.terminated)


def test_the_spec_tells_of_distractors():
    spec = make(name="Pendulum-v1", distractors=2, observed=(0, 1, 4)).spec
    assert (spec.observation_size, spec.observation_scale, spec.angles) == (3, (1.0, 1.0, 1.0), ((0, 1),))
    assert spec.observation_limits == (1.0, 1.0, float("inf"))
    config = EnvironmentConfig(distractors=2)
    assert env.environment_of(config, task := env.make_environment(config)) is task


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvironmentConfig(name="gymnasium/CartPole-v1", distractors=1), "distractors: 1 does not fit; .* stepped on the host"),
        (EnvironmentConfig(distractors=-1), "environment.distractors: -1 is out of range"),
    ],
)
def test_distractors_that_cannot_be_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_train(DynaQConfig(environment=config))


def test_distractors_are_not_changed_once_they_are_there():
    with pytest.raises(ConfigError, match="environment.distractors: 3 does not fit; .* has 2 already"):
        env.environment_of(EnvironmentConfig(distractors=3), make(distractors=2))
