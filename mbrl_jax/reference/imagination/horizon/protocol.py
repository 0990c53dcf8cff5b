"""What a horizon controller sees, answers and is."""

import dataclasses
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
    """[K] which of the M members moved the lane; 0 where all of them did together"""
    everyone: Prediction | None
    """[M, K, ...] every member's prediction, for controllers that need it"""
    truth: Tensor | None = None
    """[K, D] where the real dynamics lead, for controllers that need it"""


class Decision(NamedTuple):
    """What a controller answers."""

    keep: Tensor
    """[K] boolean: is the row's weight 1"""
    stop: Tensor
    """[K] boolean: does the lane end here; a truncation, unless ``halt`` says otherwise"""
    penalty: Tensor
    """[K] what is subtracted from the stored reward"""
    halt: Tensor | None = None
    """[K] boolean: is the row a terminal, whose stored reward is minus the penalty and nothing else; none halts nowhere"""


class Controller(Protocol):
    """The protocol; the state is any structure of tensors, handed from call to call."""

    needs_members: bool
    """Whether every member's prediction is computed for every lane."""
    needs_truth: bool = False
    """Whether the real dynamics are asked about every lane: for research, never for a method."""

    def init(self, lanes: int) -> Any:
        """The state before the first fit."""

    def calibrate(self, state: Any, world: World, rows: Transition) -> Any:
        """The state after a fit of the model; ``rows`` are all real ones."""

    def step(self, state: Any, view: View) -> tuple[Any, Decision]:
        """The next state, and the decision."""


class Stateless:
    """A controller that neither remembers nor looks at the model."""

    needs_members = False
    needs_truth = False

    def init(self, lanes: int) -> None:
        """Nothing."""

    def calibrate(self, state: None, world: World, rows: Transition) -> None:
        """Nothing."""


def keep_all(stop: Tensor, reward: Tensor) -> Decision:
    """Stop where ``stop`` [K] says; every row is kept and nothing is taken from the ``reward`` [K]."""
    return Decision(torch.ones_like(stop), stop, torch.zeros_like(reward))


def everyone_of(view: View) -> Prediction:
    """Every member's prediction.

    Raises:
      ValueError: it was not computed, as the controller did not ask for it.

    """
    if view.everyone is None:
        raise ValueError("a controller that looks at every member's prediction must have needs_members = True")
    return view.everyone


def require(holds: bool, name: str, value: float, right: str) -> None:
    """Refuse a controller's setting.

    Raises:
      ValueError: it does not hold.

    """
    if not holds:
        raise ValueError(f"imagination.controller.{name}: {value!r} does not fit; it must be {right}")
