import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.agents.protocol import without_memory
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.report.rollouts import play_on_host
from tests.lines import line

ALWAYS = without_memory(lambda params, s: jnp.broadcast_to(params, s.shape[:1]).astype(jnp.int32))


def test_what_a_report_shows_of_a_simulator_is_played_in_it():
    task = env.environment_of(EnvironmentConfig(), line)
    played = play_on_host(task, ALWAYS, np.array([1, 0]), seed_keys(0, 2), 7)
    assert played.next_observation[0, :, 0].tolist() == [0.25, 0.5, 0.75, 0.25, 0.5, 0.75, 0.25]
    assert played.next_observation[1, :, 0].tolist() == [-0.25, -0.5, -0.75, -0.25, -0.5, -0.75, -0.25]
    assert played.terminated[0].tolist() == [False, False, True, False, False, True, False]
    random = play_on_host(task, ALWAYS, np.array([1, 0]), seed_keys(0, 2), 40, random=True)
    assert 0.2 < random.action.mean() < 0.8


def test_a_simulator_that_fails_while_it_is_shown_is_named_with_its_traceback():
    def burn(told):
        raise RuntimeError("the motor burns")

    task = env.environment_of(EnvironmentConfig(), line)
    task = task._replace(host=task.host._replace(make=lambda: line(burn, at=2)))
    with pytest.raises(ConfigError, match=r"(?s)a simulator of 'Line' failed:.*the motor burns"):
        play_on_host(task, ALWAYS, np.array([1]), seed_keys(0, 1), 7)
