"""Writes logged transitions to a Parquet file."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.tables import SPACE
from mbrl_jax.environments.protocol import EnvironmentSpec


def write_parquet(path: Path, blocks: Iterable[Logged], spec: EnvironmentSpec) -> int:
    """Write transitions block by block; return how many there were.

    Columns are ``observation``, ``action``, ``reward``, ``next_observation``, ``terminated``, ``truncated``, ``episode`` and
    ``step``. The file's metadata have the number of discrete actions, or the scale of continuous ones.

    Args:
      path: a new file.
      blocks: rows in order, with actions in the task's own units.
      spec: of the task.

    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values, np.float32).ravel()), values.shape[1])

    actions = (
        {"action_scale": spec.action_scale or (1.0,) * spec.action_size}
        if spec.continuous
        else {"action_count": spec.action_count}
    )
    writer, rows, episode = None, 0, -1
    try:
        for block in blocks:
            numbers = episode + np.cumsum(block.elapsed == 0)
            episode, rows = int(numbers[-1]), rows + len(numbers)
            columns = {
                "episode": pa.array(numbers.astype(np.int32)),
                "step": pa.array(block.elapsed.astype(np.int32)),
                "observation": lists(block.observation),
                "action": lists(block.action) if spec.continuous else pa.array(block.action.astype(np.int32)),
                "reward": pa.array(block.reward.astype(np.float32)),
                "next_observation": lists(block.next_observation),
                "terminated": pa.array(block.terminated),
                "truncated": pa.array(block.truncated),
            }
            table = pa.table(columns).replace_schema_metadata({SPACE: json.dumps(actions)})
            writer = pq.ParquetWriter(path, table.schema, compression="zstd") if writer is None else writer
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    return rows
