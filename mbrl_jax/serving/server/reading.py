"""Reads the bodies of requests, JSON or Arrow, into arrays that are certain to fit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from mbrl_jax.serving.contract import Task
from mbrl_jax.serving.server.refusal import Refused, shown

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"


class Limits(NamedTuple):
    """What a request may ask for at most."""

    rows: int = 4_096  # of a batch
    body: int = 8 * 2**20  # bytes
    horizon: int = 1_000  # steps of an imagined rollout
    seconds: float = 30.0  # that a body may take to arrive, and an answer to be made


class Transitions(NamedTuple):
    """Successive real transitions of one episode."""

    episode: str
    observation: np.ndarray  # [n, D] float32
    action: np.ndarray  # [n] int32, or [n, A] float32 in the task's own units
    reward: np.ndarray  # [n] float32
    next_observation: np.ndarray  # [n, D] float32
    terminated: np.ndarray  # [n] bool
    truncated: np.ndarray  # [n] bool

    @property
    def ended(self) -> bool:
        """Whether the episode ends with the last of them."""
        return bool(self.terminated[-1] or self.truncated[-1])


def json_object(body: bytes) -> dict[str, Any]:
    """The object in a body. Raises Refused: it is none."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "body", f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refused(422, "body", f"{shown(content)} does not fit; it must be an object")
    return content


def known_fields(content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse fields that nobody reads. Raises Refused: naming one."""
    for name in content:
        if name not in names:
            raise Refused(422, shown(name), f"there is no such field; there are {', '.join(names)}")


def observations(content: Mapping[str, Any], task: Task, limits: Limits) -> tuple[np.ndarray, bool]:
    """The observations [B, D] float32 of a request, and whether it was but one [D].

    Raises:
      Refused: they do not fit.

    """
    if "observation" not in content:
        raise Refused(422, "observation", f"it is missing; it must be {task.observation_size} numbers, or rows of as many")
    array, size = numbers(content["observation"], "observation"), task.observation_size
    one = array.ndim == 1
    if one:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != size:
        right = f"[{size}] or [B, {size}], as of {task.name}"
        found = list(array.shape[1:] if one else array.shape)
        raise Refused(422, "observation", f"shape {found} does not fit; it must be {right}")
    check_rows(len(array), "observation", limits)
    return array, one


def check_rows(count: int, field: str, limits: Limits) -> None:
    """Refuse an empty batch and one that is too large. Raises Refused."""
    if not count:
        raise Refused(422, field, "it is empty; it must have at least 1 row")
    if count > limits.rows:
        raise Refused(422, field, f"{count:,} rows are too many; it must be at most {limits.rows:,}")


def numbers(value: Any, field: str) -> np.ndarray:
    """A value as float32 numbers [...]. Raises Refused: it is no array, or one of them is not finite."""
    if not isinstance(value, list | np.ndarray):
        raise Refused(422, field, f"{shown(value)} does not fit; it must be an array of numbers")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise Refused(422, field, "its rows have unequal lengths; it must be an array of numbers") from None
    if not array.size:
        raise Refused(422, field, "it is empty; it must have at least 1 row")
    if array.dtype.kind not in "fiu":
        raise Refused(422, field, f"{shown(value)} does not fit; it must be an array of numbers")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if not np.isfinite(array).all():
        place = [int(each) for each in np.argwhere(~np.isfinite(array))[0]]
        raise Refused(422, field, f"the number at {place} is not finite in float32; all must be")
    return array


def flags(value: Any, field: str) -> np.ndarray:
    """A value as booleans [n]. Raises Refused: it is not."""
    array = np.asarray(value) if isinstance(value, np.ndarray) or _is_flat(value) else None
    if array is None or array.ndim != 1 or array.dtype.kind != "b":
        raise Refused(422, field, f"{shown(value)} does not fit; it must be an array of true and false")
    return array


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(each, list | dict) for each in value)


def whole(value: Any, field: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``. Raises Refused: it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(422, field, f"{shown(value)} does not fit; it must be a whole number from {low:,} to {high:,}")
    return value


def actions(value: Any, task: Task) -> np.ndarray:
    """Actions [n] int32 or [n, A] float32 in the task's own units. Raises Refused: they do not fit."""
    array = numbers(value, "action")
    if not task.continuous:
        if array.ndim != 1 or np.any(array != np.round(array)) or array.min() < 0 or array.max() >= task.action_count:
            right = f"whole numbers [n] from 0 to {task.action_count - 1}"
            raise Refused(422, "action", f"{shown(value)} does not fit; it must be {right}")
        return array.astype(np.int32)
    low, high = (np.array(each, np.float32) for each in (task.action_low, task.action_high))
    slack = 1e-4 * (high - low)
    if array.ndim != 2 or array.shape[1] != len(low):
        raise Refused(422, "action", f"shape {list(array.shape)} does not fit; it must be [n, {len(low)}]")
    if np.any(array < low - slack) or np.any(array > high + slack):
        raise Refused(422, "action", f"a number is out of range; it must be from {low.tolist()} to {high.tolist()}")
    return array


# --------------------------------------------------------------------------------------------------------- transitions

COLUMNS = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
SAME = (1e-5, 1e-4)  # absolute and relative, within which s' is the s of the next row


def transitions(content: Mapping[str, Any], task: Task, limits: Limits) -> Transitions:
    """The transitions of a request: rows of one episode, in the order in which they happened.

    Raises:
      Refused: they do not fit, or do not follow one another.

    """
    known_fields(content, ("episode", *COLUMNS))
    for name in ("episode", *COLUMNS):
        if name not in content:
            raise Refused(422, name, "it is missing")
    episode = content["episode"]
    if not isinstance(episode, str) or not 0 < len(episode.encode("utf-8", "replace")) <= 200:
        raise Refused(422, "episode", f"{shown(episode)} does not fit; it must be a text of 1 to 200 bytes")
    seen, after = (numbers(content[name], name) for name in ("observation", "next_observation"))
    for name, array in (("observation", seen), ("next_observation", after)):
        if array.ndim != 2 or array.shape[1] != task.observation_size:
            raise Refused(422, name, f"shape {list(array.shape)} does not fit; it must be [n, {task.observation_size}]")
    check_rows(len(seen), "observation", limits)
    reward = numbers(content["reward"], "reward")
    rows = Transitions(
        episode,
        seen,
        actions(content["action"], task),
        reward,
        after,
        flags(content["terminated"], "terminated"),
        flags(content["truncated"], "truncated"),
    )
    for name in COLUMNS[1:]:
        column = getattr(rows, name)
        if len(column) != len(seen) or (name == "reward" and column.ndim != 1):
            raise Refused(
                422, name, f"shape {list(column.shape)} does not fit; it must have {len(seen)} rows, as observation has"
            )
    ends = rows.terminated | rows.truncated
    if np.any(rows.terminated & rows.truncated):
        raise Refused(422, "truncated", "a row is terminated and truncated; it must be one of them at the most")
    if ends[:-1].any():
        raise Refused(422, "terminated", "the episode ends before the last row; the rows of a request are of one episode")
    if not follow(seen[1:], after[:-1]):
        raise Refused(422, "next_observation", "it is not the observation of the next row; rows must be in their order")
    return rows


def follow(seen: np.ndarray, before: np.ndarray) -> bool:
    """Whether observations [n, D] are what the transitions before them led to."""
    return bool(np.all(np.abs(seen - before) <= SAME[0] + SAME[1] * np.abs(before)))


# --------------------------------------------------------------------------------------------------------------- Arrow


def arrow_columns(body: bytes) -> dict[str, Any]:
    """The columns of an Arrow stream by name, lists of numbers as arrays [n, L].

    Raises:
      Refused: it is no such stream.

    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(body).read_all().combine_chunks()
        return {name: _column(name, table.column(name)) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise Refused(400, "body", f"it is no Arrow stream: {shown(str(error))}") from None


def _column(name: str, column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks()
    if column.null_count:
        raise Refused(422, name, "a value is missing; every row must have one")
    if pa.types.is_string(array.type):
        return array.to_pylist()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        flat = np.asarray(array.flatten().to_numpy(zero_copy_only=False))
        if not len(array) or np.ptp(pc.list_value_length(array).to_numpy(zero_copy_only=False)):
            raise Refused(422, name, "its rows have unequal lengths")
        return flat.reshape(len(array), -1)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def one_episode(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns whose ``episode`` is the same text in every row, with that text in its place. Raises Refused: it is not."""
    names = columns.get("episode")
    if not isinstance(names, list) or len(set(names)) != 1:
        raise Refused(422, "episode", "it does not fit; it must be one text, the same in every row")
    return {**columns, "episode": names[0]}


def arrow_stream(columns: Mapping[str, np.ndarray]) -> bytes:
    """Arrays [n] or [n, L] as an Arrow stream."""
    import pyarrow as pa

    def column(array: np.ndarray) -> Any:
        if array.ndim == 1:
            return pa.array(array)
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), array.shape[1])

    table, sink = pa.table({name: column(array) for name, array in columns.items()}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content
