"""The Q-network, several of them as one, and the compilation of hot functions."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mbrl_jax.reference.environment import Task

if TYPE_CHECKING:
    from mbrl_jax.config import QLearningConfig

P = ParamSpec("P")
R = TypeVar("R")


class QNetwork(nn.Module):
    """An MLP with ReLU from observations [..., D] to action values [..., A]."""

    input_scale: Tensor

    def __init__(self, hidden: tuple[int, ...], input_scale: tuple[float, ...], actions: int) -> None:
        super().__init__()
        sizes = [len(input_scale), *hidden, actions]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        # float64 first, so that a float64 network divides by 0.21 and not by its float32 neighbour
        self.register_buffer("input_scale", torch.tensor(input_scale, dtype=torch.float64), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A] the values of all actions."""
        x = observation / self.input_scale
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        values: Tensor = last(x)
        return values


class QEnsemble(nn.Module):
    """Q networks whose value is the mean of theirs."""

    def __init__(self, networks: list[QNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @property
    def input_scale(self) -> Tensor:
        """[D] what each of them divides an observation by."""
        return networks_of(self)[0].input_scale

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A] the mean values of all actions."""
        return torch.stack([network(observation) for network in self.networks]).mean(0)


QFunction = QNetwork | QEnsemble
"""What values actions."""


def networks_of(network: QFunction) -> list[QNetwork]:
    """The networks that ``network`` is the mean of, or itself."""
    if isinstance(network, QNetwork):
        return [network]
    return [one for one in network.networks if isinstance(one, QNetwork)]


def make_q_network(config: "QLearningConfig", task: Task, *, dtype: torch.dtype, device: torch.device) -> QFunction:
    """A Q-network for ``task``, or ``agent.members`` of them, whose parameters are still to be set."""
    scale = task.input_scale if config.input_scale is None else config.input_scale
    if len(scale) != task.observation_size:
        raise ValueError(f"agent.input_scale: {scale!r} must have an entry for each of {task.observation_size} observation axes")
    if config.members < 1:
        raise ValueError(f"agent.members: {config.members!r} is out of range; it must be at least 1")
    networks = [QNetwork(config.hidden, scale, task.actions).to(device=device, dtype=dtype) for _ in range(config.members)]
    return networks[0] if config.members == 1 else QEnsemble(networks)


@torch.no_grad()
def greedy(network: QFunction, observation: Tensor) -> Tensor:
    """[...] the actions of highest value at observations [..., D]."""
    values: Tensor = network(observation)
    return values.argmax(dim=-1)


def hot(function: Callable[P, R], compile_: bool, device: torch.device) -> Callable[P, R]:
    """``function``, compiled if ``compile_``; on a GPU as a CUDA graph."""
    if not compile_:
        return function
    if device.type != "cuda":
        return torch.compile(function)
    captured = torch.compile(function, mode="reduce-overhead")

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        torch.compiler.cudagraph_mark_step_begin()
        # a graph's next replay overwrites its outputs
        result: R = pytree.tree_map_only(Tensor, torch.clone, captured(*args, **kwargs))
        return result

    return call
