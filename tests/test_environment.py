import functools
from typing import NamedTuple

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.config import ConfigError, EnvironmentConfig

STEPPED = 200
LENGTHS = {"CartPole-v1": 5_000, "Acrobot-v1": 420, "MountainCar-v0": 420}  # of random collections
TASKS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
STATE_RANGES = {  # of the simulator's own state; wide enough that some steps terminate and others do not
    "CartPole-v1": (2.5, 3.0, 0.25, 3.0),
    "Acrobot-v1": (np.pi, np.pi, 4.0, 4.0),
    "MountainCar-v0": (0.6, 0.07),
}
INNER_FIELDS = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
}


@functools.cache
def make(name, time_limit=None):
    return env.make_environment(EnvironmentConfig(name=name, time_limit=time_limit))


class Known(NamedTuple):
    """What the task's known functions say of rows."""

    reward: np.ndarray
    terminated: np.ndarray
    over_before: np.ndarray  # the state stepped from was an end already, where the simulators' rewards mean nothing


def known(environment, rows):
    return Known(
        reward=environment.reward(rows.observation, rows.action, rows.next_observation),
        terminated=environment.terminated(rows.observation, rows.action, rows.next_observation),
        over_before=environment.terminated(rows.observation, rows.action, rows.observation),
    )


@functools.cache
def collected(name, transitions, time_limit=None):
    """A random collection: its draws, the state reached, the rows, the returns, and what is known of the rows."""
    environment = make(name, time_limit)

    @jax.jit
    def draw_and_collect(key):
        draws = env.draw_collection(environment, key, transitions)
        state, rows, returns = env.collect(environment, draws)
        return draws, state, rows, returns, known(environment, rows)

    return jax.device_get(draw_and_collect(jax.random.key(0)))


@functools.cache
def resets(name, shape):
    return jax.device_get(jax.jit(make(name).draw_resets, static_argnums=1)(jax.random.key(4), shape))


@functools.cache
def stepper(name):
    observe = gymnax.make(name)[0].get_obs

    @jax.jit
    def run(values, actions, time, fresh):
        columns = {field: values[:, i] for i, field in enumerate(INNER_FIELDS[name])}
        inner = fresh.inner.replace(**columns, time=jnp.full(len(values), time))
        states = env.EnvironmentState(inner=inner, observation=jax.vmap(observe)(inner))
        after, rows = jax.vmap(make(name).step)(states, actions, fresh)
        return after, rows, known(make(name), rows)

    return run


def stepped(name, values, actions, time=0):
    """What one step from each of the simulator states [n, fields] gives: the states after it, the rows, what is known of them."""
    padded = np.resize(values, (STEPPED, values.shape[1]))  # always compiled for the same number
    fresh = jax.tree.map(lambda leaf: leaf.astype(values.dtype) if leaf.dtype.kind == "f" else leaf, fresh_states(name))
    results = stepper(name)(padded, np.resize(actions, STEPPED).astype(np.int32), np.int32(time), fresh)
    return jax.tree.map(lambda leaf: leaf[: len(values)], jax.device_get(results))


def fresh_states(name):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:STEPPED], resets(name, (40, 50)))


def random_states(name, count, seed=0, dtype=np.float32):
    ranges = np.array(STATE_RANGES[name])
    return np.random.default_rng(seed).uniform(-ranges, ranges, (count, len(ranges))).astype(dtype)


def random_actions(name, count):
    return np.random.default_rng(1).integers(0, make(name).spec.action_count, count)


def gymnasium_steps(name, values, actions):
    """Observations, rewards and terminations of gymnasium's own dynamics, one step from each state."""
    task = gymnasium.make(name).unwrapped
    task.reset(seed=0)
    results = []
    for value, action in zip(values.astype(np.float64), actions, strict=True):
        task.state, task.steps_beyond_terminated = value, None
        _, reward, terminated, _, _ = task.step(int(action))
        state = np.array(task.state)  # in float64, which the observation is not
        if name == "Acrobot-v1":
            state = np.array([np.cos(state[0]), np.sin(state[0]), np.cos(state[1]), np.sin(state[1]), *state[2:]])
        results.append((state, reward, terminated))
    task.close()
    return tuple(np.array(column) for column in zip(*results, strict=True))


# One step's rounding, in float32. CartPole and MountainCar: SPEC section 1. Acrobot's Runge-Kutta step is longer (0.2 s).
@pytest.mark.parametrize(("name", "tolerance"), [("CartPole-v1", 1e-6), ("MountainCar-v0", 1e-6), ("Acrobot-v1", 2e-5)])
def test_one_step_agrees_with_gymnasium(name, tolerance):
    values, actions = random_states(name, 200), random_actions(name, 200)
    _, ours, judged = stepped(name, values, actions)
    observations, rewards, terminated = gymnasium_steps(name, values, actions)
    np.testing.assert_allclose(ours.next_observation, observations, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(ours.terminated, terminated)
    np.testing.assert_array_equal(ours.reward[~judged.over_before], rewards[~judged.over_before])
    assert terminated.any()
    assert not terminated.all()


def test_one_step_of_cartpole_agrees_with_gymnasium_to_float64_precision():
    values, actions = random_states("CartPole-v1", 200, dtype=np.float64) * 0.4, random_actions("CartPole-v1", 200)
    with jax.enable_x64(True):
        _, ours, _ = stepped("CartPole-v1", values, actions)
    assert ours.next_observation.dtype == np.float64
    np.testing.assert_allclose(ours.next_observation, gymnasium_steps("CartPole-v1", values, actions)[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", TASKS)
def test_the_known_reward_and_termination_are_those_of_the_step(name):
    _, rows, judged = stepped(name, random_states(name, 200, seed=2), random_actions(name, 200))
    ongoing = ~judged.over_before
    np.testing.assert_array_equal(judged.terminated, rows.terminated)
    np.testing.assert_array_equal(judged.reward[ongoing], rows.reward[ongoing])
    assert 0 < np.sum(rows.terminated[ongoing]) < np.sum(ongoing)


@pytest.mark.parametrize("name", TASKS)
def test_the_known_reward_and_termination_are_those_of_random_episodes(name):
    _, _, rows, _, judged = collected(name, LENGTHS[name])
    np.testing.assert_array_equal(judged.terminated, rows.terminated)
    np.testing.assert_array_equal(judged.reward, rows.reward)
    assert judged.reward.dtype == rows.reward.dtype == np.float32


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_cartpole_ends_beyond_its_thresholds_and_not_at_them(axis, sign):
    threshold = np.float32((2.4, 0, 12 * 2 * np.pi / 360, 0)[axis])
    values = np.zeros((2, 4), np.float32)
    values[:, axis] = sign * threshold, sign * np.nextafter(threshold, np.float32(np.inf))
    _, rows, judged = stepped("CartPole-v1", values, [0, 0])  # at rest: the step leaves position and angle where they are
    assert rows.next_observation[:, axis].tolist() == values[:, axis].tolist()
    assert rows.terminated.tolist() == [False, True]
    assert judged.terminated.tolist() == [False, True]


def test_mountain_car_ends_at_its_goal_unless_it_rolls_back():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    after = jnp.array([[0.5, 0.0], [0.5, 0.01], [0.5, -0.01], [below, 0.01], [0.6, 0.0]])
    ended = make("MountainCar-v0").terminated(after, jnp.zeros(5, jnp.int32), after)
    assert ended.tolist() == [True, True, False, False, True]


def test_acrobot_ends_above_the_line_and_not_on_it():
    after = jnp.array([[-1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 1e-3, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    actions = jnp.zeros(3, jnp.int32)
    assert make("Acrobot-v1").terminated(after, actions, after).tolist() == [False, True, False]
    assert make("Acrobot-v1").reward(after, actions, after).tolist() == [-1.0, 0.0, -1.0]


@pytest.mark.parametrize(("name", "limit"), [("CartPole-v1", 500), ("Acrobot-v1", 500), ("MountainCar-v0", 200)])
def test_the_time_limit_is_the_tasks_own_unless_it_is_set(name, limit):
    assert make(name).spec.time_limit == limit
    assert make(name, 7).spec.time_limit == 7


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)])
def test_in_units_scales_each_number_of_a_continuous_action_whatever_the_leading_axes(shape):
    spec = env.EnvironmentSpec("two numbers", 1, 0, 10, (1.0,), action_size=2, action_scale=(2.0, 0.5))
    for kind in (np, jnp):
        action = env.in_units(spec, kind.full((*shape, 2), -0.5, kind.float32))
        assert isinstance(action, kind.ndarray)
        np.testing.assert_array_equal(action, np.broadcast_to(np.float32([-1.0, -0.25]), (*shape, 2)))
        untouched = kind.ones(shape, kind.int32)
        assert env.in_units(make("CartPole-v1").spec, untouched) is untouched
        assert env.in_units(spec._replace(action_scale=()), untouched) is untouched


@pytest.mark.parametrize("scale", [(2.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_an_action_scale_that_does_not_fit_the_action_is_refused(scale):
    spec = env.EnvironmentSpec("two numbers", 1, 0, 10, (1.0,), action_size=2, action_scale=scale)
    with pytest.raises(ConfigError, match="action_scale: .* of two numbers does not fit; it must be 2 positive numbers"):
        env.in_units(spec, np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match=r"it must be \(\) for discrete actions"):
        env.in_units(spec._replace(action_size=0), np.zeros((), np.int32))


def test_the_spec_gives_the_sizes_and_a_scale_for_every_axis():
    sizes = {name: (make(name).spec.observation_size, make(name).spec.action_count) for name in TASKS}
    assert sizes == {"CartPole-v1": (4, 2), "Acrobot-v1": (6, 3), "MountainCar-v0": (2, 3)}
    assert make("CartPole-v1").spec.observation_scale == (2.4, 2.0, 0.21, 2.0)
    assert all(len(make(name).spec.observation_scale) == make(name).spec.observation_size for name in TASKS)


@pytest.mark.parametrize(("time_limit", "last"), [(None, 199), (7, 6)])
def test_an_episode_is_truncated_at_the_time_limit_and_not_terminated(time_limit, last):
    _, _, rows, _, _ = collected("MountainCar-v0", 420, time_limit)
    elapsed = np.arange(420) % (last + 1)
    assert rows.elapsed.tolist() == elapsed.tolist()
    assert rows.truncated.tolist() == (elapsed == last).tolist()
    assert not rows.terminated.any()


def test_an_episode_that_falls_in_its_last_step_is_terminated():
    _, rows, _ = stepped("CartPole-v1", np.array([[2.39, 2.0, 0, 0], [0, 0, 0, 0]], np.float32), [0, 0], time=499)
    assert rows.terminated.tolist() == [True, False]
    assert rows.truncated.tolist() == [True, True]


@pytest.mark.parametrize("time_limit", [None, 12])
def test_the_next_observation_at_an_episodes_end_is_the_true_one_and_the_fresh_state_follows(time_limit):
    draws, _, rows, _, _ = collected("CartPole-v1", 420 if time_limit else LENGTHS["CartPole-v1"], time_limit)
    ended = rows.terminated | rows.truncated
    true = gymnasium_steps("CartPole-v1", rows.observation[:420], rows.action[:420])[0]
    np.testing.assert_allclose(rows.next_observation[:420], true, rtol=0, atol=1e-6)
    follows = np.where(ended[:, None], draws.resets.observation, rows.next_observation)
    np.testing.assert_array_equal(rows.observation[1:], follows[:-1])
    assert ended.sum() > 5


@pytest.mark.parametrize("name", TASKS)
def test_step_returns_the_fresh_state_after_an_end_and_the_next_one_otherwise(name):
    after, rows, _ = stepped(name, random_states(name, 200, seed=5), np.zeros(200))
    fresh, ended = fresh_states(name), rows.terminated
    np.testing.assert_array_equal(after.observation[ended], fresh.observation[ended])
    np.testing.assert_array_equal(after.observation[~ended], rows.next_observation[~ended])
    np.testing.assert_array_equal(after.inner.time, np.where(ended, 0, 1))
    assert 0 < ended.sum() < 200


@pytest.mark.parametrize("name", TASKS)
def test_a_state_keeps_its_type_through_a_step(name):
    state = jax.eval_shape(lambda key: make(name).draw_resets(key, ()), jax.random.key(0))
    after, _ = jax.eval_shape(make(name).step, state, jax.ShapeDtypeStruct((), jnp.int32), state)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert state.observation.shape == (make(name).spec.observation_size,)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CartPole-v1", (-0.05,) * 4, (0.05,) * 4),
        ("Acrobot-v1", (np.cos(0.1), -0.0999, np.cos(0.1), -0.0999, -0.1, -0.1), (1, 0.0999, 1, 0.0999, 0.1, 0.1)),
        ("MountainCar-v0", (-0.6, 0), (-0.4, 0)),
    ],
)
def test_resets_fill_the_tasks_range_of_initial_states(name, low, high):
    drawn = resets(name, (40, 50))
    observations = np.asarray(drawn.observation)
    assert observations.shape == (40, 50, len(low))
    assert drawn.inner.time.shape == (40, 50)
    assert not drawn.inner.time.any()
    low, high = np.array(low), np.array(high)
    margin = 0.01 * (high - low)
    assert (observations >= low - 1e-4 * (high - low)).all()
    assert (observations <= high + 1e-4 * (high - low)).all()
    assert (observations.min((0, 1)) <= low + margin).all()
    assert (observations.max((0, 1)) >= high - margin).all()
    assert len(np.unique(observations[..., 0])) > 1_800 or name == "Acrobot-v1"  # cosines near 0 round together


def test_the_returns_of_a_collection_are_the_sums_of_its_episodes_rewards():
    _, _, rows, returns, _ = collected("CartPole-v1", 420, 12)
    ended = rows.terminated | rows.truncated
    expected, so_far = np.full(420, -np.inf), 0.0
    for i in range(420):
        so_far += float(rows.reward[i])
        if ended[i]:
            expected[i], so_far = so_far, 0.0
    np.testing.assert_array_equal(returns, expected)
    assert np.max(expected) == 12
    assert np.min(expected[ended]) < 12


def test_random_episodes_of_cartpole_last_about_twenty_two_steps():
    draws, _, _, returns, _ = collected("CartPole-v1", LENGTHS["CartPole-v1"])
    assert 20.5 < np.mean(returns[np.isfinite(returns)]) < 24.5
    assert 205 < np.sum(np.isfinite(returns)) < 245
    assert 0.47 < draws.actions.mean() < 0.53


def test_a_collection_ends_in_the_state_that_its_last_step_reached():
    _, state, rows, _, _ = collected("MountainCar-v0", 420)
    np.testing.assert_array_equal(state.observation, rows.next_observation[-1])
    assert state.inner.time == 20


def test_all_actions_of_a_task_are_collected():
    for name in TASKS:
        draws, *_ = collected(name, LENGTHS[name])
        assert set(draws.actions.tolist()) == set(range(make(name).spec.action_count))


# Acrobot's angles are recovered from their cosine and sine, which costs a rounding more.
@pytest.mark.parametrize(("name", "tolerance"), [("CartPole-v1", 1e-7), ("MountainCar-v0", 1e-7), ("Acrobot-v1", 1e-5)])
def test_the_dynamics_as_a_function_of_observations_are_those_of_the_step(name, tolerance):
    _, rows, _ = stepped(name, random_states(name, 200, seed=6), random_actions(name, 200))
    following = jax.jit(make(name).dynamics)(rows.observation, rows.action)
    assert following.dtype == np.float32
    np.testing.assert_allclose(following, rows.next_observation, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", TASKS)
def test_the_dynamics_take_any_leading_axes_and_broadcast_them(name):
    _, rows, _ = stepped(name, random_states(name, 12), random_actions(name, 12))
    dynamics, size = jax.jit(make(name).dynamics), make(name).spec.observation_size
    expected = dynamics(rows.observation, rows.action)
    shaped = dynamics(rows.observation.reshape(3, 4, size), rows.action.reshape(3, 4))
    np.testing.assert_allclose(shaped, expected.reshape(3, 4, size), rtol=1e-6)
    np.testing.assert_allclose(dynamics(rows.observation[5], rows.action[5]), expected[5], rtol=1e-6)
    every = dynamics(rows.observation[:, None], jnp.arange(2, dtype=jnp.int32)[None])
    assert every.shape == (12, 2, size)
    np.testing.assert_allclose(every[5, 1], dynamics(rows.observation[5], jnp.int32(1)), rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_the_dynamics_keep_float64(name):
    values, actions = random_states(name, 200, dtype=np.float64) * 0.4, random_actions(name, 200)
    with jax.enable_x64(True):
        _, rows, _ = stepped(name, values, actions)
        following = jax.jit(make(name).dynamics)(rows.observation, rows.action)
    assert following.dtype == np.float64
    np.testing.assert_allclose(following, rows.next_observation, rtol=0, atol=1e-13)


def test_an_unknown_task_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ConfigError, match=r"environment\.name: 'CartPole-v0' .* CartPole-v1, Acrobot-v1, MountainCar-v0"):
        env.make_environment(EnvironmentConfig(name="CartPole-v0"))


# ------------------------------------------------------------------------------------------------- Pendulum: continuous actions


@functools.cache
def swung():
    return collected("Pendulum-v1", 420)


def test_a_pendulum_is_pushed_by_a_number_from_minus_one_to_one_and_ends_at_the_time_limit_alone():
    spec = make("Pendulum-v1").spec
    assert (spec.continuous, spec.action_shape, spec.action_count, spec.time_limit) == (True, (1,), 0, 200)
    assert not make("CartPole-v1").spec.continuous
    assert make("CartPole-v1").spec.action_shape == ()
    draws, _, rows, returns, judged = swung()
    assert draws.actions.shape == rows.action.shape == (420, 1)
    assert np.abs(draws.actions).max() > 0.95
    assert not rows.terminated.any()
    assert not judged.terminated.any()
    assert np.flatnonzero(rows.truncated).tolist() == [199, 399]
    np.testing.assert_allclose(judged.reward, rows.reward, rtol=1e-4, atol=1e-4)  # the angle is found from its cosine and sine
    assert np.mean(returns[np.isfinite(returns)]) < -700


def test_a_pendulums_step_agrees_with_gymnasium():
    _, _, rows, _, _ = swung()
    task = gymnasium.make("Pendulum-v1").unwrapped
    task.reset(seed=0)
    for i in range(0, 420, 7):
        cosine, sine, rate = rows.observation[i].astype(np.float64)
        task.state = np.array([np.arctan2(sine, cosine), rate])
        observation, reward, *_ = task.step(2.0 * rows.action[i].astype(np.float64))
        np.testing.assert_allclose(rows.next_observation[i], observation, rtol=0, atol=5e-6)
        assert rows.reward[i] == pytest.approx(reward, rel=1e-4, abs=1e-4)


def test_a_pendulums_dynamics_are_those_of_the_step_within_the_limits_of_its_states_and_have_slopes():
    _, _, rows, _, _ = swung()
    dynamics = make("Pendulum-v1").dynamics
    np.testing.assert_allclose(jax.jit(dynamics)(rows.observation, rows.action), rows.next_observation, atol=5e-6)
    every = dynamics(jnp.asarray(rows.observation[:3, None]), jnp.linspace(-1, 1, 5)[None, :, None])
    assert every.shape == (3, 5, 3)
    slope = jax.jacobian(lambda a: dynamics(jnp.array([1.0, 0.0, 0.0]), a))(jnp.zeros(1))
    assert float(slope[2, 0]) == pytest.approx(3 * 2.0 * 0.05, rel=1e-5)  # 3 u dt / (m l^2), of 2 newton metres
    limits = np.array(make("Pendulum-v1").spec.observation_limits)
    beyond = dynamics(jnp.array([0.0, 1.0, 8.0]), jnp.ones(1))
    assert (np.abs(beyond) <= limits).all()
    assert float(beyond[2]) == 8.0


# ------------------------------------------------------------------------------------ MountainCarContinuous: with a termination


def test_a_continuous_mountain_cars_step_agrees_with_its_simulators_on_both_sides_of_the_goal():
    """With gymnasium's too, but where it stops: gymnasium's car at the left wall, gymnax's where it rolls back at the goal."""
    name, count = "MountainCarContinuous-v0", 200
    task, generator = make(name), np.random.default_rng(0)
    spec = task.spec
    assert (spec.action_shape, spec.time_limit, spec.action_scale, spec.observation_scale) == ((1,), 999, (1.0,), (1.2, 0.07))
    values = generator.uniform((-1.2, -0.07), (0.6, 0.07), (count, 2)).astype(np.float32)
    values[:4] = (0.44, 0.02), (0.44, 0.0), (0.5, -0.02), (-1.2, -0.07)
    actions = generator.uniform(-1, 1, (count, 1)).astype(np.float32)
    simulator, parameters = gymnax.make(name)
    fresh = jax.device_get(jax.jit(task.draw_resets, static_argnums=1)(jax.random.key(0), (count,)))

    @jax.jit
    def step(values, actions, fresh):
        inner = fresh.inner.replace(position=values[:, 0], velocity=values[:, 1], time=jnp.full(count, 998))
        _, rows = jax.vmap(task.step)(env.EnvironmentState(inner, values), actions, fresh)
        with jax.numpy_dtype_promotion("standard"):
            own = jax.vmap(functools.partial(simulator.step_env, params=parameters), in_axes=(None, 0, 0))
            theirs = own(jax.random.key(0), inner, actions)[:3:2]
        return rows, theirs, known(task, rows), task.dynamics(values, actions)

    rows, (observation, reward), judged, following = jax.device_get(step(values, actions, fresh))
    np.testing.assert_array_equal(rows.next_observation, observation)
    np.testing.assert_array_equal(rows.reward, reward)
    np.testing.assert_allclose(following, observation, atol=1e-7)
    np.testing.assert_array_equal(judged.terminated, rows.terminated)
    np.testing.assert_allclose(judged.reward, rows.reward, rtol=1e-6)
    assert rows.truncated.all()
    assert 5 < rows.terminated.sum() < count - 5
    assert rows.reward[rows.terminated].min() > 99
    gym = gymnasium.make(name).unwrapped
    gym.reset(seed=0)
    stopped = (rows.next_observation[:, 0] <= -1.2) | (rows.next_observation[:, 1] == 0)
    for place in np.flatnonzero(~stopped):
        gym.state = values[place].astype(np.float64)
        seen, earned, ended, *_ = gym.step(actions[place].astype(np.float64))
        np.testing.assert_allclose(rows.next_observation[place], seen, rtol=0, atol=1e-6)
        assert rows.reward[place] == pytest.approx(earned, abs=1e-5)
        assert rows.terminated[place] == ended
