"""Flax parameters as torch state dictionaries and back, exactly: values and dtypes stay as they are.

A Flax tree is ``{"params": {"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}}``; an ensemble's leaves have a leading member
axis, and its log-variance bounds stand apart. The leaves of several Q-networks have a leading axis too.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tree = dict[str, Any]


def _layers(tree: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The kernels and biases in the layers' order."""
    if set(tree) != {"params"}:
        raise ValueError(f"a Flax tree has the one key 'params', not {sorted(tree)}")
    params = tree["params"]
    layers = []
    for i in range(len(params)):
        name = f"Dense_{i}"
        if name not in params:
            raise ValueError(f"params/{name} is missing; there are {sorted(params)}")
        if set(params[name]) != {"kernel", "bias"}:
            raise ValueError(f"params/{name} has the keys 'kernel' and 'bias', not {sorted(params[name])}")
        layers.append((np.array(params[name]["kernel"]), np.array(params[name]["bias"])))
    if not layers:
        raise ValueError("params/Dense_0 is missing; there are no layers")
    return layers


def _tree(layers: list[tuple[np.ndarray, np.ndarray]]) -> Tree:
    return {"params": {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers)}}


def _numbers(state: Mapping[str, Tensor], pattern: str, others: set[str]) -> int:
    """How many layers ``state`` has, after a look at every key."""
    matches = {key: re.fullmatch(pattern, key) for key in state}
    odd = [key for key, match in matches.items() if match is None and key not in others]
    if odd:
        raise ValueError(f"{odd[0]} is no parameter of such a network")
    missing = others - set(state)
    if missing:
        raise ValueError(f"{sorted(missing)[0]} is missing; there are {sorted(state)}")
    return 1 + max((int(match.group(1)) for match in matches.values() if match), default=-1)


def _array(state: Mapping[str, Tensor], key: str) -> np.ndarray:
    if key not in state:
        raise ValueError(f"{key} is missing; there are {sorted(state)}")
    return state[key].detach().cpu().numpy().copy()


def q_to_torch(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dictionary of a :class:`~mbrl_jax.reference.networks.QNetwork` from a Flax tree.

    Where the leaves have a leading axis it is that of a :class:`~mbrl_jax.reference.networks.QEnsemble`.

    Raises:
      ValueError: a key is missing or odd.

    """
    layers = _layers(tree)
    if layers[0][0].ndim == 2:
        return _q_state(layers)
    state: dict[str, Tensor] = {}
    for q in range(len(layers[0][0])):
        one = _q_state([(kernel[q], bias[q]) for kernel, bias in layers])
        state |= {f"networks.{q}.{key}": leaf for key, leaf in one.items()}
    return state


def _q_state(layers: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    state = {}
    for i, (kernel, bias) in enumerate(layers):
        state[f"layers.{i}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.T))
        state[f"layers.{i}.bias"] = torch.from_numpy(bias.copy())
    return state


def q_to_flax(state: Mapping[str, Tensor]) -> Tree:
    """The Flax tree, of numpy arrays, from the state dictionary of a Q-network or of several.

    Raises:
      ValueError: a key is missing or odd.

    """
    if not any(key.startswith("networks.") for key in state):
        return _tree(_q_layers(state))
    matches = {key: re.fullmatch(r"networks\.(\d+)\.(.+)", key) for key in state}
    networks: dict[int, dict[str, Tensor]] = {}
    for key, match in matches.items():
        if match is None:
            raise ValueError(f"{key} is no parameter of such networks")
        networks.setdefault(int(match.group(1)), {})[match.group(2)] = state[key]
    missing = set(range(len(networks))) - set(networks)
    if missing:
        raise ValueError(f"networks.{min(missing)} is missing; there are {sorted(networks)}")
    layers = zip(*(_q_layers(networks[q]) for q in range(len(networks))), strict=True)
    return _tree([(np.stack([kernel for kernel, _ in layer]), np.stack([bias for _, bias in layer])) for layer in layers])


def _q_layers(state: Mapping[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    count = _numbers(state, r"layers\.(\d+)\.(?:weight|bias)", set())
    keys = [f"layers.{i}" for i in range(max(count, 1))]
    return [(np.ascontiguousarray(_array(state, f"{key}.weight").T), _array(state, f"{key}.bias")) for key in keys]


def ensemble_to_torch(tree: Mapping[str, Any], minimum: Any, maximum: Any) -> dict[str, Tensor]:
    """The state dictionary of an :class:`~mbrl_jax.reference.model.ensemble.Ensemble` from a Flax tree and its bounds [E, D'].

    Raises:
      ValueError: a key is missing or odd.

    """
    state = {"minimum": torch.from_numpy(np.array(minimum)), "maximum": torch.from_numpy(np.array(maximum))}
    for i, (kernel, bias) in enumerate(_layers(tree)):
        state[f"weights.{i}"] = torch.from_numpy(kernel)
        state[f"biases.{i}"] = torch.from_numpy(bias[:, None])
    return state


def ensemble_to_flax(state: Mapping[str, Tensor]) -> tuple[Tree, np.ndarray, np.ndarray]:
    """(the Flax tree, minimum [E, D'], maximum [E, D']), all numpy, from the state dictionary of an ensemble.

    Raises:
      ValueError: a key is missing or odd.

    """
    count = _numbers(state, r"(?:weights|biases)\.(\d+)", {"minimum", "maximum"})
    layers = [(_array(state, f"weights.{i}"), _array(state, f"biases.{i}")[:, 0]) for i in range(max(count, 1))]
    return _tree(layers), _array(state, "minimum"), _array(state, "maximum")
