import json
import shutil

import numpy as np
import pytest

from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.checkpoint import DamagedError

ARRAYS = {
    "state/replay/rows": np.arange(24, dtype=np.float32).reshape(2, 4, 3),
    "state/key": np.arange(4, dtype=np.uint32).reshape(2, 2),
    "state/frozen": np.array([True, False]),
    "state/time": np.array(7, np.int32),
    "state/nothing": np.zeros((2, 0), np.float32),
    "metrics/nan": np.array([np.nan, -np.inf, 0.0], np.float32),
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "checkpoints"
    for number in (1, 2, 3):
        changed = {**ARRAYS, "state/time": np.array(number, np.int32)}
        checkpoint.write(root, number, changed, {"seconds": 1.5 * number}, keep=2)
    return root


def test_what_is_read_is_what_was_written_to_the_bit(root):
    found = checkpoint.read(root, 3)
    assert (found.round, found.about) == (3, {"seconds": 4.5})
    assert set(found.arrays) == set(ARRAYS)
    for path, array in found.arrays.items():
        expected = ARRAYS[path] if path != "state/time" else np.array(3, np.int32)
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array, expected)


def test_the_last_few_are_kept(root):
    assert checkpoint.rounds(root) == [2, 3]
    assert {path.name for path in root.iterdir()} == {"00000002", "00000003"}
    checkpoint.write(root, 4, ARRAYS, {}, keep=1)
    assert checkpoint.rounds(root) == [4]


def test_a_flip_of_any_byte_of_any_file_is_caught(root):
    folder = root / "00000003"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    generator = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        places = range(len(content)) if len(content) < 60 else {0, len(content) - 1, *generator.integers(len(content), size=20)}
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(DamagedError):
                checkpoint.verify(folder)
        path.write_bytes(content)
    checkpoint.read(root, 3)


def test_a_file_that_is_cut_off_missing_or_foreign_is_caught(root):
    folder = root / "00000003"
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(DamagedError):
            checkpoint.read(root, 3)
        path.unlink()
        with pytest.raises(DamagedError):
            checkpoint.read(root, 3)
        path.write_bytes(content)
    (folder / "arrays" / "stray").write_text("of another run")
    with pytest.raises(DamagedError, match="stray does not belong to it"):
        checkpoint.read(root, 3)


def test_a_manifest_written_by_somebody_else_is_caught(root):
    """One whose digest fits, but which speaks of another format, or of other arrays than there are."""
    folder = root / "00000003"
    manifest = json.loads((folder / "manifest.json").read_text())

    def forge(**changes):
        import hashlib

        text = json.dumps({**manifest, **changes}).encode()
        (folder / "manifest.json").write_bytes(text)
        (folder / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())

    forge(format=99)
    with pytest.raises(DamagedError, match="format 99 is not known"):
        checkpoint.read(root, 3)
    forge(arrays={**manifest["arrays"], "state/time": {"shape": [5], "dtype": "int32"}})
    with pytest.raises(DamagedError, match=r"state/time must be int32\[5\], there is int32\[\]"):
        checkpoint.read(root, 3)
    forge(arrays={**manifest["arrays"], "state/more": {"shape": [5], "dtype": "int32"}})
    with pytest.raises(DamagedError, match="state/more must be .*, there is nothing"):
        checkpoint.read(root, 3)


def test_one_that_cannot_be_written_leaves_the_others_as_they_were(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_store", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(root, 4, ARRAYS, {}, keep=1)
    assert {path.name for path in root.iterdir()} == {"00000002", "00000003"}
    checkpoint.read(root, 3)


def test_a_disk_without_room_for_it_is_noticed_beforehand(root, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1_000_000, 999_900, 100))
    with pytest.raises(OSError, match="No space left on device: 0.0 MB are needed"):
        checkpoint.write(root, 4, ARRAYS, {}, keep=1)
    assert checkpoint.rounds(root) == [2, 3]


def test_what_a_killed_process_left_is_cleared_and_the_rest_is_not(root):
    shutil.copytree(root / "00000003", root / ".00000004.new")
    shutil.copytree(root / "00000003", root / ".00000001.old")
    assert checkpoint.rounds(root) == [2, 3]
    checkpoint.clear(root)
    assert {path.name for path in root.iterdir()} == {"00000002", "00000003"}
    checkpoint.clear(root, after=2)
    assert checkpoint.rounds(root) == [2]
