"""The tidy table: what a run measured goes in, comes out again, and says what it means."""

import json
from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from mbrl_jax.algorithms import columns
from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.runs import metrics, results, runner
from mbrl_jax.statistics import interquartile_mean


@pytest.fixture(scope="module")
def run(tiny):
    return runner.run(replace(tiny, protocol="interactive"), 3)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results.write(run, folder)
    return folder


def test_a_run_read_from_its_folder_is_the_run_that_was_written(run, folder):
    back = results.read(folder)
    assert jax.tree.structure(back.result) == jax.tree.structure(run.result)
    jax.tree.map(np.testing.assert_array_equal, back.result, run.result)
    assert back._replace(result=None) == run._replace(result=None)


def test_so_is_a_diagnosed_one_of_the_batch_protocol_and_one_without_a_model(tiny, tmp_path):
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    for name, run in (("batch", runner.run(tiny, 2, diagnose=True)), ("free", runner.run(free, 2))):
        run = run._replace(first_seed=3, failures={1: "a traceback"})
        (tmp_path / name).mkdir()
        results.write(run, tmp_path / name)
        back = results.read(tmp_path / name)
        assert jax.tree.structure(back) == jax.tree.structure(run)
        assert (back.first_seed, back.failures) == (3, {1: "a traceback"})
        jax.tree.map(np.testing.assert_array_equal, (back.result, back.diagnosis), (run.result, run.diagnosis))


def test_every_column_says_its_unit_and_what_it_is(folder):
    for field in pq.read_schema(folder / "metrics.parquet"):
        column = columns.describe(field.name)
        assert field.metadata == {b"unit": column.unit.encode(), b"description": column.description.encode()}


def test_pandas_and_polars_read_the_same_table(run, folder):
    pandas, polars = pd.read_parquet(folder / "metrics.parquet"), pl.read_parquet(folder / "metrics.parquet")
    assert list(pandas.columns) == polars.columns
    curve = (
        pandas[pandas["phase"] == "train"]
        .dropna(subset="curve_return")
        .pivot(index="seed", columns="round", values="curve_return")
    )
    np.testing.assert_array_equal(curve.to_numpy(np.float32), run.result.metrics.curve_return)
    last = polars.filter(pl.col("phase") == "train").group_by("seed").agg(pl.col("curve_return").last()).sort("seed")
    np.testing.assert_array_equal(last["curve_return"].to_numpy(), run.result.metrics.curve_return[:, -1])


def test_a_row_of_training_says_how_many_steps_were_done_by_its_end(folder):
    train = pd.read_parquet(folder / "metrics.parquet").query("phase == 'train' and seed == 1")
    assert train["step"].tolist() == [5, 10, 15, 20]
    assert train["round"].tolist() == [0, 0, 1, 1]
    assert train["score"].notna().tolist() == [False, True, False, True]


def test_an_entry_is_the_iqm_over_seeds_and_the_share_of_flags(run):
    now = jax.tree.map(lambda leaf: leaf[:, 1], run.result.metrics)
    now = now._replace(frozen=np.array([True, False, True]))
    entry = metrics.entry(run.config, 2, now, 1.5)
    assert (entry.round, entry.step, entry.seconds, entry.frozen) == (2, 20, 1.5, 2)
    assert entry.values["curve_return"] == interquartile_mean(now.curve_return.astype(np.float64))
    assert entry.values["update.loss"] == pytest.approx(interquartile_mean(now.update.loss.astype(np.float64).mean(axis=1)))
    assert entry.values["frozen"] == pytest.approx(2 / 3)
    assert entry.values["model.holdout_mse.1"] == pytest.approx(interquartile_mean(now.refit.holdout_mse[:, 1]))
    assert json.loads(json.dumps(entry.as_json()))["values"].keys() == entry.values.keys()


@pytest.mark.parametrize("name", ["metrics.parquet", "policies.npz", "outcome.npz", "model.npz", "summary.json"])
def test_what_cannot_be_read_is_named(run, tmp_path, name):
    results.write(run, tmp_path)
    (tmp_path / name).write_bytes(b"no such file was ever written by us")
    with pytest.raises(ConfigError, match=f"{name}.*cannot be read"):
        results.read(tmp_path)


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no finished run"):
        results.read(tmp_path)
