"""Replays: fixed-capacity rings of packed rows.

A row is one flat float vector, so that storing a batch is one slice update and sampling one gather. The write position is a
counter that all seeds share: it must stay unbatched under ``vmap`` (:data:`AXES`), because a slice update at a batched
position becomes a scatter, and at a shared one stays an update in place.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws


class Rows(NamedTuple):
    """Transitions as columns, before packing or after unpacking. ``...`` are any leading axes."""

    observation: Array  # [..., D] s
    next_observation: Array  # [..., D] s', true also at an episode's end
    action: Array  # [...] int32, or [..., A] floats
    reward: Array  # [...]
    terminated: Array  # [...] bool; a truncation is not one
    weight: Array  # [...] 1 where the row counts, 0 where it was not to be kept
    depth: Array  # [...] int32, steps since the episode's reset, or since the imagined rollout's root


class Replay(NamedTuple):
    """A ring of rows. The first ``min(written, capacity)`` places hold data."""

    rows: Array  # [capacity, 2 D + 5], with continuous actions [capacity, 2 D + 4 + A]
    written: Array  # [] int32, rows written so far in all, shared by all seeds


AXES = Replay(rows=0, written=None)  # type: ignore[arg-type]
"""The axes to vmap a replay over: rows per seed, one counter for all."""


def width(observation_size: int, action_size: int = 0) -> int:
    """Numbers in a packed row, with ``action_size`` of a continuous action or a discrete one."""
    return 2 * observation_size + 4 + max(action_size, 1)


def create(capacity: int, observation_size: int, action_size: int = 0) -> Replay:
    """An empty replay of ``capacity`` rows in the default float type."""
    return Replay(rows=jnp.zeros((capacity, width(observation_size, action_size))), written=jnp.zeros((), jnp.int32))


def pack(rows: Rows) -> Array:
    """The rows as flat vectors [..., 2 D + 5], in the order of the fields of :class:`Rows`."""
    dtype = rows.observation.dtype
    continuous = rows.action.ndim > rows.reward.ndim
    numbers = [rows.action] if continuous else []
    scalars = jnp.stack([x.astype(dtype) for x in (rows[3:] if continuous else rows[2:])], axis=-1)
    return jnp.concatenate([rows.observation, rows.next_observation, *numbers, scalars], axis=-1)


def unpack(packed: Array, action_size: int = 0) -> Rows:
    """The columns of packed rows [..., 2 D + 5].

    Args:
      packed: the rows.
      action_size: A, the numbers of a continuous action; 0 where actions are discrete. A row itself does not tell.

    """
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


def size(replay: Replay) -> Array:
    """[] int32, rows that hold data."""
    return jnp.minimum(replay.written, replay.rows.shape[0])


def write(replay: Replay, packed: Array) -> Replay:
    """Append packed rows [n, 2 D + 5], overwriting the oldest ones of a full replay.

    A slice update cannot wrap around, so the rows go in as blocks whose length divides both n and the capacity. All writes to one
    replay must therefore come in the same n (or multiples of it), which keeps every block aligned.

    Raises:
      ValueError: more rows than the capacity, or another row width.

    """
    capacity = replay.rows.shape[0]
    if packed.ndim != 2 or packed.shape[1] != replay.rows.shape[1] or packed.shape[0] > capacity:
        raise ValueError(f"rows of shape {packed.shape} do not fit a replay of shape {replay.rows.shape}")
    block = math.gcd(capacity, packed.shape[0])
    rows = replay.rows
    for start in range(0, packed.shape[0], block):
        position = (replay.written + start) % capacity
        rows = jax.lax.dynamic_update_slice(rows, packed[start : start + block], (position, jnp.zeros_like(position)))
    return Replay(rows=rows, written=replay.written + packed.shape[0])


def sample(replay: Replay, bits: Array) -> Array:
    """Packed rows [..., 2 D + 5] drawn uniformly with replacement from those that hold data.

    Args:
      replay: not empty.
      bits: [...] uint32, uniform; the draw is integer arithmetic, so it is the same in every float precision. Its bias towards
        the first rows is below capacity / 2^32.

    """
    return replay.rows.at[bits % size(replay).astype(jnp.uint32)].get(mode="promise_in_bounds")


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
