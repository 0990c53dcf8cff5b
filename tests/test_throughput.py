"""The benchmark of throughput, at the smallest size that there is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import start
import throughput

from mbrl_jax.config import QLearningConfig


def test_the_work_of_a_step_is_counted_from_the_shapes(tiny):
    """By hand: 2 hidden layers of 8, 4 observations, 2 actions, a batch of 16, 4 lanes of 2 steps, 2 members of 8 outputs."""
    assert (tiny.agent, tiny.imagination.lanes) == (QLearningConfig(hidden=(8, 8), batch_size=16), 4)
    forward, predict = 2 * (4 * 8 + 8 * 8 + 8 * 2), 2 * (5 * 8 + 8 * 8 + 8 * 8)
    work = throughput.Work.of(tiny)
    update = 16 * (3 * forward + 2 * forward - 2 * 4 * 8)  # both networks on what follows, one forward and backward
    assert work.step == update + 4 * 2 * (predict + forward)
    assert (work.imagined_step, work.real_step) == (predict + forward, forward)
    assert work.fit_step == 2 * 16 * (3 * predict - 2 * 5 * 8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the command writes and prints for two seeds of a preset."""
    out = tmp_path_factory.mktemp("throughput") / "throughput.json"
    with pytest.MonkeyPatch.context() as patch:
        words = ["--presets", "smoke", "--seeds", "2", "--repetitions", "1", "--round-seconds", "0", "--out", str(out)]
        patch.setattr(sys, "argv", ["throughput.py", *words, "--set", "environment.time_limit=40"])
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setattr(throughput, "rates", lambda precision: {"operations_per_second": 1e9, "bytes_per_second": 1e12})
        patch.setattr(throughput.execution, "use_all_cores", lambda: None)  # the tests have been told how many
        throughput.main()
    return out, json.loads(out.read_text())


def test_a_point_tells_how_long_it_takes_to_start_and_to_run_and_what_the_floor_would_be(measured):
    out, content = measured
    (point,) = content["points"]
    assert (point["preset"], point["seeds"], point["rounds"], point["rounds_run"]) == ("smoke", 2, 2, 2)
    assert min(point["from_cache"], point["compile"]) > 0
    assert point["from_cache"] < point["second_start"]
    assert set(point["first"]) == set(point["steady"]) == {"collect", "fit", "round", "evaluate"}
    phases = {name: each["median"] for name, each in point["steady"].items()}
    whole = phases["collect"] + phases["fit"] + phases["evaluate"]
    assert point["recipe_seconds"] > whole
    np.testing.assert_allclose(point["recipe_share_of_floor"], point["recipe_floor_seconds"] / point["recipe_seconds"])
    np.testing.assert_allclose(point["recipe_steps_per_second"], 2 * 40 / point["recipe_seconds"])
    np.testing.assert_allclose(point["recipe_floor_seconds"], 2 * 40 * point["recipe_operations_per_step"] / 1e9)
    assert content["git"]
    assert content["settings"] == ["environment.time_limit=40"]
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_a_number_of_seeds_that_does_not_fit_into_memory_ends_its_row_and_is_noted(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise throughput.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--presets", "smoke", "--seeds", "2", "4", "--out", str(out)])
    monkeypatch.setattr(throughput, "rates", lambda precision: {"operations_per_second": 1e9})
    monkeypatch.setattr(throughput.execution, "use_all_cores", lambda: None)
    monkeypatch.setattr(throughput, "Point", full)
    throughput.main()
    assert "out of memory" in capsys.readouterr().out
    (point,) = json.loads(out.read_text())["points"]
    assert (point["seeds"], point["failed"]) == (2, "out of memory")


@pytest.mark.parametrize(("said", "failed"), [("RESOURCE_EXHAUSTED: out of memory", "out of memory"), ("a mistake", None)])
def test_a_process_that_fails_ends_the_row_if_memory_ran_out_and_else_says_why(tmp_path, monkeypatch, said, failed):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--presets", "smoke", "--seeds", "2", "--out", str(out)])
    monkeypatch.setattr(throughput, "rates", lambda precision: {"operations_per_second": 1e9})
    monkeypatch.setattr(throughput.execution, "use_all_cores", lambda: None)
    monkeypatch.setattr(start, "GET_READY", f"raise SystemExit({said!r})")
    if failed is None:
        with pytest.raises(RuntimeError, match=said):
            throughput.main()
    else:
        throughput.main()
        assert json.loads(out.read_text())["points"][0]["failed"] == failed
