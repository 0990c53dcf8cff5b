"""Writes ended episodes as a Parquet file of logged transitions, in the form that the library reads.

The library's own writer is not used, as it imports JAX; a test reads what this one writes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_jax.serving.contract import Task
from mbrl_jax.serving.server.reading import COLUMNS, Transitions

SPACE = b"mbrl_jax.actions"  # metadata: the actions' count or scale as JSON


def write_part(path: Path, episodes: Sequence[Sequence[Transitions]], task: Task) -> None:
    """Write episodes, each of them as the rows of its requests in their order.

    Raises:
      OSError: the file cannot be written.

    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(array: np.ndarray) -> Any:
        if array.ndim == 1:
            return pa.array(array)
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), array.shape[1])

    lengths = [sum(len(rows.reward) for rows in parts) for parts in episodes]
    columns = {
        "episode": np.repeat(np.arange(len(episodes), dtype=np.int32), lengths),
        "step": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
    }
    for name in COLUMNS:
        columns[name] = np.concatenate([getattr(rows, name) for parts in episodes for rows in parts])
    space: dict[str, Any] = {"action_count": task.action_count}
    if task.continuous:
        space = {"action_scale": [max(abs(low), abs(high)) for low, high in zip(task.action_low, task.action_high, strict=True)]}
    table = pa.table({name: column(array) for name, array in columns.items()})
    pq.write_table(table.replace_schema_metadata({SPACE: json.dumps(space)}), path, compression="zstd")
