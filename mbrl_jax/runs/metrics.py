"""The metrics of a run as one tidy table, and what its columns mean.

A row belongs to one seed and one phase, and only the columns of that phase hold something:

* ``collect``: a random episode that ended, at a ``step`` of the collection;
* ``fit``: an ``epoch`` of the model's first fit;
* ``train``: a block of ``metric_steps`` steps of the main loop, up to and including ``step``. What is measured once a round
  stands in the last block of it.

Columns that end in a number are of one ensemble member, or of one bin of a histogram. The table is a Parquet file, which carries
:data:`mbrl_jax.algorithms.columns.COLUMNS` in the metadata of its fields.
"""

import collections
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbrl_jax.algorithms.columns import BLOCKS, base_of, describe, place_of
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import RunConfig
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.statistics import interquartile_mean


def as_table(config: RunConfig, collected: Any, fit: Any, metrics: Any) -> pa.Table:
    """The table of a run.

    Args:
      config: of the run.
      collected: [seeds, N] returns of random episodes where they ended, NaN elsewhere.
      fit: a ``FitLog`` [seeds, epochs, E], or () without a model.
      metrics: the algorithm's ``Metrics`` [seeds, rounds, ...].

    """
    parts = [_collect_rows(np.asarray(collected))]
    if fit != ():
        parts.append(_fit_rows(fit))
    parts.append(_train_rows(config, metrics))
    table = pa.concat_tables(parts, promote_options="default")
    told = [field.with_metadata(describe(field.name)._asdict()) for field in table.schema]
    order = sorted(table.column_names, key=place_of)
    return table.cast(pa.schema(told)).select(order)


def write(path: Path, table: pa.Table) -> None:
    """Write the table as Parquet; the same table gives the same bytes."""
    pq.write_table(table, path, compression="zstd")


def read(path: Path, config: RunConfig) -> tuple[Any, Any, Any]:
    """What :func:`as_table` was made of: the returns of random episodes, the fit's log, and the metrics.

    Raises OSError: the file cannot be read. ValueError: it is no such table.
    """
    table = pq.read_table(path)
    seeds = int(table["seed"].to_numpy().max()) + 1
    rows = {phase: table.filter(pc.equal(table["phase"], phase)) for phase in ("collect", "fit", "train")}
    collected = np.full((seeds, config.random_transitions), np.nan, np.float32)
    ended = rows["collect"]
    collected[ended["seed"].to_numpy(), ended["step"].to_numpy() - 1] = ended["episode_return"].to_numpy()
    rounds = config.steps // config.round_steps
    kind = algorithm_of(config).metrics
    metrics = _build(kind, "", rows["train"], (seeds, rounds))
    fit = _build(FitLog, "model.", rows["fit"], (seeds, -1)) if algorithm_of(config).has_model else ()
    return collected, fit, metrics


class Entry(NamedTuple):
    """What a round came to, over all seeds."""

    round: int  # from 1
    step: int  # of the main loop, done so far
    seconds: float  # since the first round began, of all the processes that worked on the run
    frozen: int  # seeds whose learner has gone non-finite
    values: dict[str, float]  # by column: the IQM over seeds (blocks averaged), for flags the share of seeds

    def as_json(self) -> dict[str, Any]:
        """As a line of ``metrics.jsonl``."""
        return {**self._asdict(), "values": {name: float(f"{value:.6g}") for name, value in self.values.items()}}


def entry(config: RunConfig, number: int, metrics: Any, seconds: float) -> Entry:
    """Reduce the metrics [seeds, ...] of round ``number``, from 1, over seeds."""
    values = {}
    for name, leaf in _leaves(metrics):
        for column, part in _split(name, leaf, 2 if name.startswith(BLOCKS) else 1):
            per_seed = part.reshape(len(part), -1).astype(np.float64).mean(axis=1)
            values[column] = float(per_seed.mean() if part.dtype == bool else interquartile_mean(per_seed))
    return Entry(number, number * config.round_steps, seconds, int(np.asarray(metrics.frozen).sum()), values)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Column names, without numbers at their end, and leaves; a refit's are called as the fit's."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        yield name.replace("refit.", "model."), np.asarray(leaf)


def _split(name: str, leaf: np.ndarray, lead: int) -> Iterator[tuple[str, np.ndarray]]:
    """A leaf with more axes than ``lead`` as one column for each entry of its last."""
    if leaf.ndim == lead:
        yield name, leaf
    else:
        for i in range(leaf.shape[-1]):
            yield f"{name}.{i}", leaf[..., i]


def _rows(phase: str, count: int, **columns: Any) -> dict[str, Any]:
    return {**columns, "phase": pa.array([phase] * count, pa.string()).dictionary_encode()}


def _collect_rows(collected: np.ndarray) -> pa.Table:
    seed, step = np.nonzero(~np.isnan(collected))
    columns = {"seed": seed.astype(np.int32), "step": step.astype(np.int32) + 1, "episode_return": collected[seed, step]}
    return pa.table(_rows("collect", len(seed), **columns))


def _fit_rows(fit: FitLog) -> pa.Table:
    seeds, epochs = np.asarray(fit.loss).shape[:2]
    seed, epoch = np.divmod(np.arange(seeds * epochs, dtype=np.int32), epochs)
    columns: dict[str, Any] = {"seed": seed, "epoch": epoch}
    for name, leaf in _leaves(fit):
        columns |= {column: part.ravel() for column, part in _split(f"model.{name}", leaf, 2)}
    return pa.table(_rows("fit", len(seed), **columns))


def _train_rows(config: RunConfig, metrics: Any) -> pa.Table:
    seeds, rounds, blocks = next(leaf.shape for name, leaf in _leaves(metrics) if name.startswith(BLOCKS))[:3]
    number = np.arange(seeds * rounds * blocks, dtype=np.int32)
    in_run = number % (rounds * blocks)
    columns: dict[str, Any] = {"seed": number // (rounds * blocks), "round": in_run // blocks}
    columns["step"] = (in_run + 1) * config.metric_steps
    is_last = number % blocks == blocks - 1
    for name, leaf in _leaves(metrics):
        in_blocks = name.startswith(BLOCKS)
        for column, part in _split(name, leaf, 3 if in_blocks else 2):
            columns[column] = part.ravel() if in_blocks else pa.array(np.repeat(part.ravel(), blocks), mask=~is_last)
    return pa.table(_rows("train", len(number), **columns))


def _build(kind: Any, prefix: str, rows: pa.Table, lead: tuple[int, ...]) -> Any:
    """The NamedTuple ``kind`` of arrays [*lead, ...] from the columns that begin with ``prefix``; none where there are none.

    What an agent of one's own logged is a NamedTuple of its own.
    """
    if prefix == "update.":
        there = [base_of(each).removeprefix(prefix) for each in rows.column_names if each.startswith(prefix)]
        if set(there) != set(kind._fields):
            logged = {name: _array(prefix + name, rows, lead) for name in dict.fromkeys(there)}
            return collections.namedtuple("UpdateLog", logged)(**logged)
    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        inner = next((each for each in (hint, *typing.get_args(hint)) if hasattr(each, "_fields")), None)
        column = prefix + name
        if inner is None:
            is_there = type(None) not in typing.get_args(hint) or any(base_of(each) == column for each in rows.column_names)
            fields[name] = _array(column, rows, lead) if is_there else None
        elif inner is FitLog:
            has_any = any(each.startswith("model.") and rows[each].null_count < len(rows) for each in rows.column_names)
            fields[name] = _build(inner, "model.", rows, lead) if has_any else None
        elif type(None) in typing.get_args(hint) and not any(each.startswith(f"{column}.") for each in rows.column_names):
            fields[name] = None
        else:
            fields[name] = _build(inner, column + ".", rows, lead)
    return kind(**fields)


def _array(column: str, rows: pa.Table, lead: tuple[int, ...]) -> np.ndarray:
    """The values of a column, or of all columns that add a number to its name, which then are the last axis."""
    names = [column] if column in rows.column_names else []
    if not names:
        numbered = [each for each in rows.column_names if each.rpartition(".")[0] == column]
        names = sorted(numbered, key=lambda each: int(each.rpartition(".")[2]))
    if not names:
        raise ValueError(f"there is no column {column!r}")
    parts = [rows[name].drop_null().to_numpy() for name in names]
    flat = parts[0] if names == [column] else np.stack(parts, axis=-1)
    lead = lead if -1 not in lead else (lead[0], len(parts[0]) // lead[0])
    blocks = len(parts[0]) // (lead[0] * lead[1])
    shape = (*lead, blocks) if column.startswith(BLOCKS) else lead
    return flat.reshape(*shape, *flat.shape[1:])
