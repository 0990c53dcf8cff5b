"""The report's part on latent worlds: open and closed loops along episodes, pictures of them, and where rollouts ended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import dreamer
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import from_dict
from mbrl_jax.environments import make_environment
from mbrl_jax.environments.pixels import draw_pendulum
from mbrl_jax.imagination.lanes import DEPTH_EDGES
from mbrl_jax.model.rssm import RSSM
from mbrl_jax.report import beliefs, latent
from mbrl_jax.report.rollouts import BASE_SEED, play_beneath, play_on

CONFIG = from_dict(
    {
        **{"algorithm": "dreamer", "environment": {"name": "pixels/Pendulum-v1", "time_limit": 50}},
        "model": {"deterministic": 4, "hidden": [4], "latent": "gaussian", "variables": 2, "symlog": False},
        "agent": {"hidden": [4], "estimator": "pathwise"},
    }
)


@pytest.fixture(scope="module")
def asked():
    """What is told of two seeds that have learned nothing, beside their parameters."""
    task = make_environment(CONFIG.environment)
    rssm = RSSM(CONFIG.model, task.spec)

    @jax.jit
    @jax.vmap
    def fresh(key):
        model = rssm.init(key)
        return model, dreamer.policy_params(model, dreamer.learner_of(CONFIG, task).init(key).online.actor)

    models, policies = fresh(seed_keys(0, 2))
    return beliefs.ask(CONFIG, policies, models), models, policies


LENGTH = beliefs.WARM + beliefs.DEPTH


def test_loops_are_along_the_policys_own_episodes_and_the_filter_begins_with_each_sequence(asked):
    told, models, policies = asked
    task = make_environment(CONFIG.environment)
    rssm, policy = RSSM(CONFIG.model, task.spec), dreamer.policy_of(CONFIG, task)
    params, model = jax.tree.map(lambda leaf: leaf[0], (policies, models))

    def follow(key):
        """A lane, and what is decoded after each of its steps, filtered from the start of its sequence of 40."""

        def step(belief, inputs):
            row, place = inputs
            begun = rssm.begin(model, rssm.encode(model, row.observation[None]), None)
            anew = (place % LENGTH == 0) | (row.elapsed == 0)
            before = jax.tree.map(lambda new, old: jnp.where(anew, new, old), begun, belief)
            after = rssm.filter(model, before, row.action[None], rssm.encode(model, row.next_observation[None]), None)[0]
            return after, rssm.observation(model, rssm.features(after))[0]

        rows = play_on(task, policy, params, key, beliefs.STEPS)
        return rows, jax.lax.scan(step, rssm.blank((1,)), (rows, jnp.arange(beliefs.STEPS)))[1]

    judged = jax.random.split(seed_keys(BASE_SEED, 2)[0], beliefs.LANES)[2:]
    rows, decoded = jax.device_get(jax.jit(jax.vmap(follow))(judged))

    def cut(leaf):
        """[sequences, DEPTH, ...] of lanes [2, STEPS, ...], those of one time side by side."""
        pieces = leaf.reshape(2, -1, LENGTH, *leaf.shape[2:])[:, :, beliefs.WARM :]
        return pieces.swapaxes(0, 1).reshape(-1, beliefs.DEPTH, *leaf.shape[2:])

    valid = cut(rows.elapsed == 0).cumsum(1) == 0
    assert 0 < valid[:, -1].mean() < 1  # episodes of 50 steps end within some sequences of 40
    truth, seen = cut(rows.next_observation), cut(decoded)
    error = np.square(truth - seen).sum(-1)
    np.testing.assert_allclose(told.closed[0], (error * valid).sum(0) / valid.sum(0), rtol=1e-3)
    longest, shown = valid.sum(1).argmax(), np.asarray(beliefs.FRAMES) - 1
    np.testing.assert_allclose(told.frames.truth, truth[longest, shown].reshape(-1, 32, 32), atol=1e-5)
    np.testing.assert_allclose(told.frames.filtered, seen[longest, shown].reshape(-1, 32, 32), atol=1e-3)
    assert np.abs(told.frames.dreamt - told.frames.filtered).max() > 1e-3
    assert told.frames.valid.all()
    np.testing.assert_array_equal(told.begins, rows.elapsed[-1] == 0)


def test_the_map_has_the_true_state_of_every_open_loop_step_though_pictures_hide_the_velocity(asked):
    told, _, policies = asked
    task = make_environment(CONFIG.environment)
    policy = dreamer.policy_of(CONFIG, task)
    key = jax.random.split(seed_keys(BASE_SEED, 2)[0], beliefs.LANES)[2]
    params = jax.tree.map(lambda leaf: leaf[0], policies)
    rows, whole = jax.device_get(jax.jit(lambda: play_beneath(task, policy, params, key, beliefs.STEPS))())
    assert whole.shape == (beliefs.STEPS, 3)
    drawn = np.stack([draw_pendulum(jnp.asarray(each)) for each in whole[::40]])
    np.testing.assert_allclose(rows.observation[::40], drawn.reshape(len(drawn), -1), atol=1e-5)  # the state that was drawn
    assert told.places.names == ("angle", "number 3 of the state")
    states = told.places.states
    assert len(states) == len(told.places.novelty) == len(told.places.error)
    one = (np.arctan2(whole[beliefs.WARM, 1], whole[beliefs.WARM, 0]), whole[beliefs.WARM, 2])
    assert np.abs(states - one).max(axis=1).min() < 1e-5


def test_coordinates_are_the_last_two_and_an_angle_is_one():
    spec = make_environment(CONFIG.environment).spec._replace(angles=((0, 1),), axes=("cosine", "sine", "speed"))
    names, states = beliefs.coordinates(spec, np.array([[0.0, 1.0, 5.0]]))
    assert names == ("angle", "speed")
    np.testing.assert_allclose(states, [[np.pi / 2, 5.0]])
    assert beliefs.coordinates(spec, np.array([[0.0, 1.0]]))[0] == ()


def test_a_map_has_the_mean_of_each_bin_and_nothing_where_no_state_was():
    states, values = np.array([[0.5, 0.5], [0.6, 0.4], [1.5, 0.5], [0.5, 1.5]]), np.array([1.0, 3.0, 7.0, np.nan])
    np.testing.assert_array_equal(latent.binned(states, values, [np.arange(3.0)] * 2), [[2.0, np.nan], [7.0, np.nan]])


def test_every_measure_is_told_at_every_depth_and_a_mark_is_exceeded_as_often_as_it_is_set_for(asked):
    told, _, _ = asked
    assert set(told.drift) == {"novelty", "round_trip", "divergence", "error"}
    assert all(each.shape == (2, beliefs.DEPTH) and np.isfinite(each).all() for each in told.drift.values())
    assert told.surprise.shape == (beliefs.STEPS,)
    assert ((told.exceeded >= 0) & (told.exceeded < 0.1)).all()


def test_shares_of_rollouts_that_go_on_follow_from_rows_by_depth():
    histogram = np.zeros(len(DEPTH_EDGES) + 1)
    histogram[:6] = [0.2, 0.2, 0.2, 0.1, 0.1, 0.25]  # of four rollouts two end after three steps, two go on to depth 10
    depths, share = latent.going_on(histogram)
    np.testing.assert_array_equal(depths[:7], [1, 2, 3, 4, 5, 6, 11])
    np.testing.assert_allclose(share[:7], [1, 1, 1, 0.5, 0.5, 0.25, 0])


def test_a_mean_is_over_what_is_valid():
    values, valid = np.array([[[1.0, 3.0], [5.0, 7.0]]]), np.array([[[True, False], [False, False]]])
    np.testing.assert_array_equal(beliefs._mean(values, valid), [[1.0, np.nan]])
