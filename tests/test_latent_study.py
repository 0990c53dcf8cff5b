"""The arms of the latent study, and the table that it prints of what is on file."""

import json
import sys
from pathlib import Path

import pytest

from mbrl_jax.config import check
from mbrl_jax.environments import make_environment

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import latent_study


def test_every_arm_has_settings_that_work():
    arms = latent_study.arms("cartpole")
    assert set(arms) == {"dreamer", "recurrent", "full", "masked", "masked_long", "explore_uniform", "explore_surprise", "halted"}
    assert set(latent_study.arms("pixels")) == {"dreamer"}
    for config in (*arms.values(), *latent_study.arms("pixels").values()):
        check(config, type(config))
    steps = {name: arms[name].real_transitions for name in arms}
    assert steps["recurrent"] == steps["masked_long"] == steps["explore_surprise"] == steps["halted"] == steps["dreamer"]
    assert arms["halted"].imagination.controller.kind == "drift"
    assert arms["explore_surprise"].random_actions.share == arms["explore_uniform"].random_actions.share


def test_minatar_is_trained_for_as_many_steps_as_asked():
    for steps, expected in ((None, 495_000), (10_000, 10_000), (200, 200)):
        configs = [each["dreamer"] for each in latent_study.minatar(steps).values()]
        assert [config.environment.name for config in configs] == ["Breakout-MinAtar", "SpaceInvaders-MinAtar"]
        for config in configs:
            check(config, type(config))
            assert config.steps == expected
    assert [make_environment(config.environment).spec.observation_shape for config in configs] == [(10, 10, 4), (10, 10, 6)]


@pytest.mark.parametrize(
    ("words", "known"), [(["gpu", "cartpole"], "breakout, space_invaders"), (["train", "breakout"], "pixels")]
)
def test_a_task_of_the_other_command_is_refused(words, known):
    with pytest.raises(SystemExit, match=rf"tasks: \['{words[1]}'\] are not known; they must be of .*{known}"):
        latent_study.main(words)


def test_arms_are_compared_where_they_share_seeds_and_real_steps(tmp_path, capsys):
    def write(arm, returns, steps=(10, 20)):
        curves = [[value / 2, value] for value in returns]
        told = {"task": "cartpole", "arm": arm, "steps": steps, "curves": curves, "returns": returns, "returns_chosen": None}
        told["seconds"] = {"compile": 1.0, "phases": {"train": 2.0}}
        (tmp_path / f"cartpole_{arm}.json").write_text(json.dumps(told))

    write("dreamer", [100.0, 200.0, 480.0])
    write("recurrent", [60.0, 160.0, 440.0])
    latent_study.table(tmp_path)
    told = capsys.readouterr().out
    assert "recurrent - dreamer" in told
    assert "-30.0 [-30.0, -30.0]" in told  # of the means of curves
    assert "-40.0 [-40.0, -40.0]" in told
    assert "33%" in told
    write("recurrent", [60.0, 160.0, 440.0], steps=(10, 30))
    latent_study.table(tmp_path)
    assert "recurrent - dreamer" not in capsys.readouterr().out


def test_rounds_are_timed_by_seeds_in_turn_and_the_first_is_left_out(tmp_path, monkeypatch, capsys):
    turns, now = {}, iter(0.5 * i for i in range(1_000))

    def rounds_of(config, seeds):
        check(config, type(config))
        turns[seeds] = 0

        def go_on():
            turns[seeds] += 1

        return go_on, seeds * config.round_steps

    monkeypatch.setattr(latent_study.arm_by_arm, "rounds_of", rounds_of)
    monkeypatch.setattr(latent_study.arm_by_arm.time, "perf_counter", lambda: next(now))
    latent_study.main(["throughput", "--out", str(tmp_path)])
    assert turns == {1: 4, 4: 4, 16: 4, 64: 4}
    told = json.loads((tmp_path / "throughput.json").read_text())
    assert told["steps_a_second"] == {"1": 500.0, "4": 2_000.0, "16": 8_000.0, "64": 32_000.0}
    assert all(len(each) == 3 for each in told["seconds_of_rounds"].values())
    assert "32,000" in capsys.readouterr().out
