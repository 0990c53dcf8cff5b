"""What a world model is: how it is fitted, where imagination begins in it, and what one imagined step is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.replay import ReplayState


class Prediction(NamedTuple):
    """What members say of a batch, in units of the normalised targets."""

    mean: Array  # [M, ..., D'] of the change of the features, then of the reward where it is learned
    log_variance: Array | None  # [M, ..., D'], none if the members predict no variance
    termination_logit: Array | None  # [M, ...], none if termination is known


class Imagined(NamedTuple):
    """One imagined step of rollouts ``...`` side by side."""

    belief: Any  # [...] where each rollout stands now
    reward: Array  # [...]
    terminated: Array  # [...] bool
    member: Array  # [...] int32, which member moved it; 0 where none did alone
    everyone: Prediction | None  # leaves [M, ...], every member's prediction where it was asked for, else none


class ModelSpec(NamedTuple):
    """What controllers, penalties and planners may ask of a world model."""

    name: str  # the task's
    feature_size: int  # F
    members: int  # M that imagine
    targets: int  # D' of a member's prediction
    has_variance: bool  # whether members predict variances
    reward_known: bool  # whether the reward is the task's own function, not a member's
    one_mover: bool = True  # whether one member alone moves each rollout
    wants_value: bool = False  # whether a refit is by a loss that knows the agent's value


class FitLog(NamedTuple):
    """How a fit went; leading axis [epochs] for the first fit, none for a refit."""

    loss: Array  # [..., E] mean training loss over the minibatches
    holdout_mse: Array  # [..., E] squared error of the normalised targets, summed over axes
    holdout_nll: Array  # [..., E] negative log-likelihood, the squared error's half for members without variance


class WorldModel(NamedTuple):
    """A learned world as pure functions over its state.

    ``params`` is the part of the state that imagination uses. Where a rollout stands is its *belief*, a pytree of arrays with the
    rollouts as leading axes; policies, critics and controllers see its features. Discrete actions [...] int32 may also come as
    weights [..., A] that are 1 for the action taken, to be differentiated.

    Attributes:
      spec: sizes and what members can tell.
      init: ``key -> state``, unfitted.
      fit: ``(state, real, key) -> (state, FitLog)``: the first fit, to the transitions that were collected beforehand.
      refit: the same later on, from the present state, to all real transitions. Where ``spec.wants_value`` it is handed the
        agent's value too, as ``value``: ``features [..., F] -> [...]``.
      acting: ``state -> params``.
      draw: ``(key_choice, key_noise, shape) -> draws``: the random numbers of one imagined step of rollouts ``shape[-1]``, with
        the other axes leading; one key for what chooses among members, one for noise.
      start: ``(params, real, bits [...] uint32) -> belief [...]`` at real states drawn uniformly.
      first: the same at first states of real episodes.
      step: ``(params, belief [K], actions [K], draws, everyone=False) -> Imagined``, leaves [K, ...]. With ``everyone`` it also
        gives what every member says, which may cost a pass of each.
      expect: ``(params, belief [M, ...], actions [M, ...]) -> Imagined``: each member's own mean step of its own rollouts,
        without noise, with what each of them says in ``everyone``.
      features: ``belief [...] -> [..., F]``.
      belief: ``features [..., F] -> belief``, for those who ask about states of their own; none where features do not tell it.
      scale: ``params -> [F]``, typical change of each feature in a step of the real data, in which errors are measured.
      observe: ``(params, belief [...], actions [...], observations [..., D], first [...] bool, draws) -> belief [...]``, one
        filter step of a latent world: where a rollout stands after its action has led to an observation, or, where ``first``
        holds, or without a belief, at the first observation of an episode. None where features tell where a rollout stands.

    """

    spec: ModelSpec
    init: Callable[[Array], Any]
    fit: Callable[[Any, ReplayState, Array], tuple[Any, FitLog]]
    refit: Callable[..., tuple[Any, FitLog]]
    acting: Callable[[Any], Any]
    draw: Callable[[Array, Array, tuple[int, ...]], Any]
    start: Callable[[Any, ReplayState, Array], Any]
    first: Callable[[Any, ReplayState, Array], Any]
    step: Callable[..., Imagined]
    expect: Callable[[Any, Any, Array], Imagined]
    features: Callable[[Any], Array]
    belief: Callable[[Array], Any] | None
    scale: Callable[[Any], Array]
    observe: Callable[..., Any] | None = None


def belief_at(world: WorldModel, asks: str) -> Callable[[Array], Any]:
    """The world's ``belief``, for what asks it where a rollout of given features stands.

    Raises:
      ConfigError: its features do not tell.

    """
    if world.belief is None:
        raise ConfigError(f"model.kind: it does not fit {asks}, which needs features that tell where a rollout stands")
    return world.belief


def beliefs_of_members(world: WorldModel, features: Array, asks: str) -> Any:
    """The beliefs [M, ...] at features [..., F], the same for every member; raises as :func:`belief_at`."""
    return belief_at(world, asks)(jnp.broadcast_to(features[None], (world.spec.members, *features.shape)))


def members_step(world: WorldModel, params: Any, features: Array, action: Array, asks: str) -> Imagined:
    """Every member's mean step, leaves [M, ...], from the same features [..., F] by the same actions [...].

    Args:
      world: the world model.
      params: its, as imagination uses them.
      features: where rollouts stand.
      action: what they do.
      asks: who asks, for the error.

    Raises:
      ConfigError: the world's features do not tell where a rollout stands.

    """
    actions = jnp.broadcast_to(action[None], (world.spec.members, *action.shape))
    return world.expect(params, beliefs_of_members(world, features, asks), actions)
