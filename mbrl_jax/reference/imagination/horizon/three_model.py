"""The tutorial's controller: three members, one length for all lanes, a step longer or shorter after every real step."""

from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon.protocol import Decision, View, everyone_of, keep_all, require
from mbrl_jax.reference.model.ensemble import Prediction, World
from mbrl_jax.reference.replay import Transition

MEMBERS = 3


class ThreeModelState(NamedTuple):
    """The common length, and what will change it."""

    length: Tensor
    """[]"""
    time: Tensor
    """[] the real step that is summed over"""
    total: Tensor
    """[] disagreement of its active lane-steps so far, summed"""
    seen: Tensor
    """[] how many there were"""


class ThreeModel:
    """Stop at a common length: longer by 1 where three members disagreed less than ``low``, shorter by 1 above ``high``.

    It begins at ``first`` and stays from 1 to ``limit``.
    """

    needs_members = True
    needs_truth = False

    def __init__(self, *, low: float, high: float, first: float, limit: float) -> None:
        require(low <= high, "low", low, f"at most high ({high})")
        require(1 <= first <= limit, "first", first, f"from 1 to limit ({limit})")
        self.low, self.high, self.first, self.limit = low, high, first, limit

    def init(self, lanes: int) -> ThreeModelState:
        """No real step has been seen."""
        zero = torch.zeros(())
        return ThreeModelState(zero + self.first, torch.tensor(-1), zero, zero)

    def calibrate(self, state: ThreeModelState, world: World, rows: Transition) -> ThreeModelState:
        """Nothing changes.

        Raises:
          ValueError: there are fewer than three members.

        """
        members = world.ensemble.members
        if members < MEMBERS:
            raise ValueError(
                f"imagination.controller: 'three_model' does not fit {members} imagining members; it needs at least {MEMBERS}"
            )
        like = world.normaliser.target_std
        return ThreeModelState(state.length.to(like), state.time.to(like.device), state.total.to(like), state.seen.to(like))

    def step(self, state: ThreeModelState, view: View) -> tuple[ThreeModelState, Decision]:
        """Every row is kept."""
        everyone = everyone_of(view)
        u = disagreement.std(Prediction(everyone.mean[:MEMBERS], None, None))
        next_step = view.time != state.time
        mean = state.total / state.seen  # NaN, which compares as false, where no lane was active
        change = torch.where(mean < self.low, 1.0, torch.where(mean > self.high, -1.0, 0.0))
        length = torch.where(next_step, (state.length + change).clamp(1, self.limit), state.length)
        total = torch.where(next_step, 0.0, state.total) + u[view.active].sum()
        seen = torch.where(next_step, 0.0, state.seen) + view.active.sum()
        return ThreeModelState(length, view.time, total, seen), keep_all(view.depth + 1 >= length, view.reward)
