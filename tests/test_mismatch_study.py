"""The study of objective mismatch: its arms differ in what they say, and its tables tell what is on file."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import mismatch_study as study

from mbrl_jax import strict_json
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import to_dict


@pytest.mark.parametrize("name", ["losses", "shares"])
def test_arms_spend_the_same_real_steps_updates_and_imagined_rows(name):
    arms = study.arms(name)
    assert {config.real_transitions for config in arms.values()} == {2_000}
    assert {config.updates for config in arms.values()} == {12_000}
    assert {config.imagined_per_step for config in arms.values()} == {75}
    assert {config.mixing.rule for config in arms.values()} == {"adaptive"}


def test_arms_differ_by_what_their_name_says():
    losses, shares = study.arms("losses"), study.arms("shares")
    one, other = (to_dict(losses[f"narrow_16_{loss}"]) for loss in ("likelihood", "vagram"))
    assert other == {**one, "model": {**one["model"], "loss": "vagram"}}
    assert (losses["wide_0_squared"].model.prediction, losses["wide_0_squared"].model.hidden) == ("deterministic", (64, 64))
    narrow, imagined = to_dict(losses["narrow_16_vagram"]), to_dict(losses["imagined_16_vagram"])
    assert imagined == {**narrow, "mixing": {**narrow["mixing"], "least": 0.0, "most": 0.0}}
    fixed, rule = (to_dict(shares[f"starved_{share}"]) for share in ("75", "adaptive"))
    assert fixed["mixing"] == {**rule["mixing"], "least": 0.75, "most": 0.75}
    assert {**fixed, "mixing": rule["mixing"]} == rule
    assert shares["distracted_both"].imagination.controller.kind == "model_share"
    for config in (losses["narrow_16_itervaml"], losses["narrow_4_squared"], shares["distracted_both"]):
        algorithm_of(config).make_train(config)


@pytest.mark.parametrize(("name", "distractors"), [("swingup", 16), ("swingup4", 4), ("hopper", 4)])
def test_arms_of_mbpo_spend_the_same_and_differ_by_what_their_name_says(name, distractors):
    arms = study.arms(name)
    assert {config.environment.distractors for config in arms.values()} == {distractors}
    one, other = to_dict(arms["squared"]), to_dict(arms["adaptive"])
    assert other == {**one, "mixing": {**one["mixing"], "least": 0.05, "most": 0.95}}
    assert len({(config.real_transitions, config.updates, config.imagined_per_step) for config in arms.values()}) == 1
    for config in arms.values():
        algorithm_of(config).make_train(config)


def test_p_values_are_corrected_by_holms_rule():
    assert study.holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert study.holm([0.02, 0.03]) == pytest.approx([0.04, 0.04])  # never less than a smaller one's


def test_the_tables_tell_differences_from_the_likelihood_and_from_the_best_and_the_worst_share(tmp_path, capsys, monkeypatch):
    returns = np.arange(8.0)

    def write(name, raised, share):
        told = {
            "returns": (returns + raised).tolist(),
            "holdout_mse": (-returns).tolist(),
            "model_share": [[share, share + each / 1e4] for each in returns],
        }
        strict_json.write(tmp_path / f"{name}.json", told)

    for loss, raised in (("likelihood", 0), ("squared", 0), ("vagram", 20), ("itervaml", -20)):
        write(f"losses_narrow_16_{loss}", raised, 0.5)
    for raised, arm in enumerate(study.MBPO):
        write(f"swingup_{arm}", 10 * raised, 0.1 * raised)
    for share, raised in zip((*study.FIXED, *study.RULES), (0, 10, 30, 20, 5, 25, 15, 35), strict=True):
        write(f"shares_plain_{share}", raised, raised / 100)
    monkeypatch.setattr(sys, "argv", ["mismatch_study.py", "table", "--out", str(tmp_path)])
    study.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "narrow, 16 distractors: vagram less likelihood: 20.0 [20.0, 20.0], corrected p 0.0234" in printed
    assert "narrow, 16 distractors: squared less likelihood: 0.0 [0.0, 0.0], corrected p 1" in printed
    assert "plain: adaptive less the best fixed share (50 %): -5.0" in printed
    assert "plain: both less the worst fixed share (0 %): 35.0" in printed
    assert "swingup: vagram less squared: 10.0 [10.0, 10.0], corrected p 0.0469" in printed
    assert "swingup: adaptive less 5: 20.0 [20.0, 20.0]" in printed
    assert "+1.00" in printed  # of returns that rise by arms as the shares do
    assert (tmp_path / "mismatch.png").stat().st_size > 1_000
