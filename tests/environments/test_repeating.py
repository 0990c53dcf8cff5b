"""Action repeat: the simulator's own steps, summed up, to the episode's end and no further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, make_environment, restart
from mbrl_jax.environments.registry import environment_of
from mbrl_jax.environments.repeating import repeated


def walk(limit=7, goal=5.0):
    """One axis that moves by the action and pays where it goes; at the goal the episode terminates."""
    spec = EnvironmentSpec("walk", 1, 0, limit, (1.0,), action_size=1)

    def terminated(s, a, s2):
        return s2[..., 0] >= goal

    def step(state, action, fresh):
        after = state.observation + action
        ended, late = terminated(state.observation, action, after), state.inner + 1 >= limit
        row = Transition(state.observation, action, after[0], after, ended, late & ~ended, state.inner)
        return restart(EnvironmentState(state.inner + 1, after), fresh, ended | late), row

    def draw_resets(key, shape):
        return EnvironmentState(jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, 1)))

    return Environment(spec, draw_resets, step, lambda s, a, s2: s2[..., 0], terminated, lambda s, a: s + a)


def stepped(task, action, steps):
    """The rows [steps] of steps by one action, and where the last one leads."""
    fresh = EnvironmentState(jnp.zeros((), jnp.int32), jnp.full(1, -9.0))
    state = task.draw_resets(jax.random.key(0), ())
    state, rows = jax.jit(
        lambda state: jax.lax.scan(lambda now, _: task.step(now, jnp.asarray([action]), fresh), state, None, length=steps)
    )(state)
    return state, rows


def test_a_decision_earns_the_sum_of_its_steps_and_moves_by_all_of_them():
    state, rows = stepped(repeated(walk(), 3), 0.5, 2)
    np.testing.assert_allclose(rows.observation[:, 0], [0, 1.5])
    np.testing.assert_allclose(rows.next_observation[:, 0], [1.5, 3])
    np.testing.assert_allclose(rows.reward, [0.5 + 1 + 1.5, 2 + 2.5 + 3])
    assert rows.elapsed.tolist() == [0, 1]
    assert int(state.inner) == 6


def test_a_termination_ends_a_decision_and_nothing_after_it_counts():
    state, rows = stepped(repeated(walk(), 3), 2.0, 1)
    np.testing.assert_allclose(rows.next_observation[0], 6)
    np.testing.assert_allclose(rows.reward, [2 + 4 + 6])
    assert (bool(rows.terminated[0]), bool(rows.truncated[0])) == (True, False)
    np.testing.assert_allclose(state.observation, -9)


def test_a_time_limit_that_is_no_multiple_cuts_the_last_decision():
    task = repeated(walk(limit=7), 3)
    state, rows = stepped(task, 0.1, 3)
    assert task.spec.time_limit == 3
    assert rows.truncated.tolist() == [False, False, True]
    np.testing.assert_allclose(rows.reward[2], 0.7, rtol=1e-6)
    np.testing.assert_allclose(state.observation, -9)


def test_the_reward_is_learned_and_the_dynamics_are_those_of_all_steps():
    task = repeated(walk(), 4)
    assert task.reward is None
    assert task.dynamics is not None
    np.testing.assert_allclose(task.dynamics(jnp.ones((2, 1)), jnp.full((2, 1), 0.25)), 2.0)


def test_a_task_of_the_suite_repeats_what_it_does_by_itself():
    once, often = (make_environment(EnvironmentConfig(name="control/cartpole-swingup", action_repeat=n)) for n in (1, 5))
    start = once.draw_resets(jax.random.key(3), ())
    action = jnp.asarray([0.7])
    single, rows = jax.jit(lambda s: jax.lax.scan(lambda now, _: once.step(now, action, start), s, None, length=5))(start)
    after, row = jax.jit(often.step)(start, action, start)
    np.testing.assert_allclose(row.reward, rows.reward.sum(), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, single)
    assert often.spec.time_limit == 200


def test_a_task_is_never_repeated_twice():
    config = EnvironmentConfig(name="control/pendulum-swingup", action_repeat=4)
    task = make_environment(config)
    assert environment_of(config, task) is task
    with pytest.raises(ConfigError, match="environment.action_repeat: 2 does not fit; .* repeats each action 4 times already"):
        repeated(task, 2)


def test_an_environment_on_the_host_refuses_to_be_repeated():
    with pytest.raises(ConfigError, match="environment.action_repeat: 2 does not fit; 'gymnasium/Pendulum-v1' is stepped on the"):
        make_environment(EnvironmentConfig(name="gymnasium/Pendulum-v1", action_repeat=2))
