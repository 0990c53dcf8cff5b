import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from dreams import LIMIT, NOISE, SPEED, dream
from ensembles import world_of

from mbrl_jax import environments as env
from mbrl_jax import evaluation
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Members
from mbrl_jax.replay import make_replay


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
    world, _ = world_of(ensemble, 1, by="ts_infinity")
    play = jax.jit(lambda first, key: evaluation.play_imagined(world, members, policy, first, key, steps))
    return np.asarray(play(jnp.asarray(first), jax.random.key(key)))


@pytest.mark.parametrize("steps", [1, evaluation.BLOCK - 1, evaluation.BLOCK, evaluation.BLOCK + 1, 60])
def test_an_imagined_episode_that_never_ends_returns_its_number_of_steps(make_ensemble, members_that_drift, steps):
    ensemble = make_ensemble(prediction="deterministic")
    found = imagined(ensemble, members_that_drift(ensemble, [0.0, 0.0]), np.zeros((6, 4), np.float32), steps)
    assert found.tolist() == [float(steps)] * 6


def test_nothing_more_is_computed_once_all_episodes_have_ended(make_ensemble, members_that_drift):
    ensemble = make_ensemble(prediction="deterministic")
    members, first, calls = members_that_drift(ensemble, [0.5, 0.5]), jnp.zeros((4, 4)), []

    def watched(observation):
        jax.debug.callback(lambda: calls.append(1))
        return upright(observation)

    world, _ = world_of(ensemble, 1, by="ts_infinity")
    returns = evaluation.play_imagined(world, members, watched, first, jax.random.key(0), 500)
    assert jax.block_until_ready(returns).tolist() == [5.0] * 4
    jax.effects_barrier()
    assert len(calls) == evaluation.BLOCK


def test_an_imagined_episode_ends_with_the_step_that_terminates(make_ensemble, members_that_drift):
    ensemble = make_ensemble(prediction="deterministic")
    first = np.zeros((4, 4), np.float32)
    first[1, 0] = 1.0
    found = imagined(ensemble, members_that_drift(ensemble, [0.5, 0.5]), first, 20)
    assert found.tolist() == [5.0, 3.0, 5.0, 5.0]  # 0.5 n > 2.4, and 1 + 0.5 n > 2.4


def test_a_member_stays_with_its_block_of_episodes(make_ensemble, members_that_drift):
    ensemble = make_ensemble(prediction="deterministic", members=3)
    found = imagined(ensemble, members_that_drift(ensemble, [0.5, 0.0, 1.0]), np.zeros((6, 4), np.float32), 20)
    assert found.tolist() == [5.0, 5.0, 20.0, 20.0, 3.0, 3.0]


def test_imagined_actions_are_the_policys(make_ensemble, make_params):
    ensemble = make_ensemble(prediction="deterministic")
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
    ensemble = make_ensemble(prediction="deterministic")._replace(reward=lambda s, a, s2: s2[..., 0] ** 2)
    found = imagined(ensemble, members_that_drift(ensemble, [1e19, 1.0]), np.zeros((2, 4), np.float32), 60)
    assert found[0] == pytest.approx(1e38)  # the next one would be infinite
    assert found[1] == 1 + 4 + 9


@pytest.mark.parametrize("broken", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_episode_in_a_world_that_is_not_finite_returns_minus_infinity(make_ensemble, members_that_drift, broken, value):
    ensemble = make_ensemble(prediction="deterministic")
    drift = [0.0, value] if broken == "observation" else [0.0, 1.0]
    if broken == "reward":
        ensemble = ensemble._replace(reward=lambda s, a, s2: jnp.where(s2[..., 0] > 1.5, value, 1.0))
    found = imagined(ensemble, members_that_drift(ensemble, drift), np.zeros((4, 4), np.float32), 50)
    assert found.tolist() == [50.0, 50.0, -np.inf, -np.inf]


def test_an_imagined_episode_goes_on_from_where_it_stands_whatever_that_is_made_of():
    world, seen = dream(make_replay(worlds.points(2, discrete=True).spec, 4)), []
    params, key = world.acting(world.init(jax.random.key(0))), jax.random.key(5)
    begin = {
        "place": jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32),
        "clock": jnp.array([0, 0, 0, 3], jnp.int32),
    }

    def policy(features):
        seen.append(features.shape)
        return (features[..., 2] > 1).astype(jnp.int32)  # by the clock

    returns = evaluation.play_imagined(world, params, policy, begin, key, 9)
    assert set(seen) == {(4, 3)}
    push = np.asarray(world.draw(key, key, (9, 4))["push"])
    for episode in range(4):
        place, clock, earned = float(begin["place"][episode, 0]), int(begin["clock"][episode]), 0.0
        for t in range(9):
            place += SPEED[episode // 2] * (1 if clock > 1 else -1) + NOISE * push[t, episode, 0]
            clock, earned = clock + 1, earned + place
            if clock >= LIMIT:
                break
        assert float(returns[episode]) == pytest.approx(earned, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- with a memory


def test_a_policys_memory_goes_with_each_episode_from_step_to_step(cartpole, starts):
    """The n-th step is by the n-th action of a script of the episode's own, which only the memory tells."""
    script = np.random.default_rng(1).integers(0, 2, (500, 32)).astype(np.int32)

    def act(memory, observation):
        assert observation.shape == (32, 4)
        return memory + 1, jnp.asarray(script)[memory, jnp.arange(32)]

    found = jax.jit(lambda starts: evaluation.play_with_memory(cartpole, act, jnp.zeros(32, jnp.int32), starts))(starts)

    def scripted(episode):
        actions = iter(script[:, episode])
        return lambda _: next(actions)

    expected = [cartpole_steps(np.asarray(start, np.float64), scripted(i), 500) for i, start in enumerate(starts.observation)]
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 5
