"""What a run returns, and what both loops share around their edges."""

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbrl_jax.reference.replay import Replay


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that a run came to, in numpy; networks as torch state dictionaries."""

    returns_last: np.ndarray
    """[n] of the last target network, in the final evaluation"""
    returns_chosen: np.ndarray | None
    """[n] of the chosen one, from the same starts; none without a model"""
    collected: np.ndarray
    """[N] return of the random episode that ended at each collected transition, NaN where none did"""
    fit: dict[str, np.ndarray]
    """loss, holdout_mse, holdout_nll of the first fit, [epochs, E]; empty without a model"""
    metrics: dict[str, np.ndarray]
    """by name, [rounds, ...]"""
    networks: dict[str, dict[str, Tensor]]
    """state dictionaries: online, target and, with a model, chosen, ensemble and the members of it that imagine"""
    normaliser: dict[str, np.ndarray]
    """the model's at the end, empty without one"""
    real: dict[str, np.ndarray]
    """the real replay's rows by field, in their order"""
    imagined: dict[str, np.ndarray]
    """the imagined replay's rows by field and place; empty without a model"""
    frozen: bool
    """whether an update went non-finite and the learner stayed as it was before"""
    updates: int
    """updates made, until then"""
    seconds: dict[str, float]
    """by phase"""


class Clock:
    """Wall time by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within to the phase ``name``."""
        begin = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Log:
    """Metrics by name, as they come; nothing is fetched from the device before the end."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def add(self, **values: Any) -> None:
        """One more value, a tensor or a number, of each."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """All values of each name, stacked."""
        return {name: to_numpy(torch.stack([torch.as_tensor(value) for value in values])) for name, values in self.values.items()}

    def blocks(self, rounds: int, size: int) -> dict[str, np.ndarray]:
        """[rounds, blocks, ...] the means over blocks of ``size`` successive values [...] of each."""
        arrays = self.arrays()
        return {name: values.reshape(rounds, -1, size, *values.shape[1:]).mean(2) for name, values in arrays.items()}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy on the host."""
    return np.array(tensor.detach().cpu().numpy())


def rows_of(replay: Replay) -> dict[str, np.ndarray]:
    """The rows that hold data, by field."""
    rows = replay.rows()._asdict()
    return {name: to_numpy(column) for name, column in rows.items()}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state dictionary."""
    return copy.deepcopy(dict(network.state_dict()))


def share(step: int, steps: int) -> float:
    """How much of a run is over at its step number ``step``: 0 at the first, 1 at the last."""
    return step / max(steps - 1, 1)
