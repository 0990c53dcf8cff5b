"""What members expect to follow a minibatch, in a world that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from dreams import LIMIT, SPEED, dream

from mbrl_jax.agents.outcomes import expected_outcomes
from mbrl_jax.agents.protocol import Model
from mbrl_jax.config import ConfigError
from mbrl_jax.replay import Rows, make_replay

B = 5
WORLD = dream(make_replay(worlds.points(2, discrete=True).spec, 4))
MODEL = Model(WORLD, WORLD.acting(WORLD.init(jax.random.key(0))))


@pytest.fixture
def batch():
    observation, after = np.random.default_rng(0).normal(size=(2, B, 3)).astype(np.float32)
    observation[:, 2], after[:, 2] = np.arange(B), np.arange(B) + 1  # the clock, which ends at 5
    ones = np.ones(B, np.float32)
    rows = Rows(observation, after, np.int32([0, 1, 0, 1, 1]), -7 * ones, ones < 0, ones, np.arange(B, dtype=np.int32))
    return jax.tree.map(jnp.asarray, rows)


def never(features):
    raise AssertionError("asked for an action")


@pytest.mark.parametrize("target", ["max", "double"])
def test_targets_of_the_rows_alone_ask_nobody(batch, target):
    assert expected_outcomes(target, 3, MODEL, batch, never) is None


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("target", ["quantile", "mean_std"])
def test_each_member_is_asked_about_the_rows_own_states_and_actions(batch, target, known):
    model = MODEL._replace(world=WORLD._replace(spec=WORLD.spec._replace(reward_known=known)))
    found = expected_outcomes(target, 3, model, batch, never)
    for member, speed in enumerate(SPEED):
        place = np.asarray(batch.observation)[:, :2] + speed * (2 * np.asarray(batch.action) - 1)[:, None]
        np.testing.assert_allclose(found.next_observation[member, :, :2], place, rtol=1e-6)
        np.testing.assert_array_equal(found.next_observation[member, :, 2], np.arange(B) + 1)
        np.testing.assert_array_equal(found.terminated[member], np.arange(B) + 1 >= LIMIT)
        expected = batch.reward if known else place[:, 0]  # a penalty that the row's reward has paid stays paid
        np.testing.assert_allclose(found.reward[member], expected, rtol=1e-6)


def test_each_member_goes_on_alone_from_the_rows_next_states_by_the_greedy_policy(batch):
    def greedy(features):
        assert features.shape == (2, B, 3)
        return (features[..., 0] < 0).astype(jnp.int32)  # towards the middle

    found = expected_outcomes("steve", 3, MODEL, batch, greedy)
    assert found.reward.shape == (3, 2, B)
    for member, speed in enumerate(SPEED):
        place, clock = np.asarray(batch.next_observation)[:, :2], np.arange(B) + 1
        for step in range(3):
            place = place + speed * np.where(place[:, :1] < 0, 1, -1)
            clock = clock + 1
            np.testing.assert_allclose(found.next_observation[step, member, :, :2], place, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(found.next_observation[step, member, :, 2], clock)
            np.testing.assert_allclose(found.reward[step, member], place[:, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(found.terminated[step, member], clock >= LIMIT)


def test_a_world_whose_features_do_not_tell_where_a_rollout_stands_cannot_be_asked(batch):
    model = MODEL._replace(world=WORLD._replace(belief=None))
    with pytest.raises(ConfigError, match="features that tell where a rollout stands"):
        expected_outcomes("quantile", 3, model, batch, never)
