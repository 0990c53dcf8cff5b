"""The benchmark for a GPU: that it goes on where a part fails or where it left off, and what it compares."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import gpu

from mbrl_jax.algorithms.training import seed_keys


@pytest.fixture
def parts(monkeypatch):
    """Parts that take no time; ``asked`` has those that were measured, ``broken`` those that fail."""
    asked, broken = [], set()

    def part(name):
        def measure(*_):
            asked.append(name)
            yield {"what": name, "seconds": 1.5}
            if name in broken:
                raise ValueError(f"{name} is broken")

        return measure

    names = ("compare_numbers", "time_steps", "run_recipes", "time_starts", "run_torch")
    for name in names:
        monkeypatch.setattr(gpu, name, part(name))
    monkeypatch.setattr(gpu, "compile_side_by_side", lambda *_: {"seconds": 0.0, "failed": {}})
    monkeypatch.setattr(gpu.execution, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(gpu.jax.config, "update", lambda *_: None)
    return asked, broken


def told(folder):
    return json.loads((folder / "gpu_dry_run.json").read_text())


def test_a_part_that_fails_says_so_and_the_others_go_on(parts, tmp_path, capsys):
    asked, broken = parts
    broken.add("time_steps")
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    assert asked == ["compare_numbers", "time_steps", "run_recipes", "time_starts", "run_torch"]
    content = told(tmp_path)
    assert content["dry_run"] is True
    assert content["parts"]["steps"]["failed"] == "ValueError: time_steps is broken"
    assert content["parts"]["steps"]["rows"] == [{"what": "time_steps", "seconds": 1.5}]  # what it had until then
    assert "failed" not in content["parts"]["torch"]
    shown = capsys.readouterr().out
    assert "steps failed" in shown
    assert shown.index("steps failed") < shown.index("figures")  # the table comes last
    assert "these figures mean nothing" in shown.replace("\n", " ")


def test_a_second_call_measures_what_the_first_one_left(parts, tmp_path):
    asked, broken = parts
    broken.add("run_recipes")
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--parts", "steps", "recipes"]) == 1
    broken.clear()
    asked.clear()
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--resume", "--parts", "steps", "recipes", "torch"]) == 0
    assert asked == ["run_recipes", "run_torch"]
    assert set(told(tmp_path)["parts"]) == {"steps", "recipes", "torch"}


def test_parts_of_another_revision_are_measured_again(parts, tmp_path):
    asked, _ = parts
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--parts", "steps"]) == 0
    content = told(tmp_path)
    (tmp_path / "gpu_dry_run.json").write_text(json.dumps({**content, "git": "another"}))
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--resume", "--parts", "steps"]) == 0
    assert asked == ["time_steps"] * 2


def test_what_takes_longer_than_there_is_time_for_ends_and_is_not_taken_for_done(parts, tmp_path):
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--minutes", "0", "--parts", "steps"]) == 1
    assert told(tmp_path)["parts"]["steps"]["failed"] == "TimeoutError: the 0 minutes were over"


def test_a_distance_is_over_the_norm_of_what_is_expected_or_of_its_change():
    expected, found, base = ({"a": jnp.asarray([x]), "b": jnp.asarray([4.0])} for x in (3.0, 3.5, 0.0))
    assert gpu._apart(expected, found) == pytest.approx({"relative": 0.1, "largest": 0.5})
    assert gpu._apart(expected, found, base) == pytest.approx({"relative": 0.5 / 3, "largest": 0.5})
    assert gpu._apart(expected, expected) == {"relative": 0.0, "largest": 0.0}
    nan = {"a": jnp.asarray([jnp.nan]), "b": jnp.asarray([4.0])}
    assert not gpu._apart(expected, nan)["largest"] <= 1e9  # a number that is not finite is no agreement


def test_keys_are_compared_by_their_data():
    (leaf,) = gpu._leaves(seed_keys(0, 2))
    assert leaf.dtype == np.uint32


def test_the_plans_cover_what_is_promised():
    full, tiny = gpu.full(), gpu.tiny()
    assert full.after == (1, 20, 100)
    assert full.precisions == ("default", "highest")
    assert (min(full.ours), max(full.ours)) == (1, 4096)
    assert full.learned == 256
    assert tiny.config.round_steps < full.config.round_steps
    points = gpu.points(full)
    assert len(set(points)) == len(points)
    assert {point.seeds for point in points if point.engine == "cuda" and point.steps == (100,)} == set(full.ours)


def test_a_dry_run_holds_the_kernels_against_the_plain_path(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "compile_side_by_side", lambda *_: {"seconds": 0.0, "failed": {}})
    monkeypatch.setattr(gpu.execution, "use_compilation_cache", lambda: None)
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--parts", "numbers", "--minutes", "10"]) == 0
    rows = {row["what"]: row for row in told(tmp_path)["parts"]["numbers"]["rows"]}
    assert set(rows) == {"fit", "fit's errors", "parameters", "moments", "imagined rows", "loss", "score", "curve_return"}
    assert all(row["relative"] < 1e-4 for row in rows.values()), rows
    assert all(row["same_bits"] for row in rows.values() if "same_bits" in row)
