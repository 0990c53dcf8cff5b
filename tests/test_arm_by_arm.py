"""How the studies time rounds of their arms."""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import arm_by_arm

from mbrl_jax.config import load


def test_a_round_more_is_trained_at_each_call_and_its_steps_are_those_of_all_seeds(monkeypatch):
    config = load(Path(__file__).parent.parent / "configs" / "smoke.yaml")
    go_on, steps = arm_by_arm.rounds_of(config, 3)
    assert steps == 3 * config.round_steps
    held, wait = [], jax.block_until_ready
    monkeypatch.setattr(arm_by_arm.jax, "block_until_ready", lambda told: held.append(told[0]) or wait(told))
    go_on()
    go_on()
    assert [int(state.time) for state in held] == [config.round_steps, 2 * config.round_steps]
    assert {state.key.shape for state in held} == {(3,)}


def test_calls_are_timed_in_turn_after_one_round_of_them(monkeypatch):
    called, now = [], iter(range(100))
    monkeypatch.setattr(arm_by_arm.time, "perf_counter", lambda: float(next(now)))
    seconds = arm_by_arm.timed({name: lambda name=name: called.append(name) for name in "ab"}, repetitions=2)
    assert called == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_an_arm_with_a_folder_of_its_own_is_trained_once_and_read_from_then_on(tmp_path, monkeypatch):
    kept, config = [], object()
    monkeypatch.setattr(arm_by_arm.keeping, "keep", lambda *told: kept.append(told) or "trained")
    monkeypatch.setattr(arm_by_arm.results, "read", lambda folder: f"read from {folder.name}")
    folder, start = tmp_path / "deep" / "arm", tmp_path / "source"
    assert arm_by_arm.kept_in(folder, config, 3, start, "study.py") == "trained"
    asked, where, how, script, _ = kept[0]
    assert (asked.config, asked.seeds, where, how.resume, how.start, script) == (config, 3, folder, True, start, "study.py")
    monkeypatch.setattr(arm_by_arm, "is_finished", lambda place: place == folder)
    assert arm_by_arm.kept_in(folder, config, 3, start, "study.py") == "read from arm"
    assert len(kept) == 1
