"""The study of continuous control: its arms differ in what they say, and its table tells what is on file."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import control_study as study

from mbrl_jax import strict_json
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import to_dict


@pytest.mark.parametrize("task", study.TASKS)
def test_arms_spend_the_same_real_steps_updates_and_imagined_rows_and_can_be_made(task):
    arms = study.arms(task)
    short = {name: config for name, config in arms.items() if name not in study.PRESETS}
    assert {config.real_transitions for config in short.values()} == {arms["mbpo"].random_transitions + study.SHORT[task]}
    assert len({config.updates for config in short.values()}) == 1
    assert {config.imagined_per_step for name, config in short.items() if name != "twin"} == {20}
    assert {config.environment.action_repeat for config in arms.values()} == {1 if task == "hopper" else 4}
    for config in arms.values():
        algorithm_of(config).make_train(config)


def test_arms_differ_from_the_preset_by_what_their_name_says():
    arms = study.arms("swingup")
    plain = to_dict(dataclasses.replace(arms["mbpo"], steps=study.SHORT["swingup"]))
    for name, change in study.FAULTS.items():
        assert to_dict(arms[name]) == {**plain, "model": {**plain["model"], **change}}
    assert to_dict(arms["fixed_5"])["imagination"] == {
        **plain["imagination"],
        "cap": 5,
        "controller": {"kind": "fixed", "length": 5.0},
    }
    assert set(study.GPU_ARMS) <= set(arms)


def test_the_table_tells_means_and_differences_of_what_is_on_file(tmp_path, capsys, monkeypatch):
    for arm, returns in {
        "fixed_1": [100.0, 200, 300, 400],
        "fixed_5": [0.0, 0, 0, 0],
        "threshold_quantile": [150.0, 250, 350, 450],
    }.items():
        told = {"task": "swingup", "arm": arm, "steps": [4_000, 16_000], "returns": returns, "depth_by_round": [1.0, 2.0]}
        strict_json.write(tmp_path / f"swingup_{arm}.json", {**told, "curves": [[0.0, each] for each in returns]})
    monkeypatch.setattr(sys, "argv", ["control_study.py", "table", "--out", str(tmp_path)])
    study.main()
    printed = capsys.readouterr().out
    assert "16,000" in printed
    assert "swingup: threshold_quantile less fixed_1: 50.0" in " ".join(printed.split())
    assert (tmp_path / "control.png").stat().st_size > 1_000
    told = strict_json.loads((tmp_path / "swingup_fixed_1.json").read_text())
    assert study.at(told, 15_999).tolist() == [0.0] * 4
    assert study.at(told, 16_000).tolist() == [100, 200, 300, 400]


def test_the_best_horizons_are_compared_on_other_seeds_and_on_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "again").mkdir()
    for folder, ahead in (("", 10.0), ("again", 30.0)):
        for arm, more in zip(study.AGAIN, (ahead, 2 * ahead, 0.0), strict=True):
            strict_json.write(tmp_path / folder / f"swingup_{arm}.json", {"returns": [100.0 + more + i for i in range(8)]})
    study.table_of_other_seeds(tmp_path)
    printed = capsys.readouterr().out
    assert "other seeds: infoprop 133.5" in printed
    assert "other seeds (8): infoprop less fixed_5: 30.0 [30.0, 30.0], p 0.00781" in printed
    assert "all seeds (16): infoprop less fixed_5: 20.0" in printed
    assert "other seeds (8): schedule less fixed_5: 60.0 [60.0, 60.0], p 0.00781" in printed
    asked = []
    monkeypatch.setattr(study, "stage_train", lambda *told: asked.append(told))
    monkeypatch.setattr(sys, "argv", ["control_study.py", "again", "--out", str(tmp_path)])
    study.main()
    assert asked == [(["swingup"], study.AGAIN, range(16, 32), tmp_path / "again")]


def test_an_arm_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="--arms: 'fixed_7' is not known; it must be one of mbpo, mpc, sac, twin"):
        study.stage_train(["swingup"], ["fixed_7"], 2, tmp_path)


def test_an_arm_on_file_is_not_trained_again(tmp_path):
    (tmp_path / "swingup_sac.json").write_text("{}")
    study.stage_train(["swingup"], ["sac"], 2, tmp_path)
    assert (tmp_path / "swingup_sac.json").read_text() == "{}"
    assert np.all([path.name == "swingup_sac.json" for path in tmp_path.iterdir()])
