"""Writes logged transitions to Parquet files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_jax.environments.logged.audit import largest_actions
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.tables import SPACE
from mbrl_jax.environments.protocol import EnvironmentSpec


def as_table(rows: Logged, spec: EnvironmentSpec) -> Any:
    """A PyArrow table of transitions.

    Columns are ``step``, ``observation``, ``action``, ``reward``, ``next_observation``, ``terminated`` and ``truncated``. The
    table's metadata have the number of discrete actions, or the largest magnitudes of continuous ones.

    Args:
      rows: with actions in the task's own units.
      spec: of the task.

    """
    import pyarrow as pa

    actions = {"action_scale": largest_actions(spec)} if spec.continuous else {"action_count": spec.action_count}

    def lists(values: np.ndarray) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values, np.float32).ravel()), values.shape[1])

    columns = {
        "step": pa.array(rows.elapsed.astype(np.int32)),
        "observation": lists(rows.observation),
        "action": lists(rows.action) if spec.continuous else pa.array(rows.action.astype(np.int32)),
        "reward": pa.array(rows.reward.astype(np.float32)),
        "next_observation": lists(rows.next_observation),
        "terminated": pa.array(rows.terminated),
        "truncated": pa.array(rows.truncated),
    }
    return pa.table(columns).replace_schema_metadata({SPACE: json.dumps(actions)})


def write_parquet(path: Path, blocks: Iterable[Logged], spec: EnvironmentSpec) -> int:
    """Write transitions block by block; return how many there were.

    Columns are ``episode``, a number, and those of :func:`as_table`.

    Args:
      path: a new file.
      blocks: rows in order, with actions in the task's own units.
      spec: of the task.

    """
    return _write(path, ((None, block) for block in blocks), spec)


def write_seeds(path: Path, blocks: Iterable[tuple[int, Logged]], spec: EnvironmentSpec) -> int:
    """Write transitions of several seeds as :func:`write_parquet` does, with a column ``seed`` before the others.

    ``blocks`` are of a seed each, those of one after those of another, so that no episode goes on in the next seed's rows.
    """
    return _write(path, blocks, spec)


def _write(path: Path, blocks: Iterable[tuple[int | None, Logged]], spec: EnvironmentSpec) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, rows, episode, before, over = None, 0, -1, None, True
    try:
        for seed, block in blocks:
            ended = block.terminated | block.truncated
            begins = (block.elapsed == 0) | np.append(over or seed != before, ended[:-1])
            numbers = episode + np.cumsum(begins)
            table = as_table(block, spec).add_column(0, "episode", pa.array(numbers.astype(np.int32)))
            if seed is not None:
                table = table.add_column(0, "seed", pa.array(np.full(len(numbers), seed, np.int32)))
            writer = pq.ParquetWriter(path, table.schema, compression="zstd") if writer is None else writer
            writer.write_table(table)
            episode, rows, before, over = int(numbers[-1]), rows + len(numbers), seed, bool(ended[-1])
    finally:
        if writer is not None:
            writer.close()
    return rows


def join_parquet(path: Path, files: Sequence[Path]) -> None:
    """Write the rows of files that :func:`write_seeds` wrote, one after another, into a new one; episodes are numbered anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, first = None, 0
    try:
        for each in files:
            last = first - 1
            with pq.ParquetFile(each) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    place = table.schema.get_field_index("episode")
                    numbers = table["episode"].to_numpy() + first
                    last = int(numbers.max(initial=last))
                    table = table.set_column(place, "episode", pa.array(numbers.astype(np.int32)))
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd") if writer is None else writer
                    writer.write_table(table)
            first = last + 1
    finally:
        if writer is not None:
            writer.close()
