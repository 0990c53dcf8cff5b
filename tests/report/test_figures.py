from dataclasses import fields, replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from mbrl_jax.config import ModelFreeQConfig
from mbrl_jax.report import comparison, figures
from mbrl_jax.runs import runner


@pytest.fixture(scope="module")
def runs(tiny, dyna):
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    return dyna, runner.run(free, 4)


def test_figures_of_runs_and_of_their_comparison_are_drawn(runs, tmp_path):
    ours, theirs = runs
    figures.draw_run(ours, tmp_path / "ours.png")
    figures.draw_run(theirs, tmp_path / "theirs.png")
    figures.draw_comparison(ours, theirs, tmp_path / "both.png")
    for name in ("ours", "theirs", "both"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05


def test_the_profile_at_a_return_is_the_share_of_seeds_that_reach_it():
    returns = np.array([10.0, 500.0, 200.0, 200.0])
    ax = Figure().subplots()
    figures.draw_profile(ax, {"arm": (returns, "black")}, "CartPole-v1")
    x, y = ax.lines[0].get_data()
    for mark in (0, 10, 11, 195, 200, 201, 499, 500):
        drawn = y[np.searchsorted(x, mark, side="left")]  # a step holds from its left end on
        assert drawn == np.mean(returns >= mark)


def test_negative_returns_and_their_mark_are_in_the_figure():
    ax = Figure().subplots()
    figures.draw_profile(ax, {"arm": (np.array([-1500.0, -150.0]), "black")}, "Pendulum-v1")
    profile, mark = ax.lines
    assert profile.get_xdata().min() == -1500
    assert profile.get_xdata().max() == -150
    assert list(mark.get_xdata()) == [-200, -200]


def test_the_loss_is_drawn_against_imagined_transitions_with_the_mark(runs, tiny):
    ax = Figure().subplots()
    figures.draw_loss(ax, runs[0])
    x, y = ax.lines[0].get_data()
    assert x[-1] == tiny.steps * tiny.imagination.lanes * tiny.imagination.steps
    np.testing.assert_allclose(y, np.median(runs[0].result.metrics.update.loss.reshape(4, -1), axis=0), rtol=1e-6)
    assert any(list(line.get_ydata()) == [figures.LOSS_MARK] * 2 for line in ax.lines)


def test_the_comparison_pairs_seed_by_seed(runs):
    ours, theirs = runs
    measured = comparison.compare(ours, theirs)
    chosen = ours.result.outcome.returns_chosen.mean(axis=1) - theirs.result.outcome.returns_last.mean(axis=1)
    found = measured["arms"]["model-based, chosen"]["paired_difference"]["mean"].value
    assert found == pytest.approx(chosen.mean())
    flat = comparison.as_json(measured)
    assert flat["arms"]["model-free, last"]["iqm"]["ci95"][0] <= flat["arms"]["model-free, last"]["iqm"]["value"]


def test_arms_that_do_not_share_their_data_are_refused(runs):
    ours, theirs = (run.config for run in runs)
    comparison.check_arms(ours, theirs)
    with pytest.raises(ValueError, match="random_transitions: 100 and 60"):
        comparison.check_arms(ours, replace(theirs, random_transitions=60))
    with pytest.raises(ValueError, match="algorithm"):
        comparison.check_arms(theirs, ours)
