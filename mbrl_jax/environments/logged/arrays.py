"""Logged transitions in NPZ archives, and in HDF5 files as D4RL lays them out."""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.blocks import BLOCK, Block, LogFile, as_block, find_columns, require


def npz(path: str) -> LogFile:
    """Open an NPZ archive, whose arrays are read row by row."""
    with zipfile.ZipFile(path) as archive:
        columns = find_columns(path, (name.removesuffix(".npy") for name in archive.namelist()))
    names = {name: several[0] for name, several in columns.items()}
    with _members(path, names) as members:
        rows = {name: member.shape[0] if member.shape else 0 for name, member in members.items()}
        _same_lengths(path, rows)
        kinds = {name: (member.dtype, member.shape[1:]) for name, member in members.items()}
    if any(dtype.hasobject for dtype, _ in kinds.values()):
        name = next(name for name, (dtype, _) in kinds.items() if dtype.hasobject)
        raise ConfigError(f"data: {path!r}, array {names[name]!r}: Python objects do not fit; it must be an array of numbers")

    def blocks() -> Iterator[Block]:
        with _members(path, names) as members:
            for first in range(0, rows["reward"], BLOCK):
                count = min(BLOCK, rows["reward"] - first)
                yield as_block(path, {name: member.read(count) for name, member in members.items()}, first)

    return LogFile(path, rows["reward"], blocks)


class _Member:
    """An array of an NPZ archive, read row by row, so that it need not fit into memory."""

    def __init__(self, path: str, name: str, stream: Any):
        version = np.lib.format.read_magic(stream)
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = head(stream)
        if fortran and len(self.shape) > 1:
            raise ConfigError(f"data: {path!r}, array {name!r} is stored column by column; it must be in C order")
        self._stream = stream

    def read(self, rows: int) -> np.ndarray:
        """The next rows."""
        shape = (rows, *self.shape[1:])
        content = self._stream.read(int(np.prod(shape)) * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(shape)


@contextlib.contextmanager
def _members(path: str, names: dict[str, str]) -> Iterator[dict[str, _Member]]:
    with contextlib.ExitStack() as opened:
        # A ZipFile has one place to read at; members that are read by turns need one each.
        archives = {name: opened.enter_context(zipfile.ZipFile(path)) for name in names}
        yield {
            name: _Member(path, names[name], opened.enter_context(archive.open(f"{names[name]}.npy")))
            for name, archive in archives.items()
        }


def hdf5(path: str) -> LogFile:
    """Open an HDF5 file."""
    h5py = require("h5py")
    with h5py.File(path, "r") as file:
        columns = find_columns(path, (name for name, each in file.items() if isinstance(each, h5py.Dataset)))
        names = {name: several[0] for name, several in columns.items()}
        rows = {name: file[inside].shape[0] for name, inside in names.items()}
    _same_lengths(path, rows)

    def blocks() -> Iterator[Block]:
        with h5py.File(path, "r") as file:
            for first in range(0, rows["reward"], BLOCK):
                yield as_block(path, {name: file[inside][first : first + BLOCK] for name, inside in names.items()}, first)

    return LogFile(path, rows["reward"], blocks)


def _same_lengths(path: str, rows: dict[str, int]) -> None:
    for name, count in rows.items():
        if count != rows["reward"]:
            raise ConfigError(f"data: {path!r}: {name!r} has {count} rows and 'reward' {rows['reward']}; they must be as many")
