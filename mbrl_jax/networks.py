"""Networks: a plain multilayer perceptron in flax, a gated recurrent unit, and second derivatives of the perceptron."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax.draws import lecun_normal
from mbrl_jax.products import product, product_of_columns
from mbrl_jax.renormalisation import BatchRenorm

Params = Any  # a flax parameter tree: {"params": {"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}


COLUMNS_FROM = 128
"""Rows from which on a batch goes through a network as columns, as it measured best on a CPU: benchmarks/NOTES.md."""

ADAM_DECAYS = (0.9, 0.999)  # of the first and the second moment
COMPARED_UP_TO = 8
"""Values of which the largest is found by comparing one after another."""

ADAM = optax.scale_by_adam(*ADAM_DECAYS, eps=1e-8)  # eps is added to the root


def optimiser_of(clip: float | None, *, batched: bool = False) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) without its step size, with the gradient's norm clipped before if it should be.

    Args:
      clip: the largest Euclidean norm of a gradient; none leaves it as it is.
      batched: whether every leaf has a leading axis of networks, each of which is clipped by itself.

    """
    if clip is None:
        return ADAM
    one = optax.clip_by_global_norm(clip)
    if not batched:
        return optax.chain(one, ADAM)

    def each(gradients: Any, state: Any, params: Any = None, **_: Any) -> Any:
        return jax.vmap(lambda gradient: one.update(gradient, state)[0])(gradients), state

    return optax.chain(optax.GradientTransformation(one.init, each), ADAM)  # type: ignore[arg-type]


def adam_step(
    params: Any,
    optimizer: Any,
    gradients: Any,
    learning_rate: Array | float,
    optimiser: optax.GradientTransformation = ADAM,
) -> tuple[Any, Any]:
    """One step of an optimiser as :func:`optimiser_of` gives it; return the new parameters and its new state."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        direction, optimizer = optimiser.update(gradients, optimizer)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), optimizer


def largest(values: Array) -> Array:
    """[...] int32, the place of the largest of values [..., A], the first of several, as ``argmax`` has it.

    For few values it is comparisons. A reduction over so short an axis is a kernel of its own on a GPU, and on a CPU a loop for
    each row.
    """
    if values.shape[-1] > COMPARED_UP_TO:
        return jnp.argmax(values, axis=-1).astype(jnp.int32)
    best, place = values[..., 0], jnp.zeros(values.shape[:-1], jnp.int32)
    for other in range(1, values.shape[-1]):
        value = values[..., other]
        larger = (value > best) | (jnp.isnan(value) & ~jnp.isnan(best))  # NaN is the largest of all
        best, place = jnp.where(larger, value, best), jnp.where(larger, jnp.int32(other), place)
    return place


def all_finite(tree: Any) -> Array:
    """[] bool, whether every number of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


class Dense(nn.Module):
    """An affine map of the rows [B, inputs] to [B, outputs], or of columns [inputs, B] to [outputs, B]; or its linear part."""

    outputs: int
    columns: bool = False
    linear: bool = False
    scale: float = 1.0  # of the initial kernel

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, outputs] from [B, inputs], or the same as columns."""
        kernel = self.param("kernel", self._initial, (x.shape[0 if self.columns else 1], self.outputs), x.dtype)
        y = product_of_columns(jnp.asarray(kernel), x) if self.columns else product(x, jnp.asarray(kernel))
        if self.linear:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,), x.dtype)
        return y + (bias[:, None] if self.columns else bias[None])

    def _initial(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        kernel = lecun_normal(key, shape, dtype)
        return kernel if self.scale == 1 else self.scale * kernel


class MLP(nn.Module):
    """Dense layers with one nonlinearity between them; maps [..., inputs] to [..., outputs].

    Within, ``COLUMNS_FROM`` rows or more are columns, which saves transposing them for the kernels' gradients.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: str
    output_bias: bool = True  # without it, the last layer's is left to the caller to add
    output_scale: float = 1.0  # of the last layer's initial kernel
    layer_norm: bool = False  # of each hidden layer, before its nonlinearity (Ba et al. 2016, arXiv:1607.06450)
    batch_renorm: bool = False  # of the inputs and of each hidden layer, before its nonlinearity

    @nn.compact
    def __call__(self, x: Array, weight: Array | None = None) -> Array:
        """[..., outputs] from [..., inputs]; ``weight`` [...] is of a batch that is trained on, for batch renormalisation."""
        before, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        columns = isinstance(x.shape[0], int) and x.shape[0] >= COLUMNS_FROM  # the rows of an export may be any number
        x = x.T if columns else x
        weight = None if weight is None else weight.reshape(-1)
        if self.batch_renorm:
            x = BatchRenorm(columns)(x, weight)
        for width in self.hidden:
            x = Dense(width, columns)(x)
            if self.layer_norm:
                units = 0 if columns else 1
                x = nn.LayerNorm(reduction_axes=units, feature_axes=units)(x)
            if self.batch_renorm:
                x = BatchRenorm(columns)(x, weight)
            x = ACTIVATIONS[self.activation](x)
        x = Dense(self.outputs, columns, linear=not self.output_bias, scale=self.output_scale)(x)
        return (x.T if columns else x).reshape(*before, self.outputs)


class GRU(nn.Module):
    """A gated recurrent unit with layer norm (Cho et al. 2014, arXiv:1406.1078; Ba et al. 2016, arXiv:1607.06450)."""

    units: int

    @nn.compact
    def __call__(self, h: Array, x: Array) -> Array:
        """[B, units] the next state from the state h [B, units] and inputs [B, N]."""
        gates = nn.LayerNorm()(Dense(3 * self.units)(jnp.concatenate([h, x], axis=-1)))
        reset, candidate, update = jnp.split(gates, 3, axis=-1)
        update = jax.nn.sigmoid(update - 1)  # a fresh unit keeps most of its state
        return update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1 - update) * h


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
            x = product(x, kernel) + bias[None]
            slope = jnp.broadcast_to((directions @ kernel)[:, None, :], (directions.shape[0], *x.shape))
            total = jnp.zeros_like(x)
        elif i + 1 < len(layers):
            moved = product(jnp.concatenate([x[None], slope, total[None]]).reshape(-1, x.shape[-1]), kernel)
            moved = moved.reshape(-1, x.shape[0], kernel.shape[-1])
            x, slope, total = moved[0] + bias[None], moved[1:-1], moved[-1]
        else:
            return product(total, kernel)
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
