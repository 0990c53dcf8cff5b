"""Stop where the members disagree too much: at one step, or along the rollout."""

import torch
from torch import Tensor

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon.protocol import Decision, Stateless, View, everyone_of, keep_all, require
from mbrl_jax.reference.model.ensemble import World
from mbrl_jax.reference.replay import Transition


class Threshold(Stateless):
    """Stop where the ``measure`` is above the ``mark``."""

    needs_members = True

    def __init__(self, *, mark: float, measure: str = "std") -> None:
        self.mark, self.measure = mark, disagreement.make_measure(measure)

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """Every row is kept."""
        u = self.measure(everyone_of(view), view.member)
        return state, keep_all(u > self.mark, view.reward)


class ThresholdQuantile:
    """Stop where the ``measure`` is above its ``quantile`` over the real rows; the state is that mark, []."""

    needs_members = True
    needs_truth = False

    def __init__(self, *, quantile: float, measure: str = "std") -> None:
        require(0 <= quantile <= 1, "quantile", quantile, "from 0 to 1")
        self.quantile, self.measure = quantile, disagreement.make_measure(measure)

    def init(self, lanes: int) -> Tensor:
        """Nothing stops before a model is fitted."""
        return torch.tensor(torch.inf)

    def calibrate(self, state: Tensor, world: World, rows: Transition) -> Tensor:
        """The mark by the present model."""
        return torch.quantile(self.measure(*disagreement.on_real_rows(world, rows)), self.quantile)

    def step(self, state: Tensor, view: View) -> tuple[Tensor, Decision]:
        """Every row is kept."""
        u = self.measure(everyone_of(view), view.member)
        return state, keep_all(u > state, view.reward)


class Accumulated:
    """Stop where the ``measure``, summed since the root, is above the ``budget``; the state is what each lane used, [K]."""

    needs_members = True
    needs_truth = False

    def __init__(self, *, budget: float, measure: str = "std") -> None:
        self.budget, self.measure = budget, disagreement.make_measure(measure)

    def init(self, lanes: int) -> Tensor:
        """Nothing is used."""
        return torch.zeros(lanes)

    def calibrate(self, state: Tensor, world: World, rows: Transition) -> Tensor:
        """What was used stays used."""
        return state.to(world.normaliser.target_std)

    def step(self, state: Tensor, view: View) -> tuple[Tensor, Decision]:
        """Every row is kept."""
        used = torch.where(view.depth == 0, 0.0, state) + self.measure(everyone_of(view), view.member)
        return used, keep_all(used > self.budget, view.reward)
