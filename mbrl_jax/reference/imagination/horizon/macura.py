"""MACURA (Frauenknecht et al. 2024): go as far as the members disagree no more than they do at the roots."""

from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon.protocol import Decision, View, everyone_of, require
from mbrl_jax.reference.model.ensemble import World
from mbrl_jax.reference.replay import Transition

BUFFERED_ROOTS = 4
"""Roots that are remembered, per lane."""


class MacuraState(NamedTuple):
    """The mark and what it comes from."""

    roots: Tensor
    """[n] divergences at the latest roots, oldest first; n is at most 4 K"""
    capacity: int
    """4 K"""
    mark: Tensor
    """[]"""
    updates: int
    """how often the mark was updated"""


class Macura:
    """Stop, and do not keep the row, where the divergence reaches ``scale`` times a ``percentile`` of that at the roots.

    The mark is a running mean over ``memory`` imagined steps at which a lane began.
    """

    needs_members = True
    needs_truth = False

    def __init__(self, *, scale: float, percentile: float, memory: float) -> None:
        require(0 <= percentile <= 100, "percentile", percentile, "from 0 to 100")
        require(memory >= 1, "memory", memory, "at least 1")
        self.scale, self.percentile, self.memory = scale, percentile, memory

    def init(self, lanes: int) -> MacuraState:
        """No root has been seen."""
        return MacuraState(torch.zeros(0), BUFFERED_ROOTS * lanes, torch.zeros(()), 0)

    def calibrate(self, state: MacuraState, world: World, rows: Transition) -> MacuraState:
        """The roots tell the mark, not the real rows."""
        like = world.normaliser.target_std
        return state._replace(roots=state.roots.to(like), mark=state.mark.to(like))

    def step(self, state: MacuraState, view: View) -> tuple[MacuraState, Decision]:
        """The mark takes this step's roots in before it is applied."""
        u = disagreement.gjs(everyone_of(view))
        begun = u[view.active & (view.depth == 0)]
        if len(begun):
            roots = torch.cat([state.roots, begun])[-state.capacity :]
            mark, updates = self.scale * torch.quantile(roots, self.percentile / 100), state.updates + 1
            mark = state.mark + (mark - state.mark) / min(updates, self.memory)
            state = state._replace(roots=roots, mark=mark, updates=updates)
        stop = (u >= state.mark) & (u > 0)
        return state, Decision(~stop, stop, torch.zeros_like(view.reward))
