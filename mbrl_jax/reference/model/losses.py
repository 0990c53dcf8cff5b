"""What members are fitted by: likelihood or squared error, the termination's cross-entropy, the Laplacian penalty."""

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.model.ensemble import Ensemble, Prediction, softplus

if TYPE_CHECKING:
    from mbrl_jax.config import ModelConfig

EXACT_UP_TO = 8
"""Observation axes up to which the Laplacian ``auto`` is exact."""
BOUNDS_WEIGHT = 0.01

with warnings.catch_warnings():
    # torch's first forward-mode derivative loads code of its own that uses what torch has deprecated
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


class Batch(NamedTuple):
    """Rows as the network sees them; with or without a leading member axis."""

    inputs: Tensor
    """[..., B, in] encoded"""
    targets: Tensor
    """[..., B, D'] normalised"""
    terminated: Tensor
    """[..., B] 1 or 0"""


def squared_error(prediction: Prediction, targets: Tensor) -> Tensor:
    """[E] mean over rows [E, B, D'] of the squared error, summed over axes."""
    return (prediction.mean - targets).square().sum(-1).mean(-1)


def negative_log_likelihood(prediction: Prediction, targets: Tensor) -> Tensor:
    """[E] mean over rows of ½[(μ - y)² e^-lv + lv], summed over axes; without a variance, half the squared error."""
    if prediction.log_variance is None:
        return 0.5 * squared_error(prediction, targets)
    square = (prediction.mean - targets).square()
    return 0.5 * (square * torch.exp(-prediction.log_variance) + prediction.log_variance).sum(-1).mean(-1)


def cross_entropy(logit: Tensor, terminated: Tensor) -> Tensor:
    """[E] mean over rows [E, B] of the binary cross-entropy."""
    return (softplus(logit) - terminated * logit).mean(-1)


def kernel_penalty(ensemble: Ensemble) -> Tensor:
    """[E] half the sum of each member's squared weights; biases are not counted."""
    return 0.5 * torch.stack([weight.square().sum((1, 2)) for weight in ensemble.weights]).sum(0)


def second_derivatives(ensemble: Ensemble, inputs: Tensor, directions: Tensor) -> Tensor:
    """[J, E, R, D'] the second derivatives vᵀHv of the means along ``directions`` [J, D] at ``inputs`` [E, R, in].

    A derivative of a derivative, forward mode twice; the directions stand side by side as rows, so that one pass takes them all.
    """
    count, size = directions.shape
    members, rows, width = inputs.shape
    along = torch.zeros(count, 1, width, dtype=inputs.dtype, device=inputs.device)
    along[:, 0, :size] = directions
    tangent = along.expand(count, rows, width).reshape(1, count * rows, width).expand(members, -1, -1)
    points = inputs.repeat(1, count, 1)

    def derivative(x: Tensor) -> Tensor:
        return torch.func.jvp(ensemble.means, (x,), (tangent,))[1]

    second: Tensor = torch.func.jvp(derivative, (points,), (tangent,))[1]
    return second.view(members, count, rows, -1).transpose(0, 1)


def laplacian_penalty(ensemble: Ensemble, inputs: Tensor, directions: Tensor, *, exact: bool) -> Tensor:
    """[E] mean over rows of Σ_d (Σ_j ∂²μ_d/∂s_j²)², at ``inputs`` [E, R, in], differentiable.

    The inner sum is over ``directions`` [J, D]: the axes themselves if ``exact``, else random signs whose mean estimates it.
    """
    along = second_derivatives(ensemble, inputs, directions)
    laplacian = along.sum(0) if exact else along.mean(0)
    return laplacian.square().sum(-1).mean(-1)


def is_exact(config: "ModelConfig", observation_size: int) -> bool:
    """Whether the Laplacian is the exact trace rather than an estimate."""
    return config.laplacian == "exact" or (config.laplacian == "auto" and observation_size <= EXACT_UP_TO)


def member_losses(ensemble: Ensemble, batch: Batch, config: "ModelConfig", directions: Tensor | None = None) -> Tensor:
    """[E] the loss of each member on its own rows.

    Args:
      ensemble: the members.
      batch: [E, B, ...].
      config: which terms there are, and their weights.
      directions: [J, D] of the Laplacian penalty; needed unless ``config.laplacian`` is none.

    Raises:
      ValueError: the Laplacian penalty is on and there are no directions.

    """
    prediction = ensemble(batch.inputs)
    regression = negative_log_likelihood if ensemble.gaussian else squared_error
    losses = regression(prediction, batch.targets)
    if prediction.termination is not None:
        losses = losses + config.termination_weight * cross_entropy(prediction.termination, batch.terminated)
    if ensemble.gaussian and config.learn_bounds:
        losses = losses + BOUNDS_WEIGHT * (ensemble.maximum.sum(-1) - ensemble.minimum.sum(-1))
    losses = losses + config.weight_decay * kernel_penalty(ensemble)
    if config.laplacian != "none":
        if directions is None:
            raise ValueError("the Laplacian penalty needs directions")
        inputs = batch.inputs[:, : config.laplacian_rows]
        exact = is_exact(config, ensemble.task.observation_size)
        losses = losses + config.laplacian_weight * laplacian_penalty(ensemble, inputs, directions, exact=exact)
    return losses
