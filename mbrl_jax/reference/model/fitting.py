"""The first fit with its early stopping, the refits, and the choice of elites."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.model.ensemble import Ensemble, Normaliser, encode, measure
from mbrl_jax.reference.model.losses import Batch, is_exact, negative_log_likelihood, squared_error
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import ModelConfig

LossFunction = Callable[[Ensemble, Batch, "ModelConfig", Tensor | None], Tensor]


class FitLog(NamedTuple):
    """How a fit went, by epoch; a refit is one epoch."""

    loss: Tensor
    """[epochs, E] training loss, mean over the epoch's minibatches"""
    holdout_mse: Tensor
    """[epochs, E]"""
    holdout_nll: Tensor
    """[epochs, E]"""


class Fit(NamedTuple):
    """The outcome of a fit; the ensemble and its optimiser were changed in place."""

    normaliser: Normaliser
    log: FitLog
    error: Tensor
    """[E] holdout MSE of the parameters that each member ended with"""


def holdout_stride(real_transitions: int) -> int:
    """Every how manieth real row is held out, the last of each stretch: min(20 %, 5,000) of all that the run will ever see."""
    return max(5, -(-real_transitions // 5_000))


def split(size: int, stride: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(training rows, held-out rows) among real rows 0 ... size - 1."""
    row = torch.arange(size, device=device)
    held_out = row % stride == stride - 1
    return row[~held_out], row[held_out]


def raw_targets(rows: Transition, *, learned_reward: bool) -> Tensor:
    """[n, D'] what the means regress, in its own units: s' - s and, where it is learned, r."""
    change = rows.next_observation - rows.observation
    return torch.cat([change, rows.reward[:, None]], dim=1) if learned_reward else change


def prepare(ensemble: Ensemble, rows: Transition, stride: int) -> tuple[Normaliser, Batch, Batch]:
    """(statistics of the training rows, training rows, held-out rows) from all real rows [n]."""
    training, held_out = split(len(rows.reward), stride, rows.reward.device)
    targets = raw_targets(rows, learned_reward=ensemble.learned_reward)
    normaliser = measure(rows.observation[training], targets[training])
    if ensemble.scaled_by_task:
        scale = torch.tensor(ensemble.task.input_scale, dtype=targets.dtype, device=targets.device)
        normaliser = normaliser._replace(mean=torch.zeros_like(scale), std=scale)
    inputs = encode(rows.observation, rows.action, normaliser, ensemble.task.actions)
    normalised = (targets - normaliser.target_mean) / normaliser.target_scale
    batch = Batch(inputs, normalised, rows.terminated.to(inputs.dtype))
    return normaliser, Batch(*(field[training] for field in batch)), Batch(*(field[held_out] for field in batch))


def make_optimiser(ensemble: Ensemble, config: "ModelConfig") -> torch.optim.Adam:
    """One Adam for all members; as it works entry by entry, each member is optimised by its own gradients."""
    parameters = [parameter for parameter in ensemble.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def elites(error: Tensor, count: int) -> Tensor:
    """[count] the members with the lowest ``error`` [E], best first."""
    return torch.argsort(error, stable=True)[:count]


@torch.no_grad()
def holdout_metrics(ensemble: Ensemble, held_out: Batch) -> tuple[Tensor, Tensor]:
    """([E] mean squared error, [E] negative log-likelihood) on the held-out rows, summed over axes."""
    prediction = ensemble(held_out.inputs.expand(ensemble.members, -1, -1))
    return squared_error(prediction, held_out.targets), negative_log_likelihood(prediction, held_out.targets)


def _carried(optimiser: torch.optim.Adam) -> list[Tensor]:
    """Parameters and moments, each with a leading member axis."""
    parameters: list[Tensor] = optimiser.param_groups[0]["params"]
    moments = []
    for parameter in parameters:
        state = optimiser.state[parameter]
        moments += [state["exp_avg"], state["exp_avg_sq"]] if state else []
    return [parameter.detach() for parameter in parameters] + moments


def train_batches(
    ensemble: Ensemble,
    optimiser: torch.optim.Adam,
    training: Batch,
    index: Tensor,
    config: "ModelConfig",
    directions: Tensor | None,
    loss_function: LossFunction,
    frozen: Tensor | None = None,
) -> Tensor:
    """Take one optimiser step per minibatch; members marked in ``frozen`` [E] keep parameters and moments.

    Args:
      ensemble: changed in place, like ``optimiser``.
      training: all training rows.
      index: [batches, E, B] which of them are in each member's minibatches.
      config: the losses' settings.
      directions: [J, D] of the Laplacian penalty.
      loss_function: :func:`~mbrl_jax.reference.model.losses.member_losses` or its compiled form.
      frozen: [E] boolean; none freezes nobody.

    Returns:
      [E] the loss before each step, mean over the minibatches.

    """
    keep = None if frozen is None or not frozen.any() else frozen
    total = torch.zeros(ensemble.members, dtype=training.inputs.dtype, device=training.inputs.device)
    for rows in index:
        optimiser.zero_grad()
        losses = loss_function(ensemble, Batch(*(field[rows] for field in training)), config, directions)
        losses.sum().backward()
        kept = [] if keep is None else [tensor[keep] for tensor in _carried(optimiser)]
        optimiser.step()
        for tensor, old in zip(_carried(optimiser) if kept else [], kept, strict=True):
            tensor[keep] = old
        total += losses.detach()
    return total / len(index)


def _directions(draws: Draws, config: "ModelConfig", training: Batch, size: int, time: int, epoch: int) -> Tensor | None:
    if config.laplacian == "none":
        return None
    if is_exact(config, size):
        return torch.eye(size, dtype=training.inputs.dtype, device=training.inputs.device)
    return draws.laplacian_signs(time, epoch, config.laplacian_probes, size)


def fit(
    ensemble: Ensemble,
    optimiser: torch.optim.Adam,
    rows: Transition,
    stride: int,
    config: "ModelConfig",
    draws: Draws,
    loss_function: LossFunction,
) -> Fit:
    """The first fit: ``config.epochs`` passes over the training rows among ``rows`` [n]."""
    normaliser, training, held_out = prepare(ensemble, rows, stride)
    members, count, size = ensemble.members, len(training.inputs), ensemble.task.observation_size
    batches = count // config.batch_size
    resample = draws.bootstrap_rows(members, count) if config.bootstrap else None
    error = torch.full_like(ensemble.minimum[:, 0], torch.inf)
    stale = torch.zeros(members, dtype=torch.int64, device=error.device)
    best = [tensor.clone() for tensor in _carried(optimiser)]
    logs = []
    for epoch in range(config.epochs):
        order = draws.epoch_order(epoch, members, count)
        if resample is not None:
            order = resample.gather(1, order)
        index = order[:, : batches * config.batch_size].reshape(members, batches, -1).transpose(0, 1)
        directions = _directions(draws, config, training, size, 0, epoch)
        frozen = None if config.patience is None else stale >= config.patience
        loss = train_batches(ensemble, optimiser, training, index, config, directions, loss_function, frozen)
        mse, nll = holdout_metrics(ensemble, held_out)
        logs.append((loss, mse, nll))
        if config.patience is None:
            error = mse
            continue
        better = mse < error
        now = _carried(optimiser)
        # moments are there from the first step on; before it they are zeros
        best += [torch.zeros_like(tensor) for tensor in now[len(best) :]]
        for kept, tensor in zip(best, now, strict=True):
            kept[better] = tensor[better]
        error = torch.where(better, mse, error)
        stale = torch.where(better, 0, stale + 1)
    if config.patience is not None:
        for tensor, kept in zip(_carried(optimiser), best, strict=True):
            tensor.copy_(kept)
    return Fit(normaliser, FitLog(*(torch.stack(column) for column in zip(*logs, strict=True))), error)


def refit(
    ensemble: Ensemble,
    optimiser: torch.optim.Adam,
    rows: Transition,
    stride: int,
    config: "ModelConfig",
    draws: Draws,
    time: int,
    loss_function: LossFunction,
) -> Fit:
    """Go on from the present parameters and moments for ``config.refit_batches`` minibatches out of all ``rows`` [n]."""
    normaliser, training, held_out = prepare(ensemble, rows, stride)
    count, size = len(training.inputs), ensemble.task.observation_size
    index = draws.refit_rows(time, config.refit_batches, ensemble.members, config.batch_size, count)
    directions = _directions(draws, config, training, size, time, 0)
    loss = train_batches(ensemble, optimiser, training, index, config, directions, loss_function)
    mse, nll = holdout_metrics(ensemble, held_out)
    return Fit(normaliser, FitLog(loss[None], mse[None], nll[None]), mse)
