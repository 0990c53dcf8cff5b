"""Seeds that do not fit into memory at once."""

import multiprocessing
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from processes import compile_as_tests_do

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError, ModelFreeQConfig, save
from mbrl_jax.report import listing
from mbrl_jax.runs import execution, folder, keeping, results, runner, shards
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.program import Batch, split

SEEDS = 5


TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}  # programs for other numbers of seeds round differently in the last digit


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


@pytest.fixture(scope="module")
def whole(tiny):
    """The run at once, on one of the devices that tests have."""
    return runner.run(tiny, SEEDS, base_seed=3, diagnose=True, devices=1)


def room_of(config):
    """Bytes for two seeds, but not for three: those of a program for two, and a little more."""
    return int(1.05 * runner.prepare([config], 2).bytes)


@pytest.fixture(scope="module")
def room(tiny):
    return room_of(tiny)


@pytest.fixture(scope="module")
def free(tiny):
    """The model-free half of ``tiny``: what concerns folders alone is trained at less cost."""
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


@pytest.fixture(scope="module")
def free_whole(free):
    return runner.run(free, SEEDS, base_seed=3)


@pytest.fixture(scope="module")
def free_room(free):
    return room_of(free)


def test_batches_are_as_few_and_as_equal_as_can_be():
    assert split(7, 3) == [Batch(0, 3), Batch(3, 3), Batch(6, 1)]
    assert split(8, 3) == [Batch(0, 3), Batch(3, 3), Batch(6, 2)]
    assert split(9, 8) == [Batch(0, 5), Batch(5, 4)]
    assert split(5, 5) == [Batch(0, 5)]
    assert sum(batch.agents for batch in split(100_000, 999)) == 100_000


def test_a_run_in_batches_gives_each_seed_the_numbers_of_the_run_at_once_and_compiles_once(tiny, whole, room, monkeypatch):
    compiled, compile_ = [], execution.Lowered.compile

    def counted(lowered):
        compiled.append(lowered)
        return compile_(lowered)

    monkeypatch.setattr(execution.Lowered, "compile", counted)
    told, display = [], Display.silent()
    monkeypatch.setattr(display, "say", told.append)
    run = runner.run(tiny, SEEDS, base_seed=3, diagnose=True, memory=room, display=display)
    assert f"2 of {SEEDS} seeds fit into memory at once" in told[0]
    assert "3 batches" in told[0]
    close(run.result, whole.result)
    close(run.diagnosis, whole.diagnosis)
    for_more = (len(compiled) - 5) // 4  # programs for more seeds, which turned out not to fit
    assert len(compiled) == 5 + 4 * for_more  # to begin, fit, advance, finish and diagnose, for all three batches
    assert for_more <= 2


class Killed(BaseException):
    """The process ends here."""


def kill(*_, **__):
    raise Killed


@pytest.fixture
def words(free, tmp_path, free_room):
    save(free, tmp_path / "free.yaml")
    out = tmp_path / "out"
    given = ["train", str(tmp_path / "free.yaml"), "--seeds", str(SEEDS), "--seed", "3"]
    return out, [*given, "--memory", str(free_room / 1e9), "--out", str(out)]


def same(out, whole):
    found = results.read(out)
    close(found.result.outcome, whole.result.outcome)
    close(found.result.metrics, whole.result.metrics)
    assert not (out / "shards").exists()


def test_the_command_line_trains_in_batches_and_leaves_one_run(tiny, whole, room, tmp_path, capsys):
    out = tmp_path / "out"
    save(tiny, tmp_path / "tiny.yaml")
    words = ["train", str(tmp_path / "tiny.yaml"), "--seeds", str(SEEDS), "--seed", "3", "--diagnose"]
    command_line.main([*words, "--memory", str(room / 1e9), "--out", str(out)])
    same(out, whole)
    close(results.read(out).diagnosis, whole.diagnosis)
    assert "3 batches" in capsys.readouterr().err
    assert results.read_summary(out)["seeds"] == SEEDS
    assert (out / "curves.png").exists()


@pytest.mark.parametrize("moment", ["between batches", "while results are joined", "before batches are removed"])
def test_a_run_in_batches_that_was_killed_goes_on(words, free_whole, moment, monkeypatch, capsys):
    out, command = words
    written = []

    def second(run, *rest, **settings):
        written.append(run)
        if len(written) == 2:
            raise Killed
        return write(run, *rest, **settings)

    write = results.write
    with monkeypatch.context() as patch:
        if moment == "between batches":
            patch.setattr(results, "write", second)
        elif moment == "while results are joined":
            patch.setattr(shards, "joined", kill)
        else:
            patch.setattr(shards, "remove", kill)
        with pytest.raises(Killed):
            command_line.main(command)
    told = listing.find(out)
    assert len(told) == 1
    assert told[0].state == {"between batches": "1 of 3 shards", "while results are joined": "3 of 3 shards"}.get(
        moment, "finished"
    )
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("summary.json")}
    without = [word for word in command if word != "--memory"]
    without.remove(command[command.index("--memory") + 1])  # how it was cut is on file
    command_line.main([*without, "--resume"])
    same(out, free_whole)
    assert len(before) == {"between batches": 1}.get(moment, 3)


def test_bad_numbers_are_refused(words, capsys):
    out, command = words
    bad = {"--memory": ("-1", "memory: -1.0 is out of range"), "--devices": ("two", "devices: 'two' does not fit")}
    for flag, (value, message) in bad.items():
        with pytest.raises(SystemExit):
            command_line.main([*command[:-4], flag, value, "--out", str(out)])
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_to_go_on_in_batches_from_a_round_is_refused(words, monkeypatch, capsys):
    out, command = words
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "train", kill)
        with pytest.raises(Killed):
            command_line.main(command)
    with pytest.raises(SystemExit):
        command_line.main([*command, "--resume-from", "1"])
    assert "resume_from: 1 does not fit a run in batches" in capsys.readouterr().err
    assert folder.at_once(out) == 2


def test_what_one_seed_holds_must_fit(tiny):
    wide = replace(tiny, random_transitions=40)
    with pytest.raises(ConfigError, match="memory: 0.000 GB do not hold one seed"):
        runner.run(wide, 2, memory=2_000)


def on_four_devices(config, cache, connection):
    """In a process of its own: the same seeds on four virtual devices."""
    jax.config.update("jax_num_cpu_devices", 4)
    compile_as_tests_do(cache)
    connection.send((runner.run(config, SEEDS, base_seed=3).result, len(jax.local_devices())))


def test_a_run_on_several_virtual_devices_gives_each_seed_the_numbers_of_the_run_on_one(tiny, whole):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=on_four_devices, args=(tiny, jax.config.jax_compilation_cache_dir, theirs))
    process.start()
    theirs.close()
    four, devices = ours.recv()
    process.join()
    assert devices == 4
    close(four, whole.result)


def test_several_configs_in_batches_have_the_numbers_of_each_config_alone(tiny, room):
    configs = [replace(tiny, agent=replace(tiny.agent, learning_rate=rate)) for rate in (1e-3, 1e-2)]
    told, display = [], Display.silent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "say", told.append)
        together = list(runner.run_all(configs, 3, base_seed=3, diagnose=True, memory=room, display=display))
    assert "2 of 6 seeds fit into memory at once" in told[0]  # so that batches cut through the seeds of a config
    for config, found in zip(configs, together, strict=True):
        alone = runner.run(config, 3, base_seed=3, diagnose=True)
        assert found.config == config
        close(found.result, alone.result)
        close(found.diagnosis, alone.diagnosis)


def test_the_command_line_sweeps_in_batches(free, free_room, tmp_path, capsys):
    save(free, tmp_path / "free.yaml")
    words = ["sweep", str(tmp_path / "free.yaml"), "--grid", "agent.learning_rate=1e-3,1e-2", "--seeds", "2"]
    command_line.main([*words, "--memory", str(free_room / 1e9), "--devices", "2", "--out", str(tmp_path / "out")])
    assert "2 of 4 seeds fit into memory at once" in capsys.readouterr().err
    assert results.read_summary(tmp_path / "out" / "1")["seeds"] == 2


def test_a_sweep_that_cannot_be_is_refused_before_a_folder_is_made(tiny, tmp_path, capsys):
    save(tiny, tmp_path / "tiny.yaml")
    words = ["sweep", str(tmp_path / "tiny.yaml"), "--grid", "agent.learning_rate=1e-3", "--out", str(tmp_path / "out")]
    bad = {("--devices", "9", "--seeds", "2"): "devices: 9 is out of range", ("--seeds", "1000000000"): "do not fit into memory"}
    for flags, message in bad.items():
        with pytest.raises(SystemExit):
            command_line.main([*words, *flags])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
