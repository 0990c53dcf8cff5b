import hashlib
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


def test_a_flip_of_any_byte_of_any_file_is_refused(root):
    folder = root / "00000003"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "manifest.sha256", "arrays.npz"}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        assert len(content) < 5_000  # all of them
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(DamagedError):
                checkpoint.verify(folder)
        path.write_bytes(content)
    checkpoint.read(root, 3)


def test_a_file_that_is_cut_off_anywhere_missing_or_foreign_is_refused(root):
    folder = root / "00000003"
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for length in {*range(0, len(content), 41), len(content) - 1}:
            path.write_bytes(content[:length])
            with pytest.raises(DamagedError):
                checkpoint.read(root, 3)
        path.unlink()
        with pytest.raises(DamagedError):
            checkpoint.read(root, 3)
        path.write_bytes(content + b"0")
        with pytest.raises(DamagedError):
            checkpoint.read(root, 3)
        path.write_bytes(content)
    (folder / "stray").write_text("of another run")
    with pytest.raises(DamagedError, match="stray does not belong to it"):
        checkpoint.read(root, 3)


def test_a_manifest_written_by_somebody_else_is_caught(root):
    """One whose digest fits, but which speaks of another format, or of other arrays than there are."""
    folder = root / "00000003"
    manifest = json.loads((folder / "manifest.json").read_text())

    def forge(**changes):
        text = json.dumps({**manifest, **changes}).encode()
        (folder / "manifest.json").write_bytes(text)
        (folder / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())

    forge(format=99)
    with pytest.raises(DamagedError, match=r"another version wrote it in format 99, this is .*, which reads 2; finish the run"):
        checkpoint.read(root, 3)
    forge(arrays={**manifest["arrays"], "state/time": {"shape": [5], "dtype": "int32"}})
    with pytest.raises(DamagedError, match=r"state/time must be int32\[5\], there is int32\[\]"):
        checkpoint.read(root, 3)
    forge(arrays={**manifest["arrays"], "state/more": {"shape": [5], "dtype": "int32"}})
    with pytest.raises(DamagedError, match="state/more must be .*, there is nothing"):
        checkpoint.read(root, 3)


def test_a_checkpoint_of_the_versions_that_used_orbax_is_refused_with_the_version_that_wrote_it(tmp_path):
    folder = tmp_path / "00000007"
    (folder / "arrays").mkdir(parents=True)
    about = {"seconds": {}, "run": {"versions": {"python": "3.11.2", "mbrl-jax": "0.1.0", "orbax-checkpoint": "0.12.0"}}}
    text = json.dumps({"format": 1, "round": 7, "about": about, "arrays": {}, "files": {}}).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())
    with pytest.raises(
        DamagedError, match=r"mbrl-jax 0\.1\.0 wrote it in format 1.*finish the run with the version that began it"
    ):
        checkpoint.read(tmp_path, 7)


def test_one_that_cannot_be_written_leaves_the_others_as_they_were(root, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", full)
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
