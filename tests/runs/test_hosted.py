import dataclasses
import json

import jax
import numpy as np
import pytest

import mbrl_jax
from mbrl_jax.algorithms.hosted import block_of
from mbrl_jax.algorithms.training import Stream
from mbrl_jax.command_line import main
from mbrl_jax.config import (
    ConfigError,
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ExplorationConfig,
    ImaginationConfig,
    ModelConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    PlanningConfig,
    QLearningConfig,
    SelectionConfig,
    check,
)
from mbrl_jax.replay import make_replay
from mbrl_jax.runs import results, runner
from mbrl_jax.runs.callbacks import Callback
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train
from mbrl_jax.serving.playing import load_policies, play_policies
from tests.lines import line, pure

GREEDY = ExplorationConfig(start=0.0, end=0.0)
COMMON = {
    "environment": EnvironmentConfig(),
    "random_transitions": 20,
    "evaluation": EvaluationConfig(episodes=3, curve_episodes=2),
}
STEPWISE = {**COMMON, "protocol": "interactive", "steps": 6, "round_steps": 1, "metric_steps": 1}
AGENT = QLearningConfig(hidden=(8,), batch_size=8)
MODEL = ModelConfig(members=2, hidden=(8,), batch_size=8, epochs=2, refit_batches=2, termination_weight=1.0)
CONFIGS = {
    "model_free_q": ModelFreeQConfig(**STEPWISE, agent=AGENT, exploration=GREEDY),
    "dyna_q": DynaQConfig(
        **STEPWISE,
        agent=AGENT,
        exploration=GREEDY,
        model=MODEL,
        imagination=ImaginationConfig(lanes=2, steps=2, capacity=16),
        selection=SelectionConfig(episodes=2, steps=5),
    ),
    "mpc": MPCConfig(
        **STEPWISE,
        agent=AGENT,
        model=dataclasses.replace(MODEL, members=1, prediction="deterministic"),
        planning=PlanningConfig(method="enumeration", horizon=3, particles=1, terminal="value"),
    ),
}


def assert_same(one, other):
    """But for the rounding of programs that the compiler has fused in other ways."""
    paths, _ = jax.tree_util.tree_flatten_with_path(one)
    for (path, a), b in zip(paths, jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_a_host_that_acts_step_by_step_gives_the_numbers_of_the_device_loop(algorithm):
    config = CONFIGS[algorithm]
    ours = mbrl_jax.run(config, 2, environment=line)
    theirs = mbrl_jax.run(config, 2, environment=pure())
    assert_same(ours.result, theirs.result)
    assert np.isfinite(ours.result.outcome.returns_last).all()


BLOCKS = dataclasses.replace(
    CONFIGS["model_free_q"], steps=8, round_steps=4, environment=EnvironmentConfig(block_steps=2), exploration=ExplorationConfig()
)


@pytest.fixture(scope="module")
def train_in():
    """``(simulators, **options) -> Run`` of three seeds, each in a simulator of its own, all by one compiled program."""
    program = runner.prepare([BLOCKS], 3, environment=line)
    host = program._host

    def train_in(makers, **options):
        remaining = iter(makers)
        program._host = host._replace(make=lambda: next(remaining)())
        return train(program, Batch(0, 3), **options)

    train_in.program = program
    return train_in


def burn(told):
    raise RuntimeError("the motor burns")


def seed_of(run, place):
    return jax.tree.map(lambda leaf: leaf[place], run.result)


def test_a_simulator_that_fails_costs_its_seed_and_the_others_do_not_notice(train_in):
    whole = train_in([line] * 6)
    hurt = train_in([line, lambda: line(burn, at=23), line] + [line] * 3)  # in the second of the four blocks
    assert whole.failures == {}
    assert list(hurt.failures) == [1]
    assert "RuntimeError: the motor burns" in hurt.failures[1]
    for place in (0, 2):
        assert_same(seed_of(whole, place), seed_of(hurt, place))
    assert hurt.result.outcome.frozen.tolist() == [False, True, False]
    assert hurt.result.metrics.frozen[1].tolist() == [True, True]
    assert hurt.result.outcome.updates.tolist() == [8, 2, 8]  # it rests as the first block left it
    assert np.isfinite(hurt.result.outcome.returns_last).all()  # and is judged in another simulator
    summary = results.summarise(hurt)
    assert summary["frozen_seeds"] == [1]
    assert "the motor burns" in summary["failed_simulators"]["1"]
    assert summary["iqm"]["last"]["value"] is not None


def test_blocks_go_into_the_replay_as_the_walk_went(train_in):
    train_in([line] * 6)
    program = train_in.program
    replay = make_replay(program.task.spec, BLOCKS.real_transitions)
    for seed in range(3):
        state = program.state.real._replace(rows=program.state.real.rows[seed])
        rows, valid = jax.device_get(replay.contents(state))
        assert valid.all()
        place, after, up = rows.observation[:, 0] * 4, rows.next_observation[:, 0] * 4, 2 * rows.action - 1
        np.testing.assert_array_equal(after, place + up)
        np.testing.assert_array_equal(rows.observation[:, 1] * 8, rows.depth)
        np.testing.assert_array_equal(rows.terminated, abs(after) >= 3)
        goes_on = rows.depth[1:] > 0
        np.testing.assert_array_equal(rows.observation[1:][goes_on], rows.next_observation[:-1][goes_on])
        np.testing.assert_array_equal(goes_on, ~rows.terminated[:-1] & (rows.depth[:-1] < 6))


def test_a_simulator_that_fails_while_it_is_judged_leaves_the_figures_of_the_others(train_in):
    run = train_in([line] * 4 + [lambda: line(burn, at=1), line])
    assert run.result.outcome.frozen.tolist() == [False, True, False]
    assert np.isnan(run.result.outcome.returns_last[1]).all()
    assert np.isfinite(results.summarise(run)["iqm"]["last"]["value"])


def test_where_all_simulators_fail_the_run_stops_with_the_first_traceback(train_in):
    with pytest.raises(ConfigError, match=r"(?s)simulators of all seeds have failed, and the run stops. The first:.*motor burns"):
        train_in([lambda: line(burn, at=3)] * 6)


class Snapshots(Callback):
    """Keeps what a checkpoint after each chunk holds."""

    def __init__(self):
        self.taken = []

    def chunk(self, snapshot, must):
        self.taken.append(snapshot())


def test_a_run_that_goes_on_begins_new_episodes_and_its_failed_seeds_stay_as_they_were(train_in):
    seen, seeds = Snapshots(), []
    whole = train_in([line, lambda: line(burn, at=23), line] + [line] * 3, callbacks=[seen])
    first = seen.taken[0]
    assert first.round == 1
    onward = train_in([lambda: line(seeds=seeds)] * 6, found=first)
    assert onward.failures == whole.failures
    assert_same(seed_of(whole, 1).outcome, seed_of(onward, 1).outcome)
    assert onward.result.outcome.updates.tolist() == [8, 2, 8]
    assert_same(whole.result.collected, onward.result.collected)
    assert_same(
        jax.tree.map(lambda leaf: leaf[:, 0], whole.result.metrics), jax.tree.map(lambda leaf: leaf[:, 0], onward.result.metrics)
    )
    assert len(set(seeds[:3])) == 3  # each simulator is seeded by its seed's number, anew


def test_a_seed_has_the_same_simulator_alone_and_among_others():
    alone, among = [], []
    for seeds, numbers in ((alone, range(1, 2)), (among, range(3))):
        program = runner.prepare([BLOCKS], numbers, environment=line, at_once=len(numbers))
        copies = program._host._replace(make=lambda seeds=seeds: line(seeds=seeds)).copies(len(numbers))
        copies.reset(seed=program._seeds(Stream.COLLECTION, 0))
    assert alone == among[1:2]
    assert len({*among, *program._seeds(Stream.CURVE, 0), *program._seeds(Stream.COLLECTION, 1)}) == 9
    program.turn_to(Batch(1, 2))
    assert program._seeds(Stream.COLLECTION, 0) == among[1:3]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BLOCKS, {"block_steps": 3}, r"environment.block_steps: 3 does not fit; it must divide round_steps \(4\)"),
        (
            ModelFreePGConfig(steps=8, round_steps=8, metric_steps=4, segment_steps=4),
            {"block_steps": 2},
            r"environment.block_steps: 2 does not fit; a segment must be of one policy, so it must be segment_steps \(4\)",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(config, environment=EnvironmentConfig(**changes)))


def test_a_block_is_as_long_as_the_policy_stays_the_same_and_twenty_steps_at_most_where_it_does_not():
    config = dataclasses.replace(BLOCKS, environment=EnvironmentConfig())
    assert block_of(BLOCKS) == 2
    assert block_of(config) == 4
    assert block_of(dataclasses.replace(config, steps=50, round_steps=25)) == 5
    assert block_of(ModelFreePGConfig(steps=8, round_steps=8, metric_steps=4, segment_steps=4)) == 4
    planner = dataclasses.replace(CONFIGS["mpc"], steps=60, round_steps=30)
    assert block_of(planner) == 15
    assert block_of(dataclasses.replace(planner, planning=PlanningConfig(terminal="none"))) == 30


def test_a_diagnosis_of_a_simulator_is_refused_before_anything_compiles():
    with pytest.raises(ConfigError, match="'Line' does not fit; a diagnosis needs known real dynamics"):
        mbrl_jax.run(CONFIGS["dyna_q"], 1, environment=line, diagnose=True)


def test_the_command_line_names_a_simulator_leaves_its_failures_in_the_summary_and_plays_its_policies(tmp_path, monkeypatch):
    (tmp_path / "walks.py").write_text("from tests.lines import line\ndef walk():\n    return line()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = dataclasses.replace(BLOCKS, environment=EnvironmentConfig(name="walks:walk", block_steps=2))
    mbrl_jax.save(config, tmp_path / "walk.yaml")
    main(["train", str(tmp_path / "walk.yaml"), "--seeds", "3", "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failed_simulators"] == {}
    config, policies = load_policies(tmp_path / "run")
    returns = play_policies(config, policies["last"], 2, "gymnax", 0)
    assert returns.tolist() == [[each] * 2 for each in summary["return_last"]]  # nothing in the walk is left to chance
    policy, walk = mbrl_jax.load_policy(tmp_path / "run"), line()
    observation, total, over = walk.reset()[0], 0.0, False
    while not over:
        observation, reward, *ended, _ = walk.step(policy(observation, seed=1))
        total, over = total + reward, any(ended)
    assert total == summary["return_last"][1]
    assert policy(np.zeros((5, 2)), seed=0).shape == (5,)
    with pytest.raises(ConfigError, match="observation of walks:walk: number 0 is nan; it must be finite"):
        policy(np.full(2, np.nan), seed=0)
