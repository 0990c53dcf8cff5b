"""Batch renormalisation (Ioffe 2017, arXiv:1702.03275): batch normalisation that trains by what it will be used with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

WARM_UP = 100_000  # batches for which it is batch normalisation: the running statistics follow too slowly at first
LARGEST_RATIO, LARGEST_SHIFT = 3.0, 5.0  # of a batch's deviation to the running one, and of their means in running deviations
MOMENTUM = 0.99  # share of the running statistics that a batch leaves
EPSILON = 1e-3  # added to a variance


class BatchRenorm(nn.Module):
    """Normalises each feature over the rows of a batch, or by running statistics where no batch is trained on.

    Its variables of the collection ``batch_stats`` are the running mean [F] and variance [F], and the batches so far [].
    """

    columns: bool = False  # whether x is [F, B]

    @nn.compact
    def __call__(self, x: Array, weight: Array | None = None) -> Array:
        """Normalised x, of the same shape.

        Args:
          x: [B, F], or [F, B] with ``columns``.
          weight: [B] of the rows of a batch that is trained on; none takes the running statistics and leaves them as they are.

        """
        size = x.shape[0 if self.columns else 1]
        last = (-1, 1) if self.columns else (1, -1)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,), x.dtype)
        variance = self.variable("batch_stats", "variance", jnp.ones, (size,), x.dtype)
        batches = self.variable("batch_stats", "batches", jnp.zeros, (), jnp.int32)
        scale = jnp.asarray(self.param("scale", nn.initializers.ones, (size,), x.dtype))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (size,), x.dtype))

        deviation = jnp.sqrt(variance.value + EPSILON)
        if weight is None:
            normal = (x - mean.value.reshape(last)) / deviation.reshape(last)
        else:
            rows, axis = weight.reshape((1, -1) if self.columns else (-1, 1)) / jnp.sum(weight), 1 if self.columns else 0
            batch_mean = jnp.sum(rows * x, axis)
            batch_variance = jnp.sum(rows * jnp.square(x - batch_mean.reshape(last)), axis)
            batch_deviation = jnp.sqrt(batch_variance + EPSILON)
            warm = batches.value >= WARM_UP
            ratio = jnp.clip(batch_deviation / deviation, 1 / LARGEST_RATIO, LARGEST_RATIO)
            shift = jnp.clip((batch_mean - mean.value) / deviation, -LARGEST_SHIFT, LARGEST_SHIFT)
            ratio, shift = jax.lax.stop_gradient((jnp.where(warm, ratio, 1.0), jnp.where(warm, shift, 0.0)))
            normal = (x - batch_mean.reshape(last)) / batch_deviation.reshape(last)
            normal = normal * ratio.reshape(last) + shift.reshape(last)
            if not self.is_initializing():
                mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
                variance.value = MOMENTUM * variance.value + (1 - MOMENTUM) * batch_variance
                batches.value = batches.value + 1
        return normal * scale.reshape(last) + bias.reshape(last)
