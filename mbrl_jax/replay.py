"""Replays: fixed-capacity rings of transitions.

:func:`make_replay` gives the functions of a replay of one size of observations and actions; all of them speak in :class:`Rows`.
How a row is stored is known here alone: as one flat float vector, so that writing a batch is one slice update and sampling one
gather. The write position is a counter that all seeds share: it must stay unbatched under ``vmap`` (:data:`AXES`), because a
slice update at a batched position becomes a scatter, and at a shared one stays an update in place.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws


class Rows(NamedTuple):
    """Transitions as columns. ``...`` are any leading axes."""

    observation: Array  # [..., D] s
    next_observation: Array  # [..., D] s', true also at an episode's end
    action: Array  # [...] int32, or [..., A] floats
    reward: Array  # [...]
    terminated: Array  # [...] bool; a truncation is not one
    weight: Array  # [...] 1 where the row counts, 0 where it was not to be kept
    depth: Array  # [...] int32, steps since the episode's reset, or since the imagined rollout's root


def weighted_mean(x: Array, weight: Array) -> Array:
    """[] the mean of ``x`` [...] by the weights [...] of its rows, 0 if none has any."""
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)


class RowSpec(Protocol):
    """The sizes of a row, as an :class:`mbrl_jax.environments.EnvironmentSpec` has them."""

    @property
    def observation_size(self) -> int:
        """D."""

    @property
    def action_size(self) -> int:
        """A numbers of a continuous action, 0 where actions are discrete."""


class ReplayState(NamedTuple):
    """A ring of packed rows. The first ``min(written, capacity)`` places hold data."""

    rows: Array  # [capacity, width]
    written: Array  # [] int32, rows written so far in all, shared by all seeds


AXES = ReplayState(rows=0, written=None)  # type: ignore[arg-type]
"""The axes to vmap a replay's state over: rows per seed, one counter for all."""


class Replay(NamedTuple):
    """The functions of a replay.

    Attributes:
      capacity: rows that it holds.
      init: ``() -> state``, empty, in the default float type.
      write: ``(state, rows [...]) -> state``. Appends the n rows in order, overwriting the oldest ones of a full replay. All
        writes to one replay must come in the same n or multiples of it, so that no slice update has to wrap around.
      sample: ``(state, bits [...] uint32) -> rows [...]``, drawn uniformly with replacement from a replay that is not empty, by
        uniform bits; in integer arithmetic, so that the draw is the same in every float precision. Its bias towards the first
        rows is below capacity / 2^32.
      sample_sequences: ``(state, bits [...] uint32, T) -> (rows [..., T], first [..., T] bool)``: T successive rows in the order
        in which they were written, from a replay that holds T or more; ``first`` where an episode begins.
      first_states: ``(state, bits [...] uint32) -> observations [..., D]``, drawn uniformly from the first states of the episodes
        in a replay that holds one.
      contents: ``state -> (rows [capacity], valid [capacity] bool)``, everything, and which of it is data.
      size: ``state -> [] int32``, rows that hold data.

    """

    capacity: int
    init: Callable[[], ReplayState]
    write: Callable[[ReplayState, Rows], ReplayState]
    sample: Callable[[ReplayState, Array], Rows]
    sample_sequences: Callable[[ReplayState, Array, int], tuple[Rows, Array]]
    first_states: Callable[[ReplayState, Array], Array]
    contents: Callable[[ReplayState], tuple[Rows, Array]]
    size: Callable[[ReplayState], Array]


def make_replay(spec: RowSpec, capacity: int) -> Replay:
    """Make the functions of a replay.

    Args:
      spec: sizes of the observations and actions.
      capacity: rows that it holds.

    Raises:
      ValueError: the capacity is not positive; at trace time, rows of other sizes or more of them than the capacity, or sequences
        longer than it.

    """
    if capacity < 1:
        raise ValueError(f"capacity: {capacity!r} is out of range; it must be at least 1")
    observation_size, action_size = spec.observation_size, spec.action_size

    def init() -> ReplayState:
        width = 2 * observation_size + 4 + max(action_size, 1)
        return ReplayState(rows=jnp.zeros((capacity, width)), written=jnp.zeros((), jnp.int32))

    def size(state: ReplayState) -> Array:
        return jnp.minimum(state.written, capacity)

    def write(state: ReplayState, rows: Rows) -> ReplayState:
        _check(rows, observation_size, action_size)
        packed = _pack(rows)
        packed = packed.reshape(-1, packed.shape[-1])
        count = packed.shape[0]
        if count > capacity:
            raise ValueError(f"rows: {count} do not fit; the replay holds {capacity}")
        block = math.gcd(capacity, count)  # divides every position that is written to
        stored = state.rows
        for start in range(0, count, block):
            position = (state.written + start) % capacity
            stored = jax.lax.dynamic_update_slice(stored, packed[start : start + block], (position, jnp.zeros_like(position)))
        return ReplayState(rows=stored, written=state.written + count)

    def sample(state: ReplayState, bits: Array) -> Rows:
        place = bits % size(state).astype(jnp.uint32)
        return _unpack(state.rows.at[place].get(mode="promise_in_bounds"), action_size)

    def sample_sequences(state: ReplayState, bits: Array, length: int) -> tuple[Rows, Array]:
        if not 1 <= length <= capacity:
            raise ValueError(
                f"length: {length!r} is out of range; of a replay of {capacity} rows it must be from 1 to {capacity}"
            )
        oldest = jnp.where(state.written > capacity, state.written % capacity, 0).astype(jnp.uint32)
        starts = jnp.maximum(size(state) - (length - 1), 1).astype(jnp.uint32)
        place = oldest + bits[..., None] % starts + jnp.arange(length, dtype=jnp.uint32).reshape((1,) * bits.ndim + (-1,))
        rows = _unpack(state.rows.at[place % capacity].get(mode="promise_in_bounds"), action_size)
        return rows, rows.depth == 0

    def first_states(state: ReplayState, bits: Array) -> Array:
        rows, valid = contents(state)
        first = (rows.depth == 0) & valid
        places = jnp.nonzero(first, size=capacity, fill_value=0)[0]
        chosen = places[bits % jnp.sum(first, dtype=jnp.uint32)]
        return rows.observation[chosen]

    def contents(state: ReplayState) -> tuple[Rows, Array]:
        return _unpack(state.rows, action_size), jnp.arange(capacity, dtype=jnp.int32) < size(state)

    return Replay(capacity, init, write, sample, sample_sequences, first_states, contents, size)


def epoch_minibatches(key: Array, members: int, rows: int, batch_size: int) -> Array:
    """Row numbers of one epoch's minibatches, shuffled for every member apart, so that no row comes twice.

    Args:
      key: consumed.
      members: E.
      rows: rows to pass over.
      batch_size: B; the remainder of the rows is dropped.

    Returns:
      [rows // B, E, B] int32.
    """
    batches = rows // batch_size
    order = draws.permutations(key, (members, rows))[:, : batches * batch_size]
    return order.reshape(members, batches, batch_size).swapaxes(0, 1)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _check(rows: Rows, observation_size: int, action_size: int) -> None:
    """Refuse rows of other sizes."""
    lead = rows.reward.shape
    expected = {
        "observation": (*lead, observation_size),
        "next_observation": (*lead, observation_size),
        "action": (*lead, action_size) if action_size else lead,
        **dict.fromkeys(("terminated", "weight", "depth"), lead),
    }
    for name, shape in expected.items():
        if getattr(rows, name).shape != shape:
            raise ValueError(f"rows.{name}: shape {getattr(rows, name).shape} does not fit; it must be {shape}")


def _pack(rows: Rows) -> Array:
    """Store rows as flat vectors [..., width], in the order of the fields of :class:`Rows`."""
    dtype = rows.observation.dtype
    continuous = rows.action.ndim > rows.reward.ndim
    numbers = [rows.action] if continuous else []
    scalars = jnp.stack([x.astype(dtype) for x in (rows[3:] if continuous else rows[2:])], axis=-1)
    return jnp.concatenate([rows.observation, rows.next_observation, *numbers, scalars], axis=-1)


def _unpack(packed: Array, action_size: int) -> Rows:
    """The columns of packed rows [..., width]."""
    size = (packed.shape[-1] - 4 - max(action_size, 1)) // 2
    start = 2 * size + max(action_size, 1)
    reward, terminated, weight, depth = (packed[..., start + i] for i in range(4))
    action = packed[..., 2 * size : start]
    return Rows(
        observation=packed[..., :size],
        next_observation=packed[..., size : 2 * size],
        action=action if action_size else action[..., 0].astype(jnp.int32),
        reward=reward,
        terminated=terminated > 0.5,
        weight=weight,
        depth=depth.astype(jnp.int32),
    )
