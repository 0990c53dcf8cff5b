"""Networks: a plain multilayer perceptron in flax, and second derivatives propagated through it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax.draws import lecun_normal

Params = Any  # a flax parameter tree: {"params": {"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}


ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)  # eps is added to the root


def adam_step(params: Any, optimizer: Any, gradients: Any, learning_rate: Array | float) -> tuple[Any, Any]:
    """One step of Adam (Kingma & Ba 2015, arXiv:1412.6980); returns the new parameters and ``ADAM``'s new state."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        direction, optimizer = ADAM.update(gradients, optimizer)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), optimizer


class MLP(nn.Module):
    """Dense layers with one nonlinearity between them; maps [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., outputs] from [..., inputs]."""
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](nn.Dense(width, kernel_init=lecun_normal, param_dtype=x.dtype)(x))
        return nn.Dense(self.outputs, kernel_init=lecun_normal, param_dtype=x.dtype)(x)


def laplacian(params: Params, x: Array, directions: Array, activation: str) -> Array:
    """The sum of second derivatives of an :class:`MLP`'s outputs along given directions of its input.

    With the unit vectors of some inputs as directions it is the exact Laplacian over those; with random signs divided by
    the root of their number it is Hutchinson's estimate of it. One forward pass carries value, first derivatives and the sum
    of second ones together, at J + 2 times the cost of the value alone (the forward Laplacian of Li et al. 2023,
    arXiv:2307.08214); nested differentiation would carry every second derivative apart.

    Args:
      params: of one MLP.
      x: [B, inputs].
      directions: [J, inputs].
      activation: the MLP's, twice differentiable.

    Returns:
      [B, outputs], sum over j of the second derivative along ``directions[j]``.

    """
    layers = params["params"]
    slope = jnp.broadcast_to(directions[:, None, :], (directions.shape[0], *x.shape))  # [J, B, inputs]
    total = jnp.zeros_like(x)  # [B, inputs] sum of second derivatives
    for i in range(len(layers)):
        kernel, bias = layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]
        if i == 0:  # the input is linear in itself: the first slopes do not depend on the row, nor is there curvature
            x = x @ kernel + bias[None]
            slope = jnp.broadcast_to((directions @ kernel)[:, None, :], (directions.shape[0], *x.shape))
            total = jnp.zeros_like(x)
        elif i + 1 < len(layers):
            x, slope, total = x @ kernel + bias[None], slope @ kernel, total @ kernel
        else:
            return total @ kernel
        x, first, second = _two_derivatives(ACTIVATIONS[activation], x)
        total = second * jnp.sum(jnp.square(slope), axis=0) + first * total
        slope = first[None] * slope
    return total


def _two_derivatives(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array, Array]:
    """f, f' and f'' of an elementwise function, each shaped as x."""
    one = jnp.ones_like(x)

    def value_and_slope(x: Array) -> tuple[Array, Array]:
        return jax.jvp(f, (x,), (one,))

    (value, first), (_, second) = jax.jvp(value_and_slope, (x,), (one,))
    return value, first, second
