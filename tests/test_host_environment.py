import dataclasses

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from mbrl_jax import environments as env
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.environments.episodes import Episodes, play, record
from tests.lines import LIMIT, Line, line

SHORT = EnvironmentConfig(time_limit=LIMIT)


def made(name, **settings):
    return env.make_environment(EnvironmentConfig(name=name, **settings))


def test_a_name_of_gymnasium_has_its_spaces_limit_marks_and_names():
    task = made("gymnasium/CartPole-v1")
    spec = task.spec
    assert (spec.name, spec.observation_size, spec.action_count, spec.time_limit) == ("gymnasium/CartPole-v1", 4, 2, 500)
    assert spec.observation_scale[0] == spec.observation_limits[0] == np.float32(4.8)  # where the space has bounds
    assert 0.5 < spec.observation_scale[1] < 4  # where it has none, as far as random steps went
    assert spec.observation_limits[1] == np.inf
    assert (task.reward, task.terminated, task.dynamics) == (None, None, None)
    assert env.success_marks(spec.name) == env.success_marks("CartPole-v1")
    assert env.view_of(spec.name, 4).axes == env.view_of("CartPole-v1", 4).axes
    assert env.success_marks("gymnasium/InvertedPendulum-v5") == (950.0,)
    assert made("gymnasium/CartPole-v1", time_limit=20).spec.time_limit == 20


def test_continuous_actions_have_a_scale_and_a_centre():
    task = made("gymnasium/Pendulum-v1")
    assert (task.spec.action_size, task.spec.action_scale, task.spec.action_centre) == (1, (2.0,), ())
    valve = task.spec._replace(action_scale=(0.5,), action_centre=(0.5,))
    assert env.in_units(valve, np.array([[-1.0], [0.0], [1.0]], np.float32)).tolist() == [[0.0], [0.5], [1.0]]
    with pytest.raises(ConfigError, match="action_centre: .* does not fit; it must be 1 numbers, one for each of an action"):
        env.in_units(valve._replace(action_centre=(1.0, 2.0)), np.zeros(1))


def test_the_last_observation_of_an_episode_is_the_true_one_and_a_time_limit_is_no_termination():
    host = env.environment_of(SHORT, line).host
    copies = host.copies(2)
    there_and_back = np.array([[1, 0]] * LIMIT + [[1, 1]] * LIMIT).reshape(-1)[: 2 * LIMIT]
    turn = lambda _, step: (np.array([1, there_and_back[step]]), np.full(2, step))  # noqa: E731
    rows, told, made = record(Episodes(copies, [0, 1]), turn, 9)
    up, back = (jax.tree.map(lambda leaf, seed=seed: leaf[seed], rows) for seed in range(2))
    assert up.next_observation[:, 0].tolist() == [0.25, 0.5, 0.75] * 3
    assert up.observation[:, 0].tolist() == [0.0, 0.25, 0.5] * 3
    assert up.elapsed.tolist() == [0, 1, 2] * 3
    assert up.terminated.tolist() == [False, False, True] * 3
    assert not up.truncated.any()
    assert back.truncated.tolist() == [step == LIMIT - 1 for step in range(9)]
    assert not back.terminated.any()
    assert back.next_observation[LIMIT - 1].tolist() == [0.25, LIMIT / 8]
    assert back.observation[LIMIT].tolist() == [0.0, 0.0]
    assert back.elapsed.tolist() == [*range(LIMIT), 0, 1]
    assert (up.reward[2], told[:, 4].tolist()) == (1.5, [4, 4])
    assert rows.observation.dtype == rows.reward.dtype == np.float32
    assert made.shape == (2, 9)
    assert made.all()


def test_returns_are_of_whole_episodes_and_missing_where_a_simulator_fails():
    def burn(told):
        raise RuntimeError("the motor burns")

    makers = iter([line, lambda: line(burn, at=5)])
    host = env.environment_of(SHORT, line).host._replace(make=lambda: next(makers)())
    returns = play(Episodes(host.copies(2), [0, 1]), lambda episodes: np.ones(2, np.int64), 2)
    np.testing.assert_array_equal(returns, [[3.0, 3.0], [3.0, np.nan]])


def test_an_object_is_copied_and_a_registered_one_made_again():
    walk = line()
    task = env.environment_of(SHORT, walk)
    copies = task.host.copies(2)
    Episodes(copies, [0, 1])
    assert not hasattr(walk.unwrapped, "place"), "the object itself is left alone"
    assert not copies.failures
    known = env.environment_of(EnvironmentConfig(), gymnasium.make("CartPole-v1"))
    assert (known.spec.name, known.spec.time_limit) == ("gymnasium/CartPole-v1", 500)
    assert env.environment_of(SHORT, Line).spec.name == "Line"


def test_a_module_names_a_class_a_function_or_an_environment(tmp_path, monkeypatch):
    (tmp_path / "my_walks.py").write_text(
        "from tests.lines import Line, line\n"
        "def short(config):\n    return line()\n"
        "def known(config):\n"
        "    from mbrl_jax.environments import host_environment\n"
        "    return host_environment(line, config=config, reward=lambda s, a, s2: 2 * s2[..., 0])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert made("my_walks:Line", time_limit=5).spec.time_limit == 5
    assert made("my_walks:short").spec[:4] == ("my_walks:short", 2, 2, LIMIT)
    assert made("my_walks:known").reward is not None


class Odd(Line):
    """A walk of which something is wrong before anything is trained."""

    def __init__(self, **changes):
        super().__init__()
        for name, value in changes.items():
            setattr(self, name, value)


def unlike(**changes):
    return lambda: Odd(**changes)


def fails():
    raise OSError("no such port")


SMALL = spaces.Box(-0.1, 0.1, (2,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (fails, "environment: no simulator can be made: OSError: no such port"),
        (lambda: 3, "environment: the function gives int, which does not fit; it must give a gymnasium.Env"),
        (3, "environment: int does not fit; it must be an mbrl_jax.Environment, a gymnasium.Env, or a function that makes one"),
        (unlike(observation_space=SMALL), r"number 0 is -?0.25, which its space says cannot be; it must be from -0.1"),
        (
            unlike(observation_space=spaces.Box(-1, 1, (3,))),
            r"observation of Odd: float64\[2\] does not fit; it must be float32\[3\]",
        ),
        (unlike(action_space=spaces.Box(-np.inf, np.inf, (1,))), "action space of Odd: .* must have finite bounds"),
        (unlike(observation=lambda: np.full(2, np.nan)), "observation of Odd: number 0 is nan; it must be finite"),
        (unlike(fault=lambda told: (told[0], "much", *told[2:]), at=1), "reward of Odd: 'much' does not fit"),
    ],
)
def test_what_can_be_known_beforehand_is_refused_before_anything_compiles(tiny, given, message):
    config = dataclasses.replace(tiny, environment=SHORT)
    with pytest.raises(ConfigError, match=message):
        dyna_q.make_train(config, environment=given)


def test_a_length_of_episodes_is_needed_and_one_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="environment.time_limit: None does not fit; nothing limits the episodes"):
        env.environment_of(EnvironmentConfig(), Line)
    with pytest.raises(
        ConfigError, match="environment.time_limit: 20 does not fit; a wrapper of Line ends episodes after 7, so it"
    ):
        env.environment_of(EnvironmentConfig(time_limit=20), line)


def test_names_that_gymnasium_does_not_know_or_cannot_make_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="environment.name: 'gymnasium/Cart-v1' does not fit; Gymnasium says: .*Cart"):
        made("gymnasium/Cart-v1")
    with pytest.raises(ConfigError, match="must be one of .*CartPole-v1, .*gymnasium/NAME.*or package.module:function"):
        made("gymnasio/CartPole-v1")

    def cannot(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gymnasium, "make", cannot)
    with pytest.raises(ConfigError, match=r"install the extra `mbrl-jax\[mujoco\]`: MuJoCo is not installed"):
        made("gymnasium/Hopper-v5")


def test_an_object_that_cannot_be_copied_is_refused():
    class Tied(Line):
        def __deepcopy__(self, memo):
            raise TypeError("a robot cannot be copied")

    with pytest.raises(ConfigError, match="environment: Tied cannot be copied .*give the function that makes it"):
        env.environment_of(SHORT, Tied())


def test_a_compiled_program_of_a_whole_run_is_refused(tiny):
    train = dyna_q.make_train(dataclasses.replace(tiny, environment=SHORT), environment=line)
    with pytest.raises(ConfigError, match="the host steps it, between calls of the devices: train by mbrl_jax.run"):
        jax.eval_shape(train.train, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "value", "right"), [("block_steps", 5, "None"), ("processes", False, "None"), ("timeout", 5.0, "60.0")]
)
def test_a_setting_of_the_host_is_refused_where_the_devices_step(name, value, right):
    config = EnvironmentConfig(**{name: value})
    message = f"environment.{name}: {value!r} does not fit; 'CartPole-v1' is stepped on the devices, .* so it must be {right}"
    for make in (env.make_environment, lambda config: env.environment_of(config, env.make_environment(EnvironmentConfig()))):
        with pytest.raises(ConfigError, match=message):
            make(config)
    assert env.environment_of(dataclasses.replace(config, time_limit=LIMIT), line).host is not None
