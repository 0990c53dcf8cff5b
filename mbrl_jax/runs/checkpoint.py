"""Checkpoints: arrays stored by orbax under a manifest that vouches for every byte.

A checkpoint is a folder named by its round. It is written beside its place and renamed into it, so what stands there is whole;
what a killed process left half done is cleared when the run goes on. Before anything is restored every file is compared with the
manifest's SHA-256, the manifest with a file of its own, and the arrays with the shapes and dtypes that it names. Nothing is
restored from a folder that is not exactly as it was written.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import strict_json

FORMAT = 1
MANIFEST, DIGEST, ARRAYS = "manifest.json", "manifest.sha256", "arrays"


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    round: int  # rounds done
    arrays: dict[str, np.ndarray]  # by path, names joined by slashes
    about: dict[str, Any]  # what was said of them when they were written


class DamagedError(ConfigError):
    """A checkpoint is not as it was written."""


def write(root: Path, number: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint of round ``number`` below ``root``, then remove all but the last ``keep``.

    Raises:
      OSError: it cannot be written; those that were there before are as they were.

    """
    root.mkdir(exist_ok=True)
    temporary, final = root / f".{number:08d}.new", root / f"{number:08d}"
    _remove(temporary)
    needed, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(root).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} are free")
    try:
        temporary.mkdir()
        _store(temporary / ARRAYS, arrays)
        manifest = {
            "format": FORMAT,
            "round": number,
            "about": about,
            "arrays": {path: {"shape": list(array.shape), "dtype": str(array.dtype)} for path, array in arrays.items()},
            "files": {name: _digest(temporary / name) for name in _files(temporary)},
        }
        text = strict_json.dumps(manifest, indent=1).encode()
        _write_synced(temporary / MANIFEST, text)
        _write_synced(temporary / DIGEST, hashlib.sha256(text).hexdigest().encode())
        _remove(final)  # a damaged one of this round, which a run that went on from an earlier one comes by again
        temporary.rename(final)
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(root)
    for old in rounds(root)[:-keep]:
        _remove(root / f"{old:08d}")


def rounds(root: Path) -> list[int]:
    """The rounds of which there are checkpoints, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.is_dir() and path.name.isdigit())


def clear(root: Path, after: int | None = None) -> None:
    """Remove what a killed process left half written and, if ``after`` is given, the checkpoints of later rounds."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name.startswith("."):
                _remove(path)
    if after is not None:
        for number in rounds(root):
            if number > after:
                _remove(root / f"{number:08d}")


def read(root: Path, number: int) -> Checkpoint:
    """The checkpoint of a round, once all of it has been checked.

    Raises:
      DamagedError: it is not exactly as it was written.

    """
    folder = root / f"{number:08d}"
    manifest = verify(folder)
    arrays = _restore(folder / ARRAYS, manifest["arrays"])
    for path, told in manifest["arrays"].items():
        found = arrays.get(path)
        if found is None or list(found.shape) != told["shape"] or str(found.dtype) != told["dtype"]:
            shown = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise DamagedError(f"{folder}: {path} must be {told['dtype']}{told['shape']}, there is {shown}")
    return Checkpoint(manifest["round"], arrays, manifest["about"])


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are those that it names, byte for byte.

    Raises:
      DamagedError: they are not.

    """
    try:
        text, digest = (folder / MANIFEST).read_bytes(), (folder / DIGEST).read_bytes()
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise DamagedError(f"{folder / MANIFEST}: its SHA-256 is not the one in {DIGEST}; one of the two was changed")
        manifest: dict[str, Any] = json.loads(text)
        if manifest.get("format") != FORMAT:
            raise DamagedError(f"{folder}: format {manifest.get('format')!r} is not known; this version reads {FORMAT}")
        found, expected = set(_files(folder)) - {MANIFEST, DIGEST}, set(manifest["files"])
        if found != expected:
            missing, foreign = sorted(expected - found), sorted(found - expected)
            what = f"{missing[0]} is missing" if missing else f"{foreign[0]} does not belong to it"
            raise DamagedError(f"{folder}: {what}")
        for name, digest_told in manifest["files"].items():
            if _digest(folder / name) != digest_told:
                raise DamagedError(f"{folder / name}: its SHA-256 is not the manifest's; the file was changed or cut off")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{folder}: it cannot be read: {error}") from error
    return manifest


# ------------------------------------------------------------------------------------------------------------------ pieces


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import orbax.checkpoint  # takes a second, so only where it is needed

    full = {path: array for path, array in arrays.items() if array.size}  # orbax stores no empty arrays
    with _quiet(), orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), full)
    for name in _files(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the traceback of what it also raises."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _restore(folder: Path, told: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import orbax.checkpoint

    empty = {path: np.zeros(each["shape"], each["dtype"]) for path, each in told.items() if 0 in each["shape"]}
    with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder.absolute())
    return {path: np.asarray(array) for path, array in {**restored, **empty}.items()}


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove a folder, if it is there, so that no moment shows a part of it in its place."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.strip('.')}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
