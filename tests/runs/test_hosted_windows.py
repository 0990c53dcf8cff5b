"""Windows of simulators on the host, several for each seed: what decoupled backpropagation learns from them."""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import planted
from gymnasium import spaces

from mbrl_jax import load_policy
from mbrl_jax.algorithms import dmo
from mbrl_jax.algorithms.hosted import block_of
from mbrl_jax.config import (
    ConfigError,
    DMOConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ModelConfig,
    PolicyGradientConfig,
    check,
)
from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, make_environment, restart
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.runs import keeping, runner, transitions
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train

LIMIT, COPIES, WINDOW = 7, 3, 4
SPEC = EnvironmentSpec("slide", 2, 0, LIMIT, (1.0, 1.0), action_size=1)
CONFIG = DMOConfig(
    random_transitions=24,
    steps=3 * COPIES * WINDOW,
    round_steps=COPIES * WINDOW,
    metric_steps=COPIES * WINDOW,
    model=ModelConfig(members=2, hidden=(8,), batch_size=8, epochs=2, refit_batches=2, prediction="deterministic"),
    agent=PolicyGradientConfig(estimator="pathwise", hidden=(8,), learning_rate=1e-2, discount=0.9),
    copies=COPIES,
    window_steps=WINDOW,
    critic_updates=2,
    critic_batch=8,
    probes=2,
    evaluation=EvaluationConfig(episodes=3, curve_episodes=2),
)


def pure():
    """A thing that actions slide along a line without any chance, as pure functions; its reward is learned."""

    def state_of(place, time):
        return EnvironmentState((place, time), jnp.stack([place, time.astype(place.dtype) / 8], -1))

    def draw_resets(key, shape):
        return state_of(jnp.zeros(shape), jnp.zeros(shape, jnp.int32))

    def step(state, action, fresh):
        place, time = state.inner
        after = state_of(place + 0.25 * action[0], time + 1)
        reward, flag = 1 - jnp.square(after.inner[0] - 0.5), time + 1 >= LIMIT
        told = Transition(state.observation, action, reward, after.observation, jnp.zeros_like(flag), flag, time)
        return restart(after, fresh, flag), told

    return Environment(SPEC, draw_resets, step)


class Slide(gymnasium.Env):
    """The same, of which one may break at its n-th step."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def __init__(self, at=None):
        self.at, self.made = at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = np.float32(0), 0
        return self.observation(), {}

    def observation(self):
        return np.array([self.place, self.time / 8], np.float32)

    def step(self, action):
        self.made += 1
        if self.made == self.at:
            raise RuntimeError("it jams")
        self.place, self.time = np.float32(self.place + np.float32(0.25) * action[0]), self.time + 1
        return self.observation(), float(1 - (self.place - 0.5) ** 2), False, False, {}


def slide(at=None):
    return gymnasium.wrappers.TimeLimit(Slide(at), LIMIT)


def assert_same(one, other):
    paths, _ = jax.tree_util.tree_flatten_with_path(one)
    for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def on_devices():
    """The run of the loop in which simulators are pure functions; observations on the scale that the host measures."""
    scale = runner.environment_of(CONFIG.environment, slide).spec.observation_scale
    task = pure()
    return runner.run(CONFIG, 2, environment=task._replace(spec=task.spec._replace(observation_scale=scale)))


@pytest.fixture(scope="module")
def program():
    return runner.prepare([CONFIG], 2, environment=slide)


@pytest.fixture(scope="module")
def on_host(program):
    return train(program, Batch(0, 2))


def test_simulators_that_the_host_steps_give_the_numbers_of_those_that_the_devices_step(on_devices, on_host):
    assert_same(on_host.result, on_devices.result)
    assert on_host.result.outcome.updates.tolist() == [3, 3]
    assert np.isfinite(on_host.result.outcome.returns_last).all()


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("algorithms.dmo:behaviour_of", ", act, Stream.ROUND)", ", act)"),  # the host acts by other numbers than learning draws
        ("algorithms.hosted:learn", "jax.vmap(load)", "lambda rows, told: jax.vmap(load)(rows, told)._replace(observation="
         "rows.observation[:, -1])"),  # a window begins where it ends
    ],
)  # fmt: skip
def test_a_fault_in_how_windows_are_recorded_is_caught(on_devices, where, old, new):
    with planted(where, old, new):
        found = runner.run(dataclasses.replace(CONFIG, steps=COPIES * WINDOW), 2, environment=slide)
    kernels = [run.result.metrics.update.gradient_norm[:, 0] for run in (found, on_devices)]
    assert not np.allclose(*kernels, rtol=2e-3)


def test_one_simulator_that_fails_costs_its_seed_and_the_other_does_not_notice(program, on_host):
    host = program._host
    makers = iter([*[slide] * 2, *[slide] * 4, lambda: slide(6), slide, *[slide] * 2])  # to collect, for both seeds, to judge
    program._host = host._replace(make=lambda: next(makers)())
    hurt = train(program, Batch(0, 2))
    program._host = host
    assert list(hurt.failures) == [1]
    assert "RuntimeError: it jams" in hurt.failures[1]
    one, other = (jax.tree.map(lambda leaf: leaf[0], run.result) for run in (on_host, hurt))
    assert_same(one, other)
    assert hurt.result.outcome.frozen.tolist() == [False, True]
    assert hurt.result.outcome.updates.tolist() == [3, 1]  # it rests as the first window left it


def test_a_row_goes_on_only_where_the_same_simulator_does():
    at = np.array([0, 1, 10, 11, 2, 3, 12, 13], np.float32)[:, None]  # of two simulators in step, two rows of each in turns
    flag = np.zeros(8, bool)
    rows = Logged(at, at, at[:, 0], at + 1, flag, flag, np.array([0, 1, 0, 1, 2, 3, 2, 3]), flag)
    assert transitions.cut(rows, several=True).truncated.tolist() == [False, True] * 4
    assert transitions.cut(rows).truncated.tolist() == [False, True, False, False, False, True, False, True]


def test_a_simulator_of_gymnasium_is_learned_from_recorded_saved_and_played(tmp_path):
    config = dataclasses.replace(CONFIG, environment=EnvironmentConfig(name="gymnasium/Pendulum-v1", time_limit=6))
    run = keeping.keep(Asked(config, 1, 0, False), tmp_path / "run", keeping.Keeping(), "the command", Display.silent())
    assert run.result.metrics.update.gradient_norm.shape == (1, 3, 1)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "run" / transitions.FILE)
    assert table.num_rows == config.real_transitions == 24 + 36
    after = np.array(table["next_observation"].to_pylist())
    before, truncated = np.array(table["observation"].to_pylist()), np.array(table["truncated"].to_pylist())
    np.testing.assert_array_equal(before[1:][~truncated[:-1]], after[:-1][~truncated[:-1]])
    assert truncated.sum() == 24 // 6 + 4 * COPIES  # of each, two episodes of 6 steps end, and two windows of 4 within one
    assert load_policy(tmp_path / "run")(np.zeros((5, 3), np.float32), seed=0).shape == (5, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": "true"}, r"gradient: 'true' does not fit; 'gymnasium/Pendulum-v1' is stepped on the host and cannot"),
        (
            {"surrogate_error": "finite"},
            r"surrogate_error: 'finite' does not fit; 'gymnasium/Pendulum-v1' is stepped on the host",
        ),
    ],
)
def test_what_asks_a_simulator_on_the_host_for_more_than_steps_is_refused(changes, message):
    config = dataclasses.replace(CONFIG, environment=EnvironmentConfig(name="gymnasium/Pendulum-v1"), **changes)
    with pytest.raises(ConfigError, match=message):
        dmo.make_train(config)


def test_a_block_is_a_window():
    assert block_of(CONFIG) == WINDOW
    environment = EnvironmentConfig(name="gymnasium/Pendulum-v1", block_steps=2)
    with pytest.raises(ConfigError, match=r"environment.block_steps: 2 does not fit; .* it must be window_steps \(4\)"):
        check(dataclasses.replace(CONFIG, environment=environment))
    assert make_environment(dataclasses.replace(environment, block_steps=WINDOW)).host is not None
