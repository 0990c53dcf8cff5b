import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from mbrl_jax.config import ModelFreeQConfig, MPCConfig, PlanningConfig, save
from mbrl_jax.runs import keeping, results
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.program import Program
from mbrl_jax.serving import playing

ARRAYS = {"metrics.parquet", "policies.npz", "model.npz", "outcome.npz"}


def keep(config, out, draw=None, **settings):
    asked = Asked(config, 2, 3, False)
    return keeping.keep(asked, out, Keeping(**settings), "mbrl-jax train", Display.silent(), draw)


def arrays(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name in ARRAYS}


@pytest.fixture(scope="module")
def free(tiny):
    """The model-free half of ``tiny``: what concerns folders alone is trained at less cost."""
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


@pytest.fixture(scope="module")
def unbroken(free, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    keep(free, out)
    assert set(arrays(out)) == ARRAYS - {"model.npz"}
    return arrays(out)


@pytest.fixture
def planner(tiny):
    """The settings of a planner whose members are chosen seed by seed."""
    return MPCConfig(
        environment=tiny.environment,
        random_transitions=60,
        steps=20,
        round_steps=10,
        metric_steps=5,
        model=replace(tiny.model, members=4, elites=2),
        planning=PlanningConfig(candidates=6, horizon=3, particles=2, iterations=2, elites=2),
        evaluation=tiny.evaluation,
    )


def test_the_policies_of_a_planners_last_checkpoint_are_those_that_its_run_ends_with(planner, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(results.np, "savez_compressed", failing)
        with pytest.raises(RuntimeError, match="the device is lost"):
            keep(planner, tmp_path / "run")
    saved = playing.load_policies(tmp_path / "run")[1]["last"]
    keep(planner, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "policies.npz").exists()
    ended = playing.load_policies(tmp_path / "run")[1]["last"]
    assert jax.tree.leaves(saved)[0].shape[:2] == (2, 2)  # seeds, elites
    jax.tree.map(np.testing.assert_array_equal, saved, ended)


@pytest.mark.parametrize("fails", ["evaluating", "writing"])
def test_whatever_fails_after_the_last_round_loses_nothing_that_was_trained(fails, free, tmp_path, monkeypatch, unbroken):
    def failing(*_, **__):
        raise RuntimeError("the device is lost")

    call = Program.call

    def call_or_fail(self, name, *rest):
        return failing() if name == "finish" else call(self, name, *rest)

    out = tmp_path / "run"
    place, name, instead = {
        "evaluating": (Program, "call", call_or_fail),
        "writing": (results.np, "savez_compressed", failing),
    }[fails]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, instead)
        with pytest.raises(RuntimeError, match="the device is lost") as failure:
            keep(free, out)
    rounds = free.steps // free.round_steps
    assert f"Round {rounds} of the run in {str(out)!r} is saved. To go on: mbrl-jax train --resume" in failure.value.__notes__[0]

    compiled, original = [], Program.compile
    monkeypatch.setattr(Program, "compile", lambda self, names, *rest: compiled.extend(names) or original(self, names, *rest))
    keep(free, out, resume=True)
    assert "advance" not in compiled  # it evaluates and trains nothing
    assert arrays(out) == unbroken
    assert len((out / "metrics.jsonl").read_text().splitlines()) == rounds
    assert not (out / "checkpoints").exists()


def test_a_figure_that_cannot_be_drawn_does_not_end_a_run(free, tmp_path, unbroken):
    def failing(run, folder):
        raise ValueError("no such colour")

    said, display = [], Display.silent()
    display.say = said.append
    out = tmp_path / "run"
    keeping.keep(Asked(free, 2, 3, False), out, Keeping(), "mbrl-jax train", display, failing)
    assert said == ["the figures could not be drawn (ValueError: no such colour); the results are kept without them"]
    assert arrays(out) == unbroken
    assert results.read_summary(out)["seeds"] == 2


CACHED = """
import sys
from mbrl_jax import command_line
for command in sys.argv[1:]:
    command_line.main(command.split("|"))
"""


def test_runs_that_share_a_cache_are_each_like_the_run_without_one(free, tmp_path):
    short = replace(free, steps=10, evaluation=replace(free.evaluation, episodes=1))
    save(short, tmp_path / "short.yaml")

    def train(folder, **surroundings):
        start = ["train", str(tmp_path / "short.yaml"), "--seeds", "1"]
        changes = [["--agent.batch-size", "16"], ["--agent.batch-size", "8"], ["--random-transitions", "120"]]
        commands = [[*start, *change, "--out", str(folder / str(i))] for i, change in enumerate(changes)]
        grid = ["sweep", *start[1:], "--grid", "random_transitions=100,140", "--out", str(folder / "sweep")]
        told = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment = os.environ | told | surroundings
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        words = ["|".join(command) for command in (*commands, grid)]
        done = subprocess.run([sys.executable, "-c", CACHED, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {entry["state"] for entry in json.loads((folder / "sweep" / "sweep.json").read_text())} == {"finished"}
        return [arrays(folder / place) for place in ("0", "1", "2", "sweep/0", "sweep/1")]

    first = train(tmp_path / "first")
    assert any((tmp_path / "cache").rglob("*")), "nothing was cached"
    assert train(tmp_path / "second") == first
    assert train(tmp_path / "alone", JAX_ENABLE_COMPILATION_CACHE="false") == first
