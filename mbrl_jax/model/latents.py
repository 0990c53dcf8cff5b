"""Distributions of a latent state: categorical variables or independent Gaussian numbers, and the scale of what they reconstruct.

A distribution is told by its *parameters*: of V categorical variables with C classes the logits [..., V * C], of V Gaussian
numbers the means and the free deviations [..., 2 * V]. A sample is one flat vector. All random numbers are arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws

SMALLEST_DEVIATION = 0.1  # of a Gaussian latent, so that no posterior becomes a point


def symlog(x: Array) -> Array:
    """[...] ``sign(x) log(1 + |x|)``: near 0 as it is, far from 0 its logarithm (Hafner et al. 2023, arXiv:2301.04104)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """[...] the inverse of :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class Latents(NamedTuple):
    """A family of distributions of latent vectors.

    Attributes:
      parameters: numbers that tell one distribution.
      size: Z numbers of a sample.
      draw: ``(key, shape) -> [*shape, V]``, the random numbers of samples ``shape``.
      sample: ``(parameters [..., P], drawn [..., V]) -> [..., Z]``, differentiable with respect to the parameters.
      mode: ``parameters [..., P] -> [..., Z]``, the most likely vector.
      divergence: ``(p [..., P], q [..., P]) -> [...]`` nats, KL(p || q), summed over the variables.
      entropy: ``parameters [..., P] -> [...]`` nats, summed over the variables.

    """

    parameters: int
    size: int
    draw: Callable[[Array, tuple[int, ...]], Array]
    sample: Callable[[Array, Array], Array]
    mode: Callable[[Array], Array]
    divergence: Callable[[Array, Array], Array]
    entropy: Callable[[Array], Array]


def categorical(variables: int, classes: int, uniform: Array | float) -> Latents:
    """V categorical variables of C classes (Hafner et al. 2021, arXiv:2010.02193), as V one-hot vectors.

    A sample has the gradient of the probabilities (straight-through, Bengio et al. 2013, arXiv:1308.3432).

    Args:
      variables: V.
      classes: C.
      uniform: share of the uniform distribution that is mixed in, so that no class has the probability 0 (arXiv:2301.04104).

    """

    def probabilities(parameters: Array) -> Array:
        table = parameters.reshape(*parameters.shape[:-1], variables, classes)
        return (1 - uniform) * jax.nn.softmax(table, axis=-1) + uniform / classes

    def flat(table: Array) -> Array:
        return table.reshape(*table.shape[:-2], variables * classes)

    def sample(parameters: Array, drawn: Array) -> Array:
        probability = probabilities(parameters)
        chosen = draws.categorical(jax.lax.stop_gradient(probability), drawn)
        hot = jax.nn.one_hot(chosen, classes, dtype=probability.dtype)
        return flat(hot + (probability - jax.lax.stop_gradient(probability)))

    def mode(parameters: Array) -> Array:
        probability = probabilities(parameters)
        return flat(jax.nn.one_hot(jnp.argmax(probability, axis=-1), classes, dtype=probability.dtype))

    def divergence(p: Array, q: Array) -> Array:
        first, second = probabilities(p), probabilities(q)
        return jnp.sum(first * (jnp.log(first) - jnp.log(second)), axis=(-2, -1))

    def entropy(parameters: Array) -> Array:
        probability = probabilities(parameters)
        return -jnp.sum(probability * jnp.log(probability), axis=(-2, -1))

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        return draws.uniform(key, (*shape, variables))

    return Latents(variables * classes, variables * classes, draw, sample, mode, divergence, entropy)


def gaussian(variables: int) -> Latents:
    """V independent Gaussian numbers, whose samples are reparameterised (Hafner et al. 2019, arXiv:1811.04551)."""

    def moments(parameters: Array) -> tuple[Array, Array]:
        mean, free = jnp.split(parameters, 2, axis=-1)
        return mean, jax.nn.softplus(free) + SMALLEST_DEVIATION

    def sample(parameters: Array, drawn: Array) -> Array:
        mean, deviation = moments(parameters)
        return mean + deviation * drawn

    def divergence(p: Array, q: Array) -> Array:
        (mean, deviation), (other, its) = moments(p), moments(q)
        ratio = jnp.square(deviation / its)
        return 0.5 * jnp.sum(ratio + jnp.square((mean - other) / its) - 1 - jnp.log(ratio), axis=-1)

    def entropy(parameters: Array) -> Array:
        return jnp.sum(jnp.log(moments(parameters)[1]) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        return draws.normal(key, (*shape, variables))

    return Latents(2 * variables, variables, draw, sample, lambda parameters: moments(parameters)[0], divergence, entropy)
