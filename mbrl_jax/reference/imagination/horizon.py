"""Horizon controllers: after each imagined step they say which rows are kept and which lanes stop.

A controller is a class with the three methods of :class:`Controller`, made from its settings by keyword, and one entry in
:data:`CONTROLLERS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mbrl_jax.reference.model.ensemble import Prediction, World
from mbrl_jax.reference.replay import Transition


@dataclasses.dataclass(frozen=True)
class View:
    """What a controller may look at after an imagined step."""

    time: Tensor
    """[] real steps so far: the index of the present one"""
    depth: Tensor
    """[K] steps since the root, before this one"""
    root: Tensor
    """[K, D] the real observation where the lane began"""
    observation: Tensor
    """[K, D]"""
    action: Tensor
    """[K]"""
    next_observation: Tensor
    """[K, D]"""
    reward: Tensor
    """[K]"""
    terminated: Tensor
    """[K] boolean"""
    active: Tensor
    """[K] boolean; false where the lane idles"""
    member: Tensor
    """[K] which of the M members moved the lane; 0 where their mean did"""
    everyone: Prediction | None
    """[M, K, ...] every member's prediction, for controllers that need it"""


class Decision(NamedTuple):
    """What a controller answers."""

    keep: Tensor
    """[K] boolean: is the row's weight 1"""
    stop: Tensor
    """[K] boolean: does the lane end here; a truncation"""
    penalty: Tensor
    """[K] what is subtracted from the stored reward"""


class Controller(Protocol):
    """The protocol; the state is any structure of tensors, handed from call to call."""

    needs_members: bool
    """Whether every member's prediction is computed for every lane."""

    def init(self, lanes: int) -> Any:
        """The state before the first fit."""

    def calibrate(self, state: Any, world: World, rows: Transition) -> Any:
        """The state after a fit of the model; ``rows`` are all real ones."""

    def step(self, state: Any, view: View) -> tuple[Any, Decision]:
        """The next state, and the decision."""


def _keep_all(stop: Tensor, reward: Tensor) -> Decision:
    return Decision(torch.ones_like(stop), stop, torch.zeros_like(reward))


class Stateless:
    """A controller that neither remembers nor looks at the model."""

    needs_members = False

    def init(self, lanes: int) -> None:
        """Nothing."""

    def calibrate(self, state: None, world: World, rows: Transition) -> None:
        """Nothing."""


class Fixed(Stateless):
    """Stop at depth ``length``."""

    def __init__(self, *, length: float) -> None:
        self.length = length

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """Every row is kept."""
        return state, _keep_all(view.depth + 1 >= self.length, view.reward)


class Schedule(Stateless):
    """Stop at a depth that goes linearly from ``first`` to ``last`` between the real steps ``start`` and ``end`` (MBPO)."""

    def __init__(self, *, start: float, end: float, first: float, last: float) -> None:
        if start == end:
            raise ValueError(f"imagination.controller_settings: start and end must differ, not both be {start}")
        self.start, self.end, self.first, self.last = start, end, first, last

    def length(self, time: Tensor) -> Tensor:
        """[] the depth at real step ``time``."""
        share = (time.to(torch.float64) - self.start) / (self.end - self.start)
        depth = self.first + share * (self.last - self.first)
        return depth.clamp(min(self.first, self.last), max(self.first, self.last)).floor()

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """Every row is kept."""
        return state, _keep_all(view.depth + 1 >= self.length(view.time), view.reward)


CONTROLLERS: dict[str, Callable[..., Controller]] = {"fixed": Fixed, "schedule": Schedule}


def make_controller(name: str, settings: Mapping[str, float]) -> Controller:
    """The controller of that name with those settings.

    Raises:
      ValueError: there is no such controller here, or its settings do not fit.

    """
    if name not in CONTROLLERS:
        raise ValueError(f"imagination.controller: {name!r} is not among the reference's: {', '.join(CONTROLLERS)}")
    try:
        return CONTROLLERS[name](**settings)
    except TypeError as error:
        raise ValueError(f"imagination.controller_settings: {dict(settings)!r} does not fit {name!r}: {error}") from error
