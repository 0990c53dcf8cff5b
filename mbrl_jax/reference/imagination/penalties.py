"""What disagreement costs, on top of any controller."""

from typing import TYPE_CHECKING, Any

import torch

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon import (
    M2AC,
    MEASURED,
    Controller,
    Decision,
    Fixed,
    Schedule,
    ThreeModel,
    View,
    make_controller,
)
from mbrl_jax.reference.imagination.horizon.protocol import everyone_of
from mbrl_jax.reference.model.ensemble import World
from mbrl_jax.reference.replay import Transition

if TYPE_CHECKING:
    from mbrl_jax.config import LanesConfig

PENALTIES = ("none", "mopo", "disagreement", "halt")
UNDRAWN = ("mean", "fused")
"""The samplers that draw no member."""


class Penalised:
    """A controller that decides as another does and takes more from the reward.

    ``mopo`` takes ``weight`` times the largest aleatoric deviation, ``disagreement`` as much of the ``measure``; ``halt`` (MOReL)
    makes the row where the controller stops a terminal of reward ``-weight``, which is kept.
    """

    def __init__(self, controller: Controller, kind: str, weight: float, measure: str = "std") -> None:
        if kind not in PENALTIES[1:]:
            raise ValueError(f"imagination.penalty: {kind!r} is not among the reference's: {', '.join(PENALTIES)}")
        if kind == "halt" and isinstance(controller, Fixed | Schedule | M2AC | ThreeModel):
            raise ValueError(
                "imagination.penalty: 'halt' does not fit a controller that is fixed, schedule, m2ac or three_model, as a depth "
                "says nothing about the model; take another controller, or another penalty"
            )
        self.controller, self.kind, self.weight = controller, kind, weight
        self.measure = disagreement.make_measure(measure)
        self.needs_members = controller.needs_members or kind != "halt"
        self.needs_truth = controller.needs_truth

    def init(self, lanes: int) -> Any:
        """The controller's."""
        return self.controller.init(lanes)

    def calibrate(self, state: Any, world: World, rows: Transition) -> Any:
        """The controller's."""
        return self.controller.calibrate(state, world, rows)

    def step(self, state: Any, view: View) -> tuple[Any, Decision]:
        """The controller's decision, at its price."""
        state, decision = self.controller.step(state, view)
        if self.kind == "halt":
            penalty = torch.where(decision.stop, self.weight, decision.penalty)
            return state, Decision(decision.keep | decision.stop, decision.stop, penalty, halt=decision.stop)
        everyone = everyone_of(view)
        u = disagreement.max_aleatoric(everyone) if self.kind == "mopo" else self.measure(everyone, view.member)
        return state, decision._replace(penalty=decision.penalty + self.weight * u)


def penalised(controller: Controller, kind: str, weight: float, measure: str = "std") -> Controller:
    """``controller`` with the penalty ``kind``; ``none`` leaves it as it is."""
    return controller if kind == "none" else Penalised(controller, kind, weight, measure)


def controller_of(config: "LanesConfig") -> Controller:
    """The controller of these settings with their penalty.

    Raises:
      ValueError: a name or a number does not fit, or a drawn member is asked for where none is drawn.

    """
    name = config.controller.kind
    controller = make_controller(name, config.controller.numbers, config.measure)
    measured = name in MEASURED or config.penalty == "disagreement"
    asks = name if name == "m2ac" else config.measure
    if config.sampling in UNDRAWN and (asks == "m2ac" or (measured and asks == "one_vs_rest")):
        raise ValueError(
            f"imagination.sampling: {config.sampling!r} draws no member, which {asks!r} compares with the rest; "
            "it must be 'ts1', 'ts_infinity' or 'infoprop'"
        )
    return penalised(controller, config.penalty, config.penalty_weight, config.measure)
