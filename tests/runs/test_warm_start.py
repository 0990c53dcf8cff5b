import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError
from mbrl_jax.model.ensemble import LOG_VARIANCE_BOUNDS
from mbrl_jax.runs import keeping, results, runner, warm_start
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping


@pytest.fixture(scope="module")
def still(tiny):
    """Settings by which a fit leaves a model as good as where it began."""
    return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, learning_rate=1e-12))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    run = runner.run(tiny, 2)
    folder.mkdir()
    results.write(run, folder)
    return folder, run


def test_every_model_begins_where_that_of_its_seed_ended_counted_round(finished, still, tmp_path):
    folder, run = finished
    first = run.result.outcome.model.params
    asked = Asked(still, 3, 7, False)
    after = keeping.keep(asked, tmp_path / "run", Keeping(start=folder), "mbrl-jax train", Display.silent())
    found = after.result.outcome.model.params
    for seed in range(3):
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(first), strict=True):
            np.testing.assert_allclose(ours[seed], theirs[seed % 2], atol=1e-6)
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(found) if np.ndim(leaf) == 4]
    assert all(np.abs(kernel[0] - kernel[1]).max() > 0.01 for kernel in kernels)  # seeds are told apart


def test_a_target_that_did_not_vary_there_may_vary_here(finished, still, tmp_path):
    folder, run = finished
    model = run.result.outcome.model
    silent = model._replace(bounds=type(model.bounds)(*(np.full_like(bound, -60.0) for bound in model.bounds)))
    (tmp_path / "run").mkdir()
    results.write(run._replace(result=run.result._replace(outcome=run.result.outcome._replace(model=silent))), tmp_path / "run")
    start = warm_start.read(tmp_path / "run", still)
    for bound, fresh in zip(start.bounds, LOG_VARIANCE_BOUNDS, strict=True):
        np.testing.assert_array_equal(bound, np.full(bound.shape, fresh, np.float32))
    kept = warm_start.read(folder, still)
    np.testing.assert_array_equal(kept.bounds.maximum, model.bounds.maximum)


def test_a_run_whose_model_is_of_other_settings_is_refused_by_name(finished, still, tmp_path):
    folder, _ = finished
    for name, value in (("hidden", (4,)), ("prediction", "deterministic"), ("members", 4)):
        other = dataclasses.replace(still, model=dataclasses.replace(still.model, **{name: value}))
        with pytest.raises(ConfigError, match=f"model.{name}: .* does not fit; the model of"):
            warm_start.read(folder, other)
    with pytest.raises(ConfigError, match="whose sizes are not those of 'Acrobot-v1'"):
        warm_start.read(folder, dataclasses.replace(still, environment=dataclasses.replace(still.environment, name="Acrobot-v1")))
    with pytest.raises(ConfigError, match="there is no finished run"):
        warm_start.read(tmp_path, still)


def test_a_model_that_keeps_what_it_begins_with_is_that_of_the_other_run(finished, tiny, tmp_path):
    folder, run = finished
    first, found = run.result.outcome.model, {}
    for fits in ("none", "parameters"):
        asked = Asked(dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, fits=fits)), 2, 7, False)
        found[fits] = keeping.keep(asked, tmp_path / fits, Keeping(start=folder), "mbrl-jax train", Display.silent())
    jax.tree.map(np.testing.assert_array_equal, found["none"].result.outcome.model, first)
    tuned = found["parameters"].result.outcome.model
    jax.tree.map(np.testing.assert_array_equal, tuned.normaliser, first.normaliser)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(tuned.params), jax.tree.leaves(first.params), strict=True))


def test_a_model_that_would_stay_untrained_is_refused_before_anything_compiles(tiny, tmp_path):
    for fits in ("none", "parameters"):
        asked = Asked(dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, fits=fits)), 1, 0, False)
        message = rf"model.fits: '{fits}' does not fit; the model begins untrained; begin with that of another run \(--from\)"
        with pytest.raises(ConfigError, match=message):
            keeping.keep(asked, tmp_path / "run", Keeping(), "mbrl-jax train", Display.silent())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message):
        runner.run(asked.config, 1)


def test_a_run_whose_model_has_gone_is_refused(finished, still, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "model.npz").unlink()
    with pytest.raises(ConfigError, match="from: .* does not fit; there is no model.npz in it"):
        warm_start.read(tmp_path / "run", still)


def test_the_command_refuses_a_start_without_a_model_and_one_for_jobs(finished, tmp_path, capsys):
    words = ["--seeds", "2", "--out", str(tmp_path / "out"), "--from", str(finished[0])]
    for more, message in (
        (["train", "cartpole_batch_model_free", *words], "both runs must have a model of kind 'ensemble'"),
        (["train", "smoke", *words, "--launcher", "slurm", "--shards", "2"], "from: it does not fit --launcher"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command_line.main(more)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
