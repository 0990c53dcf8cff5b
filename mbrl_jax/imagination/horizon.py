"""Horizon controllers: at every imagined step, is the row kept, does the rollout end here, and what does the reward lose?

A controller is three pure functions over its own state, made inside the compiled program from its numbers, which may therefore be
tracers. To write one, write a function from keyword numbers to a :class:`HorizonController` and pass it to
``make_train(config, controller=…)``, or name it in :data:`CONTROLLERS` so that a preset can ask for it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.model.ensemble import Ensemble, Members, Prediction


class View(NamedTuple):
    """What a controller sees of one imagined step of K lanes."""

    time: Array  # [] int32, real steps taken so far
    depth: Array  # [K] int32, imagined steps since the root before this one; 0 tells that the lane has a new root
    root: Array  # [K, D] the real state where the lane began
    observation: Array  # [K, D] s
    action: Array  # [K] int32
    next_observation: Array  # [K, D] s'
    reward: Array  # [K]
    terminated: Array  # [K] bool
    active: Array  # [K] bool, false where a lane idles (restart: per_step)
    member: Array  # [K] int32, which member predicted
    everyone: Prediction | None  # leaves [M, K, ...], every member's prediction; none unless asked for


class Decision(NamedTuple):
    """What a controller answers."""

    keep: Array  # [K] bool, whether the row goes into the replay
    stop: Array  # [K] bool, whether the lane ends here: a truncation, the target bootstraps through it
    penalty: Array  # [K] subtracted from the reward


class HorizonController(NamedTuple):
    """A rule for the length of imagined rollouts.

    Attributes:
      init: ``(lanes) -> state``; any pytree of arrays.
      calibrate: ``(state, ensemble, members, rows [N, 2 D + 5], valid [N] bool) -> state``, called after every fit of the model
        with the packed real rows, those that hold data marked.
      step: ``(state, View) -> (state, Decision)``.
      needs_members: whether ``view.everyone`` must be there; asking costs a forward pass of every member on every lane.

    """

    init: Callable[[int], Any]
    calibrate: Callable[[Any, Ensemble, Members, Array, Array], Any]
    step: Callable[[Any, View], tuple[Any, Decision]]
    needs_members: bool = False


def _stateless(stop: Callable[[View], Array]) -> HorizonController:
    """A controller without memory that keeps every row and takes nothing from the reward."""

    def step(state: tuple[()], view: View) -> tuple[tuple[()], Decision]:
        keep = jnp.ones_like(view.terminated)
        return state, Decision(keep=keep, stop=stop(view), penalty=jnp.zeros_like(view.reward))

    return HorizonController(init=lambda lanes: (), calibrate=lambda state, ensemble, members, rows, valid: state, step=step)


def _rows_so_far(view: View) -> Array:
    """[K] imagined steps since the root, this one counted, in the float type of the rewards."""
    return (view.depth + 1).astype(view.reward.dtype)


def fixed(*, length: Array | float) -> HorizonController:
    """Every rollout ends at the same depth.

    Args:
      length: that depth, at least 1.

    """
    return _stateless(lambda view: _rows_so_far(view) >= length)


def schedule(*, start: Array | float, end: Array | float, first: Array | float, last: Array | float) -> HorizonController:
    """The depth grows linearly with experience (MBPO, Janner et al. 2019, arXiv:1906.08253).

    Args:
      start: real step at which growth begins.
      end: real step at which it is complete, above ``start``.
      first: depth until ``start``.
      last: depth from ``end`` on; the depth between is rounded down.

    """

    def stop(view: View) -> Array:
        share = (view.time.astype(view.reward.dtype) - start) / (end - start)
        depth = jnp.clip(first + share * (last - first), jnp.minimum(first, last), jnp.maximum(first, last))
        return _rows_so_far(view) >= jnp.floor(depth)

    return _stateless(stop)


CONTROLLERS: dict[str, Callable[..., HorizonController]] = {"fixed": fixed, "schedule": schedule}


def make_controller(name: str, numbers: Mapping[str, Array | float]) -> HorizonController:
    """The registered controller of that name with its numbers, which may be tracers.

    Raises:
      ConfigError: no such controller, or numbers other than those it takes.

    """
    if name not in CONTROLLERS:
        raise ConfigError(f"imagination.controller: {name!r} is not known; it must be one of {', '.join(CONTROLLERS)}")
    takes = set(inspect.signature(CONTROLLERS[name]).parameters)
    if set(numbers) != takes:
        raise ConfigError(
            f"imagination.controller_settings: {sorted(numbers)!r} do not fit; {name!r} takes exactly {', '.join(sorted(takes))}"
        )
    return CONTROLLERS[name](**numbers)
