import json
from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from mbrl_jax import reference_run, trees
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig
from mbrl_jax.report import figures
from mbrl_jax.runs import results
from mbrl_jax.serving import playing

pytest.importorskip("torch", reason="the reference is written in PyTorch: pip install 'mbrl-jax[torch]'")


@pytest.fixture(scope="module")
def run(tiny: DynaQConfig):
    return reference_run.run(tiny, 3, base_seed=4)


def test_a_reference_run_leaves_what_every_run_leaves(tiny, run, tmp_path):
    results.write(run, tmp_path)
    figures.draw_run(run, tmp_path / "curves.png")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["backend"] == "pytorch"
    assert "torch" in summary["versions"]
    assert len(summary["return_last"]) == len(summary["return_chosen"]) == 3
    assert summary["updates"] == tiny.steps
    back = results.read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back.result, run.result)
    assert back._replace(result=None) == run._replace(result=None)
    assert back.result.metrics.update.loss.shape == (3, 2, 2)
    assert back.result.fit.holdout_mse.shape == (3, 2, 2)


def test_the_reference_s_policies_play_in_jax_as_they_did_in_torch(tiny, run):
    returns = playing.play_policies(tiny, run.result.outcome.last, 200, "gymnax", 0).mean(axis=1)
    np.testing.assert_allclose(returns, run.result.outcome.returns_last.mean(axis=1), atol=4)


def test_a_seed_has_the_same_numbers_beside_others_and_in_a_process_of_its_own(tiny, run):
    again = reference_run.run(tiny, 2, base_seed=4, processes=2)
    for ours, theirs in zip(trees.flatten(run.result).values(), trees.flatten(again.result).values(), strict=True):
        np.testing.assert_array_equal(ours[:2], theirs)


def test_model_free_and_interactive_runs_have_their_metrics(tiny):
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    assert reference_run.run(free, 1).result.outcome.returns_chosen is None
    interactive = reference_run.run(replace(tiny, protocol="interactive"), 1)
    assert interactive.result.metrics.refit.loss.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seeds": 0}, "seeds: 0"), ({"seeds": 1, "base_seed": -1}, "seed: -1"), ({"seeds": 1, "processes": 0}, "processes: 0")],
)
def test_impossible_arguments_are_refused(tiny, arguments, message):
    with pytest.raises(ConfigError, match=message):
        reference_run.run(tiny, **arguments)


def test_bad_settings_are_refused_before_anything_runs(tiny):
    with pytest.raises(ConfigError, match=r"imagination\.lanes: 3"):
        reference_run.run(replace(tiny, imagination=replace(tiny.imagination, lanes=3)), 1)


@pytest.mark.parametrize(
    ("group", "name", "value"), [("agent", "gradient_clip", 1.0), ("model", "loss", "squared"), ("selection", "choose", False)]
)
def test_settings_that_the_reference_would_do_without_are_refused(tiny, group, name, value):
    config = replace(tiny, **{group: replace(getattr(tiny, group), **{name: value})})
    with pytest.raises(ConfigError, match=rf"{group}\.{name}: {value!r} does not fit; the reference has .* only"):
        reference_run.run(config, 1)
