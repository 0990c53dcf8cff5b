"""Stochastic policies: what the outputs of an actor's network mean, for discrete and for continuous actions.

All random numbers are arguments: ``uniform`` [...] from [0, 1) and an action ``random`` [...] of the uniform random policy, of
which a policy uses one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import largest

LOG_STD_BOUNDS = (-3.0, 1.0)  # of the Gaussian before it is squashed; a fresh policy stands in the middle
LARGEST_ACTION = 1 - 1e-6  # that is told from 1, so that what was squashed to it can be found again


class Distribution(NamedTuple):
    """A distribution over actions for every row of O outputs.

    Attributes:
      outputs: O.
      sample: ``(outputs [..., O], uniform [...], random [...]) -> actions [...]``.
      relaxed: the same, to be differentiated: continuous actions as they are, discrete ones as weights [..., A], which are 1 for
        the action drawn and have the probabilities' gradients (straight-through, Bengio et al. 2013, arXiv:1308.3432).
      log_probability: ``(outputs [..., O], actions [...]) -> [...]``, nats.
      entropy: ``outputs [..., O] -> [...]``, nats; of a squashed Gaussian that before it is squashed.
      mode: ``outputs [..., O] -> actions [...]``, the most probable ones, of a squashed Gaussian the squashed mean.

    """

    outputs: int
    sample: Callable[[Array, Array, Array], Array]
    relaxed: Callable[[Array, Array, Array], Array]
    log_probability: Callable[[Array, Array], Array]
    entropy: Callable[[Array], Array]
    mode: Callable[[Array], Array]


def policy_of(spec: EnvironmentSpec) -> Distribution:
    """What suits a task's actions."""
    if spec.continuous:
        return Distribution(
            2 * spec.action_size, _squashed, _squashed, _squashed_log_probability, _squashed_entropy, squashed_mean
        )
    return Distribution(
        outputs=spec.action_count,
        sample=_categorical,
        relaxed=_straight_through,
        log_probability=_categorical_log_probability,
        entropy=_categorical_entropy,
        mode=_best,
    )


# ------------------------------------------------------------------------------------------------------------- categorical


def _categorical(outputs: Array, uniform: Array, random: Array) -> Array:
    return draws.categorical(jax.nn.softmax(outputs, axis=-1), uniform)


def _straight_through(outputs: Array, uniform: Array, random: Array) -> Array:
    probability = jax.nn.softmax(outputs, axis=-1)
    drawn = jax.nn.one_hot(_categorical(outputs, uniform, random), outputs.shape[-1], dtype=outputs.dtype)
    return drawn + (probability - jax.lax.stop_gradient(probability))


def _categorical_log_probability(outputs: Array, action: Array) -> Array:
    logits = jax.nn.log_softmax(outputs, axis=-1)
    return jnp.sum(logits * jax.nn.one_hot(action, outputs.shape[-1], dtype=outputs.dtype), axis=-1)


def _categorical_entropy(outputs: Array) -> Array:
    logits = jax.nn.log_softmax(outputs, axis=-1)
    return -jnp.sum(jnp.exp(logits) * logits, axis=-1)


def _best(outputs: Array) -> Array:
    return largest(outputs)


# ------------------------------------------------------------ Gaussian, squashed into (-1, 1) by the hyperbolic tangent


def sample_with_log_probability(outputs: Array, normal: Array, bounds: tuple[float, float]) -> tuple[Array, Array]:
    """Draw from a squashed Gaussian, so that both results can be differentiated with respect to the outputs.

    The logarithm is taken of the density at the number before it is squashed, where no digits are lost near -1 and 1.

    Args:
      outputs: [..., 2 A].
      normal: [..., A] standard normal.
      bounds: of the logarithm of the deviation.

    Returns:
      Actions [..., A], and their log-probabilities [...], nats.

    """
    mean, log_std = _mean_and_log_std(outputs, bounds)
    raw = mean + jnp.exp(log_std) * normal
    density = -0.5 * jnp.square(normal) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.tanh(raw), jnp.sum(density - 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw)), axis=-1)


def squashed_mean(outputs: Array) -> Array:
    """[..., A] the squashed mean of outputs [..., 2 A]."""
    return jnp.tanh(jnp.split(outputs, 2, axis=-1)[0])


def _mean_and_log_std(outputs: Array, bounds: tuple[float, float] = LOG_STD_BOUNDS) -> tuple[Array, Array]:
    mean, free = jnp.split(outputs, 2, axis=-1)
    low, high = bounds
    return mean, low + (high - low) * jax.nn.sigmoid(free)


def _squashed(outputs: Array, uniform: Array, random: Array) -> Array:
    mean, log_std = _mean_and_log_std(outputs)
    return jnp.tanh(mean + jnp.exp(log_std) * (2**0.5 * jax.lax.erf_inv(random)))  # random numbers as normal ones


def _squashed_log_probability(outputs: Array, action: Array) -> Array:
    mean, log_std = _mean_and_log_std(outputs)
    action = jnp.clip(action, -LARGEST_ACTION, LARGEST_ACTION)
    error = (jnp.arctanh(action) - mean) * jnp.exp(-log_std)
    density = -0.5 * jnp.square(error) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(density - jnp.log1p(-jnp.square(action)), axis=-1)


def _squashed_entropy(outputs: Array) -> Array:
    return jnp.sum(_mean_and_log_std(outputs)[1] + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)
