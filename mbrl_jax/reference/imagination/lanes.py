"""K lanes of imagined rollouts, H steps of each per real step."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mbrl_jax.reference.draws import LaneDraws
from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon import Controller, View
from mbrl_jax.reference.model.ensemble import Prediction, World, predict, transition
from mbrl_jax.reference.networks import QFunction, greedy
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import ImaginationConfig

HISTOGRAM_EDGES = (1, 2, 3, 4, 5, 10, 20, 50, 100)
"""Upper edges, inclusive, of the bins of depths; the last bin has none."""


class Lanes(NamedTuple):
    """Where the lanes are."""

    observation: Tensor
    """[K, D]"""
    root: Tensor
    """[K, D] where each began"""
    depth: Tensor
    """[K] int64 steps since then; at 0 the next step begins at a fresh root"""
    idle: Tensor
    """[K] boolean: ended, and waiting for the next real step (restart: per_step)"""
    controller: Any
    """the controller's state"""


class Imagined(NamedTuple):
    """One imagined step of all lanes."""

    rows: Transition
    """[K] by lane; weight 0 where the row is not kept"""
    active: Tensor
    """[K] boolean"""
    terminated: Tensor
    """[K] boolean: the world's; a row that a controller halted is a terminal without it"""
    ended: Tensor
    """[K] boolean: the lane takes a new root, or idles"""
    stop: Tensor
    """[K] boolean: the controller's, of active and idle lanes alike"""


class LaneLog(NamedTuple):
    """Means over one real step's K·H imagined steps, each [] but the last."""

    depth: Tensor
    """steps since the root, this one included, of the kept rows; 0 if none is kept"""
    kept: Tensor
    """share of rows that are kept"""
    stopped: Tensor
    """share of rows at which the controller stopped an active lane"""
    terminated: Tensor
    """share of rows at which an active lane terminated; halts do not count"""
    ended: Tensor
    """share of rows at which an active lane ended: by termination, the controller or the cap"""
    histogram: Tensor
    """[10] share of rows that are kept and whose depth, this step included, is in the bin"""


def start(lanes: int, observation_size: int, controller_state: Any, *, dtype: torch.dtype, device: torch.device) -> Lanes:
    """Lanes that are about to take their first root."""
    nowhere = torch.zeros(lanes, observation_size, dtype=dtype, device=device)
    depth = torch.zeros(lanes, dtype=torch.int64, device=device)
    return Lanes(nowhere, nowhere, depth, torch.zeros_like(depth, dtype=torch.bool), controller_state)


def at_real_step(lanes: Lanes, restart: str) -> Lanes:
    """The lanes when a real step begins: with ``restart`` per_step all begin anew."""
    if restart == "per_step":
        return lanes._replace(depth=torch.zeros_like(lanes.depth), idle=torch.zeros_like(lanes.idle))
    return lanes


def _mix(everyone: Prediction) -> Prediction:
    """The ensemble's mean: of means and of logits, and the log of the mean variance; [M, K, ...] to [K, ...]."""
    log_variance = None if everyone.log_variance is None else everyone.log_variance.exp().mean(0).log()
    termination = None if everyone.termination is None else everyone.termination.mean(0)
    return Prediction(everyone.mean.mean(0), log_variance, termination)


def _each(function: Callable[[Tensor], Tensor], prediction: Prediction) -> Prediction:
    log_variance = None if prediction.log_variance is None else function(prediction.log_variance)
    termination = None if prediction.termination is None else function(prediction.termination)
    return Prediction(function(prediction.mean), log_variance, termination)


def _together(everyone: Prediction) -> Prediction:
    """The members as one Gaussian, weighted by their precision; [M, K, ...] to [K, ...]."""
    fused = disagreement.fuse(everyone)
    termination = None if everyone.termination is None else everyone.termination.mean(0)
    return Prediction(fused.mean, fused.variance.log(), termination)


def _informed(everyone: Prediction, drawn: Prediction, noise: Tensor) -> Prediction:
    """What the members know together once one of them has spoken (Infoprop); [M, K, ...] to [K, ...].

    Args:
      everyone: every member's prediction.
      drawn: the prediction [K, ...] of each lane's member.
      noise: [K, D] standard normal; with it that member says where the state goes.

    """
    fused, size = disagreement.fuse(everyone), noise.shape[-1]
    assert drawn.log_variance is not None
    said = drawn.mean[..., :size] + torch.exp(0.5 * drawn.log_variance[..., :size]) * noise
    state = fused.mean[..., :size] + fused.gain[..., :size] * (said - fused.mean[..., :size])
    termination = None if everyone.termination is None else everyone.termination.mean(0)
    return Prediction(torch.cat([state, fused.mean[..., size:]], dim=-1), fused.remainder.log(), termination)


def predict_lanes(
    world: World, observation: Tensor, action: Tensor, draws: LaneDraws, sampling: str, *, needs_members: bool
) -> tuple[Prediction, Tensor, Tensor, Prediction | None]:
    """Who moves which lane, and whereto.

    Args:
      world: the dynamics, M members.
      observation: [K, D].
      action: [K].
      draws: the step's random numbers.
      sampling: the setting ``imagination.sampling``.
      needs_members: whether every member is asked about every lane.

    Returns:
      the lanes' prediction [K, ...], the noise [K, D] that it is still to be given, the lanes' member [K], and every member's
      prediction [M, K, ...] if it was computed.

    """
    members, lanes = world.ensemble.members, len(action)
    everyone = None
    if needs_members or sampling in ("mean", "infoprop", "fused"):
        everyone = predict(world, observation.expand(members, -1, -1), action.expand(members, -1))
    if sampling in ("mean", "fused"):
        assert everyone is not None
        whole = _mix(everyone) if sampling == "mean" else _together(everyone)
        return whole, draws.noise, torch.zeros_like(action), everyone
    place = torch.arange(lanes, device=action.device)
    order = place if sampling == "ts_infinity" else draws.deal
    place_of_lane = torch.empty_like(order).scatter_(0, order, place)
    member = place_of_lane // (lanes // members)
    if everyone is not None:
        drawn = _each(lambda field: field[member, place], everyone)
        if sampling == "infoprop":
            first, second = draws.noise.chunk(2, dim=-1)
            return _informed(everyone, drawn, first), second, member, everyone
        return drawn, draws.noise, member, everyone
    dealt = predict(world, observation[order].view(members, -1, observation.shape[-1]), action[order].view(members, -1))
    return _each(lambda field: field.flatten(0, 1)[place_of_lane], dealt), draws.noise, member, None


@torch.no_grad()
def step(
    lanes: Lanes,
    world: World,
    policy: QFunction,
    controller: Controller,
    config: "ImaginationConfig",
    roots: Tensor,
    draws: LaneDraws,
    time: Tensor,
) -> tuple[Lanes, Imagined]:
    """One imagined step of all lanes.

    Args:
      lanes: where they are.
      world: the dynamics.
      policy: the online network, which acts ε-greedily.
      controller: keeps and stops.
      config: the settings of imagination.
      roots: [K, D] real observations for the lanes at depth 0.
      draws: the step's random numbers.
      time: [] the index of the real step.

    """
    fresh = (lanes.depth == 0)[:, None]
    observation = torch.where(fresh, roots, lanes.observation)
    root = torch.where(fresh, roots, lanes.root)
    action = torch.where(draws.explore < config.epsilon, draws.action, greedy(policy, observation))
    prediction, noise, member, everyone = predict_lanes(
        world, observation, action, draws, config.sampling, needs_members=controller.needs_members
    )
    moved = transition(world, prediction, observation, action, noise)
    active = ~lanes.idle
    view = View(
        time=time,
        depth=lanes.depth,
        root=root,
        observation=observation,
        action=action,
        next_observation=moved.next_observation,
        reward=moved.reward,
        terminated=moved.terminated,
        active=active,
        member=member,
        everyone=everyone,
        truth=world.task.dynamics(observation, action) if getattr(controller, "needs_truth", False) else None,
    )
    state, decision = controller.step(lanes.controller, view)
    reward, terminated = moved.reward - decision.penalty, moved.terminated
    if decision.halt is not None:
        reward, terminated = torch.where(decision.halt, -decision.penalty, reward), terminated | decision.halt
    rows = Transition(
        observation=observation,
        action=action,
        reward=reward,
        next_observation=moved.next_observation,
        terminated=terminated,
        weight=(decision.keep & active).to(observation.dtype),
        depth=lanes.depth,
    )
    ended = terminated | decision.stop | (lanes.depth + 1 >= config.cap)
    following = Lanes(
        observation=moved.next_observation,
        root=root,
        depth=torch.where(ended, 0, lanes.depth + 1),
        idle=lanes.idle | ended if config.restart == "per_step" else lanes.idle,
        controller=state,
    )
    return following, Imagined(rows, active, moved.terminated, ended, decision.stop)


def log(imagined: list[Imagined]) -> LaneLog:
    """The log of one real step, from its H imagined ones."""
    weight = torch.stack([step.rows.weight for step in imagined])
    depth = torch.stack([step.rows.depth for step in imagined])
    active = torch.stack([step.active for step in imagined])
    stop = torch.stack([step.stop for step in imagined])
    terminated = torch.stack([step.terminated for step in imagined])
    ended = torch.stack([step.ended for step in imagined])
    total = weight.sum()
    bins = torch.bucketize(depth + 1, torch.tensor(HISTOGRAM_EDGES, device=depth.device))
    return LaneLog(
        depth=(weight * (depth + 1)).sum() / total.clamp(min=1.0),
        kept=weight.mean(),
        stopped=(stop & active).to(weight.dtype).mean(),
        terminated=(terminated & active).to(weight.dtype).mean(),
        ended=(ended & active).to(weight.dtype).mean(),
        histogram=torch.stack([(weight * (bins == i)).mean() for i in range(len(HISTOGRAM_EDGES) + 1)]),
    )
