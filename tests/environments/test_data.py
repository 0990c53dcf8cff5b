import dataclasses
import re

import gymnasium
import numpy as np
import pytest
from logs import episodes, write

import mbrl_jax.model.worlds  # noqa: F401, it registers the kinds of models
from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError, DynaQConfig, EnvironmentConfig, ImaginedPGConfig, ModelConfig, ModelFreeQConfig
from mbrl_jax.environments import data, make_environment
from mbrl_jax.environments.logged import blocks
from mbrl_jax.environments.logged.episodes import Episodes, concatenate
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.writing import write_parquet

LENGTHS = (20, 30, 1, 25)


@pytest.fixture
def log(tmp_path):
    """Episodes of discrete actions in a file that says nothing else."""
    return write(episodes(LENGTHS, truncated=(1,)), tmp_path / "log.parquet")


@pytest.fixture
def torques(tmp_path):
    """Episodes of continuous actions."""
    return write(episodes(LENGTHS, continuous=True), tmp_path / "torques.npz")


def a_config(*files, name="none", **changes):
    """Of imagined policy gradients, which serve discrete and continuous actions."""
    environment = EnvironmentConfig(name=name, **changes.pop("environment", {}))
    changes = {"model": ModelConfig(batch_size=16)} | changes
    return ImaginedPGConfig(data=tuple(map(str, files)), environment=environment, **changes)


def test_a_config_is_settled_by_what_its_files_hold(log):
    settled = data.settle(a_config(log))
    columns = episodes(LENGTHS, truncated=(1,))
    assert settled.random_transitions == settled.real_transitions == 76
    assert settled.evaluation.where == "model"
    task = settled.environment
    assert (task.actions, task.action_scale, task.time_limit) == (2, None, 30)
    largest = np.abs(columns["observation"]).max(axis=0)
    assert all(scale * 0.99 <= most <= scale for scale, most in zip(task.observation_scale, largest, strict=True))
    assert data.settle(settled) == settled
    settings.check(settled)
    assert settings.from_dict(settings.to_dict(settled)) == settled


def test_the_task_of_a_settled_config_needs_no_file(log, tmp_path):
    settled = data.settle(a_config(log, environment={"observation_scale": (10.0, 50.0), "actions": 4, "time_limit": 99}))
    (tmp_path / "log.parquet").unlink()
    task = make_environment(settled.environment)
    assert (task.spec.observation_size, task.spec.action_count, task.spec.time_limit) == (2, 4, 99)
    assert task.spec.observation_scale == (10.0, 50.0)
    assert task.reward is task.terminated is task.dynamics is None
    assert not task.has_simulator
    with pytest.raises(ConfigError, match="'none' cannot be stepped"):
        task.draw_resets(None, ())


def test_continuous_actions_are_scaled_by_what_the_file_the_config_or_the_data_say(torques, tmp_path):
    declared = write(episodes(LENGTHS, continuous=True), tmp_path / "declared.parquet", action_scale=[4])
    largest = float(np.abs(episodes(LENGTHS, continuous=True)["action"]).max())
    for path, environment, scale in ((torques, {"action_scale": (8.0,)}, 8.0), (declared, {}, 4.0), (torques, {}, largest)):
        settled = data.settle(a_config(path, environment=environment))
        assert settled.environment.action_scale == pytest.approx((scale,), rel=0.01)
        found = data.load(settled, make_environment(settled.environment)).rows.action
        np.testing.assert_allclose(
            found * settled.environment.action_scale[0], episodes(LENGTHS, continuous=True)["action"], rtol=1e-5
        )


def test_a_config_that_names_no_files_is_settled_already():
    config = ModelFreeQConfig()
    assert data.settle(config) is config


def test_several_files_are_one_after_another(log, tmp_path):
    second = write(episodes((10, 8), seed=1), tmp_path / "second.npz")
    settled = data.settle(a_config(log, second))
    rows = data.load(settled, make_environment(settled.environment)).rows
    np.testing.assert_array_equal(rows.observation[76:], episodes((10, 8), seed=1)["observation"])
    np.testing.assert_array_equal(np.flatnonzero(rows.elapsed == 0), [0, 20, 50, 51, 76, 86])


def test_the_returns_of_logged_episodes_stand_where_they_ended(log):
    settled = data.settle(a_config(log))
    returns = data.load(settled, make_environment(settled.environment)).returns
    parts = np.split(episodes(LENGTHS)["reward"], np.cumsum(LENGTHS)[:-1])
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(returns)), np.cumsum(LENGTHS) - 1)
    np.testing.assert_allclose(returns[np.isfinite(returns)], [part.sum() for part in parts], rtol=1e-5)
    assert np.isneginf(returns[0])


@pytest.mark.parametrize("block", [3, 1_000])
def test_fewer_transitions_are_whole_episodes_but_for_the_last_drawn(block, tmp_path, monkeypatch):
    path = write(episodes([10] * 40, truncated=range(0, 40, 2)), tmp_path / "log.parquet")
    monkeypatch.setattr(blocks, "BLOCK", block)
    whole = concatenate(list(Episodes([open_log(path)])))
    settled = data.settle(a_config(path, data_transitions=95))
    rows = data.load(settled, make_environment(settled.environment)).rows
    data._load.cache_clear()
    assert settled.random_transitions == len(rows.reward) == 95
    starts = np.flatnonzero(rows.elapsed == 0)
    lengths = np.diff(starts, append=95)
    assert sorted(lengths) == [5, *[10] * 9]
    numbers = [int(np.flatnonzero((whole.observation == rows.observation[start]).all(axis=1))[0]) for start in starts]
    assert numbers == sorted(numbers)
    assert numbers != list(range(0, 100, 10))
    for start, length, number in zip(starts, lengths, numbers, strict=True):
        np.testing.assert_array_equal(rows.observation[start : start + length], whole.observation[number : number + length])
        end = start + length - 1
        assert rows.terminated[end] | rows.truncated[end]
        assert rows.truncated[end] == (length == 5 or bool(whole.truncated[number + 9]))


def test_fewer_transitions_than_two_episodes_are_refused(tmp_path):
    settled = data.settle(a_config(write(episodes((50, 50)), tmp_path / "long.npz"), data_transitions=40))
    with pytest.raises(ConfigError, match="data_transitions: 40 are of one episode alone; it must be more than that"):
        data.load(settled, make_environment(settled.environment))


@pytest.mark.parametrize("lengths", [[10] * 40, [500, 500], [1, 300], LENGTHS])
def test_episodes_are_held_out_whole(lengths):
    elapsed = np.concatenate([np.arange(length) for length in lengths])
    held = data.hold_out(elapsed, 5)
    number = np.cumsum(elapsed == 0) - 1
    chosen = np.unique(number[held])
    assert 1 <= len(chosen) < len(lengths)
    np.testing.assert_array_equal(held, np.flatnonzero(np.isin(number, chosen)))
    if len(lengths) == 40:
        assert len(held) == 80


def test_a_file_may_be_written_and_read_back(log, tmp_path):
    whole = list(Episodes([open_log(log)]))
    task = make_environment(data.settle(a_config(log)).environment)
    assert write_parquet(tmp_path / "copy.parquet", whole, task.spec) == 76
    copy = open_log(str(tmp_path / "copy.parquet"))
    assert copy.action_count == 2
    for ours, theirs in zip(concatenate(list(Episodes([copy]))), concatenate(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_transitions": 77}, "data_transitions: 77 does not fit; the files have 76"),
        ({"environment": {"observation_scale": (1.0,)}}, r"observation_scale: \(1.0,\) does not fit; .* have 2 numbers"),
        (
            {"environment": {"actions": 2, "action_scale": (1.0,)}},
            "environment.action_scale: .* actions in the data are discrete",
        ),
        ({"name": "CartPole-v1"}, "observations of 2 numbers do not fit; those of CartPole-v1 have 4"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(changes, message, log):
    with pytest.raises(ConfigError, match=message):
        data.settle(a_config(log, **changes))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"actions": 3}, "environment.actions: 3 does not fit; actions in the data are continuous"),
        ({"action_scale": (0.5,)}, r"environment.action_scale: \(0.5,\) does not fit .* 1 numbers, at least 1.9"),
    ],
)
def test_settings_that_do_not_fit_continuous_actions_are_refused(environment, message, torques):
    with pytest.raises(ConfigError, match=message):
        data.settle(a_config(torques, environment=environment))


def test_fewer_actions_than_the_data_have_are_refused(tmp_path):
    columns = episodes(LENGTHS)
    path = write(columns | {"action": columns["action"] * 3}, tmp_path / "log.npz")
    with pytest.raises(
        ConfigError, match="environment.actions: 3 does not fit; it must be at least 4, as the data have action 3"
    ):
        data.settle(a_config(path, environment={"actions": 3}))


def test_a_file_that_has_shrunk_since_is_refused(log, tmp_path):
    settled = data.settle(a_config(log))
    write(episodes((20, 20)), tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match="have 40 transitions, and the run had 76; the files must be as they were"):
        data.load(settled, make_environment(settled.environment))


def test_more_transitions_than_a_run_learns_from_are_refused(log, monkeypatch):
    monkeypatch.setattr(data, "MOST", 75)
    with pytest.raises(
        ConfigError, match="76 transitions are more than one run learns from; data_transitions must name at most 75"
    ):
        data.settle(a_config(log))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (a_config("x.npz", protocol="interactive"), "data: .* so protocol must be 'batch'"),
        (a_config("x.npz", environment={"observation_noise": 0.1}), "environment.observation_noise: 0.1 does not fit; with data"),
        (
            a_config("x.npz", name="CartPole-v1", environment={"actions": 2}),
            "environment.actions: 2 does not fit; 'CartPole-v1' says",
        ),
        (
            ImaginedPGConfig(environment=EnvironmentConfig(name="none")),
            "environment.name: 'none' does not fit; name an environment, or",
        ),
        (ImaginedPGConfig(data_transitions=10), "data_transitions: 10 does not fit; there are no files: data must name them"),
        (
            dataclasses.replace(ModelFreeQConfig(data=("x.npz",)), evaluation=settings.EvaluationConfig(where="model")),
            "evaluation.where: 'model' does not fit; there is no model in which a policy could be judged",
        ),
        (
            DynaQConfig(data=("x.npz",), evaluation=settings.EvaluationConfig(where="model", episodes=51)),
            "evaluation.episodes: 51 does not fit; episodes are dealt evenly to members, so it must be a multiple of 5",
        ),
    ],
)
def test_settings_that_do_not_go_with_logged_transitions_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(config)


def test_a_task_of_which_nothing_is_known_is_refused():
    with pytest.raises(ConfigError, match="'none' does not fit without logged transitions"):
        make_environment(EnvironmentConfig(name="none"))


@pytest.fixture(scope="module")
def minari_dataset(tmp_path_factory):
    """A local Minari dataset of CartPole, by its folder."""
    minari = pytest.importorskip("minari")
    patch = pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
    env = minari.DataCollector(gymnasium.make("CartPole-v1", max_episode_steps=25))
    for seed in range(5):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    made = env.create_dataset("cartpole/random-v0", algorithm_name="random", author="nobody", author_email="nobody@example.org",
                              code_permalink="https://example.org", description="random actions")  # fmt: skip
    yield made
    patch.undo()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_dataset_is_read_by_name_and_by_folder(minari_dataset):
    recorded = list(minari_dataset.iterate_episodes())
    for name in ("minari:cartpole/random-v0", str(minari_dataset.storage.data_path.parent)):
        log = open_log(name)
        rows = concatenate(list(Episodes([log])))
        assert log.action_count == 2
        assert log.rows == len(rows.reward) == sum(len(each.rewards) for each in recorded)
        np.testing.assert_array_equal(rows.observation, np.concatenate([each.observations[:-1] for each in recorded]))
        np.testing.assert_array_equal(rows.next_observation, np.concatenate([each.observations[1:] for each in recorded]))
        np.testing.assert_array_equal(rows.terminated, np.concatenate([each.terminations for each in recorded]))
        assert rows.truncated.sum() + rows.terminated.sum() == 5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_dataset_of_another_space_is_refused(minari_dataset):
    with pytest.raises(ConfigError, match=re.escape("observations of 4 numbers do not fit; those of Pendulum-v1 have 3")):
        data.settle(a_config("minari:cartpole/random-v0", name="Pendulum-v1"))
    with pytest.raises(ConfigError, match="'minari:nothing-v0' is no Minari dataset that can be read"):
        open_log("minari:nothing-v0")
