"""TorchScript files, by the networks of the reference in PyTorch with the library's weights."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.ao import quantization

from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.config import ConfigError, ModelConfig, PolicyGradientConfig, QLearningConfig
from mbrl_jax.environments import Environment
from mbrl_jax.reference import weights
from mbrl_jax.reference.agents import policy_gradient
from mbrl_jax.reference.environment import TASKS
from mbrl_jax.reference.model import ensemble
from mbrl_jax.reference.networks import QEnsemble, QNetwork
from mbrl_jax.serving.export.agreement import Run
from mbrl_jax.serving.export.graphs import Graph
from mbrl_jax.serving.export.quantising import LEAST_WEIGHTS

EXAMPLE_ROWS = 3  # that a function is traced with


class Greedy(nn.Module):
    """A network's best action [B] int32 and what it is chosen by [B, A]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Of observations [B, D]."""
        scores: Tensor = self.network(observation)
        return scores.argmax(dim=-1).to(torch.int32), scores


class Vote(nn.Module):
    """The most frequent action [B] int32 of several networks, and the share of them [B] that choose it."""

    def __init__(self, networks: Sequence[nn.Module], actions: int):
        super().__init__()
        self.networks, self.actions = nn.ModuleList(networks), actions

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Of observations [B, D]."""
        chosen = torch.stack([network(observation).argmax(dim=-1) for network in self.networks])
        counts = nn.functional.one_hot(chosen, self.actions).sum(dim=0)
        return counts.argmax(dim=-1).to(torch.int32), counts.amax(dim=-1).to(observation.dtype) / len(self.networks)


class Linear(nn.Module):
    """One member as linear layers, which torch.ao quantises; the reference has all members as one batched product."""

    def __init__(self, kernels: Sequence[np.ndarray], biases: Sequence[np.ndarray], activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layers, self.activation = nn.ModuleList(), activation
        for kernel, bias in zip(kernels, biases, strict=True):
            layer = nn.Linear(*kernel.shape)
            layer.weight.data, layer.bias.data = torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias.copy())
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs] from [B, inputs]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        outputs: Tensor = last(x)
        return outputs


class Members(ensemble.Ensemble):
    """The reference's ensemble with each member's layers apart, so that they can be quantised."""

    def take_apart(self) -> None:
        """Lay out the present weights so."""
        kernels, biases = ([each.detach().numpy() for each in group] for group in (self.weights, self.biases))
        each = [
            Linear([kernel[m] for kernel in kernels], [bias[m, 0] for bias in biases], self.activation)
            for m in range(self.members)
        ]
        self.apart = nn.ModuleList(each)

    def outputs(self, x: Tensor) -> Tensor:
        """[E, B, outputs] as they leave the last layers."""
        return torch.stack([member(x[m]) for m, member in enumerate(self.apart)])


class Imagine(nn.Module):
    """A model's step: of one member, or of the equal mixture of all with their disagreement."""

    def __init__(self, world: ensemble.World, together: bool):
        super().__init__()
        self.ensemble, self.together = world.ensemble, together
        self.normaliser = nn.ParameterList(nn.Parameter(each, requires_grad=False) for each in world.normaliser)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """What :func:`mbrl_jax.serving.export.graphs.model_graphs` lists, of observations [B, D] and actions [B]."""
        world = ensemble.World(self.ensemble, ensemble.Normaliser(*self.normaliser))
        size, rows = observation.shape[-1], (self.ensemble.members, *observation.shape)
        said = ensemble.predict(world, observation.expand(rows), action.long().expand(rows[:2]))
        mean, variance = said.mean.mean(0), said.mean.var(0, correction=0)[..., :size]
        if said.log_variance is not None:
            variance = variance + said.log_variance[..., :size].exp().mean(0)
        logit = None if said.termination is None else said.termination.mean(0)
        moved = ensemble.transition(world, ensemble.Prediction(mean, None, logit), observation, action, None)
        found: tuple[Tensor, ...] = (moved.next_observation, moved.reward, moved.terminated)
        if not self.together and said.log_variance is None:
            return found
        found = (*found, world.normaliser.target_std[:size] * variance.sqrt())
        apart = said.mean.var(0, correction=0).mean(-1).sqrt()
        return (*found, apart) if self.together else found


# --------------------------------------------------------------------------------------------------------------- modules


def policy_module(config: Any, task: Environment, params: Any, vote: bool) -> nn.Module:
    """The policy of one seed, or the vote of all, whose parameters have leaves [seeds, ...].

    Raises:
      ConfigError: the reference has no such network.

    """
    if not vote:
        return Greedy(_network(config, task, params))
    seeds = len(jax.tree.leaves(params)[0])
    each = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], params) for seed in range(seeds)]
    return Vote([_network(config, task, one) for one in each], task.spec.action_count)


def _network(config: Any, task: Environment, params: Any) -> nn.Module:
    agent, spec = config.agent, task.spec
    if spec.continuous or not isinstance(agent, QLearningConfig | PolicyGradientConfig):
        raise ConfigError(
            f"format: 'torchscript' does not fit an agent of kind {agent.kind!r} in {spec.name!r}; the reference in PyTorch has "
            "networks of q_learning and policy_gradient with discrete actions"
        )
    state = weights.q_to_torch(params)
    network: nn.Module
    if isinstance(agent, PolicyGradientConfig):
        network = policy_gradient.Network(agent, spec.observation_scale, spec.action_count)
    else:
        scale = make_q_learner(agent, spec).config.input_scale or spec.observation_scale
        each = [QNetwork(agent.hidden, scale, spec.action_count) for _ in range(agent.members)]
        network = each[0] if agent.members == 1 else QEnsemble(each)
    network.to(torch.float32).load_state_dict(state)
    return network.eval()


def model_module(config: Any, task: Environment, members: Any, which: list[int], together: bool) -> nn.Module:
    """The members ``which`` of a world model.

    Raises:
      ConfigError: the reference has no such model, or does not know the task.

    """
    model, name = config.model, task.spec.name
    if name not in TASKS or not isinstance(model, ModelConfig):
        raise ConfigError(
            f"format: 'torchscript' does not fit a model of {name!r}; the reference in PyTorch knows {', '.join(TASKS)}"
        )
    some = jax.tree.map(lambda leaf: np.asarray(leaf)[which], (members.params, members.bounds))
    made = Members(model, TASKS[name], len(which))
    made.load_state_dict(weights.ensemble_to_torch(some[0], *some[1]))
    made.take_apart()
    normaliser = ensemble.Normaliser(*(torch.from_numpy(np.array(each)) for each in members.normaliser))
    return Imagine(ensemble.World(made, normaliser), together).eval()


# ----------------------------------------------------------------------------------------------------------------- files


def write(module: nn.Module, graph: Graph, inputs: tuple[np.ndarray, ...]) -> bytes:
    """A module, traced with a few real rows; it takes any number of them."""
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch announces that TorchScript will be followed by something else
        some = tuple(torch.from_numpy(np.array(column[:EXAMPLE_ROWS])) for column in inputs)
        torch.jit.save(torch.jit.trace(module, some, check_trace=False), content)
    return content.getvalue()


def quantise(module: nn.Module) -> nn.Module:
    """The module with its large linear layers in INT8, whose inputs are quantised by the range of the batch.

    Raises:
      ConfigError: no layer is large enough.

    """
    large = {
        name: quantization.per_channel_dynamic_qconfig
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.numel() >= LEAST_WEIGHTS
    }
    if not large:
        raise ConfigError(f"int8: 'dynamic' does not fit: no layer has {LEAST_WEIGHTS:,} weights or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised: nn.Module = quantization.quantize_dynamic(module, large, dtype=torch.qint8)
    return quantised


def load(content: bytes, graph: Graph) -> Run:
    """What a traced module gives for rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(content))

    def run(*inputs: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [each.numpy() for each in module(*(torch.from_numpy(np.array(column)) for column in inputs))]

    return run
