"""Infoprop (Frauenknecht et al. 2025): stop where a step, or the rollout so far, has lost too much information."""

from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon.protocol import Decision, View, everyone_of, keep_all, require
from mbrl_jax.reference.model.ensemble import World
from mbrl_jax.reference.replay import Transition


class InfopropState(NamedTuple):
    """Losses in bits, by target."""

    per_step: Tensor
    """[D'] what a step may lose"""
    per_rollout: Tensor
    """[D'] what a rollout may lose"""
    lost: Tensor
    """[K, D'] what each lane has lost since its root"""


class Infoprop:
    """Stop where a target loses more than the quantile ``high`` over real rows, or ``length`` times the quantile ``low`` in all.

    An entropy below that of ``resolution`` counts as no loss.
    """

    needs_members = True
    needs_truth = False

    def __init__(self, *, high: float, low: float, length: float, resolution: float) -> None:
        require(0 <= high <= 1, "high", high, "from 0 to 1")
        require(0 <= low <= 1, "low", low, "from 0 to 1")
        require(resolution > 0, "resolution", resolution, "above 0")
        self.high, self.low, self.length, self.resolution = high, low, length, resolution

    def init(self, lanes: int) -> InfopropState:
        """Nothing is lost and nothing stops before a model is fitted."""
        return InfopropState(torch.tensor([torch.inf]), torch.tensor([torch.inf]), torch.zeros(lanes, 1))

    def calibrate(self, state: InfopropState, world: World, rows: Transition) -> InfopropState:
        """The marks by the present model; what was lost stays lost."""
        everyone, _ = disagreement.on_real_rows(world, rows)
        loss = disagreement.information_loss(everyone, self.resolution)
        per_step, per_rollout = torch.quantile(loss, self.high, dim=0), self.length * torch.quantile(loss, self.low, dim=0)
        return InfopropState(per_step, per_rollout, state.lost.to(loss).expand(-1, loss.shape[-1]))

    def step(self, state: InfopropState, view: View) -> tuple[InfopropState, Decision]:
        """Every row is kept."""
        loss = disagreement.information_loss(everyone_of(view), self.resolution)
        lost = torch.where((view.depth == 0)[:, None], 0.0, state.lost) + loss
        stop = (loss > state.per_step).any(-1) | (lost > state.per_rollout).any(-1)
        return state._replace(lost=lost), keep_all(stop, view.reward)
