"""The Q-network, and the compilation of hot functions."""

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


def make_q_network(config: "QLearningConfig", task: Task, *, dtype: torch.dtype, device: torch.device) -> QNetwork:
    """A Q-network for ``task`` whose parameters are still to be set."""
    scale = task.input_scale if config.input_scale is None else config.input_scale
    if len(scale) != task.observation_size:
        raise ValueError(f"agent.input_scale: {scale!r} must have an entry for each of {task.observation_size} observation axes")
    return QNetwork(config.hidden, scale, task.actions).to(device=device, dtype=dtype)


@torch.no_grad()
def greedy(network: QNetwork, observation: Tensor) -> Tensor:
    """[...] the actions of highest value at observations [..., D]."""
    return network(observation).argmax(dim=-1)


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
