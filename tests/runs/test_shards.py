"""Runs of some of the seeds of a run, joined to one."""

import json
import shutil

import jax
import numpy as np
import pytest

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError, ModelFreeQConfig, save
from mbrl_jax.report import listing
from mbrl_jax.runs import execution, folder, results, runner, shards

SEEDS = 5


@pytest.fixture(scope="module")
def config(tiny):
    return ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    """Shards of five seeds, and the settings."""
    root = tmp_path_factory.mktemp("shards")
    save(config, root / "config.yaml")
    for name, seeds in (("a", "0:2"), ("b", "2:3"), ("c", "3:5")):
        train(root, root / name, seeds)
    return root


def train(root, out, seeds, *more):
    words = ["train", str(root / "config.yaml"), "--seeds", seeds, "--seed", "3", "--out", str(out)]
    command_line.main([*words, *more])


def join(out, *parts):
    command_line.main(["join", str(out), *map(str, parts)])


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        join(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "numbers"), [("4", range(4)), ("0:4", range(4)), ("64:128", range(64, 128)), ("7:8", range(7, 8))]
)
def test_seeds_are_a_number_or_a_range_of_numbers(text, numbers):
    assert shards.parse_seeds(text) == numbers


@pytest.mark.parametrize("text", ["", "four", "1:", ":4", "1:2:3", "1.5"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(ConfigError, match="seeds: .* does not fit; it must be a number, or FIRST:END"):
        shards.parse_seeds(text)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("4:4", "seeds: '4:4' is out of range; FIRST must be below END, and both be from 0 to 2^31"),
        ("4:2", "seeds: '4:2' is out of range"),
        ("-2:2", "seeds: '-2:2' is out of range"),
        ("-3", "seeds: '-3' is out of range; it must be from 0 to 2^31"),
        ("0", "seeds: 0 is out of range; it must be from 1 to 2^31"),
        ("99999999999999999999", "seeds: '99999999999999999999' is out of range"),
    ],
)
def test_a_range_without_seeds_is_refused_before_a_folder_is_made(root, tmp_path, capsys, seeds, message):
    with pytest.raises(SystemExit):
        command_line.main(["train", str(root / "config.yaml"), f"--seeds={seeds}", "--out", str(tmp_path / "new")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_seed_of_a_shard_has_the_numbers_that_it_has_in_the_whole_run(config):
    whole = runner.run(config, SEEDS, base_seed=3).result
    shard = runner.run(config, range(2, 4), base_seed=3)
    assert shard.first_seed == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[2:4], rtol=1e-4, atol=1e-5), shard.result, whole)


def test_joined_shards_are_the_run_of_all_seeds(config, root, tmp_path):
    whole = runner.run(config, SEEDS, base_seed=3)
    join(tmp_path / "all", root / "c", root / "a", root / "b")  # in any order
    found = results.read(tmp_path / "all")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.result, whole.result)
    assert (found.config, found.base_seed, found.first_seed) == (config, 3, 0)
    parts = [results.read(root / name) for name in "abc"]
    jax.tree.map(
        lambda joined, *leaves: np.testing.assert_array_equal(joined, np.concatenate(leaves)),
        found.result.outcome,
        *(part.result.outcome for part in parts),
    )
    assert found.seconds.train == pytest.approx(sum(part.seconds.train for part in parts))
    asked = folder.asked_of(tmp_path / "all")
    assert (asked.seeds, asked.base_seed, asked.first) == (SEEDS, 3, 0)
    train(root, tmp_path / "plain", str(SEEDS))
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {path.name for path in (tmp_path / "plain").iterdir()} - {"metrics.jsonl"}
    ours, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("all", "plain"))
    assert set(ours) == set(theirs)
    for name in ("return_last", "seeds", "config", "base_seed", "first_seed", "frozen_seeds", "updates"):
        np.testing.assert_equal(ours[name], theirs[name])
    assert [one.state for one in listing.find(tmp_path / "all")] == ["finished"]


def test_neighbouring_shards_make_a_larger_shard(root, tmp_path):
    join(tmp_path / "bc", root / "b", root / "c")
    assert results.read(tmp_path / "bc").first_seed == 2
    join(tmp_path / "all", root / "a", tmp_path / "bc")
    assert folder.asked_of(tmp_path / "all").seeds == SEEDS


def test_gaps_and_overlaps_are_refused_and_named(root, tmp_path, capsys):
    out = tmp_path / "all"
    assert "shards: seeds 2:3 are missing, between" in refused(capsys, out, root / "a", root / "c")
    train(root, tmp_path / "d", "1:3")
    said = refused(capsys, out, root / "a", tmp_path / "d", root / "c")
    assert f"shards: seeds 1:2 are in {str(root / 'a')!r} and in {str(tmp_path / 'd')!r}" in said
    assert "seeds 0:2 are in" in refused(capsys, out, root / "a", root / "a")
    assert not out.exists()


def test_shards_of_different_settings_are_refused_and_what_differs_is_named(root, tmp_path, capsys):
    train(root, tmp_path / "other", "2:3", "--agent.learning-rate", "0.5")
    said = refused(capsys, tmp_path / "all", root / "a", tmp_path / "other", root / "c")
    assert f"agent.learning_rate: 0.5 in {str(tmp_path / 'other')!r} does not fit" in said
    assert not (tmp_path / "all").exists()


def test_shards_that_are_not_finished_are_refused_with_the_command_that_goes_on(root, tmp_path, capsys):
    shutil.copytree(root / "b", tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    said = refused(capsys, tmp_path / "all", root / "a", tmp_path / "b", root / "c")
    assert f"shards: {str(tmp_path / 'b')!r} is not finished; go on with it: mbrl-jax train" in said
    assert "holds no run that could go on" in refused(capsys, tmp_path / "all", root / "a", tmp_path / "nowhere")
    assert not (tmp_path / "all").exists()


def test_a_folder_that_exists_is_left_as_it_is_and_a_join_that_was_killed_is_made_again(root, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    parts = [root / name for name in "abc"]
    with monkeypatch.context() as patch:
        patch.setattr(results.strict_json, "write", kill)
        with pytest.raises(Killed):
            join(tmp_path / "all", *parts)
    with monkeypatch.context() as patch:
        patch.setattr(results, "summarise", kill)
        with pytest.raises(Killed):
            join(tmp_path / "all", *parts)
    join(tmp_path / "all", *parts)
    assert "exists already and is left as it is" in refused(capsys, tmp_path / "all", *parts)


def test_the_seeds_of_the_reference_begin_with_0(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["reference", "smoke", "--seeds", "2:4", "--out", str(tmp_path / "new")])
    assert "seeds: 2:4 does not fit; the reference trains seeds from 0 on" in capsys.readouterr().err


def test_devices_are_chosen_for_the_seeds_of_a_shard():
    assert execution.choose_layout(len(shards.parse_seeds("7:8"))).mesh.size == 1
