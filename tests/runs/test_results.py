"""A finished run is read back, or what is wrong with its files is said."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.runs import results, runner


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    folder = tmp_path_factory.mktemp("finished")
    results.write(runner.run(free, 2), folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_an_archive_that_is_empty_or_of_which_any_byte_is_another_is_read_as_it_was_or_refused(tmp_path):
    whole = {"returns": np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)}
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, **whole)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = results.load_arrays(path)
        except ConfigError:
            refused += 1
        else:
            assert all(np.array_equal(array, whole["returns"]) for array in found.values())
    assert refused > len(content) // 6
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="arrays.npz: it cannot be read"):
        results.load_arrays(path)


@pytest.mark.parametrize(
    ("field", "value"), [("seconds", None), ("bytes_per_seed", 3), ("versions", None), ("base_seed", ...), ("engine", [1])]
)
def test_a_summary_of_another_form_is_refused_by_name(folder, field, value):
    summary = json.loads((folder / "summary.json").read_text())
    summary = {name: each for name, each in summary.items() if name != field} | ({} if value is ... else {field: value})
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="summary.json: it is not as a run writes it"):
        results.read(folder)


def test_what_is_read_is_what_was_written(folder):
    run = results.read(folder)
    assert (len(run.result.outcome.frozen), run.base_seed, run.config.steps) == (2, 0, 20)
