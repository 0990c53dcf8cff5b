"""The simulators against gymnasium's own, one step at a time and over whole episodes."""

import math
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.config import EnvironmentConfig

from .agreement import Agreement

FIELDS = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
}
LOW_HIGH = {
    "CartPole-v1": ((-2.6, -3.0, -0.25, -3.5), (2.6, 3.0, 0.25, 3.5)),
    "Acrobot-v1": ((-math.pi, -math.pi, -4 * math.pi, -9 * math.pi), (math.pi, math.pi, 4 * math.pi, 9 * math.pi)),
    "MountainCar-v0": ((-1.2, -0.07), (0.6, 0.07)),
}
THETA = 12 * 2 * math.pi / 360


def at(environment: env.Environment, states: np.ndarray) -> env.EnvironmentState:
    """JAX episodes that stand at simulator states [n, S], on their first step."""
    drawn = environment.draw_resets(jax.random.key(0), (len(states),))
    fields = dict(zip(FIELDS[environment.spec.name], np.moveaxis(states, -1, 0), strict=True))
    inner = drawn.inner.replace(**{name: jnp.asarray(x, drawn.observation.dtype) for name, x in fields.items()})
    observation = jnp.stack([getattr(inner, name) for name in FIELDS[environment.spec.name]], axis=-1)
    if environment.spec.name == "Acrobot-v1":
        a, b, *velocities = jnp.moveaxis(observation, -1, 0)
        observation = jnp.stack([jnp.cos(a), jnp.sin(a), jnp.cos(b), jnp.sin(b), *velocities], axis=-1)
    return env.EnvironmentState(inner, observation)


def one_step(environment: env.Environment, states: np.ndarray, actions: np.ndarray) -> tuple[Any, ...]:
    """(s' [n, S], r [n], terminated [n]) of the JAX simulator; s' is of the simulator, where it has not ended."""
    begin = at(environment, states)
    step = jax.jit(jax.vmap(lambda state, action: environment.step(state, action, state)))
    _, transition = step(begin, jnp.asarray(actions, jnp.int32))
    return transition.next_observation, transition.reward, transition.terminated


def gymnasium_steps(name: str, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same from gymnasium, in float64, as observations."""
    simulator: Any = gymnasium.make(name, disable_env_checker=True).unwrapped
    after, rewards, ended = [], [], []
    for state, action in zip(states, actions.tolist(), strict=True):
        simulator.state, simulator.steps_beyond_terminated = state, None
        _, reward, terminated, _, _ = simulator.step(action)
        after.append(np.asarray(simulator.state, np.float64))
        rewards.append(reward)
        ended.append(terminated)
    states = np.stack(after)
    if name == "Acrobot-v1":
        a, b, *velocities = states.T
        states = np.stack([np.cos(a), np.sin(a), np.cos(b), np.sin(b), *velocities], axis=-1)
    return states, np.array(rewards), np.array(ended)


def running(name: str, states: np.ndarray) -> np.ndarray:
    """States that have not ended yet, which are all that a step is ever taken from."""
    if name == "CartPole-v1":
        return states[(abs(states[:, 0]) <= 2.4) & (abs(states[:, 2]) <= THETA)]
    if name == "MountainCar-v0":
        return states[~((states[:, 0] >= 0.5) & (states[:, 1] >= 0))]
    return states[~(-np.cos(states[:, 0]) - np.cos(states[:, 0] + states[:, 1]) > 1.0)]


@pytest.mark.parametrize(
    ("name", "count", "single_precision"),
    [("CartPole-v1", 100_000, 1e-6), ("Acrobot-v1", 10_000, 3e-4), ("MountainCar-v0", 10_000, 1e-6)],  # Acrobot's tip is fast
)
def test_one_step_is_gymnasiums(
    rng: np.random.Generator, agree: Agreement, name: str, count: int, single_precision: float
) -> None:
    environment = env.make_environment(EnvironmentConfig(name=name))
    states = running(name, rng.uniform(*LOW_HIGH[name], (2 * count, len(FIELDS[name]))))[:count]
    actions = rng.integers(0, environment.spec.action_count, len(states))
    theirs = gymnasium_steps(name, states, actions)
    ours = one_step(environment, states, actions)
    assert 0 < theirs[2].mean() < 1 or name == "Acrobot-v1"
    agree(f"{name}, {len(states):,} steps, states", ours[0], theirs[0], 1e-12, "gymnasium")
    agree(f"{name}, {len(states):,} steps, rewards and flags", ours[1:], theirs[1:], 0, "gymnasium")
    known = environment.reward(at(environment, states).observation, jnp.asarray(actions), ours[0])
    agree(f"{name}, known reward and termination", known, theirs[1], 0, "gymnasium")
    agree(f"{name}, known reward and termination", environment.terminated(ours[0], actions, ours[0]), theirs[2], 0, "gymnasium")
    with jax.enable_x64(False):
        single = states.astype(np.float32)
        ours32 = one_step(env.make_environment(EnvironmentConfig(name=name)), single, actions)
        assert ours32[0].dtype == np.float32
    agree(
        f"{name}, {len(states):,} steps, states, float32",
        ours32[0],
        gymnasium_steps(name, single.astype(np.float64), actions)[0],
        single_precision,
        "gymnasium",
    )


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize(("axis", "threshold"), [(0, 2.4), (2, THETA)])
def test_an_episode_ends_just_beyond_its_thresholds_as_gymnasiums_does(
    rng: np.random.Generator, agree: Agreement, sign: float, axis: int, threshold: float
) -> None:
    velocity = sign * threshold / 0.02 * (1 + np.arange(-8, 9) * np.finfo(np.float64).eps)
    states = np.zeros((len(velocity), 4))
    states[:, axis + 1] = velocity  # from the origin straight to the threshold, but for a few units in the last place
    actions = rng.integers(0, 2, len(states))
    theirs = gymnasium_steps("CartPole-v1", states, actions)
    assert 0 < theirs[2].sum() < len(states)
    ours = one_step(env.make_environment(EnvironmentConfig()), states, actions)
    agree("CartPole-v1, flags at the thresholds", ours[1:], theirs[1:], 0, "gymnasium")


def test_a_step_beyond_termination_earns_nothing_as_in_gymnasium(rng: np.random.Generator, agree: Agreement) -> None:
    simulator: Any = gymnasium.make("CartPole-v1", disable_env_checker=True).unwrapped
    simulator.reset(seed=0)
    start = np.array([2.39, 2.0, 0.0, 0.0])
    simulator.state = start
    first = simulator.step(1)
    beyond = np.array(simulator.state)
    with pytest.warns(UserWarning, match="even though this environment has already returned terminated = True"):
        second = simulator.step(1)
    environment = env.make_environment(EnvironmentConfig())
    _, rewards, ended = one_step(environment, np.stack([start, beyond]), np.array([1, 1]))
    assert [first[1], second[1]] == [1.0, 0.0]
    theirs = np.array([first[1:3], second[1:3]]).T
    agree("CartPole-v1, the step after termination", (rewards, ended), tuple(theirs), 0, "gymnasium")


def balance(observation: Any) -> Any:
    """A controller that keeps the pole up for good."""
    return observation @ np.array([0.1, 0.3, 3.0, 1.0]) > 0


def test_a_whole_episode_is_truncated_at_step_500_with_its_true_last_observation(
    rng: np.random.Generator, agree: Agreement
) -> None:
    theirs: Any = gymnasium.make("CartPole-v1", disable_env_checker=True)
    theirs.reset(seed=0)
    start = rng.uniform(-0.05, 0.05, 4)
    theirs.unwrapped.state = observation = start
    expected = []
    for _ in range(500):
        _, reward, terminated, truncated, _ = theirs.step(int(balance(observation)))
        observation = np.asarray(theirs.unwrapped.state)
        expected.append((observation, reward, terminated, truncated))
    assert [e[3] for e in expected] == [False] * 499 + [True]

    environment = env.make_environment(EnvironmentConfig())
    fresh = environment.draw_resets(jax.random.key(1), ())
    begin = jax.tree.map(lambda x: x[0], at(environment, start[None]))

    def step(state: env.EnvironmentState, _: None) -> Any:
        return environment.step(state, balance(state.observation).astype(jnp.int32), fresh)

    final, run = jax.jit(lambda begin: jax.lax.scan(step, begin, None, length=500))(begin)
    columns = [np.stack(column) for column in zip(*expected, strict=True)]
    # an upright pole multiplies every difference by ten in thirty steps, so rounding shows in the states of a long episode
    agree("CartPole-v1, 100 steps in a row, states", run.next_observation[:100], columns[0][:100], 1e-9, "gymnasium")
    flags = (run.reward, run.terminated, run.truncated)
    agree("CartPole-v1, truncation at step 500", flags, tuple(columns[1:]), 0, "gymnasium")
    agree("CartPole-v1, where an episode goes on", final.observation, fresh.observation, 0, "the reset that was drawn")
    np.testing.assert_array_equal(run.elapsed, np.arange(500))


def test_random_data_and_their_rows_are_the_references(rng: np.random.Generator, agree: Agreement) -> None:
    from mbrl_jax.algorithms import phases, training
    from mbrl_jax.reference import environment as reference
    from mbrl_jax.replay import make_replay

    n = 600
    environment = env.make_environment(EnvironmentConfig(time_limit=25))
    simulator = reference.Simulator(reference.make_task("CartPole-v1", 25))
    key = jax.random.key(int(rng.integers(2**31)))
    drawn = env.draw_collection(environment, training.stream(key, training.Stream.COLLECTION), n)
    states = [np.asarray(x.observation, np.float64) for x in (drawn.first, drawn.resets)]
    rows, finished = reference.collect(simulator, states[0], np.asarray(drawn.actions), states[1])
    replay = make_replay(environment.spec, n)
    _, ours, returns = jax.jit(lambda key: phases.collect(environment, replay, key, n))(key)
    collected, _ = replay.contents(ours)
    assert (np.asarray(drawn.actions) == rows.action.numpy()).all()
    assert 0 < rows.terminated.double().mean() < np.isfinite(finished).mean()  # some episodes are truncated
    agree("random collection, rows", collected._asdict(), {name: getattr(rows, name) for name in collected._fields}, 1e-12)
    agree("random collection, returns of episodes", training.missing_as_nan(returns), finished, 0)
