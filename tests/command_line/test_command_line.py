import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from processes import FORKS, compile_as_tests_do, environment

from mbrl_jax import command_line
from mbrl_jax import config as settings
from mbrl_jax.config import presets, read_preset
from mbrl_jax.runs import results
from mbrl_jax.serving import playing

SUMMARY_FIELDS = {
    "config",
    "algorithm",
    "protocol",
    "seeds",
    "backend",
    "real_transitions",
    "imagined_transitions",
    "updates",
    "return_last",
    "return_chosen",
    "iqm",
    "fraction_at_least",
    "seconds",
    "real_steps_per_second",
    "imagined_transitions_per_second",
    "versions",
    "device",
    "precision",
    "engine",
    "git",
}
RESULTS = {"config.yaml", "summary.json", "metrics.parquet", "model.npz", "outcome.npz", "policies.npz", "curves.png"}


def fails(capsys, *words):
    """What the command says on standard error before it exits with 2."""
    with pytest.raises(SystemExit) as stopped:
        command_line.main(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def work(words: Sequence[str], told: dict[str, str], folder: Path, cache: str, output: Path, errors: Path) -> None:
    """``mbrl-jax`` in a process that has imported it already and begins here, ``told`` by the environment."""
    os.chdir(folder)
    os.environ.update({"COLUMNS": "200"} | told)
    compile_as_tests_do(cache)
    for name, value in told.items():
        if name.startswith("JAX_"):
            jax.config.update(name.lower(), value == "1")  # as JAX does where it is imported
    with output.open("w") as out, errors.open("w") as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        command_line.main(list(words))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """``mbrl-jax`` in a process of its own, which imports all anew if JAX must find there what it is told, as in a shell."""
    folder, said = tmp_path_factory.mktemp("command"), tmp_path_factory.mktemp("said")
    cache = jax.config.jax_compilation_cache_dir

    def as_in_a_shell(words, told):
        program, settings = [sys.executable, "-m", "mbrl_jax.command_line", *words], environment(COLUMNS="200", **told)
        return subprocess.run(program, capture_output=True, text=True, check=False, cwd=folder, env=settings)

    def at_once(words, told):
        process = FORKS.Process(target=work, args=(words, told, folder, cache, said / "output", said / "errors"))
        process.start()
        process.join()
        texts = (said / "output").read_text(), (said / "errors").read_text()
        return subprocess.CompletedProcess(words, process.exitcode, *texts)

    def run(*words, status=0, **told):
        words = [str(word) for word in words]
        done = as_in_a_shell(words, told) if {"JAX_PLATFORMS", "JAX_DEBUG_NANS"} & set(told) else at_once(words, told)
        assert done.returncode == status, done.stderr
        return done

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def trained(command):
    out = command.folder / "trained"
    words = ("train", "smoke", "--seeds", 3, "--out", out, "--seed", 7, "--agent.learning-rate", "0.002", "--engine", "auto")
    return out, command(*words, "--tensorboard", "--wandb", "a_project", WANDB_MODE="offline", WANDB_SILENT="true")


@pytest.mark.parametrize(
    ("setting", "blamed", "frozen"), [("model.learning_rate", "model", [0, 1]), ("agent.learning_rate", "agent", [0, 1])]
)
def test_a_run_that_diverged_blames_what_did_and_never_scores_a_broken_world(command, setting, blamed, frozen):
    out = command.folder / f"diverged_{blamed}"
    rate = "1e20" if blamed == "model" else "1e38"
    done = command("train", "smoke", "--seeds", 2, f"--{setting}", rate, "--diagnose", "--out", out)
    summary = results.read_summary(out)
    assert summary["frozen_seeds"] == frozen
    assert summary["diverged_model_seeds"] == ([0, 1] if blamed == "model" else [])
    assert f"try a smaller {blamed}.learning_rate" in done.stdout
    assert done.stdout.count("learning_rate") == 1
    scores = results.read(out).result.metrics.score
    assert np.isneginf(scores).all() if blamed == "model" else np.isfinite(scores).all()
    assert (out / "curves.png").exists()
    assert (out / "imagination.png").exists()


def test_where_jax_looks_for_nans_a_run_finds_none(command):
    words = ("train", "smoke", "--seeds", 2, "--diagnose", "--steps", 20)
    out = command.folder / "debugged"
    command(*words, "--out", out, JAX_DEBUG_NANS="1")
    run = results.read(out)
    collected = run.result.collected
    assert np.isnan(collected).any()
    assert (collected[~np.isnan(collected)] > 0).all()
    assert not np.isinf(run.diagnosis.by_depth.compounded_error).any()
    assert np.isnan(run.diagnosis.by_depth.compounded_error).any()


def test_where_jax_looks_for_nans_a_run_that_makes_one_ends_at_it(command):
    words = ("train", "smoke", "--seeds", 2, "--steps", 20, "--model.learning-rate", "1e20", "--out", command.folder / "caught")
    assert "FloatingPointError" in command(*words, status=1, JAX_DEBUG_NANS="1").stderr


@pytest.mark.parametrize(
    "words", [("train", "smoke"), ("compare", "--protocol", "batch"), ("sweep", "smoke", "--grid", "steps=20,40")]
)
def test_without_jit_a_command_that_compiles_says_at_once_why_it_cannot(command, words):
    out = command.folder / "without_jit"
    told = command(*words, "--seeds", 1, "--out", out, status=2, JAX_DISABLE_JIT="1").stderr
    assert told.startswith("mbrl-jax: JAX_DISABLE_JIT: 1 does not fit; a run is compiled ahead of time")
    assert len(told.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_a_platform_that_is_not_there_is_said_in_one_line(command, platform):
    out = command.folder / "elsewhere"
    if platform in {device.platform for device in jax.devices()} | {"gpu"} & {jax.default_backend()}:
        pytest.skip("this machine has one")
    told = command("train", "smoke", "--seeds", 1, "--out", out, status=2, JAX_PLATFORMS=platform).stderr
    assert told.splitlines()[-1].startswith(f"mbrl-jax: JAX_PLATFORMS: '{platform}' does not fit; JAX finds no such device here")
    assert "Traceback" not in told
    assert not out.exists()


def test_train_writes_the_settings_the_summary_the_metrics_the_policies_and_the_curves(trained):
    out, _ = trained
    assert {path.name for path in out.iterdir()} == RESULTS | {"run.json", "metrics.jsonl", "tensorboard", "wandb"}
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= SUMMARY_FIELDS
    assert len(summary["return_last"]) == len(summary["return_chosen"]) == summary["seeds"] == 3
    assert summary["real_transitions"] == 240
    assert summary["imagined_transitions"] == 40 * 6 * 3
    assert set(summary["seconds"]) >= {"compile", "run"}
    assert set(summary["fraction_at_least"]) == {"195", "475"}
    low, high = summary["iqm"]["last"]["ci95"]
    assert low <= summary["iqm"]["last"]["value"] <= high
    assert summary["frozen_seeds"] == []
    run = results.read(out)
    assert run.result.metrics.update.loss.shape == (3, 2, 2)
    assert run.result.fit.holdout_mse.shape == (3, 5, 3)
    assert results.per_seed(run.result.outcome.returns_last).tolist() == summary["return_last"]
    picture = matplotlib.image.imread(out / "curves.png")
    assert picture.std() > 0.05


def test_every_round_s_figures_are_sent_where_it_was_asked_for(trained):
    out, _ = trained
    assert [path.stat().st_size > 100 for path in (out / "tensorboard").iterdir()] == [True]
    assert len(list((out / "wandb").glob("offline-run-*/run-*.wandb"))) == 1


def test_train_says_what_it_is_doing(trained):
    _, done = trained
    for phase in ("compiling", "collecting", "fitting", "training", "IQM", "evaluating"):
        assert phase in done.stderr
    first = next(line for line in done.stderr.splitlines() if line.strip())
    assert "engine xla; not cuda: engine: 'cuda' does not fit; it needs NVIDIA GPUs" in first
    assert "chosen" in done.stdout


def test_any_setting_may_be_given_as_a_flag(trained):
    config = settings.load(trained[0] / "config.yaml")
    assert config.agent.learning_rate == 0.002
    assert config.imagination.lanes == 6


def test_the_same_command_gives_the_same_numbers(command, trained):
    again = command.folder / "again"
    command("train", trained[0] / "config.yaml", "--seeds", 3, "--out", again, "--seed", 7)
    with np.load(trained[0] / "policies.npz") as first, np.load(again / "policies.npz") as second:
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_evaluate_plays_the_saved_policies_in_both_simulators(command, trained):
    for simulator in ("gymnax", "gymnasium"):
        done = command("evaluate", trained[0], "--episodes", 4, "--env", simulator)
        assert ("CartPole-v1 of gymnasium, 4 episodes" in done.stdout) == (simulator == "gymnasium")
        assert "CartPole-v1" in done.stdout
        assert "chosen" in done.stdout
        assert "last" in done.stdout


def test_saved_policies_are_the_trained_ones(trained):
    config, policies = playing.load_policies(trained[0])
    assert set(policies) == {"last", "chosen"}
    kernel = policies["last"]["params"]["Dense_0"]["kernel"]
    assert kernel.shape == (3, 4, config.agent.hidden[0])


def test_an_engine_that_does_not_cover_an_arm_is_refused_before_a_folder_is_made(tmp_path, capsys):
    out = tmp_path / "out"
    words = ("compare", "--protocol", "batch", "--seeds", "1", "--out", str(out), "--engine", "cuda")
    assert "engine: 'cuda' does not fit; it needs NVIDIA GPUs" in fails(capsys, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--checkpoint-every", "nan"), "checkpoint_every: nan is out of range; it must be at least 0 seconds, and finite"),
        (("--memory", "nan"), "memory: nan is out of range; it must be a positive number of GB"),
        (("--memory", "inf"), "memory: inf is out of range"),
        (("--retries", "5"), "launcher: --retries and --launcher-option are for jobs, and there is no --launcher"),
        (("--launcher-option", "a=b"), "launcher: --retries and --launcher-option are for jobs"),
        (("--wandb", ""), "wandb: '' does not fit; it must be a project's name"),
        (("--resume-from", "3"), "resume_from: 3 does not fit; there is no run in"),
        (("--environment.time-limit", "1000000000000"), "environment.time_limit: 1000000000000 is out of range"),
    ],
)
def test_flags_that_cannot_work_are_refused_and_leave_no_folder(tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    assert message in fails(capsys, "train", "smoke", "--seeds", "1", "--out", str(out), *flags)
    assert not out.exists()


def test_a_comparison_does_not_go_on_in_the_folder_of_a_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    words = ("compare", "--protocol", "batch", "--seeds", "1", "--out", str(tmp_path), "--resume")
    assert "holds a run, and no comparison that could go on" in fails(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_compare_trains_both_arms_and_prints_one_table(command):
    arms = []
    for name, algorithm in (("ours", "dyna_q"), ("theirs", "model_free_q")):
        content = settings.to_dict(settings.load(presets()["smoke"]))
        content["algorithm"] = algorithm
        if algorithm == "model_free_q":
            for group in ("model", "imagination", "mixing", "selection"):
                del content[group]
        arms.append(command.folder / f"{name}.yaml")
        settings.save(settings.from_dict(content), arms[-1])
    out = command.folder / "compared"
    arguments = ("--protocol", "interactive", "--seeds", 2, "--out", out, "--model-based", arms[0], "--model-free", arms[1])
    done = command("compare", *arguments, "--engine", "auto")
    assert done.stderr.count("engine xla; not cuda") == 1  # of the arm that has a model
    engines = [results.read_summary(out / arm)["engine"]["notes"] for arm in ("model_based", "model_free")]
    assert (len(engines[0]), engines[1]) == (1, [])
    for word in ("mean", "median", "IQM", ">= 195", ">= 475", "difference", "seconds", "model-based, chosen", "model-free, last"):
        assert word in done.stdout
    figures = json.loads((out / "comparison.json").read_text())
    assert figures["arms"]["model-free, last"]["paired_difference"] is None
    assert set(figures["arms"]["model-based, chosen"]["paired_difference"]) == {"mean", "iqm"}
    assert (out / "comparison.png").exists()
    random_returns = {
        json.loads((out / arm / "summary.json").read_text())["random_return"] for arm in ("model_based", "model_free")
    }
    assert len(random_returns) == 1  # both saw the same real data

    shutil.rmtree(out / "model_free")  # as if the machine had died while it was at the second arm
    (out / "comparison.json").unlink()
    again = command("compare", *arguments, "--resume")
    assert "model_based: is finished already" in again.stderr
    repeated = json.loads((out / "comparison.json").read_text())
    for arm, told in figures["arms"].items():
        assert {**told, "seconds": 0} == {**repeated["arms"][arm], "seconds": 0}


def test_sweep_prints_a_row_and_writes_a_folder_for_each_value(command, trained):
    out, setting = command.folder / "swept", "imagination.controller.length"
    words = ("--grid", f"{setting}=1,3", "--seeds", 2, "--out", out, "--agent.discount", 0.9)
    done = command("sweep", "smoke", *words)
    for word in (setting, "chosen", "last", "depth", "1.00", "2 of 2 combinations in"):
        assert word in done.stdout
    assert {path.name for path in out.iterdir()} == {"0", "1", "sweep.json", "sweep.png"}
    arms = json.loads((out / "sweep.json").read_text())
    for name, value, arm in zip(("0", "1"), (1.0, 3.0), arms, strict=True):
        folder = out / name
        assert {path.name for path in folder.iterdir()} == RESULTS - {"curves.png"}
        config = settings.load(folder / "config.yaml")
        assert (config.imagination.controller.numbers, config.agent.discount) == ({"length": value}, 0.9)
        asked = {"name": name, "settings": {setting: value}, "combinations": 2, "state": "finished"}
        assert arm == {**asked, **json.loads((folder / "summary.json").read_text())}


def test_reference_writes_what_train_writes(command, trained):
    pytest.importorskip("torch", reason="the reference is written in PyTorch: pip install 'mbrl-jax[torch]'")
    out = command.folder / "reference"
    done = command("reference", "smoke", "--seeds", 2, "--out", out, "--processes", 2, "--agent.learning-rate", "0.002")
    assert {path.name for path in out.iterdir()} == RESULTS
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (trained[0], out))
    assert set(ours) == set(theirs)
    assert (ours["backend"], theirs["backend"]) == ("jax", "pytorch")
    assert ours["config"] == theirs["config"]
    assert "pytorch" in done.stdout
    assert "chosen" in command("evaluate", out, "--episodes", 3).stdout


def test_runs_lists_what_lies_in_a_folder(command, trained):
    listed = command("runs", trained[0]).stdout
    for word in ("trained", "finished", "chosen", "last"):
        assert word in listed


def test_resuming_with_other_settings_is_refused_before_anything_is_touched(capsys, trained, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "run.json").write_bytes((trained[0] / "run.json").read_bytes())
    message = fails(
        capsys, "train", "smoke", "--seeds", "4", "--seed", "7", "--out", str(folder), "--resume", "--agent.hidden", "8"
    )
    assert "agent.hidden: [8] does not fit; the run in" in message
    assert "seeds: 4 does not fit" in message
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_an_output_folder_that_exists_is_left_alone(capsys, tmp_path):
    (tmp_path / "precious").write_text("data")
    assert "exists already" in fails(capsys, "train", "smoke", "--seeds", "1", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "no_such_preset", "--seeds", "1"], "neither a file nor a shipped preset"),
        (["train", "smoke", "--seeds", "0"], "seeds: 0"),
        (["train", "cartpole_batch", "--seeds", "1000000000"], "seeds: 1000000000 do not fit into memory: the results of"),
        (["train", "smoke", "--seeds", "1", "--checkpoint-every", "-1"], "checkpoint_every: -1"),
        (["train", "smoke", "--seeds", "1", "--checkpoints", "0"], "checkpoints: 0"),
        (["train", "smoke", "--seeds", "1", "--imagination.lanes", "7"], "imagination.lanes: 7"),
        (["train", "smoke", "--seeds", "1", "--model.batch-size", "5000"], "model.batch_size: 5000"),
        (["train", "smoke", "--seeds", "1", "--environment.name", "Pong"], "environment.name: 'Pong'"),
        (["train", "smoke", "--seeds", "1", "--agent.learning-rate", "-1"], "agent.learning_rate: -1"),
    ],
)
def test_bad_input_is_refused_with_field_and_value_and_makes_no_folder(capsys, tmp_path, words, message):
    out = tmp_path / "new"
    assert message in fails(capsys, *words, "--out", str(out))
    assert not out.exists()


def test_a_folder_does_not_shadow_a_preset_but_a_file_does(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = read_preset("smoke")
    (tmp_path / "smoke").mkdir()
    assert read_preset("smoke") == shipped
    (tmp_path / "mine").mkdir()
    assert "config: 'mine' is a folder, neither a file nor a shipped preset" in fails(capsys, "train", "mine", "--seeds", "1")
    (tmp_path / "smoke").rmdir()
    settings.save(read_preset("cartpole_best"), tmp_path / "smoke")
    assert read_preset("smoke") == read_preset("cartpole_best") != shipped


@pytest.mark.parametrize(
    "words",
    [
        ["train", "smoke", "--seeds", "1", "--out", "~/there"],
        ["train", "~/mine.yaml", "--seeds", "1", "--out", "~/there"],
        ["sweep", "smoke", "--seeds", "1", "--grid", "agent.discount=0.9,0.8", "--out", "~/there"],
        ["reference", "smoke", "--seeds", "1", "--out", "~/there"],
        ["compare", "--protocol", "batch", "--seeds", "1", "--out", "~/there"],
        ["compare", "--protocol", "batch", "--seeds", "1", "--out", "~/there", "--model-based", "~/batch.yaml"],
        ["evaluate", "~/there"],
        ["report", "~/there", "--out", "~/page.html"],
        ["report", "~/elsewhere", "--out", "~/there"],
        ["runs", "~/there"],
    ],
)
def test_the_home_folder_is_put_in_for_a_tilde_in_every_path(monkeypatch, tmp_path, capsys, words):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    (home / "there").mkdir(parents=True)
    (home / "there" / "precious").write_text("data")
    for name, preset in (("mine", "smoke"), ("batch", "cartpole_batch")):
        settings.save(read_preset(preset), home / f"{name}.yaml")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    message = fails(capsys, *words)
    assert f"{home / 'there'}" in message
    assert "~" not in message
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("simulator", ["gymnax", "gymnasium"])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_every_command_refuses_the_same_seeds(monkeypatch, tmp_path, capsys, tiny, simulator, seed):
    message = f"mbrl-jax: seed: {seed} is out of range; it must be from 0 to 2^32 - 1"
    monkeypatch.setattr(playing, "load_policies", lambda folder: (tiny, {"last": {"w": np.zeros((2, 3))}}))
    assert message in fails(capsys, "evaluate", str(tmp_path), "--seed", str(seed), "--env", simulator)
    common = ["--seeds", "1", "--out", str(tmp_path / "new"), "--seed", str(seed)]
    sweep = ["sweep", "smoke", "--grid", "agent.discount=0.9,0.8"]
    for words in (["train", "smoke"], sweep, ["reference", "smoke"], ["compare", "--protocol", "batch"]):
        assert message in fails(capsys, *words, *common)


def test_a_broken_preset_is_refused(capsys, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("algorithm: [dyna_q")
    assert "not valid YAML" in fails(capsys, "train", str(broken), "--seeds", "1", "--out", str(tmp_path / "new"))


def test_arms_that_differ_in_their_real_data_are_refused(capsys, tmp_path):
    message = fails(
        capsys, "compare", "--protocol", "interactive", "--seeds", "1", "--out", str(tmp_path / "new"), "--model-based", "smoke"
    )
    assert "random_transitions" in message or "environment" in message


def test_evaluating_a_folder_without_a_run_is_refused(capsys, tmp_path):
    assert "config.yaml: there is no such file" in fails(capsys, "evaluate", str(tmp_path))


def test_an_unknown_command_shows_the_usage(capsys):
    assert "usage: mbrl-jax" in fails(capsys, "dream")


def test_every_shipped_preset_can_be_built():
    from mbrl_jax.runs import runner

    assert {"cartpole_batch", "cartpole_interactive", "cartpole_best", "smoke"} <= set(presets())
    for path in presets().values():
        assert isinstance(path, Path)
        runner.make_train(settings.load(path))


def test_a_log_file_is_held_against_its_task_in_a_process_that_then_trains(command):
    command("data", "collect", "CartPole-v1", "--transitions", 60, "--out", "log.parquet")
    (command.folder / "taken").mkdir()
    (command.folder / "taken" / "note").touch()
    words = ("train", "offline_mopo", "--data", "log.parquet", "--model.batch-size", 16, "--seeds", 1, "--out", "taken")
    assert "exists already and is left as it is" in command(*words, status=2).stderr
