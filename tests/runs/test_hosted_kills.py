"""Runs in simulators on the host whose processes, or whose simulators' processes, are killed in the middle."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mbrl_jax.config import EnvironmentConfig, EvaluationConfig, ModelFreeQConfig, QLearningConfig
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.transitions import from_journal
from tests.runs.test_kills import make_runs

WALK = ModelFreeQConfig(
    protocol="interactive",
    random_transitions=40,
    steps=400,
    round_steps=20,
    metric_steps=10,
    environment=EnvironmentConfig(name="tests.lines:walk", block_steps=10, processes=True),
    agent=QLearningConfig(hidden=(8,), batch_size=8),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=1),
)
SEEDS = range(2)


def simulators(parent):
    """Numbers of the processes that run a simulator for another one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, above = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (place / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(above) == parent and state != "Z" and "simulators.copies import serve" in words:
            found.append(int(place.name))
    return sorted(found)


def wait_until_gone(numbers):
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in numbers) and time.monotonic() < limit:
        time.sleep(0.01)
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed, once at random and, as it went on, one of its simulators: what there was at each moment."""
    runs = make_runs(WALK, tmp_path_factory.mktemp("walk"))
    out = runs.folder / "run"
    process = runs.start(out)
    assert runs.wait_for_round(out, process, 3), runs.output.read_text()
    while process.is_alive() and not checkpoint.rounds(out / "checkpoints"):  # which a thread writes beside the run
        time.sleep(0.002)
    assert process.is_alive(), runs.output.read_text()
    first = simulators(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    told = {"runs": runs, "out": out, "first": first, "left": wait_until_gone(first), "noted": runs.done(out)}
    told |= {"saved": checkpoint.rounds(out / "checkpoints")[-1], "journal": dict(from_journal(out, SEEDS))}
    process = runs.start(out, "--resume")
    assert runs.wait_for_round(out, process, told["noted"] + 1), runs.output.read_text()
    os.kill(simulators(process.pid)[1], signal.SIGKILL)
    process.join()
    assert process.exitcode == 0, runs.output.read_text()
    return told


def test_no_simulator_outlives_a_run_that_is_killed(killed):
    assert len(killed["first"]) in (2, 4)  # of both seeds, acting and, if they are made by then, judging
    assert killed["left"] == []


def test_a_run_that_was_killed_goes_on_with_new_episodes_and_notes_every_round_once(killed):
    said = killed["runs"].output.read_text()
    assert f"goes on after round {killed['saved']}" in said
    assert "what goes on within a simulator is not saved: every seed begins a new episode" in said
    lines = [json.loads(line) for line in (killed["out"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 21))
    assert not (killed["out"] / "checkpoints").exists()


def test_nothing_that_was_collected_before_the_kill_is_lost(killed):
    table = pq.read_table(killed["out"] / "transitions.parquet")
    for seed in SEEDS:
        before = killed["journal"][seed]
        assert len(before.reward) >= 40 + 20 * killed["noted"]
        here = table.filter(pc.equal(table["seed"], seed)).slice(0, len(before.reward))
        for name in ("observation", "next_observation"):
            np.testing.assert_array_equal(np.array(here[name].to_pylist(), np.float32), getattr(before, name))
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(here[name].to_numpy(), getattr(before, name))
    whole = table.filter(pc.equal(table["seed"], 0)).num_rows
    made = 40 + 20 * 20 + len(killed["journal"][0].reward) - (40 + 20 * killed["saved"])  # some steps for a second time
    assert whole == made
    assert not (killed["out"] / "transitions").exists()


def test_a_simulators_process_that_is_killed_costs_its_seed_alone(killed):
    summary = json.loads((killed["out"] / "summary.json").read_text())
    (failed,) = summary["failed_simulators"]
    assert "its process ended by itself with exit code -9" in summary["failed_simulators"][failed]
    assert summary["frozen_seeds"] == [int(failed)]
    other = 1 - int(failed)
    table = pq.read_table(killed["out"] / "transitions.parquet")
    rows = [table.filter(pc.equal(table["seed"], seed)).num_rows for seed in (int(failed), other)]
    assert rows[0] < rows[1]
    assert np.isfinite(summary["return_last"][other])
