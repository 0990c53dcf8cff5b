"""An upper bound for research: stop by the true error of the imagined step. No method has it."""

import torch
from torch import Tensor

from mbrl_jax.reference.imagination.horizon.protocol import Decision, View, keep_all
from mbrl_jax.reference.model.ensemble import World
from mbrl_jax.reference.replay import Transition


class Oracle:
    """Stop where what was imagined is further than the ``mark`` from the truth; the state is the unit of each axis, [D]."""

    needs_members = False
    needs_truth = True

    def __init__(self, *, mark: float) -> None:
        self.mark = mark

    def init(self, lanes: int) -> Tensor:
        """The axes' own units."""
        return torch.ones(1)

    def calibrate(self, state: Tensor, world: World, rows: Transition) -> Tensor:
        """The deviations of the real changes."""
        return world.normaliser.target_scale[: world.task.observation_size]

    def step(self, state: Tensor, view: View) -> tuple[Tensor, Decision]:
        """Every row is kept.

        Raises:
          ValueError: the truth was not computed.

        """
        if view.truth is None:
            raise ValueError("imagination.controller: 'oracle' needs a view with the truth in it")
        error = ((view.next_observation - view.truth) / state).square().mean(-1).sqrt()
        return state, keep_all(error > self.mark, view.reward)
