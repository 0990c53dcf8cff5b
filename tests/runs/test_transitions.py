import dataclasses
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mbrl_jax import environments as env
from mbrl_jax import load
from mbrl_jax.algorithms.training import Stream, seed_keys, stream
from mbrl_jax.command_line import main
from mbrl_jax.config import (
    ConfigError,
    EnvironmentConfig,
    EvaluationConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    QLearningConfig,
    save,
)
from mbrl_jax.environments import Transition
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.runs import keeping, runner, transitions
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.transitions import Journal, from_journal, without_repeats
from tests.lines import SPEC

FREE = ModelFreeQConfig(
    protocol="interactive",
    random_transitions=60,
    steps=40,
    round_steps=20,
    metric_steps=5,
    environment=EnvironmentConfig(time_limit=15),
    agent=QLearningConfig(hidden=(8,), batch_size=8),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=1),
)
COLUMNS = ["seed", "episode", "step", "observation", "action", "reward", "next_observation", "terminated", "truncated"]


def keep(config, out, seeds=3, first=0, **settings):
    display = Display.silent()
    return keeping.keep(Asked(config, seeds, 0, False, first), out, Keeping(**settings), "mbrl-jax train", display)


def arrays(table, name):
    column = table[name].combine_chunks()
    if isinstance(column, pa.FixedSizeListArray):
        return np.asarray(column.flatten()).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a run of seeds 5 to 7 in CartPole that has recorded its transitions."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    keep(FREE, out, first=5, record="on")
    return out


def test_a_run_leaves_all_real_transitions_of_every_seed_the_random_ones_first(recorded):
    table = pq.read_table(recorded / "transitions.parquet")
    assert table.column_names == COLUMNS
    assert arrays(table, "seed").tolist() == [5] * 100 + [6] * 100 + [7] * 100
    task = env.make_environment(FREE.environment)

    @jax.jit
    def collected(key):
        return env.collect(task, env.draw_collection(task, stream(key, Stream.COLLECTION), 60))[1]

    random, here = jax.device_get(collected(seed_keys(0, 1, first=6)[0])), table.filter(pc.equal(table["seed"], 6))
    for name in ("observation", "action", "reward", "next_observation", "terminated", "elapsed"):
        np.testing.assert_array_equal(arrays(here, "step" if name == "elapsed" else name)[:60], getattr(random, name))
    truncated = random.truncated.copy()
    truncated[-1] = arrays(here, "truncated")[59]  # the episode may go on in the main loop
    np.testing.assert_array_equal(arrays(here, "truncated")[:60], truncated)


def test_episodes_of_a_run_end_where_they_ended_and_with_their_seed(recorded):
    table = pq.read_table(recorded / "transitions.parquet")
    step, terminated, truncated, seed = (arrays(table, name) for name in ("step", "terminated", "truncated", "seed"))
    ended = terminated | truncated
    np.testing.assert_array_equal(ended[:-1], step[1:] == 0)
    np.testing.assert_array_equal(np.flatnonzero(np.diff(seed)), [99, 199])
    assert ended[[99, 199, 299]].all()
    assert not (terminated & truncated).any()
    assert (truncated & (step == 14)).any()  # the time limit
    assert terminated.any()
    np.testing.assert_array_equal(arrays(table, "episode"), np.cumsum(step == 0) - 1)
    audit = Audit([open_log(str(recorded / "transitions.parquet"))], env.make_environment(FREE.environment))
    assert (audit.rows, audit.broken, audit.rewards_differ, audit.terminations_differ) == (300, 0, 0, 0)


def test_what_a_run_recorded_is_checked_and_trained_on_by_the_commands(recorded, tmp_path, capsys):
    path = recorded / "transitions.parquet"
    main(["data", "check", str(path), "--environment", "CartPole-v1"])
    said = capsys.readouterr().out
    assert "training can begin" in said
    assert "warning" not in said
    save(dataclasses.replace(FREE, protocol="batch"), tmp_path / "free.yaml")
    main(["train", str(tmp_path / "free.yaml"), "--data", str(path), "--seeds", "1", "--out", str(tmp_path / "run")])
    assert load(tmp_path / "run" / "config.yaml").random_transitions == 300  # the rows of all seeds
    assert not (tmp_path / "run" / "transitions.parquet").exists()


def test_a_run_in_batches_leaves_the_file_of_a_run_at_once(recorded, tmp_path, monkeypatch):
    whole = runner.prepare
    monkeypatch.setattr(runner, "prepare", lambda *given, **options: whole(*given, **{**options, "at_once": 2}))
    keep(FREE, tmp_path / "run", first=5, record="on")
    ours, theirs = (pq.read_table(folder / "transitions.parquet") for folder in (tmp_path / "run", recorded))
    assert ours.equals(theirs, check_metadata=True)


def test_shards_leave_one_file_and_a_missing_one_is_said(recorded, tmp_path):
    transitions.join(tmp_path, [recorded, recorded], print)
    one, both = (pq.read_table(folder / "transitions.parquet") for folder in (recorded, tmp_path))
    assert both.num_rows == 2 * one.num_rows
    episodes = arrays(both, "episode")
    np.testing.assert_array_equal(episodes[300:], episodes[:300] + episodes[299] + 1)
    assert both.schema.metadata == one.schema.metadata
    for name in ("none", "other"):
        (tmp_path / name).mkdir()
    said = []
    transitions.join(tmp_path / "none", [recorded, tmp_path / "other"], said.append)
    assert said == ["1 of 2 shards have not recorded their transitions; there are none of the run"]
    assert not (tmp_path / "none" / "transitions.parquet").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(FREE, protocol="batch", data=("log.npz",)), "on does not fit with data, whose files have the tran"),
        (ModelFreePGConfig(), "on does not fit; 'model_free_pg' keeps no transitions of 'CartPole-v1', so it must be off"),
    ],
)
def test_what_cannot_be_recorded_is_refused(config, message):
    algorithm = runner.make_train(ModelFreePGConfig() if config.data is None else FREE)
    with pytest.raises(ConfigError, match=f"record_transitions: {message}"):
        transitions.check("on", config, algorithm)
    for wish in ("auto", "off"):
        transitions.check(wish, config, algorithm)


# -------------------------------------------------------------------------------------------------------------------- the host


def walk(count, first=0, place=0.0):
    """Transitions [1, count] of a made-up walk, from step ``first`` of an episode of 4 steps on."""
    steps = np.arange(first, first + count)
    elapsed = (steps % 4).astype(np.int32)
    observation = np.stack([place + steps, elapsed], axis=1).astype(np.float32)
    after = np.stack([place + steps + 1, elapsed + 1], axis=1).astype(np.float32)
    ended = elapsed == 3
    columns = (observation, (steps % 2).astype(np.int32), steps.astype(np.float32), after, np.zeros(count, bool), ended, elapsed)
    return Transition(*(column[None] for column in columns))


def rows(count, first=0, place=0.0):
    return Logged(*(column[0] for column in walk(count, first, place)), np.zeros(count, bool))


def journal(folder, seeds=1, after=0):
    return Journal(folder, SPEC, range(seeds), after, print)


def read(folder, seed=0):
    return dict(from_journal(folder, range(seed, seed + 1)))[seed]


def test_a_journal_that_ends_in_the_middle_of_a_block_has_all_blocks_before_it(tmp_path):
    writing = journal(tmp_path)
    for block in range(3):
        writing.add(walk(6, 6 * block), np.ones((1, 6), bool))
    path = tmp_path / "transitions" / "0000.after_0.arrows"  # as it is when the process is killed: not closed
    whole = path.read_bytes()
    assert read(tmp_path).reward.tolist() == list(range(18))
    writing._file.close()
    for lost in (1, 100, 300):
        path.write_bytes(whole[:-lost])
        found = read(tmp_path)
        assert found.reward.tolist() == list(range(12))
        assert found.truncated.tolist() == [False, False, False, True] * 3
    path.write_bytes(whole[: len(whole) * 2 // 3 - 50])
    found = read(tmp_path)
    assert found.reward.tolist() == list(range(6))
    assert found.truncated.tolist() == [False, False, False, True, False, True]  # cut, for what follows is not there


def test_steps_that_a_simulator_did_not_make_are_left_out_of_its_seed_alone(tmp_path):
    writing, both = journal(tmp_path, 2), jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), walk(6))
    writing.add(both, np.array([[True] * 6, [True, True, False, False, False, False]]))
    writing.close()
    assert read(tmp_path, 0).reward.tolist() == list(range(6))
    assert read(tmp_path, 1).reward.tolist() == [0, 1]
    assert read(tmp_path, 1).truncated.tolist() == [False, True]


def test_what_a_second_process_repeats_is_kept_once_and_what_it_adds_is_kept():
    def kept(*parts):
        return [len(part.reward) for part in without_repeats(parts)]

    assert kept(rows(6), rows(18)) == [0, 18]  # the first was killed earlier
    assert kept(rows(18), rows(6)) == [18, 0]  # the second was
    assert kept(rows(6), rows(6), rows(18)) == [0, 0, 18]
    assert kept(rows(6), rows(6, place=1.0)) == [6, 6]
    other = rows(18)
    other.observation[10:] += 100.0  # chance has its way in the third episode
    first, second = without_repeats([rows(18), other])
    assert len(first.reward) == 18
    assert second.reward.tolist() == list(range(8, 18))  # from the beginning of that episode on


def test_only_what_goes_on_after_the_same_round_is_a_repetition(tmp_path):
    for after, count in ((0, 6), (0, 10), (3, 8), (3, 6)):
        writing = journal(tmp_path, after=after)
        writing.add(walk(count), np.ones((1, count), bool))
        writing.close()
    found = read(tmp_path)
    assert found.reward.tolist() == [*range(10), *range(8)]
    assert np.flatnonzero(found.truncated).tolist() == [3, 7, 9, 13, 17]


def test_a_block_that_cannot_be_written_is_said_and_the_next_one_is_there(tmp_path, monkeypatch, capsys):
    writing = journal(tmp_path)
    writing.add(walk(4), np.ones((1, 4), bool))
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(Journal, "_write", full)
        writing.add(walk(4, 4), np.ones((1, 4), bool))
    assert "4 steps could not be added to" in capsys.readouterr().out
    writing.add(walk(4, 8), np.ones((1, 4), bool))
    writing.close()
    assert read(tmp_path).reward.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    there = sorted(path.name for path in (tmp_path / "transitions").iterdir())
    assert there == ["0000.after_0.arrows", "0001.later.arrows"]  # what comes later repeats nothing


def test_continuous_actions_are_in_the_tasks_units_with_their_largest_magnitude(tmp_path):
    valve = SPEC._replace(action_count=0, action_size=1, action_scale=(5.0,), action_centre=(5.0,))
    told = walk(40)._replace(action=np.linspace(-1, 1, 40, dtype=np.float32)[None, :, None])
    writing = Journal(tmp_path, valve, range(1), 0, print)
    writing.add(told, np.ones((1, 40), bool))
    writing.close()
    path = tmp_path / "transitions.parquet"
    transitions.write_seeds(path, from_journal(tmp_path, range(1)), valve)
    audit = Audit([open_log(str(path))])
    assert audit.actions() == (0, (10.0,))
    assert (audit.action.low[0], audit.action.high[0], audit.out_of_range) == (0.0, 10.0, 0)


HOSTED = dataclasses.replace(FREE, environment=EnvironmentConfig(name="walks:walk", block_steps=10))


@pytest.fixture
def walks(tmp_path, monkeypatch):
    (tmp_path / "walks.py").write_text("from tests.lines import line\ndef walk():\n    return line()\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_what_a_hosts_simulators_gave_is_recorded_without_being_asked_for(walks, tmp_path):
    keep(HOSTED, tmp_path / "run", seeds=2)
    table = pq.read_table(tmp_path / "run" / "transitions.parquet")
    assert arrays(table, "seed").tolist() == [0] * 100 + [1] * 100
    observation, after, action = (arrays(table, name) for name in ("observation", "next_observation", "action"))
    np.testing.assert_array_equal(after[:, 0], observation[:, 0] + (2 * action - 1) / 4)
    assert not (tmp_path / "run" / "transitions").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seeds"] == 2


def test_more_than_a_gigabyte_is_recorded_where_it_is_asked_for_alone(walks, monkeypatch):
    program, said = runner.prepare([HOSTED], 2, at_once=2), []
    assert transitions.records("auto", program, 2, said.append)
    assert not transitions.records("off", program, 2, said.append)
    assert said == []
    assert not transitions.records("auto", program, 312_501, said.append)  # 100 transitions of 8 numbers each
    assert said == ["transitions are not recorded: they would take 1.0 GB; --record-transitions on records them"]
    assert transitions.records("on", program, 312_501, said.append)
    assert transitions.records("auto", program, 312_500, said.append)
