"""Logged transitions in Parquet and Arrow files."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.blocks import BLOCK, Block, LogFile, as_block, find_columns

SPACE = b"mbrl_jax.actions"  # metadata: the actions' count or scale as JSON


def parquet(path: str) -> LogFile:
    """Open a Parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    columns = find_columns(path, schema.names)
    names = [each for several in columns.values() for each in several]

    def blocks() -> Iterator[Block]:
        first = 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # over several at once, a reader holds all that it has read
                for batch in file.iter_batches(BLOCK, row_groups=[group], columns=names):
                    yield _from_table(path, columns, batch, first)
                    first += batch.num_rows

    return LogFile(path, rows, blocks, *_space(schema.metadata))


def arrow(path: str) -> LogFile:
    """Open an Arrow (Feather) file."""
    import pyarrow as pa

    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_file(source)
            schema, rows = reader.schema, sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        except pa.ArrowInvalid as error:
            raise ConfigError(f"data: {path!r} cannot be read as an Arrow file: {error}") from error
    columns = find_columns(path, schema.names)

    def blocks() -> Iterator[Block]:
        first = 0
        with pa.memory_map(path) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                whole = reader.get_batch(number)
                for start in range(0, whole.num_rows, BLOCK):
                    batch = whole.slice(start, BLOCK)
                    yield _from_table(path, columns, batch, first)
                    first += batch.num_rows

    return LogFile(path, rows, blocks, *_space(schema.metadata))


def _space(metadata: Any) -> tuple[int | None, tuple[float, ...] | None]:
    """The actions' count and scale from a file's metadata, where they are there."""
    found = json.loads((metadata or {}).get(SPACE, b"{}"))
    scale = found.get("action_scale")
    return found.get("action_count"), None if scale is None else tuple(map(float, scale))


def _from_table(path: str, columns: dict[str, list[str]], batch: Any, first: int) -> Block:
    """The block of an Arrow record batch."""
    arrays = {}
    for name, several in columns.items():
        if len(several) == 1:
            arrays[name] = _from_column(path, several[0], batch.column(several[0]), first)
        else:
            parts = [_from_column(path, each, batch.column(each), first) for each in several]
            arrays[name] = np.stack([part.astype(np.float64) if part.dtype.kind == "f" else part for part in parts], axis=1)
    return as_block(path, arrays, first)


def _from_column(path: str, name: str, column: Any, first: int) -> np.ndarray:
    """[n] or, of lists, [n, L] the values of a column; a missing number is NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
        kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        size = int(lengths[0]) if len(lengths) else 0
        if np.any(lengths != size) or size < 0:
            row = int(np.flatnonzero((lengths != size) | (lengths < 0))[0])
            found = "nothing" if lengths[row] < 0 else f"a list of {lengths[row]}"
            raise ConfigError(
                f"data: {path!r}, column {name!r}, row {first + row}: {found} does not fit; each row must have as many "
                f"numbers as the first ({max(size, 0)})"
            )
        return _from_column(path, name, column.flatten(), first * max(size, 1)).reshape(len(lengths), size)
    if column.null_count and not pa.types.is_floating(kind):
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ConfigError(f"data: {path!r}, column {name!r}, row {first + row}: nothing is there; it must be {kind}")
    return np.asarray(column.to_numpy(zero_copy_only=False))
