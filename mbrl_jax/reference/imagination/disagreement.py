"""How far the members disagree about a step, and what they know of it together.

Everything is in normalised units and over all D' targets; variances over members have ddof 0.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.model.ensemble import Prediction, World, predict
from mbrl_jax.reference.replay import Transition

Measure = Callable[[Prediction, Tensor], Tensor]
"""A function of (every member's prediction [M, ..., D'], the member that was drawn [...]) that gives [...]."""


def variances(everyone: Prediction) -> Tensor:
    """[M, ..., D'] the predicted variances.

    Raises:
      ValueError: the members are deterministic.

    """
    if everyone.log_variance is None:
        raise ValueError(
            "model.prediction: 'deterministic' predicts no variances, which are asked for here; it must be 'gaussian'"
        )
    return everyone.log_variance.exp()


def _pairs(everyone: Prediction) -> list[tuple[int, int]]:
    """All (e, f) with e < f."""
    _need_two(everyone)
    return list(itertools.combinations(range(len(everyone.mean)), 2))


def _need_two(everyone: Prediction) -> None:
    members = len(everyone.mean)
    if members < 2:
        raise ValueError(f"model.members: {members!r} imagines, and members are compared here; it must be at least 2")


def std(everyone: Prediction) -> Tensor:
    """[...] root mean square over targets of the means' standard deviation over members."""
    return everyone.mean.var(0, correction=0).mean(-1).sqrt()


def max_pairwise(everyone: Prediction) -> Tensor:
    """[...] the largest Euclidean distance between two members' means."""
    distances = [(everyone.mean[e] - everyone.mean[f]).square().sum(-1).sqrt() for e, f in _pairs(everyone)]
    return torch.stack(distances).amax(0)


def max_aleatoric(everyone: Prediction) -> Tensor:
    """[...] the largest Euclidean norm of a member's predicted standard deviations."""
    return variances(everyone).sum(-1).sqrt().amax(0)


def gjs(everyone: Prediction) -> Tensor:
    """[...] mean over pairs of the geometric Jensen-Shannon divergence at α = ½, which is the Bhattacharyya distance."""
    mean, variance = everyone.mean, variances(everyone)
    divergences = []
    for e, f in _pairs(everyone):
        both = variance[e] + variance[f]
        apart = (mean[e] - mean[f]).square() / (4 * both)
        unlike = 0.5 * torch.log(both / (2 * (variance[e] * variance[f]).sqrt()))
        divergences.append((apart + unlike).sum(-1))
    return torch.stack(divergences).mean(0)


def one_vs_rest(everyone: Prediction, member: Tensor) -> Tensor:
    """[...] KL of the drawn ``member`` [...] against one Gaussian with the others' moments."""
    _need_two(everyone)
    mean, variance = everyone.mean, variances(everyone)
    divergences = []
    for m in range(len(mean)):
        others = [e for e in range(len(mean)) if e != m]
        rest_mean = mean[others].mean(0)
        rest_variance = (variance[others] + (mean[others] - rest_mean).square()).mean(0)
        ratio = variance[m] / rest_variance
        apart = (mean[m] - rest_mean).square() / rest_variance
        divergences.append(0.5 * (ratio + apart - 1 - ratio.log()).sum(-1))
    return torch.stack(divergences).gather(0, member[None]).squeeze(0)


MEASURES: dict[str, Measure] = {
    "std": lambda everyone, member: std(everyone),
    "max_pairwise": lambda everyone, member: max_pairwise(everyone),
    "max_aleatoric": lambda everyone, member: max_aleatoric(everyone),
    "gjs": lambda everyone, member: gjs(everyone),
    "one_vs_rest": one_vs_rest,
}


def make_measure(name: str) -> Measure:
    """The measure of that name.

    Raises:
      ValueError: there is none.

    """
    if name not in MEASURES:
        raise ValueError(f"imagination.measure: {name!r} is not among the reference's: {', '.join(MEASURES)}")
    return MEASURES[name]


class Fused(NamedTuple):
    """The members' predictions as one Gaussian whose members differ by what none of them can know."""

    mean: Tensor
    """[..., D'] weighted by precision"""
    variance: Tensor
    """[..., D'] the harmonic mean of the members'"""
    separation: Tensor
    """[..., D'] mean squared distance of the members' means from ``mean``"""

    @property
    def gain(self) -> Tensor:
        """[..., D'] G, how much of a member's deviation from ``mean`` is to be believed: 1 where all members agree."""
        return self.variance / (self.variance + self.separation)

    @property
    def remainder(self) -> Tensor:
        """[..., D'] (1 - G) σ̄², the variance that a member's word leaves; exactly 0 where all members agree."""
        return self.gain * self.separation


def fuse(everyone: Prediction) -> Fused:
    """What the members' predictions [M, ..., D'] say together."""
    precision = 1 / variances(everyone)
    variance = 1 / precision.mean(0)
    mean = variance * (everyone.mean * precision).mean(0)
    return Fused(mean, variance, (everyone.mean - mean).square().mean(0))


def information_loss(everyone: Prediction, resolution: float) -> Tensor:
    """[..., D'] bits that a step loses, by target: the entropy of what remains open at ``resolution``, or 0."""
    remainder = fuse(everyone).remainder
    return (0.5 * torch.log2(2 * math.pi * math.e * remainder) - math.log2(resolution)).clamp(min=0)


@torch.no_grad()
def on_real_rows(world: World, rows: Transition) -> tuple[Prediction, Tensor]:
    """(every member's prediction [M, n, ...] at real ``rows`` [n], the member [n] that counts as drawn: each in turn)."""
    members = world.ensemble.members
    everyone = predict(world, rows.observation.expand(members, -1, -1), rows.action.expand(members, -1))
    return everyone, torch.arange(len(rows.action), device=rows.action.device) % members
