"""Checkpoints: arrays in one npz file, under a manifest that vouches for every byte.

A checkpoint is a folder named by its round. It is written beside its place and renamed into it, so what stands there is whole;
what a killed process left half done is cleared when the run goes on. Before anything is restored the arrays' file is compared
with the manifest's SHA-256, the manifest with a file of its own, and the arrays with the shapes and dtypes that it names.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mbrl_jax import strict_json, trees
from mbrl_jax.config import ConfigError
from mbrl_jax.packages import version_of

FORMAT = 2
MANIFEST, DIGEST, ARRAYS = "manifest.json", "manifest.sha256", "arrays.npz"


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    round: int  # rounds done
    arrays: dict[str, np.ndarray]  # by path, names joined by slashes
    about: dict[str, Any]  # the run, its seconds, what computed it


class DamagedError(ConfigError):
    """A checkpoint is not as it was written."""


def write(root: Path, number: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint of round ``number`` below ``root``, then remove all but the last ``keep``.

    Raises OSError: it cannot be written; the earlier checkpoints are as they were.
    """
    root.mkdir(exist_ok=True)
    temporary, final = root / f".{number:08d}.new", root / f"{number:08d}"
    _remove(temporary)
    needed, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(root).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} are free")
    try:
        temporary.mkdir()
        with (temporary / ARRAYS).open("xb") as file:
            np.savez(file, **cast(Any, arrays))
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": FORMAT,
            "round": number,
            "about": about,
            "arrays": {path: {"shape": list(array.shape), "dtype": str(array.dtype)} for path, array in arrays.items()},
            "sha256": _digest(temporary / ARRAYS),
        }
        text = strict_json.dumps(manifest, indent=1).encode()
        for name, content in ((MANIFEST, text), (DIGEST, hashlib.sha256(text).hexdigest().encode())):
            with (temporary / name).open("xb", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
        _remove(final)  # a damaged one of this round, when a run goes on from an earlier one
        temporary.rename(final)
    except BaseException:
        _remove(temporary)
        raise
    handle = os.open(root, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    for old in rounds(root)[:-keep]:
        _remove(root / f"{old:08d}")


def rounds(root: Path) -> list[int]:
    """The rounds with a checkpoint, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.is_dir() and path.name.isdigit())


def clear(root: Path, after: int | None = None) -> None:
    """Remove what a killed process left half written and, if ``after`` is given, the checkpoints of later rounds."""
    for path in root.iterdir() if root.is_dir() else ():
        if path.name.startswith(".") or (after is not None and path.name.isdigit() and int(path.name) > after):
            _remove(path)


def read(root: Path, number: int) -> Checkpoint:
    """Read the checkpoint of a round, once all of it has been checked.

    Raises DamagedError: it is not exactly as it was written, or another version wrote it.
    """
    folder = root / f"{number:08d}"
    manifest = verify(folder)
    try:
        with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except trees.DAMAGED as error:
        raise DamagedError(f"{folder / ARRAYS}: it cannot be read: {error}") from error
    for path, expected in manifest["arrays"].items():
        found = arrays.get(path)
        if found is None or list(found.shape) != expected["shape"] or str(found.dtype) != expected["dtype"]:
            shown = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise DamagedError(f"{folder}: {path} must be {expected['dtype']}{expected['shape']}, there is {shown}")
    return Checkpoint(manifest["round"], arrays, manifest["about"])


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint; return its manifest.

    Raises DamagedError: it is not exactly as it was written, or another version wrote it.
    """
    try:
        text, digest = (folder / MANIFEST).read_bytes(), (folder / DIGEST).read_bytes()
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise DamagedError(f"{folder / MANIFEST}: its SHA-256 is not the one in {DIGEST}; one of the two was changed")
        manifest: dict[str, Any] = strict_json.loads(text)
        if manifest["format"] != FORMAT:
            writer = manifest.get("about", {}).get("run", {}).get("versions", {}).get("mbrl-jax", "another version")
            raise DamagedError(
                f"{folder}: mbrl-jax {writer} wrote it in format {manifest['format']!r}, this is {version_of('mbrl-jax')}, "
                f"which reads {FORMAT}; finish the run with the version that began it"
            )
        found, expected = {path.name for path in folder.iterdir()}, {MANIFEST, DIGEST, ARRAYS}
        if found != expected:
            missing, foreign = sorted(expected - found), sorted(found - expected)
            raise DamagedError(f"{folder}: " + (f"{missing[0]} is missing" if missing else f"{foreign[0]} does not belong to it"))
        if _digest(folder / ARRAYS) != manifest["sha256"]:
            raise DamagedError(f"{folder / ARRAYS}: its SHA-256 is not the manifest's; the file was changed or cut off")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{folder}: it cannot be read: {error}") from error
    return manifest


# ------------------------------------------------------------------------------------------------------------------ pieces


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    """Remove a folder, if it is there, so that no moment shows a part of it in its place."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.strip('.')}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
