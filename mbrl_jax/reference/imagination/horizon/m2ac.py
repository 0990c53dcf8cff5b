"""M2AC (Pan et al. 2020): of the lanes at each depth, keep the rows that the other members confirm best."""

import torch
from torch import Tensor

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon.protocol import Decision, Stateless, View, everyone_of, require


class M2AC(Stateless):
    """Stop at depth ``length``; keep ever fewer rows on the way there, and take ``penalty`` times the measure from the reward."""

    needs_members = True

    def __init__(self, *, length: float, penalty: float) -> None:
        require(length >= 1, "length", length, "at least 1")
        self.length, self.penalty = length, penalty

    def share(self, depth: Tensor, dtype: torch.dtype) -> Tensor:
        """[K] the share of rows that is kept at ``depth`` [K]."""
        if self.length == 1:
            return torch.full(depth.shape, 0.5, dtype=dtype, device=depth.device)
        return (self.length - depth.to(dtype)) / (2 * (self.length + 1))

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """A lane whose row is not kept goes on."""
        u = disagreement.one_vs_rest(everyone_of(view), view.member)
        lane = torch.arange(len(u), device=u.device)
        # [K, K]: does the second lane compete with the first, and does it come before it
        competes = (view.depth == view.depth[:, None]) & view.active
        before = (u < u[:, None]) | ((u == u[:, None]) & (lane < lane[:, None]))
        rank, count = (competes & before).sum(1), competes.sum(1)
        keep = rank < self.share(view.depth, u.dtype) * count
        return state, Decision(keep, view.depth + 1 >= self.length, self.penalty * u)
