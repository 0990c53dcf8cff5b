"""The tasks of gymnax that have no known reward, each step against their own simulator."""

import functools

import gymnax
import jax
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import gymnax_suites
from mbrl_jax.environments.gymnax_suites import BSUITE, MINATAR, MISC

LANES, LIMIT, STEPS = 16, 9, 25
OPTIONS = {"xla_backend_optimization_level": 0}  # compiles in a fraction of the time
SHAPES = {  # of an observation, and of an action or how many there are
    "Asterix-MinAtar": ((10, 10, 4), 5),
    "Breakout-MinAtar": ((10, 10, 4), 3),
    "Freeway-MinAtar": ((10, 10, 7), 3),
    "Seaquest-MinAtar": ((10, 10, 10), 6),
    "SpaceInvaders-MinAtar": ((10, 10, 6), 4),
    "Catch-bsuite": ((10, 5), 3),
    "DeepSea-bsuite": ((8, 8), 2),
    "DiscountingChain-bsuite": ((2,), 5),
    "MemoryChain-bsuite": ((3,), 2),
    "UmbrellaChain-bsuite": ((3,), 2),
    "FourRooms-misc": ((4,), 4),
    "MetaMaze-misc": ((15,), 4),
    "PointRobot-misc": ((6,), (2,)),
    "Reacher-misc": ((8,), (2,)),
    "Swimmer-misc": ((16,), (2,)),
}


@functools.cache
def make(name, time_limit=LIMIT):
    return env.make_environment(EnvironmentConfig(name=name, time_limit=time_limit))


@functools.cache
def played(name):
    """Random episodes of several lanes: the rows [T, lanes], the states before and after, what the simulator says, the resets."""
    task = make(name)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        simulator, parameters = gymnax.make(name)
        parameters = parameters.replace(max_steps_in_episode=LIMIT)
        scale = simulator.action_space(parameters).high if task.spec.continuous else 1

    def step(state, action, fresh):
        after, row = task.step(state, action, fresh)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.inner.key), state.inner.simulator.time)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs = simulator.step_env(key, state.inner.simulator, action * scale, parameters)
            return after, row, (*theirs[:4], simulator.is_truncated(theirs[1], parameters))

    reset = jax.jit(task.draw_resets, static_argnums=1, compiler_options=OPTIONS)
    stepped = jax.jit(jax.vmap(step), compiler_options=OPTIONS)
    fresh = jax.device_get(reset(jax.random.key(1), (LANES,)))
    state, rows = jax.device_get(reset(jax.random.key(0), (LANES,))), []
    shape = (STEPS, LANES, *task.spec.action_shape)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, shape) if task.spec.continuous else generator.integers(0, task.spec.action_count, shape)
    for action in actions.astype(np.float32 if task.spec.continuous else np.int32):
        after, row, theirs = jax.device_get(stepped(state, action, fresh))
        rows.append((state, after, row, theirs))
        state = after
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), fresh


@pytest.mark.parametrize("name", [*MINATAR, *BSUITE, *MISC])
def test_each_step_is_that_of_the_tasks_own_simulator(name):
    (before, after, rows, theirs), fresh = played(name)
    observation, _, reward, terminated, truncated = theirs
    ended = terminated | truncated
    shape, actions = SHAPES[name]
    spec = make(name).spec
    assert (spec.observation_shape, spec.observation_size) == (shape if len(shape) > 1 else (), np.prod(shape))
    assert (spec.action_shape if spec.continuous else spec.action_count) == actions
    np.testing.assert_allclose(rows.next_observation, observation.reshape(rows.next_observation.shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rows.reward, reward.reshape(rows.reward.shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(rows.terminated, terminated)
    np.testing.assert_array_equal(rows.truncated, truncated)
    np.testing.assert_array_equal(rows.observation, before.observation)
    np.testing.assert_array_equal(rows.elapsed, before.inner.simulator.time)
    assert rows.elapsed.max() == (LIMIT - 1 if truncated.any() else rows.elapsed.max()) > 0
    assert truncated[rows.elapsed == LIMIT - 1].all()
    assert not truncated[rows.elapsed < LIMIT - 1].any()
    where_it_goes_on = np.where(ended[..., None], fresh.observation, rows.next_observation)
    np.testing.assert_array_equal(after.observation, where_it_goes_on)
    assert ended.any(), "the fresh state is never used"
    assert len(np.unique(rows.next_observation.reshape(-1, spec.observation_size), axis=0)) > 2
    assert make(name).reward is make(name).terminated is None


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "Catch-bsuite"])
def test_images_are_given_as_images_and_used_as_vectors(name):
    raw = gymnax_suites.make(EnvironmentConfig(name=name))
    state = jax.eval_shape(lambda key: raw.draw_resets(key, (2,)), jax.random.key(0))
    assert state.observation.shape == (2, *SHAPES[name][0])
    assert make(name).spec.observation_shape == SHAPES[name][0]
    assert played(name)[1].observation.shape == (LANES, np.prod(SHAPES[name][0]))


def test_the_noise_of_an_episode_follows_from_its_reset_and_its_steps():
    task, lanes = make("UmbrellaChain-bsuite"), 64  # whose reward on the way is -1 or 1, whatever is done
    step = jax.jit(jax.vmap(task.step), compiler_options=OPTIONS)
    reset = jax.device_get(task.draw_resets(jax.random.key(0), (1,)))
    same = jax.tree.map(lambda leaf: np.repeat(leaf, lanes, axis=0), reset)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), lanes)))
    times = np.arange(lanes, dtype=same.inner.simulator.time.dtype)
    other_keys = same._replace(inner=same.inner._replace(key=keys))
    other_times = same._replace(inner=same.inner._replace(simulator=same.inner.simulator.replace(time=times)))
    earned = [set(step(state, np.zeros(lanes, np.int32), state)[1].reward.tolist()) for state in (same, other_keys, other_times)]
    assert [len(each) for each in earned] == [1, 2, 2]
    assert earned[1] == earned[2] == {-1.0, 1.0}
    two = jax.device_get(task.draw_resets(jax.random.key(0), (2,))).inner.key
    assert (two[0] != two[1]).any()


def test_each_task_has_the_time_limit_of_gymnax_unless_it_is_set():
    assert make("Freeway-MinAtar", None).spec.time_limit == 2500
    assert make("Freeway-MinAtar").spec.time_limit == LIMIT


def test_the_scale_of_an_axis_is_its_largest_magnitude_and_one_where_it_has_no_bounds():
    assert gymnax_suites._scale(np.array([-3.0, -np.inf, 0.0, 0.0]), np.array([1.0, np.inf, 0.5, 0.0]), (4,)) == (
        3.0,
        1.0,
        0.5,
        1.0,
    )
    assert gymnax_suites._scale(0, 2, (2, 2)) == (2.0,) * 4
    assert make("PointRobot-misc").spec.action_scale == pytest.approx((0.1, 0.1))
