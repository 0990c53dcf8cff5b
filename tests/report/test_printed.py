from types import SimpleNamespace

import numpy as np
import pytest

from mbrl_jax.model.protocol import FitLog
from mbrl_jax.report import printed
from mbrl_jax.runs.run import Seconds

SEEDS = 3


def lines(frozen=(), diverged=(), mse=None, refit=None, note=None):
    """What is printed below the table of a run of three seeds."""
    log = () if mse is None else FitLog(None, np.asarray(mse), None)
    metrics = SimpleNamespace(refit=None if refit is None else FitLog(None, np.asarray(refit), None))
    run = SimpleNamespace(seconds=Seconds(1.0, 1.0, 2.0, 3.0, 4.0), result=SimpleNamespace(fit=log, metrics=metrics))
    summary = {
        "algorithm": "dyna_q",
        "protocol": "batch",
        "seeds": SEEDS,
        "backend": "jax",
        "fraction_at_least": {"475": {"last": 0.5, "chosen": None}},
        "iqm": {"last": {"value": 400.0, "ci95": [390.0, 410.0]}, "chosen": None},
        "real_steps_per_second": 1234.0,
        "imagined_transitions_per_second": 0.0,
        "frozen_seeds": list(frozen),
        "diverged_model_seeds": list(diverged),
        "note": note,
    }
    *notes, table, speed = printed.of_run(run, summary)[: 2 + (note is not None)]
    rest = printed.of_run(run, summary)[2 + (note is not None) :]
    assert notes == ([] if note is None else [note])
    assert [cell.plain for column in table.columns for cell in column.cells] == ["last", "400.0 [390.0, 410.0]", "50%"]
    assert speed == "compiled in 1 s, ran in 10 s: 1,234 steps/s, 0 imagined transitions/s"
    return rest


FINE = np.ones((SEEDS, 2, 2))  # [seeds, epochs, E]


def overflowing(*seeds):
    error = FINE.copy()
    error[list(seeds), -1, 1] = np.inf
    return error


@pytest.mark.parametrize("mse", [None, FINE])
def test_of_a_run_in_which_nothing_diverged_there_is_nothing_to_say(mse):
    assert lines(mse=mse) == []


def test_a_learner_that_diverged_in_a_sound_world_is_to_blame_itself():
    told = "every seed went non-finite and rests at its last finite parameters; try a smaller agent.learning_rate"
    assert lines(frozen=range(3)) == lines(frozen=range(3), mse=FINE, refit=FINE) == [told]
    assert lines(frozen=[1], mse=FINE) == ["went non-finite and rest at their last finite parameters: seeds [1]"]


@pytest.mark.parametrize("place", ["mse", "refit"])
def test_a_world_with_finite_numbers_that_predicts_others_is_to_blame_and_not_its_learner(place):
    told = lines(frozen=range(3), **{"mse": FINE, place: overflowing(0, 1, 2)})
    assert told == [
        "the world model of every seed predicts numbers that are not finite; try a smaller model.learning_rate",
        "every seed went non-finite and rests at its last finite parameters",
    ]
    assert lines(**{"mse": FINE, place: overflowing(2)}) == [
        "the world model of seeds [2] predicts numbers that are not finite; try a smaller model.learning_rate"
    ]


def test_a_world_whose_own_numbers_are_not_finite_is_told_of_once():
    told = lines(frozen=range(3), diverged=[0, 2], mse=overflowing(0, 1, 2))
    assert told[0] == "the world model of seeds [0, 2] has numbers that are not finite; try a smaller model.learning_rate"
    assert "learning_rate" not in told[1]


def test_a_note_on_the_returns_comes_before_them():
    assert lines(note="no real return was measured") == []
