"""Training on logged transitions in place of random ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbrl_jax
from mbrl_jax import environments as env
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.registry import ALGORITHMS, algorithm_of
from mbrl_jax.config import (
    ConfigError,
    DMOConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginedPGConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    PolicyGradientConfig,
)
from mbrl_jax.engine import PLAIN
from mbrl_jax.environments import data
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.writing import write_parquet
from mbrl_jax.model import fitting
from mbrl_jax.replay import make_replay
from mbrl_jax.report import figures, page
from mbrl_jax.report.entries import Entry
from mbrl_jax.runs import results, runner
from mbrl_jax.runs.callbacks import Callback
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train


@pytest.fixture(scope="module")
def log(random_transitions, cartpole, tmp_path_factory):
    """300 random transitions of CartPole in a file."""
    columns = [np.asarray(each)[:300] for each in random_transitions]
    columns[5] = columns[5] | (~columns[4] & (np.arange(300) == 299))  # the last episode is cut
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    write_parquet(path, [Logged(*columns, np.zeros(300, bool))], cartpole.spec)
    return path


@pytest.fixture(scope="module")
def in_cartpole(tiny, log):
    """Dyna-Q on the file, judged in CartPole: its settled config and the result of two seeds."""
    config = data.settle(dataclasses.replace(tiny, data=(str(log),)))
    result = jax.jit(jax.vmap(mbrl_jax.dyna_q.make_train(config).train))(mbrl_jax.seed_keys(0, seeds=2))
    return config, jax.tree.map(np.asarray, result)


@pytest.fixture(scope="module")
def nowhere(tiny, log):
    """An actor and a critic on the file without an environment: its run of two seeds."""
    config = ImaginedPGConfig(
        data=(str(log),),
        environment=dataclasses.replace(tiny.environment, name="none", time_limit=None),
        **{name: getattr(tiny, name) for name in ("steps", "round_steps", "metric_steps", "model", "selection")},
        evaluation=EvaluationConfig(episodes=4, curve_episodes=2),
        imagination=dataclasses.replace(ImaginedPGConfig().imagination, lanes=4, steps=2),
        agent=PolicyGradientConfig(hidden=(8, 8)),
    )
    return mbrl_jax.run(config, seeds=2)


def test_every_seed_learns_from_the_same_transitions_in_its_own_way(in_cartpole, random_transitions):
    config, result = in_cartpole
    returns = result.collected[0]
    np.testing.assert_array_equal(result.collected[1], returns)
    ended = np.asarray(random_transitions.terminated | random_transitions.truncated)[:299]
    lengths = np.asarray(random_transitions.elapsed)[:299][ended] + 1
    np.testing.assert_array_equal(returns[:299][np.isfinite(returns[:299])], lengths)
    assert np.all(result.fit.loss[0] != result.fit.loss[1])
    assert config.random_transitions == 300


def test_the_transitions_are_there_once_for_all_seeds(in_cartpole):
    config, _ = in_cartpole
    algorithm = mbrl_jax.dyna_q.make_train(config)
    batched = jax.vmap(algorithm.init, out_axes=(algorithm.axes, 0))
    state, _ = jax.eval_shape(batched, jax.eval_shape(lambda: mbrl_jax.seed_keys(0, seeds=5)))
    assert state.real.rows.shape[0] == 300
    assert state.imagined.rows.shape[0] == 5
    assert state.episode is None


def test_what_is_learned_from_is_what_is_in_the_file(in_cartpole, cartpole, real_rows):
    config, _ = in_cartpole
    replay = make_replay(cartpole.spec, 300)
    _, state, _ = phases.begin(config, cartpole, replay, jax.random.key(0), config)
    for ours, theirs in zip(replay.contents(state)[0], real_rows, strict=True):
        np.testing.assert_array_equal(ours, theirs[:300])


def test_a_named_environment_judges_policies_trained_on_a_file(in_cartpole):
    _, result = in_cartpole
    assert result.outcome.returns_last.shape == (2, 3)
    assert np.all(result.outcome.returns_last == np.round(result.outcome.returns_last))
    assert np.all((result.outcome.returns_last >= 1) & (result.outcome.returns_last <= 30))


def test_the_final_model_is_measured_on_the_episodes_that_it_was_not_fitted_to(in_cartpole):
    config, result = in_cartpole
    held = result.outcome.held_out
    assert held.error.shape == (2, 2, 20)
    assert np.all(held.error[:, :, 0] > 0)
    holdout = data.load(config, env.make_environment(config.environment)).holdout
    assert 60 <= len(holdout) < 150
    assert held.windows[0, 0] == min(200, len(holdout))


def test_without_an_environment_policies_are_judged_in_the_model(nowhere):
    outcome, metrics = nowhere.result.outcome, nowhere.result.metrics
    np.testing.assert_array_equal(metrics.curve_return, metrics.score)
    assert outcome.returns_last.shape == outcome.returns_chosen.shape == (2, 4)
    assert np.all((outcome.returns_last >= 0) & (outcome.returns_last <= nowhere.config.selection.steps + 1e-3))
    assert nowhere.config.environment.name == "none"
    assert nowhere.config.evaluation.where == "model"


def test_without_an_environment_reward_and_termination_are_learned(nowhere):
    world = phases.world_of(nowhere.config, env.make_environment(nowhere.config.environment))
    assert world.spec.targets == 5
    assert not world.spec.reward_known


def test_the_folder_of_a_run_says_that_no_real_return_was_measured(nowhere, tmp_path):
    summary = results.write(nowhere, tmp_path)
    assert summary["evaluated_in"] == "model"
    assert summary["note"] == results.NO_REAL_RETURN
    assert summary["fraction_at_least"] == {}
    np.testing.assert_allclose(summary["return_last"], nowhere.result.outcome.returns_last.mean(axis=1), rtol=1e-6)
    members = np.asarray(nowhere.result.outcome.returns_last).reshape(2, 2, 2).mean(axis=2)
    np.testing.assert_allclose(summary["imagined_by_member"]["last"], np.sort(members, axis=1).mean(axis=0), rtol=1e-6)
    held = nowhere.result.outcome.held_out
    assert summary["data"]["files"] == list(nowhere.config.data)
    np.testing.assert_allclose(summary["data"]["held_out"]["error_after_steps"][0], held.error[:, :, 0].mean(), rtol=1e-6)
    entry = Entry("a run", tmp_path, nowhere, summary, "a command", "green")
    text = page.render([entry])
    assert "no real return was measured" in text
    assert "On held-out episodes, means over members and seeds" in text
    assert "without an environment in which its policies could be shown" in text
    figures.draw_run(nowhere, tmp_path / "curves.png")


def test_a_run_is_read_and_its_policies_play_without_the_file_that_it_was_trained_on(nowhere, tmp_path):
    run = nowhere._replace(config=dataclasses.replace(nowhere.config, data=("/nowhere/log.parquet",)))
    results.write(run, tmp_path)
    again = results.read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.result.outcome.held_out, run.result.outcome.held_out)
    policy = mbrl_jax.load_policy(tmp_path)
    assert policy(np.zeros((2, 4), np.float32)).tolist() in [[a, b] for a in (0, 1) for b in (0, 1)]
    assert policy.spec.name == "none"


class Snapshots(Callback):
    """Keeps a checkpoint of every chunk."""

    def __init__(self):
        self.taken = []

    def chunk(self, snapshot, must):
        self.taken.append(snapshot())


def test_a_run_on_a_file_goes_on_bit_for_bit_from_a_checkpoint(tiny, log):
    agent = dataclasses.replace(tiny.agent, batch_size=8)
    small = {name: getattr(tiny, name) for name in ("steps", "round_steps", "metric_steps", "evaluation", "environment")}
    program = runner.prepare([ModelFreeQConfig(**small, agent=agent)], 2, data=log)
    snapshots = Snapshots()
    whole = train(program, Batch(0, 2), callbacks=[snapshots])
    assert [each.round for each in snapshots.taken] == [1, 2]
    assert snapshots.taken[0].arrays["state/real/rows"].shape[0] == 300  # one copy, not one for each seed
    resumed = train(program, Batch(0, 2), found=snapshots.taken[0])
    jax.tree.map(np.testing.assert_array_equal, resumed.result, whole.result)


def test_held_out_rows_do_not_touch_the_fit_and_alone_are_what_validates_it(make_ensemble, real_rows):
    ensemble = make_ensemble()
    rows = jax.tree.map(lambda leaf: leaf[:60], real_rows)
    held = np.asarray([0, 1, 2, 30, 31], np.int32)
    start = fitting.init(ensemble, jax.random.key(0))

    @jax.jit
    def fit(rows):
        state, log = fitting.fit(ensemble, start, rows, jax.random.key(1), stride=5, holdout=lambda: held)
        return state.params, log

    def moved(places):
        return rows._replace(next_observation=rows.next_observation.at[jnp.asarray(places)].add(1.0))

    params, log = fit(rows)
    same, other_log = fit(moved(held))
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert np.all(np.asarray(other_log.holdout_mse) > np.asarray(log.holdout_mse))
    np.testing.assert_array_equal(other_log.loss, log.loss)
    for row in (3, 29, 32, 59):
        different, _ = fit(moved([row]))
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(different), jax.tree.leaves(params), strict=True)), row


def test_a_batch_larger_than_the_rows_that_are_not_held_out_is_refused(make_ensemble, real_rows):
    ensemble = make_ensemble(batch_size=56)
    rows = jax.tree.map(lambda leaf: leaf[:60], real_rows)
    state = jax.eval_shape(lambda: fitting.init(ensemble, jax.random.key(0)))
    with pytest.raises(ConfigError, match="model.batch_size: 56 does not fit; it must be at most 55, as of 60 rows the others"):
        jax.eval_shape(
            lambda state: fitting.fit(ensemble, state, rows, jax.random.key(1), 5, holdout=lambda: np.arange(5, dtype=np.int32)),
            state,
        )


def test_a_config_that_names_files_is_settled_where_an_algorithm_is_made_of_it(tiny, log):
    algorithm = mbrl_jax.dyna_q.make_train(dataclasses.replace(tiny, data=(str(log),)))
    state, collected = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert state.real.rows.shape[0] == collected.shape[0] == 300


def test_an_engine_of_another_split_is_refused(tiny, log):
    config = dataclasses.replace(tiny, data=(str(log),))
    with pytest.raises(ConfigError, match="engine: one does not fit data, of which whole episodes are held out"):
        mbrl_jax.dyna_q.make_train(config, engine=lambda config, task: PLAIN)


def test_run_takes_files_in_place_of_those_of_the_config(tiny, log):
    with pytest.raises(ConfigError, match="data: '/nowhere.npz' does not fit; there is no such file"):
        mbrl_jax.run(tiny, seeds=1, data="/nowhere.npz")
    with pytest.raises(ConfigError, match="data: .* so protocol must be 'batch'"):
        mbrl_jax.run(dataclasses.replace(tiny, protocol="interactive"), seeds=1, data=[log])


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_the_shapes_of_a_policy_are_known_without_its_algorithm(cls, tiny, cartpole):
    config = cls() if cls not in (ModelFreePGConfig, MPCConfig) else cls(round_steps=50)
    if cls is MPCConfig:
        config = dataclasses.replace(config, planning=dataclasses.replace(config.planning, terminal="value"))
    task = env.make_environment(EnvironmentConfig(name="Pendulum-v1")) if cls is DMOConfig else cartpole
    algorithm = algorithm_of(config).make_train(config, environment=task)
    state, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert str(algorithm_of(config).params(config, task)) == str(jax.eval_shape(algorithm.policies, state)[0])
    assert training.Outcome._fields[-1] == "held_out"
