"""Drift: how far a latent world's belief has left real ones, the controller that stops there, and the alarm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance

from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.imagination import drift as drift_
from mbrl_jax.imagination.horizon import View, make_controller
from mbrl_jax.imagination.horizon.drift import KEPT, LENGTH, SEQUENCES, Marked, real_states
from mbrl_jax.model import rssm_fitting
from mbrl_jax.model.rssm import RSSM, RSSMConfig
from mbrl_jax.replay import Rows, make_replay

T, B, WARM = 9, 5, 4
SPEC = EnvironmentSpec("a task", observation_size=2, action_count=2, time_limit=50, observation_scale=(1.0, 2.0))
RSSM_ = RSSM(RSSMConfig(deterministic=5, hidden=(6,), latent="gaussian", variables=3, sequence=4, batch_size=2), SPEC)
rng = np.random.default_rng(0)
SHAPES = jax.eval_shape(RSSM_.init, jax.random.key(0))
PARAMS = jax.device_put(jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32), SHAPES))


def rows_of(length, sequences, seed=1):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(length + 1, sequences, 2)).astype(np.float32)
    zeros = np.zeros((length, sequences), np.float32)
    action = rng.integers(0, 2, zeros.shape).astype(np.int32)
    depth = np.broadcast_to(np.arange(length, dtype=np.int32)[:, None], zeros.shape).copy()
    return Rows(states[:-1], states[1:], action, zeros, zeros > 0, zeros + 1, depth)


def test_distances_are_to_the_last_of_five_neighbours_in_units_of_the_deviation():
    features = rng.normal(size=(40, 3)).astype(np.float32) * [1, 10, 0] + [0, 5, 2]
    group = np.repeat(np.arange(20), 2).astype(np.int32)
    bank = drift_.bank_of(*jax.device_put((features.astype(np.float32), group)))
    deviation = np.maximum(features.std(0), 1e-2)
    scaled = features / deviation
    apart = scipy_distance.cdist(scaled, scaled)
    apart[group[:, None] == group] = np.inf  # a sequence is no neighbour of its own
    np.testing.assert_allclose(bank.distances, np.sort(np.sort(apart, 1)[:, 4]), rtol=1e-3)
    other = (rng.normal(size=(2, 7, 3)) * [3, 10, 0] + [0, 5, 2]).astype(np.float32)
    far = np.sort(scipy_distance.cdist(other.reshape(-1, 3) / deviation, scaled), 1)[:, 4].reshape(2, 7)
    np.testing.assert_allclose(drift_.distance(bank, other), far, rtol=1e-3)
    share = (np.asarray(bank.distances) < far[..., None]).mean(-1)
    np.testing.assert_allclose(drift_.novelty(bank, other), share, atol=0.026)  # one of forty, where roundings tie
    assert 0 < share.mean() < 1
    assert drift_.novelty(bank, np.full((1, 3), 1e3, np.float32)) == 1


@pytest.fixture(scope="module")
def measured():
    rows = jax.device_put(rows_of(T, B))
    first = jnp.zeros((T, B), bool).at[6, 2].set(True)

    @jax.jit
    def measure(rows):
        bank = drift_.bank_of(*drift_.real_features(RSSM_, PARAMS, rows, first.at[0].set(True)))
        told = rssm_fitting.unroll(RSSM_, PARAMS, rows, first.at[0].set(True), None)
        return drift_.along(RSSM_, PARAMS, bank, rows, first, WARM), told, bank

    return rows, measure


def test_the_measures_are_those_of_an_open_loop_by_hand(measured):
    rows, measure = measured
    told, closed, bank = measure(rows)
    belief = jax.tree.map(lambda leaf: leaf[WARM - 1], closed.after)
    for depth in range(T - WARM):
        place = WARM + depth
        belief = RSSM_.step(PARAMS, belief, rows.action[place], None).belief
        prior = RSSM_.prior(PARAMS, belief.deterministic)
        features = RSSM_.features(belief)
        decoded = RSSM_.decode(PARAMS, features)
        expected = np.square(np.asarray(decoded) - np.asarray(RSSM_.seen(rows.next_observation[place]))).sum(-1)
        np.testing.assert_allclose(told.error[depth], expected, rtol=1e-3, atol=1e-5)
        seen = RSSM_.latents.divergence(closed.posterior[place], prior)
        np.testing.assert_allclose(told.divergence[depth], seen, rtol=1e-3, atol=1e-5)
        again = RSSM_.posterior(PARAMS, belief.deterministic, RSSM_.encode(PARAMS, RSSM_.observation(PARAMS, features)))
        moved = np.asarray(RSSM_.latents.mode(again)) - np.asarray(belief.stochastic)
        np.testing.assert_allclose(told.round_trip[depth], np.sqrt(np.square(moved).mean(-1)), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(told.novelty[depth], drift_.novelty(bank, features), atol=0.05)
    np.testing.assert_array_equal(told.valid[:, 2], [True, True, False, False, False])
    assert np.asarray(told.valid)[:, [0, 1, 3, 4]].all()


def test_an_open_loop_sees_no_observation_after_it_has_begun(measured):
    rows, measure = measured
    told = measure(rows)[0]
    later = rows._replace(next_observation=rows.next_observation.at[WARM:].add(1.0))
    changed = measure(later)[0]
    np.testing.assert_array_equal(told.round_trip, changed.round_trip)
    assert (np.asarray(told.error) != np.asarray(changed.error)).all()
    before = rows._replace(next_observation=rows.next_observation.at[WARM - 1].add(1.0))
    assert (np.asarray(measure(before)[0].round_trip) != np.asarray(told.round_trip)).any()


@pytest.mark.parametrize("warm", [0, T])
def test_a_rollout_that_begins_nowhere_is_refused(warm):
    with pytest.raises(ValueError, match=f"warm: {warm} is out of range; of sequences of 9 it must be from 1"):
        drift_.along(RSSM_, PARAMS, None, jax.device_put(rows_of(T, B)), jnp.zeros((T, B), bool), warm)


# ---------------------------------------------------------------------------------------------------------- the alarm


def test_surprises_are_averaged_over_the_last_steps_of_their_own_episode():
    surprises = np.array([[1, 5], [3, 7], [5, 1], [7, 3]], np.float32)
    first = np.array([[True, True], [False, False], [False, True], [False, False]])
    found = drift_.smoothed(*jax.device_put((surprises, first)), window=2)
    np.testing.assert_allclose(found, [[1, 5], [2, 6], [4, 1], [6, 2]])
    np.testing.assert_allclose(drift_.smoothed(*jax.device_put((surprises, first)), window=1), surprises)
    np.testing.assert_allclose(drift_.smoothed(*jax.device_put((surprises, first)), window=9)[:, 0], [1, 2, 3, 4])


def test_the_mark_is_exceeded_at_the_rate_that_is_asked_for():
    surprises = jax.device_put(rng.gamma(2, size=(500, 8)).astype(np.float32))
    first = jnp.zeros((500, 8), bool).at[0].set(True)
    mark = drift_.alarm_mark(surprises, first, 5, 0.01)
    assert float((drift_.smoothed(surprises, first, 5) > mark).mean()) == pytest.approx(0.01, abs=1e-3)


def test_the_filters_surprise_is_the_divergence_that_the_model_learns_from():
    rows, first = jax.device_put(rows_of(T, B)), jnp.zeros((T, B), bool).at[0].set(True)
    told = rssm_fitting.unroll(RSSM_, PARAMS, rows, first, None)
    expected = RSSM_.latents.divergence(told.posterior, told.prior)
    np.testing.assert_allclose(drift_.surprise(RSSM_, PARAMS, rows, first), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ the controller


@pytest.fixture(scope="module")
def world():
    replay = make_replay(SPEC, 600)
    return rssm_fitting.world_of(RSSM_, replay, first_rows=500)


def one_sequence(count):
    """[600] rows of which ``count`` are valid, episodes of 20 steps."""
    rows = jax.tree.map(lambda leaf: leaf[:, 0], rows_of(600, 1, seed=4))
    return jax.device_put(rows._replace(depth=(np.arange(600) % 20).astype(np.int32))), jnp.arange(600) < count


def test_real_states_of_a_latent_world_are_beliefs_along_the_data(world):
    rows, valid = one_sequence(500)
    features, group = jax.jit(partial(real_states, world))(PARAMS, rows, valid)
    assert features.shape == (SEQUENCES * KEPT, 8)
    assert group.shape == (SEQUENCES * KEPT,)
    which, apart = 3, (500 - LENGTH) // SEQUENCES
    places = which * apart + np.arange(LENGTH)
    belief, action = None, None
    for number, place in enumerate(places):
        begins = None if number == 0 else rows.depth[place : place + 1] == 0
        belief = RSSM_.observe(PARAMS, belief, action, rows.observation[place : place + 1], begins, None)
        action = rows.action[place : place + 1]
    last = np.flatnonzero(np.asarray(group) == which * apart)[-1]
    np.testing.assert_allclose(features[last], RSSM_.features(belief)[0], rtol=1e-3, atol=1e-5)


def test_it_stops_where_the_features_are_further_than_the_mark_and_not_at_it(world):
    rows, valid = one_sequence(500)
    controller = make_controller("drift", {"quantile": 0.5})
    state = controller.init(6, world.spec)
    features = jnp.asarray(rng.normal(size=(6, 8)).astype(np.float32))
    blank = jnp.zeros(6)
    view = View(
        jnp.int32(0),
        jnp.zeros(6, jnp.int32),
        features,
        features,
        blank,
        features,
        blank,
        blank > 0,
        blank == 0,
        blank,
        None,
        None,
    )
    assert not np.asarray(controller.step(state, view)[1].stop).any()  # before there was a model
    state = jax.jit(partial(controller.calibrate, world=world))(state, params=PARAMS, rows=rows, valid=valid)
    np.testing.assert_allclose(state.mark, np.quantile(state.bank.distances, 0.5, method="lower"), rtol=1e-5)
    far = drift_.distance(state.bank, features)
    for lane in range(6):
        at, stop = Marked(state.bank, far[lane]), np.asarray(far) > float(far[lane])
        np.testing.assert_array_equal(controller.step(at, view)[1].stop, stop)
        assert not controller.step(at, view)[1].stop[lane]


def test_real_states_of_an_ensemble_are_observations_spread_over_the_data(world):
    plain = world._replace(observe=None)
    rows, valid = one_sequence(512)
    features, group = real_states(plain, None, rows, valid)
    np.testing.assert_array_equal(features, rows.observation[:512:2])
    np.testing.assert_array_equal(group, np.arange(512)[::2])
    few, same = real_states(plain, None, rows, one_sequence(40)[1])
    np.testing.assert_array_equal(few, rows.observation[np.asarray(same)])
    assert set(np.asarray(same).tolist()) == set(range(40))  # a row that is there several times is no neighbour of itself
