"""Shards as jobs: of submitit's executor on this machine, and of a Ray cluster of two nodes; some of them are killed."""

import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError, ModelFreeQConfig, save
from mbrl_jax.runs import checkpoint, folder, launch, results, runner, sweep
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.launch import Job, Launcher

with mock.patch.object(logging, "shutdown"):  # which submitit calls, and absl then closes what pytest captures
    import submitit  # noqa: F401

SEEDS = 4
LOCAL = ("--launcher", "slurm", "--launcher-option", "cluster=local")


@pytest.fixture(scope="module")
def config(tiny):
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    return replace(free, protocol="interactive", steps=1_000)


@pytest.fixture(scope="module")
def unbroken(config):
    return runner.run(config, SEEDS, base_seed=3)


@pytest.fixture(autouse=True)
def quick_jobs(monkeypatch):
    """Jobs compile as tests do."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    monkeypatch.setattr(launch, "GLANCE", 0.05)


@pytest.fixture
def command(config, tmp_path):
    save(config, tmp_path / "config.yaml")
    out = tmp_path / "out"
    words = ["train", str(tmp_path / "config.yaml"), "--seeds", str(SEEDS), "--seed", "3", "--out", str(out)]
    return out, [*words, "--shards", "2", "--checkpoint-every", "0"]


def rounds_of(place):
    path = place / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def holders(place):
    """The processes that hold the lock of a folder."""
    lock = place / ".lock"
    if not lock.exists():
        return []
    inode = f":{lock.stat().st_ino} "
    return [int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if inode in line]


class Killer(threading.Thread):
    """Kills the process that works on a shard once the shard is saved, and notes how far the shard was."""

    def __init__(self, place):
        super().__init__(daemon=True)
        self.place, self.killed = place, []
        self.start()

    def run(self):
        deadline = time.monotonic() + 300
        while not self.killed and time.monotonic() < deadline:
            saved = any(not path.name.startswith(".") for path in (self.place / "checkpoints").glob("*"))
            for process in holders(self.place) if saved else ():
                os.kill(process, signal.SIGKILL)
                self.killed.append(rounds_of(self.place))
            time.sleep(0.005)


def check_like(out, unbroken):
    found = results.read(out)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found.result.metrics, unbroken.result.metrics
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.result.outcome, unbroken.result.outcome
    )
    assert not (out / "shards").exists()
    assert {"run.json", "curves.png", "summary.json"} <= {path.name for path in out.iterdir()}


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="finds a job's process in /proc")
def test_of_jobs_of_submitit_one_that_is_killed_is_submitted_again_and_the_run_is_the_unbroken_one(command, unbroken, capsys):
    out, words = command
    killer = Killer(out / "shards" / "0001")
    command_line.main([*words, *LOCAL])
    said = capsys.readouterr().err
    assert killer.killed, said
    assert 0 < killer.killed[0] < 100
    assert "shard 0001 ended with UncompletedJobError" in said
    assert "it is submitted again" in said
    assert "shard 0000 is done" in said
    check_like(out, unbroken)
    command_line.main([*words, *LOCAL, "--resume"])
    assert "is finished already" in capsys.readouterr().out


PLACE = {"num_cpus": 1, "object_store_memory": 80_000_000}  # of a node: for one job, and bytes


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of Ray on this machine, with one place for a job each."""
    pytest.importorskip("ray", reason="ray has no wheel for this Python")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={**PLACE, "include_dashboard": False})
        nodes.add_node(**PLACE)
        assert len(nodes.list_all_nodes()) == 2
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        import ray

        ray.shutdown()
        nodes.shutdown()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="finds a job's process in /proc")
def test_of_jobs_of_ray_on_two_nodes_one_that_is_killed_is_submitted_again_and_the_run_is_the_unbroken_one(
    cluster, command, unbroken, capsys
):
    out, words = command
    killer = Killer(out / "shards" / "0001")
    command_line.main([*words, "--launcher", "ray"])
    said = capsys.readouterr().err
    assert killer.killed, said
    assert "shard 0001 ended with WorkerCrashedError" in said
    assert "it is submitted again" in said
    check_like(out, unbroken)


def test_the_shards_of_a_sweep_are_jobs_too_and_what_failed_is_trained_by_resume(config, tmp_path, capsys, monkeypatch):
    short = replace(config, steps=20)
    save(short, tmp_path / "config.yaml")
    words = ["sweep", str(tmp_path / "config.yaml"), "--grid", "agent.batch_size=8,16", "--grid", "agent.discount=0.9,0.8"]
    words += ["--seeds", "2", "--out", str(tmp_path / "out"), "--shards", "2"]
    engine = launch.engine
    with monkeypatch.context() as patch:  # an engine that loses every job of the second shard
        patch.setattr(launch, "engine", lambda launcher, out: lambda job: in_this_process(job) if "0000" in job[-1] else LOST)
        said = refused(capsys, *words, *LOCAL)
    assert "shard 0001 ended with lost" in said
    assert said.count("it is submitted again") == 3
    assert (tmp_path / "out" / "shards" / "0000" / "0" / "summary.json").exists()
    assert engine is launch.engine
    command_line.main([*words, *LOCAL, "--resume"])
    assert "1 shards are submitted" in capsys.readouterr().err
    table = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(entry["name"], entry["state"]) for entry in table] == [(str(i), "finished") for i in range(4)]
    assert not (tmp_path / "out" / "shards").exists()
    for entry in table:
        run = results.read(tmp_path / "out" / entry["name"])
        alone = runner.run(run.config, 2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run.result, alone.result)


LOST = Job(lambda: "lost", lambda: None)


def in_this_process(words):
    status = command_line.work(words)
    return Job(lambda: status, lambda: None)


def test_a_run_that_one_process_began_and_saved_is_not_begun_anew_by_a_launcher(command, config, capsys):
    out, words = command
    with folder.opened(out, Asked(config, SEEDS, 3, False), "the command") as opened:
        opened.checkpoints.save(checkpoint.Checkpoint(1, {"a": np.zeros(1)}, {}))
    said = refused(capsys, *words, *LOCAL, "--resume")
    assert f"launcher: the run in {str(out)!r} was begun by one process; go on with it without a launcher" in said
    assert checkpoint.rounds(out / "checkpoints") == [1]


def test_shards_that_were_launched_are_gone_on_with_by_one_process(command, config, unbroken, capsys, monkeypatch):
    out, words = command
    words[words.index("--shards") + 1] = "1"
    with monkeypatch.context() as patch:
        patch.setattr(launch, "engine", lambda launcher, out: lambda job: LOST)
        refused(capsys, *words, *LOCAL)
    without = [word for word in words if word not in ("--shards", "1")]
    command_line.main([*without, "--resume"])
    assert "batch 0000: seeds 0 to 3" in capsys.readouterr().err
    check_like(out, unbroken)


def test_what_is_refused_is_not_submitted_again():
    submitted = []

    def submit(words):
        submitted.append(words)
        return Job(lambda: 2, lambda: None)

    with pytest.raises(ConfigError, match="launcher: shard 0000 ended with status 2. What is done is kept"):
        launch.run_all({Path("0000"): ["x"]}, submit, Launcher("slurm", 1, command_line.work), lambda text: None)
    assert submitted == [["x"]]


def test_jobs_are_cancelled_when_the_launching_process_fails():
    cancelled = []

    def submit(words):
        if words == ["b"]:
            return Job(lambda: 1 // 0, lambda: cancelled.append("b"))
        return Job(lambda: None, lambda: cancelled.append("a"))

    with pytest.raises(ZeroDivisionError):
        launch.run_all({Path("a"): ["a"], Path("b"): ["b"]}, submit, Launcher("ray", 2, command_line.work), lambda text: None)
    assert cancelled == ["a", "b"]


@pytest.mark.parametrize("count", range(1, 8))
def test_combinations_that_compile_together_go_into_as_few_pieces_as_can_be(count):
    pieces = launch._pieces([[0, 2, 4], [1, 3, 5]], count)
    assert sorted(place for piece in pieces for place in piece) == list(range(6))
    assert len(pieces) == min(count, 6)
    if count == 2:
        assert pieces == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--launcher", "slurm", "--shards", "5"), "shards: 5 is out of range; for 4 seeds it must be from 1 to 4"),
        (("--launcher", "slurm", "--shards", "0"), "shards: 0 is out of range"),
        (("--launcher", "slurm"), "--launcher and --shards go together"),
        (("--shards", "2"), "--launcher and --shards go together"),
        (("--launcher", "slurm", "--shards", "2", "--tensorboard"), "launcher: it does not fit with --tensorboard"),
        (("--launcher", "slurm", "--shards", "2", "--retries", "-1"), "retries: -1 is out of range"),
        (("--launcher", "slurm", "--shards", "2", "--launcher-option", "speed"), "launcher_option: 'speed' does not fit"),
        ((*LOCAL, "--shards", "2", "--launcher-option", "speed=1"), "launcher: slurm cannot be used: .*speed"),
        (("--launcher", "slurm", "--shards", "2"), "launcher: slurm cannot be used: "),
    ],
)
def test_what_cannot_be_launched_is_refused_before_a_folder_is_made(command, capsys, flags, message):
    out, words = command
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(refused(capsys, *words[:-4], "--checkpoint-every", "0", *flags))
    assert not out.exists()


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_that_an_engine_is_missing_is_said_with_what_to_install(command, capsys, monkeypatch, name, package):
    out, words = command
    monkeypatch.setitem(sys.modules, package, None)
    assert f"install the extra `mbrl-jax[{name}]`" in refused(capsys, *words, "--launcher", name)
    assert not out.exists()


def test_a_sweep_of_other_combinations_is_no_sweep(tmp_path, config):
    with pytest.raises(ConfigError, match=r"combinations: \[7\] does not fit"):
        sweep.Table(tmp_path, config, {"agent.discount": [0.9]}, range(1), 0, [7])
