"""Parts from outside the package (:mod:`guests`) in whole runs: each trains, and needs no more than its registration."""

import ast
from pathlib import Path
from unittest import mock

import guests
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import mbrl_jax
from mbrl_jax import command_line
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, from_dict, load, save
from mbrl_jax.environments import check_environment, make_environment
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.report import comparison, horizon_figures
from mbrl_jax.runs import results
from mbrl_jax.serving import playing

ROOT = Path(__file__).parents[1]
RUN = {
    "random_transitions": 60,
    "steps": 8,
    "round_steps": 4,
    "metric_steps": 2,
    "evaluation": {"episodes": 2, "curve_episodes": 2},
}
SMALL = {"members": 2, "hidden": [8], "batch_size": 16, "epochs": 2, "refit_batches": 2}
LANES = {"lanes": 4, "steps": 2, "cap": 3}
SCORED = {"episodes": 4, "steps": 8}
DYNA = {**RUN, "algorithm": "dyna_q", "selection": SCORED, "imagination": {**LANES, "capacity": 80}}
LEARNER = {"hidden": [8], "batch_size": 16}
DOTS = {"name": "guests/dots"}

GUESTS = {
    "a world model, beside the Q-learner": {**DYNA, "model": {"kind": "linear"}, "agent": LEARNER},
    "a world model, in a policy gradient": {
        **{**RUN, "algorithm": "imagined_pg", "selection": SCORED, "imagination": LANES},
        **{"model": {"kind": "linear", "ridge": 1e-3}, "agent": {"hidden": [8], "estimator": "pathwise"}},
    },
    "a world model, planned in": {
        **{**RUN, "algorithm": "mpc", "protocol": "interactive", "model": {"kind": "linear"}, "agent": LEARNER},
        "planning": {"candidates": 8, "horizon": 3, "particles": 2, "iterations": 2, "elites": 3},
    },
    "an agent": {**DYNA, "protocol": "interactive", "model": SMALL, "agent": {"kind": "cross_entropy", "candidates": 6}},
    "an environment of pictures, with an actor": {
        **{**RUN, "algorithm": "imagined_pg", "environment": DOTS, "selection": SCORED, "imagination": LANES},
        **{"model": SMALL, "agent": {"hidden": [8]}},
    },
    "an environment, an agent and a world model": {
        **{**DYNA, "environment": DOTS, "model": {"kind": "linear"}, "agent": {"kind": "cross_entropy", "horizon": 3}},
    },
    "a loss": {**DYNA, "model": {**SMALL, "loss": "pseudo_huber"}, "agent": LEARNER},
    "a horizon controller": {
        **{**DYNA, "model": SMALL, "agent": LEARNER},
        "imagination": {**LANES, "capacity": 80, "controller": {"kind": "every_other", "first": 2}},
    },
}


MAPPED = (  # each kind of guest in one of them, for two seeds at once
    "an environment, an agent and a world model",
    "a world model, in a policy gradient",
    "an environment of pictures, with an actor",
    "a horizon controller",
    "a loss",
)


@pytest.fixture(scope="module", params=GUESTS)
def config(request):
    return from_dict(GUESTS[request.param])


def test_a_guest_trains_through_make_train(config, request):
    train, keys = algorithm_of(config).make_train(config).train, mbrl_jax.seed_keys(0, 2)
    result = jax.jit(jax.vmap(train))(keys) if request.node.callspec.params["config"] in MAPPED else jax.jit(train)(keys[1])
    assert np.isfinite(result.outcome.returns_last).all()
    assert not np.asarray(result.outcome.frozen).any()
    for name, leaf in jax.tree_util.tree_flatten_with_path(result.metrics)[0]:
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), name


@pytest.mark.parametrize("guest", ["a world model, planned in", "an agent", "an environment, an agent and a world model"])
def test_a_guest_is_saved_stopped_resumed_read_played_and_reported(guest, tmp_path, capsys):
    config = from_dict(GUESTS[guest])
    folder, preset = tmp_path / "run", tmp_path / "preset.yaml"
    save(config, preset)
    words = ["train", str(preset), "--seeds", "2", "--out", str(folder), "--checkpoint-every", "0"]
    with mock.patch.object(results, "write", side_effect=RuntimeError("lost")), pytest.raises(RuntimeError, match="lost"):
        command_line.main(words)
    saved = playing.load_policies(folder)[1]["last"]  # of the last checkpoint
    command_line.main([*words, "--resume"])
    read, trained = mbrl_jax.load_run(folder), mbrl_jax.run(config, 2)
    jax.tree.map(np.testing.assert_array_equal, saved, read.result.outcome.last)
    assert jax.tree.structure(read.result.outcome) == jax.tree.structure(trained.result.outcome)
    jax.tree.map(np.testing.assert_array_equal, read.result.outcome, trained.result.outcome)
    assert type(read.result.metrics) is type(trained.result.metrics)
    for one, other in zip(read.result.metrics, trained.result.metrics, strict=True):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one), jax.tree.leaves(other))
    policy = mbrl_jax.load_policy(folder)
    observation = np.zeros((2, 3, policy.spec.observation_size), np.float32)
    assert policy(observation).shape == (2, 3, *policy.spec.action_shape)
    command_line.main(["evaluate", str(folder), "--episodes", "2"])
    assert config.environment.name in capsys.readouterr().out
    command_line.main(["report", str(folder), "--out", str(tmp_path / "report.html")])
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_an_environment_is_given_as_it_is_and_named_in_what_the_run_leaves(tmp_path):
    content = {**GUESTS["a loss"], "model": SMALL}
    task = make_environment(mbrl_jax.config.EnvironmentConfig(name="Acrobot-v1", time_limit=20))
    mine = task._replace(spec=task.spec._replace(name="my/acrobot"))
    run = mbrl_jax.run(from_dict(content), 2, environment=mine)
    assert run.config.environment.name == "my/acrobot"
    (tmp_path / "run").mkdir()
    results.write(run, tmp_path / "run")
    with pytest.raises(ConfigError, match="environment.name: 'my/acrobot' is not known"):
        mbrl_jax.load_run(tmp_path / "run")
    jax.tree.map(
        np.testing.assert_array_equal,
        mbrl_jax.load_run(tmp_path / "run", environment=mine).result.outcome,
        run.result.outcome,
    )
    policy = mbrl_jax.load_policy(tmp_path / "run", environment=mine)
    assert policy(np.zeros((5, 6)), seed=1).shape == (5,)


@pytest.mark.parametrize("algorithm", ["dyna_q", "imagined_pg"])
def test_where_no_snapshot_is_chosen_nothing_is_scored_and_all_that_is_written_says_so(algorithm, tmp_path):
    content = {**RUN, "algorithm": algorithm, "selection": {"choose": False}, "model": SMALL}
    content |= {"imagination": LANES | ({"capacity": 80} if algorithm == "dyna_q" else {}), "agent": {"hidden": [8]}}
    save(from_dict(content), tmp_path / "preset.yaml")
    folder = tmp_path / "run"
    command_line.main(["train", str(tmp_path / "preset.yaml"), "--seeds", "3", "--out", str(folder)])
    run, summary = mbrl_jax.load_run(folder), results.read_summary(folder)
    assert run.result.outcome.chosen is run.result.outcome.returns_chosen is run.result.metrics.score is None
    assert summary["return_chosen"] is summary["iqm"]["chosen"] is None
    assert "score" not in pq.read_table(folder / "metrics.parquet").column_names
    with pytest.raises(ConfigError, match="which: 'chosen' does not fit; the run .* has the policies last"):
        mbrl_jax.load_policy(folder, "chosen")
    command_line.main(["report", str(folder), "--out", str(tmp_path / "report.html")])
    assert "No policy was chosen in imagination" in (tmp_path / "report.html").read_text()
    assert horizon_figures.describe(run)["realised_horizon"] > 0
    with pytest.raises(ConfigError, match="selection.choose: False does not fit"):
        comparison.check_arms(run.config, load(ROOT / "configs" / "cartpole_batch_model_free.yaml"))


def test_an_environment_of_pictures_is_flattened_once():
    task = make_environment(mbrl_jax.config.EnvironmentConfig(name="guests/dots"))
    again = check_environment(task)
    assert again.draw_resets is task.draw_resets
    assert task.draw_resets(jax.random.key(0), (2, 3)).observation.shape == (2, 3, 64)


def test_a_world_model_whose_features_are_no_observations_is_refused(monkeypatch):
    config = from_dict(GUESTS["a world model, beside the Q-learner"])

    def wider(*arguments):
        world = guests.linear(*arguments)
        return world._replace(spec=world.spec._replace(feature_size=7))

    monkeypatch.setitem(guests.worlds._MAKE, guests.LinearConfig, wider)
    with pytest.raises(ConfigError, match="model.kind: 'linear' does not fit; its features have 7 numbers, .* it must be 4"):
        algorithm_of(config).make_train(config)


def test_no_guest_uses_a_private_name():
    tree = ast.parse(Path(guests.__file__).read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    allowed = {"_replace", "_asdict", "_fields"}  # which NamedTuple documents
    assert not [name for name in names if name.startswith("_") and name not in allowed]
    assert not [name for name in modules if any(part.startswith("_") and part != "__future__" for part in name.split("."))]


def test_the_linear_world_learns_linear_dynamics_exactly():
    task = make_environment(mbrl_jax.config.EnvironmentConfig())
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(80, 4)).astype(np.float32)
    action = rng.integers(0, 2, 80).astype(np.int32)
    pull = np.asarray([[0.1, 0.0, -0.2, 0.3], [-0.1, 0.4, 0.2, 0.0]], np.float32)
    matrix = 0.1 * rng.normal(size=(4, 4)).astype(np.float32)
    after = observation + observation @ matrix + pull[action]
    replay = mbrl_jax.replay.make_replay(task.spec, 80)
    ones = jnp.ones(80)
    rows = mbrl_jax.replay.Rows(
        *map(jnp.asarray, (observation, after, action)), ones, ones < 0, ones, jnp.arange(80, dtype=jnp.int32)
    )
    data = guests.Learns(replay, first_rows=80, stride=5)
    world = guests.linear(guests.LinearConfig(ridge=1e-9), task, data, "ts1")
    state, log = jax.jit(world.fit)(world.init(jax.random.key(0)), replay.write(replay.init(), rows), jax.random.key(1))
    moved = world.expect(world.acting(state), jnp.asarray(observation)[None], jnp.asarray(action)[None])
    np.testing.assert_allclose(moved.belief[0], after, atol=1e-3)
    assert float(log.loss[0, 0]) < 1e-5


def test_the_cross_entropy_agent_learns_to_move_the_dot_to_the_middle_of_the_picture():
    content = {**GUESTS["an environment, an agent and a world model"], "steps": 120, "round_steps": 60, "random_transitions": 300}
    agent = {"candidates": 128, "elites": 12, "horizon": 5, "batch_size": 16, "momentum": 0.3}
    config = from_dict({**content, "metric_steps": 10, "agent": {"kind": "cross_entropy", **agent}})
    result = jax.jit(jax.vmap(algorithm_of(config).make_train(config).train))(mbrl_jax.seed_keys(0, 3))
    collected = np.asarray(result.collected)
    by_chance = collected[np.isfinite(collected)].mean()
    learned = np.asarray(result.outcome.returns_last).mean(axis=1)
    assert np.median(learned) > by_chance / 3  # both are negative: minus a squared distance


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: guests.register("guests/dots", guests.dots), "name: 'guests/dots' is registered already"),
        (lambda: guests.worlds.register("linear", guests.LinearConfig, guests.linear), "model.kind: 'linear' is registered"),
        (lambda: guests.agents.register("cross_entropy", guests.CrossEntropyConfig, guests.cross_entropy), "agent.kind: 'cross"),
        (lambda: guests.losses.register("pseudo_huber", guests.pseudo_huber), "model.loss: 'pseudo_huber' is registered"),
        (lambda: guests.horizon.register("every_other", guests.every_other), "controller.kind: 'every_other' is registered"),
    ],
)
def test_a_name_that_is_taken_is_refused(register, message):
    with pytest.raises(ConfigError, match=message):
        register()


def test_a_controller_s_numbers_are_settings_like_all_others():
    assert controller_settings("every_other", first=3).numbers == {"first": 3.0}
    with pytest.raises(ConfigError, match="'every_other' takes exactly first"):
        controller_settings("every_other", last=3)
