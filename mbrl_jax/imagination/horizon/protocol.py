"""What a horizon controller is: what it sees of an imagined step, and what it answers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, Limits
from mbrl_jax.model.protocol import ModelSpec, Prediction, WorldModel
from mbrl_jax.replay import Rows

Make = TypeVar("Make", bound=Callable[..., "HorizonController"])


class View(NamedTuple):
    """What a controller sees of one imagined step of K lanes."""

    time: Array  # [] int32, real steps taken so far
    depth: Array  # [K] int32, imagined steps since the root before this one; 0 tells that the lane has a new root
    root: Array  # [K, D] the real state where the lane began
    observation: Array  # [K, D] s
    action: Array  # [K]
    next_observation: Array  # [K, D] s'
    reward: Array  # [K]
    terminated: Array  # [K] bool
    active: Array  # [K] bool, false where a lane idles (restart: per_step)
    member: Array  # [K] int32, which member predicted
    everyone: Prediction | None  # leaves [M, K, ...], every member's prediction; none unless asked for
    truth: Array | None  # [K, D] where the real dynamics lead; none unless asked for, and no method may ask
    gradient_error: Array | None = None  # [K] relative error of the model's Jacobians in the window before, minus infinity before
    # the first one; none outside windows of simulated steps


class Decision(NamedTuple):
    """What a controller answers."""

    keep: Array  # [K] bool, whether the row goes into the replay
    stop: Array  # [K] bool, whether the lane ends here: a truncation, the target bootstraps through it
    penalty: Array  # [K] subtracted from the reward
    halt: Array | None = None  # [K] bool, whether the row becomes a terminal, of minus the penalty alone as its reward: the one
    # exception to "a stop is a truncation"


class HorizonController(NamedTuple):
    """A rule for the length of imagined rollouts.

    Attributes:
      init: ``(lanes, ModelSpec) -> state``; any pytree of arrays.
      calibrate: ``(state, world, params, rows [N], valid [N] bool) -> state``, called after every fit of the world model with the
        real rows, those that hold data marked.
      step: ``(state, View) -> (state, Decision)``.
      needs_members: whether ``view.everyone`` must be there; asking costs a forward pass of every member on every lane.
      needs_variance: whether the members must predict variances.
      needs_drawn: whether one drawn member must have moved each lane.
      needs_truth: whether ``view.truth`` must be there. For research on what a perfect judge of the model would do.
      needs_gradient_error: whether ``view.gradient_error`` must be there. Lanes do not have it, windows of simulated steps do.
      follow: ``(state, share []) -> state``, called at the end of every round with the model's share in the error of the agent's
        value (:func:`mbrl_jax.imagination.interpolation.model_share`), by loops that measure it; none for rules that do not ask.

    """

    init: Callable[[int, ModelSpec], Any]
    calibrate: Callable[[Any, WorldModel, Any, Rows, Array], Any]
    step: Callable[[Any, View], tuple[Any, Decision]]
    needs_members: bool = False
    needs_variance: bool = False
    needs_drawn: bool = False
    needs_truth: bool = False
    needs_gradient_error: bool = False
    follow: Callable[[Any, Array], Any] | None = None


def limits(**numbers: Limits) -> Callable[[Make], Make]:
    """Say which values a controller's numbers may take; what is not named may be any finite number."""

    def mark(make: Make) -> Make:
        make.limits = numbers  # type: ignore[attr-defined]
        return make

    return mark


def nothing(lanes: int, spec: ModelSpec) -> tuple[()]:
    """The state of a controller that remembers nothing."""
    return ()


def uncalibrated(state: Any, world: WorldModel, params: Any, rows: Rows, valid: Array) -> Any:
    """The state as it is, for controllers that do not look at the fitted model."""
    return state


def stop_where(stop: Array, view: View) -> Decision:
    """The decision that keeps every row and takes nothing from the reward."""
    return Decision(keep=jnp.ones_like(stop), stop=stop, penalty=jnp.zeros_like(view.reward))


def rows_so_far(view: View) -> Array:
    """[K] imagined steps since the root, this one counted, in the float type of the rewards."""
    return (view.depth + 1).astype(view.reward.dtype)


def since_root(view: View, used: Array, now: Array) -> Array:
    """[K, ...] the sum of ``now`` [K, ...] along each rollout, ``used`` [K, ...] being that of the steps before."""
    begins = (view.depth == 0).reshape((-1,) + (1,) * (now.ndim - 1))
    return jnp.where(begins, 0.0, used) + now


def predictions_at(world: WorldModel, params: Any, rows: Rows) -> Prediction:
    """Every member's prediction [M, N, ...] at real rows [N], for a controller that goes by them."""
    if world.belief is None:
        raise ConfigError(
            f"imagination.controller: it goes by predictions at real states, and features of the model of {world.spec.name!r} do "
            "not tell where a rollout stands; name another controller"
        )
    asked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (world.spec.members, *leaf.shape)), rows)
    said = world.expect(params, world.belief(asked.observation), asked.action).everyone
    assert said is not None, "expect tells what every member says"
    return said


def predictions(view: View) -> Prediction:
    """Every member's prediction, for a controller that has asked for it."""
    assert view.everyone is not None, "a controller that looks at all members must say so: needs_members=True"
    return view.everyone
