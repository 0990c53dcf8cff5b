"""Processes that share the seeds of a run: real ones, that meet over the loopback interface, and of which some are killed."""

import contextlib
import json
import multiprocessing
import multiprocessing.pool
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig, save
from mbrl_jax.runs import command_line, hosts, results, run_folder, runner
from mbrl_jax.runs.hosts import Host

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mbrl_jax.runs.command_line", "matplotlib.figure"])
SEEDS = 4
RESULTS = {"config.yaml", "metrics.parquet", "policies.npz", "outcome.npz", "curves.png", "summary.json", "run.json"}


def free_port():
    with socket.socket() as bound:
        bound.bind(("", 0))
        return bound.getsockname()[1]


def work(words, output, cache, environment):
    """``mbrl-jax`` in a process that begins here."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with output.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            command_line.main(words)


class Processes:
    """Starts processes that share a run, and sees that none outlives its test."""

    def __init__(self, folder: Path, config: Path):
        self.folder, self.config, self.started = folder, config, []

    def start(self, out: Path, number: int, *flags: str, environment=None):
        output = self.folder / f"{out.name}_{number}_{len(self.started)}.txt"
        words = ["train", str(self.config), "--seeds", str(SEEDS), "--seed", "3", "--out", str(out), "--checkpoint-every", "0"]
        arguments = ([*words, *flags], output, str(self.folder / "cache"), environment or {})
        process = CONTEXT.Process(target=work, args=arguments, daemon=False)
        process.start()
        self.started.append(process)
        return process, output

    def both(self, out: Path, *flags: str):
        port = free_port()
        named = (("--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(i)) for i in (0, 1))
        return [self.start(out, number, *words, *flags) for number, words in enumerate(named)]


@pytest.fixture(scope="module")
def config(tiny):
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    return replace(free, protocol="interactive", steps=1_000)


@pytest.fixture(scope="module")
def processes(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    save(config, folder / "config.yaml")
    made = Processes(folder, folder / "config.yaml")
    yield made
    for process in made.started:
        process.kill()


@pytest.fixture(scope="module")
def alone(config):
    return runner.run(config, SEEDS, base_seed=3)


def check_like(out, alone):
    found = results.read(out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.result.outcome, alone.result.outcome)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found.result.metrics, alone.result.metrics)
    assert {path.name for path in out.iterdir()} == RESULTS


def rounds_of(place):
    path = place / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saved(place):
    return any(not path.name.startswith(".") for path in (place / "checkpoints").glob("*"))


def wait_for(condition, *started):
    while not condition():
        for process, output in started:
            assert process.is_alive(), output.read_text()
        time.sleep(0.01)


def test_two_processes_share_the_seeds_and_leave_the_run_of_one(processes, alone, tmp_path):
    out = tmp_path / "out"
    both = processes.both(out)
    places = [out / "parts" / name for name in ("0000", "0001")]
    wait_for(lambda: all(rounds_of(place) for place in places), *both)  # both are at work at the same time
    assert run_folder.at_once(out) == 2
    for process, output in both:
        process.join()
        assert process.exitcode == 0, output.read_text()
    check_like(out, alone)
    told = [output.read_text() for _, output in both]
    assert sum("another process has finished the run" in each for each in told) == 1
    assert sum("model_free_q, interactive, 4 seeds, jax" in each for each in told) == 1


def test_what_a_process_that_died_had_begun_the_other_takes_up_from_the_last_checkpoint(processes, alone, tmp_path):
    out = tmp_path / "out"
    (first, told), (second, its) = both = processes.both(out)
    wait_for(lambda: saved(out / "parts" / "0001"), *both)
    second.kill()
    second.join()
    assert second.exitcode == -signal.SIGKILL, its.read_text()
    first.join()
    assert first.exitcode == 0, told.read_text()
    check_like(out, alone)
    goes_on = [line for line in told.read_text().splitlines() if "goes on after round" in line]
    assert len(goes_on) == 1, told.read_text()  # and not from the beginning


def test_a_process_that_died_can_come_back_though_nobody_waits_for_it(processes, alone, tmp_path):
    out = tmp_path / "out"
    (first, told), (second, its) = both = processes.both(out)
    wait_for(lambda: saved(out / "parts" / "0000"), *both)
    first.kill()  # the coordinator, and the one that began the run
    first.join()
    flags = ("--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "0", "--resume")
    again, output = processes.start(out, 0, *flags)
    for process, said in ((second, its), (again, output)):
        process.join()
        assert process.exitcode == 0, said.read_text()
    check_like(out, alone)
    assert "goes on after round" in output.read_text() + its.read_text()
    assert first.exitcode == -signal.SIGKILL, told.read_text()


def test_under_slurm_the_tasks_find_one_another(processes, alone, tmp_path):
    out = tmp_path / "out"
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    tasks = [{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in (0, 1)]
    both = [processes.start(out, i, "--coordinator", "slurm", environment=task) for i, task in enumerate(tasks)]
    for process, output in both:
        process.join()
        assert process.exitcode == 0, output.read_text()
    check_like(out, alone)


def test_processes_that_were_given_other_settings_are_refused_and_begin_nothing(processes, tmp_path):
    out = tmp_path / "out"
    port = free_port()
    named = (("--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(i)) for i in (0, 1))
    rates = ("0.001", "0.002")
    both = [processes.start(out, i, *words, "--agent.learning-rate", rates[i]) for i, words in enumerate(named)]
    for process, output in both:
        process.join()
        assert process.exitcode == 2
        assert "processes [1] were given other settings than process 0" in " ".join(output.read_text().split())
    assert not out.exists()


def test_a_process_does_not_wait_for_the_others_for_ever(tmp_path):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"process 0 of 2 did not meet the others within 1 s: .*DEADLINE_EXCEEDED.*process_id"):
        hosts.agree(Host(0, 2, f"localhost:{free_port()}"), {}, 1, patience=1)
    assert time.monotonic() - start < 60


def test_several_processes_agree_on_what_the_smallest_has_room_for():
    port = free_port()
    with multiprocessing.pool.ThreadPool(3) as pool:
        who = [(Host(number, 3, f"localhost:{port}"), {"a": 1}, room) for number, room in enumerate((7, 4, 9))]
        assert pool.starmap(hosts.agree, who) == [4, 4, 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1234", None, 2), "process_id: it is missing"),
        ((None, 0, 2), "coordinator: it is missing"),
        (("localhost:1234", 0, None), "num_processes: it is missing"),
        (("localhost", 0, 2), "coordinator: 'localhost' does not fit; it must be ADDRESS:PORT"),
        (("localhost:99999", 0, 2), "coordinator: 'localhost:99999' does not fit"),
        (("localhost:1234", 2, 2), "process_id: 2 is out of range; of 2 processes it must be from 0 to 1"),
        (("localhost:1234", 0, 0), "num_processes: 0 is out of range"),
        (("slurm", None, None), "coordinator: 'slurm' does not fit; SLURM_PROCID and SLURM_NTASKS must be set"),
    ],
)
def test_bad_flags_are_refused(given, message, monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=message):
        hosts.host(*given)


def test_without_flags_there_is_but_one_process():
    assert hosts.host(None, None, None) is None


def test_more_processes_than_seeds_are_refused(processes, capsys, tmp_path):
    words = ["train", str(processes.config), "--seeds", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        command_line.main([*words, "--coordinator", "localhost:1234", "--process-id", "0", "--num-processes", "2"])
    assert "num_processes: 2 does not fit; for 1 seeds it must be at most 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_not_the_first_does_not_begin_where_something_is(processes, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text(json.dumps("mine"))
    words = ["train", str(processes.config), "--seeds", "4", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        command_line.main([*words, "--coordinator", "localhost:1234", "--process-id", "1", "--num-processes", "2"])
    assert "exists already and is left as it is" in capsys.readouterr().err
