"""What the studies of decoupled backpropagation compare, and how they measure it."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import decoupled
import decoupled_gradients

from mbrl_jax.config import check


@pytest.mark.parametrize("task", decoupled.MARKS)
def test_the_arms_are_one_preset_and_differ_by_the_gradient_or_the_length_of_paths_alone(task):
    arms = decoupled.arms(task)
    assert set(arms) == set(decoupled.COLOURS)
    for name, config in arms.items():
        check(config)
        same = dataclasses.replace(config, gradient="decoupled", controller=arms["decoupled"].controller)
        assert same == arms["decoupled"]
        assert (config.gradient == name) == (name in decoupled.GRADIENTS)
        assert config.window_steps == 16


def test_the_steps_to_a_mark_are_those_at_which_the_curve_of_all_seeds_is_first_there():
    told = {"steps": [10, 20, 30], "curves": [[0.0, 5.0, 9.0], [0.0, 7.0, 9.0]]}
    assert decoupled.first_at(told, 6.0) == 20
    assert decoupled.first_at(told, 9.0) == 30
    assert np.isnan(decoupled.first_at(told, 9.5))


def test_the_table_tells_every_arm_on_file_and_passes_over_the_other_files_there(tmp_path, capsys):
    for path in decoupled.OUT.glob("*.json"):
        shutil.copy(path, tmp_path)
    decoupled.stage_table(tmp_path)
    told = capsys.readouterr().out
    for path in decoupled.OUT.glob("swingup_*.json"):
        assert path.stem.removeprefix("swingup_") in told
    assert (tmp_path / "decoupled.png").stat().st_size > 10_000


def test_norm_variance_bias_and_cosine_of_made_up_gradients():
    rng = np.random.default_rng(0)
    true = np.array([3.0, 4.0, 0.0])
    estimates = true + np.array([0.0, 0.0, 2.0]) + rng.normal(size=(40_000, 3))  # a bias of 2 and a variance of 3
    found = decoupled_gradients.measures(estimates, np.stack([true, true]))
    assert found["norm"] == pytest.approx(29**0.5, rel=0.01)
    assert found["relative_variance"] == pytest.approx(3 / 29, rel=0.02)
    assert found["relative_bias2"] == pytest.approx(4 / 25, rel=0.05)
    assert found["cosine"] == pytest.approx(5 / 29**0.5, rel=0.01)
