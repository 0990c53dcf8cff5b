"""Logged transitions of a made-up task, and files of them in every format."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbrl_jax.environments.logged.blocks import Block, LogFile


def episodes(lengths, *, continuous=False, seed=0, truncated=()):
    """Columns of episodes of these lengths: a walk in the plane whose second axis counts steps; ``truncated`` ones are cut."""
    generator, parts = np.random.default_rng(seed), []
    for number, length in enumerate(lengths):
        path = np.cumsum(generator.normal(size=(length + 1, 2)), axis=0).astype(np.float32)
        path[:, 1] = np.arange(length + 1)
        ended = np.arange(length) == length - 1
        action = generator.uniform(-2, 2, (length, 1)).astype(np.float32) if continuous else generator.integers(0, 2, length)
        parts.append(
            {
                "observation": path[:-1],
                "action": action,
                "reward": generator.normal(size=length).astype(np.float32),
                "next_observation": path[1:],
                "terminated": ended & (number not in truncated),
                "truncated": ended & (number in truncated),
                "episode": np.full(length, number),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_table(columns, metadata=None):
    """The Arrow table of columns; vectors are lists."""
    arrays = {name: pa.array(values.tolist()) if values.ndim == 2 else pa.array(values) for name, values in columns.items()}
    return pa.table(arrays).replace_schema_metadata(metadata)


def write(columns, path, **metadata):
    """Write columns into a file of the kind that its name says; return its path."""
    told = {b"mbrl_jax.actions": json.dumps(metadata)} if metadata else None
    if path.suffix == ".parquet":
        pq.write_table(as_table(columns, told), path, row_group_size=7)
    elif path.suffix in (".arrow", ".feather"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, as_table(columns, told).schema) as writer:
            writer.write_table(as_table(columns, told), max_chunksize=7)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
    return str(path)


def log_of(columns, size=5):
    """An open log file of columns, in blocks of a size."""

    def blocks():
        for first in range(0, len(columns["reward"]), size):
            part = {name: values[first : first + size] for name, values in columns.items()}
            yield Block(**{field: part.get(field) for field in Block._fields})

    return LogFile("made up", len(columns["reward"]), blocks)
