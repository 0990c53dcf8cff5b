from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.imagination.lanes import DEPTH_EDGES
from mbrl_jax.report import figures, horizon_figures
from mbrl_jax.runs import results, runner


@pytest.fixture(scope="module")
def run(tiny):
    imagination = replace(tiny.imagination, controller=controller_settings("threshold", **{"mark": 0.05}), cap=12)
    return runner.run(replace(tiny, imagination=imagination), 4, diagnose=True)


@pytest.fixture(scope="module")
def arm(run):
    return horizon_figures.describe(run)


def test_a_run_is_described_by_what_its_lanes_logged(run, arm):
    lanes = run.result.metrics.lanes
    np.testing.assert_allclose(arm["realised_horizon"], 1 / lanes.ended.mean(), rtol=1e-5)
    assert 1 <= arm["realised_horizon"] <= 12
    np.testing.assert_allclose(arm["histogram"].sum(), arm["kept"], rtol=1e-5)
    assert len(arm["histogram"]) == len(DEPTH_EDGES) + 1
    surfing = run.result.metrics.score - run.result.metrics.curve_return
    np.testing.assert_allclose(arm["surfing"].value, surfing.mean(), rtol=1e-5)
    assert arm["by_depth"]["rows"][0] > 0


def test_depths_that_few_seeds_reach_have_no_value(arm, run):
    reached = np.isfinite(run.diagnosis.by_depth.one_step_error).mean(axis=0) >= 0.5
    assert [value is not None for value in arm["by_depth"]["one_step_error"]] == reached.tolist()
    assert not reached.all()


def test_the_pictures_are_drawn(arm, run, tmp_path):
    final = {"iqm_last": (20.0, 15.0, 30.0), "iqm_chosen": (25.0, 20.0, 40.0)}
    arms = {name: {**arm, **final} for name in ("fixed 1", "fixed 3", "threshold", "oracle")}
    horizon_figures.draw_setting(arms, "a setting", tmp_path / "setting.png")
    horizon_figures.draw_imagination(run, tmp_path / "run.png")
    horizon_figures.draw_lengths({"a setting": arms}, (1, 3), ("threshold", "oracle", "absent"), tmp_path / "lengths.png")
    families = {"fixed": "fixed", "a threshold": "threshold"}
    horizon_figures.draw_families(arms, families, tmp_path / "families.png")
    models = [
        {"learning_rate": rate, "holdout_nll": [1.0, -1.0], "return_chosen": [9.0, 90.0], "return_last": [8.0, 300.0]}
        for rate in (1e-3, 1e-2)
    ]
    horizon_figures.draw_mismatch(models, tmp_path / "mismatch.png")
    for name in ("setting", "run", "lengths", "families", "mismatch"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05


def test_a_diagnosis_is_written_beside_the_metrics(run, tmp_path):
    results.write(run, tmp_path)
    with np.load(tmp_path / "diagnosis.npz") as saved:
        np.testing.assert_array_equal(saved["by_depth/rows"], run.diagnosis.by_depth.rows)
        assert saved["map/one_step_error"].shape == (4, 25, 25)


def test_a_run_without_a_model_cannot_be_diagnosed():
    with pytest.raises(ConfigError, match="diagnose: True does not fit; 'model_free_q' has no model"):
        runner.run(ModelFreeQConfig(), 1, diagnose=True)


@pytest.mark.parametrize("name", ["MountainCar-v0", "Acrobot-v1"])
def test_a_diagnosis_of_another_task_is_drawn_with_its_own_axes(tiny, tmp_path, name):
    config = replace(tiny, steps=10, environment=replace(tiny.environment, name=name))
    diagnosed = runner.run(config, 1, diagnose=True)
    assert np.isfinite(diagnosed.diagnosis.map.one_step_error).all()
    _, (ax,) = figures.new_figure(1)
    horizon_figures.draw_map(ax, horizon_figures.describe(diagnosed)["map"], "disagreement", "", config.environment)
    expected = {"MountainCar-v0": "axis 1 of the state", "Acrobot-v1": "angle of axes 2 and 3 [degrees]"}
    assert ax.get_ylabel() == expected[name]
    if name == "Acrobot-v1":
        assert ax.images[0].get_extent() == pytest.approx([-180, 180, -180, 180])
    horizon_figures.draw_imagination(diagnosed, tmp_path / "imagination.png")
    assert matplotlib.image.imread(tmp_path / "imagination.png").std() > 0.05
