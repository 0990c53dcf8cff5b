"""A ring of transitions, packed into one float tensor so that a minibatch is one gather."""

from typing import NamedTuple

import torch
from torch import Tensor


class Transition(NamedTuple):
    """Rows (s, a, r, s', terminated), real or imagined."""

    observation: Tensor
    """[B, D]"""
    action: Tensor
    """[B] int64"""
    reward: Tensor
    """[B]"""
    next_observation: Tensor
    """[B, D] the true one, also where the episode ended."""
    terminated: Tensor
    """[B] 1 or 0 (or boolean); a truncation is no termination."""
    weight: Tensor
    """[B] 1 where the row counts in the loss, else 0."""
    depth: Tensor
    """[B] steps since the reset, or since the lane's root, before this step."""


def pack(rows: Transition, dtype: torch.dtype) -> Tensor:
    """[B, 2D + 5] the fields side by side, in their order."""
    columns = [field if field.dim() == 2 else field[:, None] for field in rows]
    return torch.cat([column.to(dtype) for column in columns], dim=1)


def unpack(packed: Tensor) -> Transition:
    """The inverse of :func:`pack`; all but the action are views."""
    size = (packed.shape[1] - 5) // 2
    after = 2 * size + 2
    return Transition(
        observation=packed[:, :size],
        action=packed[:, size].to(torch.int64),
        reward=packed[:, size + 1],
        next_observation=packed[:, size + 2 : after],
        terminated=packed[:, after],
        weight=packed[:, after + 1],
        depth=packed[:, after + 2],
    )


class Replay:
    """At most ``capacity`` rows; when it is full, new rows take the place of the oldest."""

    def __init__(self, capacity: int, observation_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.data = torch.zeros(capacity, 2 * observation_size + 5, dtype=dtype, device=device)
        """[capacity, 2D + 5]"""
        self.size = 0
        """How many rows hold data: the first ones."""
        self.cursor = 0
        """Where the next row goes."""

    def write(self, rows: Transition) -> None:
        """Store ``rows`` in their order.

        Raises:
          ValueError: there are more of them than the replay has room for.

        """
        packed = pack(rows, self.data.dtype)
        count, capacity = len(packed), len(self.data)
        if count > capacity:
            raise ValueError(f"{count} rows do not fit into a replay of {capacity}")
        before_end = min(count, capacity - self.cursor)
        self.data[self.cursor : self.cursor + before_end] = packed[:before_end]
        if before_end < count:
            self.data[: count - before_end] = packed[before_end:]
        self.cursor = (self.cursor + count) % capacity
        self.size = min(self.size + count, capacity)

    def observations(self, index: Tensor) -> Tensor:
        """[B, D] the observations of the rows at ``index`` [B]."""
        return self.data[:, : (self.data.shape[1] - 5) // 2].index_select(0, index)

    def take(self, index: Tensor) -> Transition:
        """The rows at ``index`` [B]."""
        return unpack(self.data.index_select(0, index))

    def rows(self) -> Transition:
        """All rows that hold data, by place."""
        return unpack(self.data[: self.size])
