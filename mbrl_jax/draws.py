"""Random numbers in bulk.

The numbers are those of ``jax.random``, drawn as one flat vector and then shaped: for a shape of several axes the compiler would
unroll the generator's index arithmetic over all of them, which takes it ten times as long and makes the code no faster.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Shape = tuple[int, ...]


def _flat(draw: Callable[[Array, Shape], Array], key: Array, shape: Shape) -> Array:
    return draw(key, (math.prod(shape),)).reshape(shape)


def bits(key: Array, shape: Shape) -> Array:
    """``shape`` uniform uint32."""
    return _flat(lambda key, shape: jax.random.bits(key, shape, jnp.uint32), key, shape)


def uniform(key: Array, shape: Shape) -> Array:
    """``shape`` uniform in [0, 1), in the default float type."""
    return _flat(jax.random.uniform, key, shape)


def symmetric(key: Array, shape: Shape) -> Array:
    """``shape`` uniform in (-1, 1), both ends left out, in the default float type."""
    dtype = jnp.zeros(()).dtype
    lowest = jnp.nextafter(jnp.asarray(-1, dtype), jnp.asarray(0, dtype))
    return _flat(lambda key, shape: jax.random.uniform(key, shape, dtype, lowest, 1.0), key, shape)


def normal(key: Array, shape: Shape) -> Array:
    """``shape`` standard normal, in the default float type."""
    return _flat(jax.random.normal, key, shape)


def integers(key: Array, shape: Shape, below: int) -> Array:
    """``shape`` int32 uniform in [0, below)."""
    return _flat(lambda key, shape: jax.random.randint(key, shape, 0, below, jnp.int32), key, shape)


def categorical(probability: Array, uniform: Array) -> Array:
    """[...] int32 drawn with probabilities [..., n] by uniform draws [...], by the inverse of the distribution function."""
    below = jnp.cumsum(probability, axis=-1)[..., :-1]
    return jnp.sum((uniform[..., None] >= below).astype(jnp.int32), axis=-1, dtype=jnp.int32)


def permutations(key: Array, shape: Shape) -> Array:
    """``shape`` int32, each last axis a permutation of its places.

    Random bits are sorted that carry their place in their last bits, which a CPU does six times as fast as sorting pairs of
    bits and place. Places whose leading bits tie, each pair with a chance below 2^-16, come in order.
    """
    places = jnp.arange(shape[-1], dtype=jnp.uint32).reshape((1,) * (len(shape) - 1) + (-1,))
    if shape[-1] > 2**16:  # too few bits would be left
        return jnp.argsort(bits(key, shape), axis=-1).astype(jnp.int32)
    mask = jnp.uint32(2 ** max(shape[-1] - 1, 0).bit_length() - 1)
    return (jnp.sort((bits(key, shape) & ~mask) | places, axis=-1) & mask).astype(jnp.int32)


def inverse(permutations: Array) -> Array:
    """The inverse of each permutation, [..., n] int32: of all in one scatter."""
    flat = permutations.reshape(math.prod(permutations.shape[:-1]), permutations.shape[-1])
    row = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None]
    place = jnp.broadcast_to(jnp.arange(flat.shape[1], dtype=jnp.int32)[None], flat.shape)
    found = jnp.zeros_like(flat).at[row, flat].set(place, unique_indices=True, mode="promise_in_bounds")
    return found.reshape(permutations.shape)


def lecun_normal(key: Array, shape: Shape, dtype: Any) -> Array:
    """Initial weights [inputs, outputs]: normal, cut at two deviations, of variance 1 / inputs (LeCun et al. 1998)."""
    deviation = (1.0 / shape[0]) ** 0.5 / 0.87962566103423978  # that of the standard normal cut at -2 and 2
    return deviation * _flat(lambda key, flat: jax.random.truncated_normal(key, -2.0, 2.0, flat, dtype), key, shape)
