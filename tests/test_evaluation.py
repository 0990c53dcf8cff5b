import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds

from mbrl_jax import environment as env
from mbrl_jax import evaluation, replay
from mbrl_jax.algorithms import training
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Members


def always(action):
    return lambda observation: jnp.full(observation.shape[:-1], action, jnp.int32)


def upright(observation):
    """A policy that balances the pole for long."""
    lean = observation[..., 2] + 0.3 * observation[..., 3] + 0.05 * observation[..., 0] + 0.1 * observation[..., 1]
    return (lean > 0).astype(jnp.int32)


def returns(environment, policy, starts):
    return np.asarray(jax.jit(lambda starts: evaluation.play(environment, policy, starts))(starts))


def cartpole_steps(state, policy, limit):
    """Steps of one episode, by the equations of SPEC section 1."""
    for step in range(1, limit + 1):
        x, x_dot, theta, theta_dot = state
        force = 10.0 if policy(state) else -10.0
        push = (force + 0.05 * theta_dot**2 * np.sin(theta)) / 1.1
        turn = (9.8 * np.sin(theta) - np.cos(theta) * push) / (0.5 * (4 / 3 - 0.1 * np.cos(theta) ** 2 / 1.1))
        slide = push - 0.05 * turn * np.cos(theta) / 1.1
        state = np.array([x + 0.02 * x_dot, x_dot + 0.02 * slide, theta + 0.02 * theta_dot, theta_dot + 0.02 * turn])
        if abs(state[0]) > 2.4 or abs(state[2]) > 12 * 2 * np.pi / 360:
            return step
    return limit


@pytest.fixture(scope="module")
def starts(cartpole):
    return jax.jit(cartpole.draw_resets, static_argnums=1)(jax.random.key(0), (32,))


@pytest.mark.parametrize("action", [0, 1])
def test_a_return_counts_every_step_of_one_episode_the_failing_one_included(cartpole, starts, action):
    found = returns(cartpole, always(action), starts)
    expected = [cartpole_steps(np.asarray(start, np.float64), lambda _: action, 500) for start in starts.observation]
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 1
    assert 8 <= min(expected) <= max(expected) <= 11


def test_an_episode_is_cut_at_the_time_limit(starts):
    short = env.make_environment(EnvironmentConfig(time_limit=10))
    found = returns(short, always(1), starts)
    expected = [cartpole_steps(np.asarray(start, np.float64), lambda _: 1, 10) for start in starts.observation]
    np.testing.assert_array_equal(found, expected)
    assert min(expected) < 10
    assert (returns(short, upright, starts) == 10).all()


def test_a_policy_that_never_fails_reaches_the_tasks_own_limit(cartpole, starts):
    assert returns(cartpole, upright, starts).max() == 500


def test_rewards_are_added_and_not_steps_counted():
    task = env.make_environment(EnvironmentConfig(name="MountainCar-v0", time_limit=12))
    found = returns(task, always(1), jax.jit(task.draw_resets, static_argnums=1)(jax.random.key(0), (3,)))
    assert found.tolist() == [-12.0] * 3


# ------------------------------------------------------------------------------------------------------- first observations


def ring(depths, written):
    """A replay whose rows hold their place in every axis of the observation."""
    places = np.arange(1, len(depths) + 1, dtype=np.float32)
    places[written:] = -1
    observation = np.broadcast_to(places[:, None], (len(depths), 4))
    flags = np.zeros(len(depths), bool)
    rows = replay.Rows(observation, observation, flags, places, flags, places, np.asarray(depths))
    return replay.Replay(replay.pack(jax.tree.map(jnp.asarray, rows)), jnp.array(written, jnp.int32))


def first_places(real, draws=2_000):
    bits = jax.random.bits(jax.random.key(0), (draws // 4, 4))
    found = np.asarray(jax.jit(evaluation.sample_first_observations, static_argnums=2)(real, bits, 0))
    assert found.shape == (draws // 4, 4, 4)
    return np.unique(found[..., 0], return_counts=True)


def test_only_first_states_of_episodes_are_drawn_and_each_as_often():
    places, counts = first_places(ring([3, 4, 0, 1, 0, 1, 2, 0, 0, 1], written=10))
    assert places.tolist() == [3, 5, 8, 9]
    assert (np.abs(counts - 500) < 100).all()


def test_places_that_hold_no_data_yet_are_no_first_states():
    places, _ = first_places(ring([0, 1, 2, 0, 1, 0, 0, 0, 0, 0], written=5))
    assert places.tolist() == [1, 4]


def test_first_states_of_real_data_are_the_tasks_initial_states(random_transitions, real_rows):
    real = replay.Replay(real_rows, jnp.array(len(real_rows), jnp.int32))
    found = jax.jit(evaluation.sample_first_observations, static_argnums=2)(real, jax.random.bits(jax.random.key(0), (2_000,)), 0)
    starts = np.asarray(random_transitions.observation)[np.asarray(random_transitions.elapsed) == 0]
    assert {tuple(row) for row in np.asarray(found)} == {tuple(row) for row in starts}
    assert np.abs(starts).max() <= 0.05


@pytest.mark.parametrize("numbers", [1, 2, 3, 6])
def test_first_states_are_found_among_rows_with_several_continuous_actions(numbers):
    drawn = env.draw_collection(worlds.points(numbers), jax.random.key(3), 45)
    _, transitions, _ = jax.jit(lambda drawn: env.collect(worlds.points(numbers), drawn))(drawn)
    real = replay.write(replay.create(60, numbers, numbers), training.real_rows(transitions))
    bits = jnp.arange(10, dtype=jnp.uint32)
    found = evaluation.sample_first_observations(real, bits, numbers)
    starts = np.asarray(transitions.observation)[np.asarray(transitions.elapsed) == 0]
    assert len(starts) == 5
    np.testing.assert_array_equal(found, np.concatenate([starts, starts]))


# -------------------------------------------------------------------------------------------------------- imagined episodes


@pytest.fixture(scope="module")
def members_that_drift(make_params):
    def make(ensemble, drift):
        """Members whose change of x at each step is their entry of ``drift``, whatever they are asked."""
        params, bounds = make_params(ensemble)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
        params["params"][f"Dense_{len(ensemble.config.hidden)}"]["bias"][:, 0] = drift
        return Members(params, bounds, ens.init_normaliser(ensemble))

    return make


def imagined(ensemble, members, first, steps, policy=upright, key=0):
    play = jax.jit(lambda first, key: evaluation.play_imagined(ensemble, members, policy, first, key, steps))
    return np.asarray(play(jnp.asarray(first), jax.random.key(key)))


@pytest.mark.parametrize("steps", [1, evaluation.BLOCK - 1, evaluation.BLOCK, evaluation.BLOCK + 1, 60])
def test_an_imagined_episode_that_never_ends_returns_its_number_of_steps(make_ensemble, members_that_drift, steps):
    ensemble = make_ensemble(kind="deterministic")
    found = imagined(ensemble, members_that_drift(ensemble, [0.0, 0.0]), np.zeros((6, 4), np.float32), steps)
    assert found.tolist() == [float(steps)] * 6


def test_nothing_more_is_computed_once_all_episodes_have_ended(make_ensemble, members_that_drift):
    ensemble = make_ensemble(kind="deterministic")
    members, first, calls = members_that_drift(ensemble, [0.5, 0.5]), jnp.zeros((4, 4)), []

    def watched(observation):
        jax.debug.callback(lambda: calls.append(1))
        return upright(observation)

    returns = evaluation.play_imagined(ensemble, members, watched, first, jax.random.key(0), 500)
    assert jax.block_until_ready(returns).tolist() == [5.0] * 4
    jax.effects_barrier()
    assert len(calls) == evaluation.BLOCK


def test_an_imagined_episode_ends_with_the_step_that_terminates(make_ensemble, members_that_drift):
    ensemble = make_ensemble(kind="deterministic")
    first = np.zeros((4, 4), np.float32)
    first[1, 0] = 1.0
    found = imagined(ensemble, members_that_drift(ensemble, [0.5, 0.5]), first, 20)
    assert found.tolist() == [5.0, 3.0, 5.0, 5.0]  # 0.5 n > 2.4, and 1 + 0.5 n > 2.4


def test_a_member_stays_with_its_block_of_episodes(make_ensemble, members_that_drift):
    ensemble = make_ensemble(kind="deterministic", members=3)
    found = imagined(ensemble, members_that_drift(ensemble, [0.5, 0.0, 1.0]), np.zeros((6, 4), np.float32), 20)
    assert found.tolist() == [5.0, 5.0, 20.0, 20.0, 3.0, 3.0]


def test_imagined_actions_are_the_policys(make_ensemble, make_params):
    ensemble = make_ensemble(kind="deterministic")
    members = Members(*make_params(ensemble), ens.init_normaliser(ensemble))
    first = np.zeros((2, 4), np.float32)
    prediction = jax.jit(lambda action: ens.predict(ensemble, members, jnp.asarray(first)[:, None], action))
    ensemble = ensemble._replace(reward=lambda s, a, s2: s2[..., 1])
    for action in (0, 1):
        expected = prediction(jnp.full((2, 1), action, jnp.int32)).mean[:, 0, 1]
        np.testing.assert_allclose(imagined(ensemble, members, first, 1, always(action)), expected, rtol=1e-5)


def test_gaussian_members_imagine_with_noise_drawn_from_the_key(make_ensemble, members_that_drift):
    ensemble = make_ensemble()
    members = members_that_drift(ensemble, [0.0, 0.0])
    first = np.zeros((8, 4), np.float32)
    found = imagined(ensemble, members, first, 60)
    assert np.isfinite(found).all()
    assert len(set(found)) > 1  # episodes have noise of their own
    np.testing.assert_array_equal(found, imagined(ensemble, members, first, 60))
    assert (found != imagined(ensemble, members, first, 60, key=1)).any()


def test_what_happens_after_an_imagined_end_does_not_reach_the_return(make_ensemble, members_that_drift):
    ensemble = make_ensemble(kind="deterministic")._replace(reward=lambda s, a, s2: s2[..., 0] ** 2)
    found = imagined(ensemble, members_that_drift(ensemble, [1e19, 1.0]), np.zeros((2, 4), np.float32), 60)
    assert found[0] == pytest.approx(1e38)  # the next one would be infinite
    assert found[1] == 1 + 4 + 9


@pytest.mark.parametrize("broken", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_episode_in_a_world_that_is_not_finite_returns_minus_infinity(make_ensemble, members_that_drift, broken, value):
    ensemble = make_ensemble(kind="deterministic")
    drift = [0.0, value] if broken == "observation" else [0.0, 1.0]
    if broken == "reward":
        ensemble = ensemble._replace(reward=lambda s, a, s2: jnp.where(s2[..., 0] > 1.5, value, 1.0))
    found = imagined(ensemble, members_that_drift(ensemble, drift), np.zeros((4, 4), np.float32), 50)
    assert found.tolist() == [50.0, 50.0, -np.inf, -np.inf]
