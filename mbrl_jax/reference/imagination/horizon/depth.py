"""Lengths that look at no model: a fixed one and MBPO's schedule."""

import torch
from torch import Tensor

from mbrl_jax.reference.imagination.horizon.protocol import Decision, Stateless, View, keep_all


class Fixed(Stateless):
    """Stop at depth ``length``."""

    def __init__(self, *, length: float) -> None:
        self.length = length

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """Every row is kept."""
        return state, keep_all(view.depth + 1 >= self.length, view.reward)


class Schedule(Stateless):
    """Stop at a depth that goes linearly from ``first`` to ``last`` between the real steps ``start`` and ``end`` (MBPO)."""

    def __init__(self, *, start: float, end: float, first: float, last: float) -> None:
        if start == end:
            raise ValueError(f"imagination.controller: start and end must differ, not both be {start}")
        self.start, self.end, self.first, self.last = start, end, first, last

    def length(self, time: Tensor) -> Tensor:
        """[] the depth at real step ``time``."""
        share = (time.to(torch.float64) - self.start) / (self.end - self.start)
        depth = self.first + share * (self.last - self.first)
        return depth.clamp(min(self.first, self.last), max(self.first, self.last)).floor()

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """Every row is kept."""
        return state, keep_all(view.depth + 1 >= self.length(view.time), view.reward)
