"""Every random number of a run comes from here, by purpose; loops never touch a generator.

A lockstep test subclasses :class:`Draws` and hands out the numbers of another implementation's run. What goes to a simulator is
numpy on the CPU; what goes to networks is a tensor of the run's dtype and device. ``time`` counts real steps.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mbrl_jax.reference.environment import make_task
from mbrl_jax.reference.networks import QFunction, networks_of

if TYPE_CHECKING:
    from mbrl_jax.config import DynaQConfig, ModelFreeQConfig
    from mbrl_jax.reference.model.ensemble import Ensemble

CUT_DEVIATION = 0.87962566103423978
"""The standard deviation of a standard normal that is cut at ±2."""


class LaneDraws(NamedTuple):
    """The random numbers of one imagined step of all lanes."""

    root: Tensor
    """[K] rows of the real replay, for the lanes that begin"""
    explore: Tensor
    """[K] uniform; below epsilon the action is random"""
    action: Tensor
    """[K] random actions"""
    deal: Tensor
    """[K] a permutation of the lanes; its i-th place is served by member i // (K / M)"""
    noise: Tensor
    """[K, D] standard normal, by lane; [K, 2 D] if sampling is infoprop, which draws twice"""


class _Round(NamedTuple):
    """A round's numbers, drawn at once; the first axis is the step within the round."""

    explore: list[float]
    action: list[int]
    reset: np.ndarray
    lanes: LaneDraws | None
    imagined: Tensor | None
    real: Tensor


class Draws:
    """One generator, one seed."""

    def __init__(
        self,
        config: "ModelFreeQConfig | DynaQConfig",
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.task = make_task(config.environment.name, config.environment.time_limit)
        self.dtype = dtype
        self.generator = torch.Generator(device).manual_seed(seed)
        self._round_number = -1
        self._round: _Round | None = None

    # ------------------------------------------------------------------------------------------------- before the main loop

    def initialise_q(self, network: QFunction) -> None:
        """Set the parameters in place: kernels of variance 1 / fan in, a normal cut at two deviations; zero biases."""
        for one in networks_of(network):
            for layer in one.layers:
                assert isinstance(layer, nn.Linear)
                self._initialise(layer.weight, layer.bias, layer.in_features)

    def initialise_ensemble(self, ensemble: "Ensemble") -> None:
        """Set weights and biases in place, likewise; the bounds stay."""
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
            self._initialise(weight, bias, weight.shape[1])

    def _initialise(self, weight: Tensor, bias: Tensor, fan_in: int) -> None:
        deviation = math.sqrt(1 / fan_in) / CUT_DEVIATION
        nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator=self.generator)
        nn.init.zeros_(bias)

    def collection(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first state [S], actions [n] int64, states [n, S] to begin at where an episode ended at that step)."""
        states = self._starts(n + 1)
        return states[0], self._integers(self.task.actions, n).cpu().numpy(), states[1:]

    def observation_noise(self, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """([n, D], [n, D]) float64 standard normal, for what is seen before and after each collected transition."""
        before, after = torch.randn(2, n, size, generator=self.generator, dtype=torch.float64, device=self.generator.device)
        return before.cpu().numpy(), after.cpu().numpy()

    def bootstrap_rows(self, members: int, rows: int) -> Tensor:
        """[E, n] each member's resample of the training rows."""
        return self._integers(rows, members, rows)

    def epoch_order(self, epoch: int, members: int, rows: int) -> Tensor:
        """[E, n] each member's permutation of the training rows (or of its resample)."""
        return self._uniform(members, rows, dtype=torch.float64).argsort(dim=-1)

    # --------------------------------------------------------------------------------------------------------- the main loop

    def real_step(self, time: int) -> tuple[float, int, np.ndarray]:
        """(uniform number that is compared with epsilon, random action, state [S] to begin at if the episode ends)."""
        numbers, i = self._numbers(time)
        return numbers.explore[i], numbers.action[i], numbers.reset[i]

    def lane_step(self, time: int, h: int, real_size: int) -> LaneDraws:
        """The numbers of imagined step ``h`` at real step ``time``, when the real replay holds ``real_size`` rows."""
        numbers, i = self._numbers(time)
        assert numbers.lanes is not None, "a model-free run has no lanes"
        lanes = LaneDraws(*(field[i, h] for field in numbers.lanes))
        return lanes._replace(root=_scale(lanes.root, real_size))

    def imagined_minibatch(self, time: int, update: int, count: int, size: int) -> Tensor:
        """[count] rows out of the ``size`` of the imagined replay."""
        numbers, i = self._numbers(time)
        assert numbers.imagined is not None, "a model-free run imagines nothing"
        return _scale(numbers.imagined[i, update, :count], size)

    def real_minibatch(self, time: int, update: int, count: int, size: int) -> Tensor:
        """[count] rows out of the ``size`` of the real replay."""
        numbers, i = self._numbers(time)
        return _scale(numbers.real[i, update, :count], size)

    # --------------------------------------------------------------------------------------------------- the ends of rounds

    def laplacian_signs(self, time: int, epoch: int, probes: int, size: int) -> Tensor:
        """[J, D] of ±1; time 0 is the first fit, and a refit has the one epoch 0."""
        return (2 * self._integers(2, probes, size) - 1).to(self.dtype)

    def refit_rows(self, time: int, batches: int, members: int, batch_size: int, rows: int) -> Tensor:
        """[batches, E, B] training rows of each minibatch."""
        return self._integers(rows, batches, members, batch_size)

    def scoring(self, time: int, episodes: int, firsts: int) -> Tensor:
        """[episodes] which of the ``firsts`` first observations each imagined episode begins at."""
        return self._integers(firsts, episodes)

    def scoring_noise(self, time: int, steps: int, members: int, per_member: int, size: int) -> Tensor:
        """[steps, M, n/M, D] standard normal."""
        return self._normal(steps, members, per_member, size)

    def curve_starts(self, time: int, n: int) -> np.ndarray:
        """[n, S] where the episodes of a point of the learning curve begin."""
        return self._starts(n)

    def final_starts(self, n: int) -> np.ndarray:
        """[n, S] where the episodes of the final evaluation begin."""
        return self._starts(n)

    # -------------------------------------------------------------------------------------------------------------- the dice

    def _numbers(self, time: int) -> tuple[_Round, int]:
        number, i = divmod(time, self.config.round_steps)
        if self._round is None or number != self._round_number:
            self._round, self._round_number = self._draw_round(), number
        return self._round, i

    def _draw_round(self) -> _Round:
        config, steps = self.config, self.config.round_steps
        lanes = imagined = None
        if hasattr(config, "imagination"):
            shape = (steps, config.imagination.steps, config.imagination.lanes)
            times = 2 if config.imagination.sampling == "infoprop" else 1
            lanes = LaneDraws(
                root=self._uniform(*shape, dtype=torch.float64),
                explore=self._uniform(*shape, dtype=self.dtype),
                action=self._integers(self.task.actions, *shape),
                deal=self._uniform(*shape, dtype=torch.float64).argsort(dim=-1),
                noise=self._normal(*shape, times * self.task.observation_size),
            )
            imagined = self._uniform(steps, config.agent.updates_per_step, config.agent.batch_size, dtype=torch.float64)
        return _Round(
            explore=self._uniform(steps, dtype=torch.float64).tolist(),
            action=self._integers(self.task.actions, steps).tolist(),
            reset=self._starts(steps),
            lanes=lanes,
            imagined=imagined,
            real=self._uniform(steps, config.agent.updates_per_step, config.agent.batch_size, dtype=torch.float64),
        )

    def _starts(self, n: int) -> np.ndarray:
        low, high = np.array(self.task.initial_low), np.array(self.task.initial_high)
        return low + (high - low) * self._uniform(n, len(low), dtype=torch.float64).cpu().numpy()

    def _uniform(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=dtype, device=self.generator.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.generator.device)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device=self.generator.device)


def _scale(uniform: Tensor, size: int) -> Tensor:
    """Whole numbers below ``size`` from float64 uniform ones, so that bulk draws need not know a size that grows."""
    return (uniform * size).to(torch.int64)
