"""The swing-up tasks against the DeepMind Control suite itself."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mbrl_jax import environments as env
from mbrl_jax.config import ConfigError, EnvironmentConfig, PhysicsConfig, from_dict
from mbrl_jax.environments import control, mechanics

NAMES = ("control/cartpole-swingup", "control/pendulum-swingup")
STEPS = 400
LIMIT = mechanics.TRACK


@functools.cache
def make(name, time_limit=None):
    return env.make_environment(EnvironmentConfig(name=name, time_limit=time_limit))


@functools.cache
def suite_task(name):
    """The suite's own task, which draws nothing."""
    os.environ.setdefault("MUJOCO_GL", "disable")  # read when the suite is imported
    from dm_control import suite

    return suite.load(name.removeprefix("control/").split("-")[0], "swingup", task_kwargs={"random": 0})


@functools.cache
def samples(name):
    """Positions [n, J], velocities [n, J] and actions [n], at every angle; half of the carts are at the slider's limit."""
    rng = np.random.default_rng(3)
    position, velocity = rng.uniform(-7, 7, (STEPS, 1)), rng.normal(0, 6, (STEPS, 1))
    if "cartpole" in name:
        cart = rng.uniform(-1.7, 1.7, STEPS)
        cart[::2] = rng.choice([-1, 1], STEPS // 2) * (LIMIT + rng.normal(0, 0.02, STEPS // 2))
        cart[:4] = [LIMIT + 3e-4, -LIMIT - 3e-4, LIMIT + 7e-4, -LIMIT - 7e-4]  # both halves of the impedance's rise
        position = np.column_stack([cart, position])
        velocity = np.column_stack([rng.normal(0, 3, STEPS), velocity])
    return position, velocity, rng.uniform(-1, 1, STEPS)


@functools.cache
def of_suite(name):
    """States [n, 2 J], observations [n, D] and rewards [n] that the suite gives after a step from each of the samples."""
    task = suite_task(name)
    task.reset()
    found = []
    for position, velocity, action in zip(*samples(name), strict=True):
        with task.physics.reset_context():
            task.physics.data.qpos[:], task.physics.data.qvel[:] = position, velocity
        task.physics.set_control([action])
        task.physics.step()
        state = np.concatenate([task.physics.data.qpos, task.physics.data.qvel])
        seen = np.concatenate([np.atleast_1d(each) for each in task.task.get_observation(task.physics).values()])
        found.append((state, seen, task.task.get_reward(task.physics)))
    return tuple(np.array(each) for each in zip(*found, strict=True))


def of_ours(name, dtype):
    """The same of the task's own functions, in a precision."""
    position, velocity, action = (jnp.asarray(each, dtype) for each in samples(name))
    environment = make(name)

    @jax.jit
    def run(position, velocity, action):
        observe = control._TASKS[name].observe
        inner = control.Motion(position, velocity, jnp.zeros(STEPS, jnp.int32))
        state = env.EnvironmentState(inner, observe(position, velocity))
        after, rows = jax.vmap(environment.step)(state, action[:, None], state)
        return jnp.concatenate([after.inner.position, after.inner.velocity], 1), rows

    return jax.device_get(run(position, velocity, action))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_its_observation_and_its_reward_are_the_suites_to_float64_precision(name):
    state, seen, reward = of_suite(name)
    with jax.enable_x64(True):
        found, rows = of_ours(name, jnp.float64)
    np.testing.assert_allclose(found, state, atol=1e-12)
    np.testing.assert_allclose(rows.next_observation, seen, atol=1e-12)
    np.testing.assert_allclose(rows.reward, reward, atol=1e-12)
    assert reward.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_float32_stays_near_the_suites(name):
    state, _, reward = of_suite(name)
    found, rows = of_ours(name, jnp.float32)
    np.testing.assert_allclose(found, state, rtol=1e-5, atol=1e-4)  # beyond its limit a cart is pushed by thousands of m/s^2
    np.testing.assert_allclose(rows.reward, reward, atol=1e-5)


def test_a_cart_is_pushed_beyond_the_limit_alone_and_never_pulled():
    at = jnp.asarray([[LIMIT, 0.0], [LIMIT + 0.01, 0.0], [-LIMIT - 0.01, 0.0], [LIMIT + 0.001, 0.0]])
    velocity = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-30.0, 0.0]])
    cart = mechanics.cartpole_acceleration(at, velocity, jnp.zeros(4))[:, 0]
    assert abs(cart[0]) < 1e-2
    assert cart[1] < -10
    np.testing.assert_allclose(cart[2], -cart[1], rtol=1e-5)
    assert abs(cart[3]) < 0.1, "a cart that leaves the limit fast is let go"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_a_step_and_its_reward_agree_with_finite_differences(name):
    environment = make(name)
    weights = np.random.default_rng(1).normal(size=environment.spec.observation_size)
    with jax.enable_x64(True):
        angle = jnp.asarray(np.array([0.4, 2.0, -2.5]))
        cart = jnp.asarray(np.array([0.3, -1.0, 1.0]))
        position, velocity = (jnp.stack([cart, angle], 1), jnp.stack([angle, cart], 1))
        if "pendulum" in name:
            position, velocity = position[:, 1:], velocity[:, 1:]
        states = control._TASKS[name].observe(position, velocity)
        actions = jnp.asarray(np.array([[0.1], [-0.7], [0.5]]))

        def value(states, actions):
            following = environment.dynamics(environment.dynamics(states, actions), -actions)
            return jnp.sum(following @ weights) + jnp.sum(environment.reward(states, actions, following))

        check_grads(jax.jit(value), (states, actions), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_lasts_its_time_limit_and_is_truncated(name):
    for limit, right in ((None, 1_000), (7, 7)):
        environment = make(name, limit)
        assert environment.spec.time_limit == right
        state = environment.draw_resets(jax.random.key(0), ())
        fresh = environment.draw_resets(jax.random.key(1), ())
        last = state._replace(inner=state.inner._replace(time=jnp.int32(right - 2)))
        after, row = environment.step(last, jnp.ones(1), fresh)
        assert not row.truncated
        assert not row.terminated
        after, row = environment.step(after, jnp.ones(1), fresh)
        assert row.truncated
        assert not row.terminated
        np.testing.assert_array_equal(after.observation, fresh.observation)
        assert np.abs(row.next_observation - fresh.observation).max() > 1e-3, "the observation at the end is the true one"


def test_a_cart_begins_hanging_in_the_middle_and_a_pendulum_anywhere():
    drawn = make(NAMES[0]).draw_resets(jax.random.key(0), (500, 2))
    assert drawn.observation.shape == (500, 2, 5)
    np.testing.assert_allclose(np.std(np.asarray(drawn.observation), (0, 1))[[0, 2, 3, 4]], 0.01, rtol=0.1)
    np.testing.assert_allclose(np.mean(drawn.observation, (0, 1)), [0, -1, 0, 0, 0], atol=0.002)
    drawn = make(NAMES[1]).draw_resets(jax.random.key(0), (2_000,)).observation
    quarters = np.histogram(np.arctan2(drawn[:, 1], drawn[:, 0]), 4, (-np.pi, np.pi))[0]
    assert quarters.min() > 400
    assert not drawn[:, 2].any()


@pytest.mark.parametrize("name", NAMES)
def test_an_action_beyond_one_pushes_as_one_does(name):
    environment = make(name)
    states = environment.draw_resets(jax.random.key(2), (4,)).observation
    at_one, beyond = (environment.dynamics(states, jnp.full((4, 1), size)) for size in (1.0, 3.0))
    np.testing.assert_array_equal(at_one, beyond)


# ----------------------------------------------------------------------------------------------------------- other bodies

SCALED = {"mass": 1.5, "length": 0.6, "damping": 3.0, "gravity": 0.8, "force": 1.7}
WORDS = {  # of the suite's models: the words that have a factor's numbers, with one place for each number
    "control/cartpole-swingup": {
        "mass": (('mass=".1"', 'mass="{}"', (0.1,)), ('mass="1"', 'mass="{}"', (1.0,))),
        "length": (('fromto="0 0 0 0 0 1"', 'fromto="0 0 0 0 0 {}"', (1.0,)),),
        "damping": (('damping="2e-6"', 'damping="{}"', (2e-6,)), ('damping="5e-4"', 'damping="{}"', (5e-4,))),
        "gravity": (('timestep="0.01"', 'timestep="0.01" gravity="0 0 {}"', (-9.81,)),),
        "force": (('gear="10"', 'gear="{}"', (10.0,)),),
    },
    "control/pendulum-swingup": {
        "mass": (('size="0.05" mass="1"', 'size="0.05" mass="{}"', (1.0,)),),
        "length": (('pos="0 0 0.5"', 'pos="0 0 {}"', (0.5,)),),
        "damping": (('damping="0.1"', 'damping="{}"', (0.1,)),),
        "gravity": (('timestep="0.02"', 'timestep="0.02" gravity="0 0 {}"', (-9.81,)),),
        "force": (('gear="1"', 'gear="{}"', (1.0,)),),
    },
}


def suite_with(name, factors):
    """The suite's own physics, of its model with other numbers."""
    task = suite_task(name)  # which imports the suite
    from dm_control.suite import cartpole, pendulum

    room = cartpole if "cartpole" in name else pendulum
    text, assets = room.get_model_and_assets()
    text = text.decode() if isinstance(text, bytes) else text
    for factor, value in factors.items():
        for old, new, own in WORDS[name][factor]:
            assert text.count(old) == 1, (old, text)
            text = text.replace(old, new.format(*(value * each for each in own)))
    return type(task.physics).from_xml_string(text, assets)


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_of_the_physics_makes_the_body_that_the_suites_model_is_with_that_number(name):
    cases = [{factor: value} for factor, value in SCALED.items()] + [SCALED]
    position, velocity, action = (each[:40] for each in samples(name))
    own = of_suite(name)[0][:40]
    with jax.enable_x64(True):
        for factors in cases:
            physics, found = suite_with(name, factors), []
            for at, speed, push in zip(position, velocity, action, strict=True):
                with physics.reset_context():
                    physics.data.qpos[:], physics.data.qvel[:] = at, speed
                physics.set_control([push])
                physics.step()
                found.append(np.concatenate([physics.data.qpos, physics.data.qvel]))
            environment = env.make_environment(EnvironmentConfig(name=name, physics=PhysicsConfig(**factors)))
            observe = control._TASKS[name].observe
            states = observe(jnp.asarray(position), jnp.asarray(velocity))
            size = position.shape[1]
            expected = observe(*(jnp.asarray(np.array(found)[:, part]) for part in (slice(size), slice(size, None))))
            given = environment.dynamics(states, jnp.asarray(action)[:, None])
            np.testing.assert_allclose(given, expected, atol=1e-10, err_msg=str(factors))
            assert np.abs(np.array(found) - own).max() > 1e-8, factors


def test_a_simulator_steps_the_body_that_its_settings_name():
    config = EnvironmentConfig(name=NAMES[0], physics=PhysicsConfig(length=2.0), action_repeat=4)
    environment, own = env.make_environment(config), env.make_environment(dataclasses.replace(config, physics=PhysicsConfig()))
    state = environment.draw_resets(jax.random.key(0), ())
    row = environment.step(state, jnp.ones(1), state)[1]
    np.testing.assert_allclose(row.next_observation, environment.dynamics(state.observation, jnp.ones(1)), atol=1e-5)
    assert np.abs(row.next_observation - own.step(state, jnp.ones(1), state)[1].next_observation).max() > 1e-2


def test_factors_are_refused_where_they_would_do_nothing():
    physics = PhysicsConfig(length=2.0)
    for name in ("Pendulum-v1", "gymnasium/Pendulum-v1"):
        with pytest.raises(ConfigError, match=rf"environment.physics.length: 2.0 does not fit; '{name}' cannot scale it"):
            env.make_environment(EnvironmentConfig(name=name, physics=physics))
    with pytest.raises(ConfigError, match=r"must be 1.0; control/cartpole-swingup, control/pendulum-swingup can"):
        env.environment_of(EnvironmentConfig(physics=physics), make(NAMES[0]))
    for wrong in (("mass", "width"), "mass"):
        with pytest.raises(ConfigError, match=r"physics: .* does not fit; it must be a tuple of names out of mass, length"):
            env.register("mine/body", make, physics=wrong)
    content = {"algorithm": "dmo", "environment": {"name": NAMES[0], "physics": {"pole_mass": 2.0}}}
    with pytest.raises(ConfigError, match=r"environment.physics.pole_mass: there is no such setting; there are mass, length"):
        from_dict(content)
