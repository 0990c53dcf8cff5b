"""A multilayer perceptron inside a kernel, forwards and backwards, on padded arrays."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.kernels.arrays import padded, read_array
from mbrl_jax.networks import Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * jax.nn.sigmoid(x),
    "tanh": jnp.tanh,
    "relu": lambda x: jnp.maximum(x, 0.0),
}
"""Those of :data:`mbrl_jax.networks.ACTIVATIONS` that Triton can compute; it has no error function for ``gelu``."""


class Layer(NamedTuple):
    """A dense layer; as arrays in memory, as references to flat ones, or as padded values."""

    kernel: Any  # [in, out]
    bias: Any  # [out]


Layers = tuple[Layer, ...]


def layers_of(params: Params) -> Layers:
    """The layers of a flax perceptron in order."""
    dense = params["params"]
    return tuple(Layer(dense[f"Dense_{i}"]["kernel"], dense[f"Dense_{i}"]["bias"]) for i in range(len(dense)))


def params_of(layers: Layers) -> Params:
    """The flax parameters of which these are the layers."""
    return {"params": {f"Dense_{i}": {"kernel": layer.kernel, "bias": layer.bias} for i, layer in enumerate(layers)}}


def shapes(widths: Sequence[int]) -> Layers:
    """The shapes of a perceptron's arrays."""
    return tuple(Layer((a, b), (b,)) for a, b in itertools.pairwise(widths))


def zeros(widths: Sequence[int]) -> Layers:
    """Padded layers of zeros."""
    return tuple(Layer(*(jnp.zeros(tuple(map(padded, size)), jnp.float32) for size in layer)) for layer in shapes(widths))


def read_layers(refs: Layers, widths: Sequence[int], member: Array | int = 0) -> Layers:
    """The padded layers of one member, where the references hold those of several one after the other."""
    pairs = zip(refs, shapes(widths), strict=True)
    return tuple(Layer(*(read_array(x, size, member * math.prod(size)) for x, size in zip(*pair, strict=True))) for pair in pairs)


def product(a: Array, b: Array, over: tuple[int, int] = (1, 0)) -> Array:
    """The matrix product over the given axis of each, in the precision that is the default where it is traced."""
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def dense(layer: Layer, x: Array) -> Array:
    """[B, out] from [B, in]."""
    return product(x, layer.kernel) + layer.bias[None, :]


def forward(layers: Layers, x: Array, activation: str) -> Array:
    """[B, outputs] from [B, inputs]."""
    for layer in layers[:-1]:
        x = ACTIVATIONS[activation](dense(layer, x))
    return dense(layers[-1], x)


def forward_kept(layers: Layers, x: Array) -> tuple[Array, list[Array]]:
    """[B, outputs] of a network of rectified units, and what :func:`backward` needs of the way: the input of each layer."""
    kept = [x]
    for layer in layers[:-1]:
        kept.append(jnp.maximum(dense(layer, kept[-1]), 0.0))
    return dense(layers[-1], kept[-1]), kept


def backward(layers: Layers, kept: list[Array], slope: Array) -> Layers:
    """The gradients, summed over rows, from the loss's slope in the outputs [B, outputs]."""
    gradients = []
    for layer, before in zip(reversed(layers), reversed(kept), strict=True):
        gradients.append(Layer(product(before, slope, (0, 0)), jnp.sum(slope, axis=0)))
        if len(gradients) < len(layers):
            slope = jnp.where(before > 0, product(slope, layer.kernel, (1, 1)), 0.0)
    return tuple(reversed(gradients))
