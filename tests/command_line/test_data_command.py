import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import command_line
from mbrl_jax.agents.protocol import Policy
from mbrl_jax.command_line import data as data_command
from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.environments import Environment, make_environment
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.episodes import Episodes, concatenate
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.findings import find
from mbrl_jax.serving import recording


@pytest.fixture(scope="module")
def torques(tmp_path_factory):
    """250 random transitions of Pendulum in a file."""
    path = tmp_path_factory.mktemp("logs") / "torques.parquet"
    data_command.collect("Pendulum-v1", 250, path)
    return path


def test_what_is_collected_is_sound_in_the_tasks_own_units(torques):
    rows = concatenate(list(Episodes([open_log(str(torques))])))
    assert len(rows.reward) == 250
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [199, 249])
    assert 1.5 < np.abs(rows.action).max() <= 2
    angle = np.arctan2(rows.observation[:, 1], rows.observation[:, 0])
    cost = angle**2 + 0.1 * rows.observation[:, 2] ** 2 + 0.001 * rows.action[:, 0] ** 2
    np.testing.assert_allclose(rows.reward, -cost, rtol=1e-4, atol=1e-5)
    audit = Audit([open_log(str(torques))], make_environment(EnvironmentConfig(name="Pendulum-v1")))
    assert [finding.text for finding in find(audit) if finding.level == "error"] == []


def test_the_same_seed_gives_the_same_file_and_another_another(torques, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        data_command.collect("Pendulum-v1", 250, tmp_path / f"{name}.parquet", seed=seed)
    assert (tmp_path / "same.parquet").read_bytes() == torques.read_bytes()
    assert (tmp_path / "other.parquet").read_bytes() != torques.read_bytes()


@pytest.fixture(scope="module")
def recorded(cartpole: Environment):
    """Of CartPole, by a policy that pushes right in an episode's first step, then left; without random actions, and with half."""

    def act(params, memory, observation):
        return memory + 1, jnp.where(memory == 0, 1, 0)

    policy = Policy(lambda params, key, episodes: jnp.zeros(episodes, jnp.int32), act)
    return [concatenate(list(recording.record(cartpole, policy, (), jax.random.key(0), 60, epsilon))) for epsilon in (0.0, 0.5)]


def test_a_policys_memory_begins_anew_with_every_episode(recorded):
    rows, _ = recorded
    np.testing.assert_array_equal(rows.action, rows.elapsed == 0)
    assert np.sum(rows.elapsed == 0) >= 4


def test_a_share_of_the_actions_is_random(recorded):
    _, rows = recorded
    assert 0.1 < np.mean(rows.action != (rows.elapsed == 0)) < 0.4


def test_blocks_do_not_show_in_what_is_recorded_of_an_episode(cartpole, monkeypatch):
    monkeypatch.setattr(recording, "BLOCK", 25)
    rows = concatenate(list(recording.record(cartpole, None, None, jax.random.key(0), 60)))
    goes_on = ~(rows.terminated | rows.truncated)[:-1]
    np.testing.assert_array_equal(rows.next_observation[:-1][goes_on], rows.observation[1:][goes_on])
    np.testing.assert_array_equal(rows.elapsed[1:][goes_on], rows.elapsed[:-1][goes_on] + 1)
    assert rows.truncated[-1] != rows.terminated[-1]


def test_check_says_what_is_there_and_draws_it(torques, tmp_path, capsys):
    command_line.main(["data", "check", str(torques), "--environment", "Pendulum-v1", "--figure", str(tmp_path / "check.png")])
    told = capsys.readouterr().out
    for text in (
        "250",
        "50 to 200",
        "of magnitudes up to 2",
        "observation 2",
        "no row is a termination",
        "training can begin",
    ):
        assert text in told
    assert (tmp_path / "check.png").stat().st_size > 10_000


def test_check_exits_with_1_where_no_training_could_be_right(tmp_path, capsys):
    values = np.cumsum(np.ones((40, 2), np.float32), axis=0)
    np.savez(
        tmp_path / "log.npz",
        observation=values,
        action=np.zeros(40, np.int64),
        reward=np.ones(40),
        next_observation=values + 1,
        terminated=np.arange(40) == 39,
        truncated=np.zeros(40, bool),
    )
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["data", "check", str(tmp_path / "log.npz")])
    assert stopped.value.code == 1
    told = capsys.readouterr().out
    assert "error: action: it never varies" in told
    assert "training could not be right: 2 errors" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data: 'nothing' is no command; it must be check or collect"),
        (["check", "nowhere.parquet"], "data: 'nowhere.parquet' does not fit; there is no such file"),
        (["collect", "Pendulum-v1", "--transitions", "0", "--out", "a.parquet"], "transitions: 0 is out of range"),
        (["collect", "Pendulum-v1", "--transitions", "9", "--out", "a.csv"], "its name must end in .parquet"),
        (
            ["collect", "Pendulum-v1", "--transitions", "9", "--out", "a.parquet", "--epsilon", "2"],
            "epsilon: 2.0 is out of range",
        ),
        (["collect", "Nothing-v1", "--transitions", "9", "--out", "a.parquet"], "environment.name: 'Nothing-v1' is not known"),
        (["collect", "Pendulum-v1", "--transitions", "9", "--out", "a.parquet", "--policy", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["data", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_as_it_is(torques):
    before = torques.read_bytes()
    with pytest.raises(ConfigError, match="exists already and is left as it is"):
        data_command.collect("Pendulum-v1", 9, torques)
    assert torques.read_bytes() == before
