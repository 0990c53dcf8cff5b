"""A Q-learner's update inside a kernel: what ``QLearner.update`` does with one network and a maximum or double target."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.q_learning import QLearner
from mbrl_jax.kernels.arrays import columns, first_best, padded, pick, places, read, read_array, write_array
from mbrl_jax.kernels.perceptron import Layers, backward, forward, forward_kept, read_layers, shapes, zeros
from mbrl_jax.replay import width

BLOCK = 32  # rows of a minibatch that go through the network at once; at 64 more registers are spilled
LEAST_WEIGHT = 1e-12  # stands for a minibatch's weight of zero; its product with 1e-8 is still a number
B1, B2, EPSILON = 0.9, 0.999, 1e-8  # of mbrl_jax.networks.ADAM


class Networks(NamedTuple):
    """The learner's four sets of parameters: references to flat arrays."""

    online: Layers
    target: Layers
    mean: Layers  # Adam's first moments
    square: Layers  # Adam's second moments


class Numbers(NamedTuple):
    """The learner's traced settings, each [1]."""

    discount: Any
    target_rate: Any
    huber_delta: Any


class Schedule(NamedTuple):
    """What the updates differ in, each [updates]."""

    learning_rate: Any
    mean_correction: Any  # 1 - b1^t
    square_correction: Any  # 1 - b2^t


class Memory(NamedTuple):
    """What an update reads, and of which it writes the networks: references to flat arrays."""

    networks: Networks
    rows: Any  # [N * (2 D + 5)] packed rows
    index: Any  # [updates * B] int32, the minibatches' rows
    scale: Any  # [D] what observations are divided by
    numbers: Numbers
    schedule: Schedule


class Progress(NamedTuple):
    """How far the learner is."""

    frozen: Array  # [] bool
    updates: Array  # [] int32


class _Sums(NamedTuple):
    """Over the rows so far."""

    gradients: Layers
    loss: Array  # [] weighted
    weight: Array  # []
    mean: Array  # [] of the targets
    spread: Array  # [] weighted squared distances of the targets from their mean


def widths(learner: QLearner) -> tuple[int, ...]:
    """Of the network, from input to output."""
    return (learner.spec.observation_size, *learner.config.hidden, learner.spec.action_count)


def update(
    learner: QLearner, memory: Memory, progress: Progress, which: Array, wait: Callable[[], None]
) -> tuple[Progress, Array, Array]:
    """Update number ``which``: forwards, targets, backwards, Adam, target network.

    Args:
      learner: the settings.
      memory: what is read, and the parameters.
      progress: how far it is.
      which: [] int32.
      wait: lets every thread see what the others have written.

    Returns:
      How far it is then, and [] and [] the two losses of an ``UpdateLog``.

    """
    count = learner.config.batch_size
    sizes = widths(learner)
    nothing = jnp.zeros((), jnp.float32)
    block = min(BLOCK, padded(count))

    def add(i: Array, sums: _Sums) -> _Sums:
        wait()  # so that no block's weights are loaded before the loop and held in registers through it
        return _add_block(learner, memory, which, i * block + places(block), sums)

    sums = jax.lax.fori_loop(0, -(-count // block), add, _Sums(zeros(sizes), nothing, nothing, nothing, nothing))
    total = jnp.maximum(sums.weight, LEAST_WEIGHT)
    gradients = jax.tree.map(lambda sum_: sum_ / total, sums.gradients)
    frozen = progress.frozen | _descend(memory, sizes, progress.frozen, gradients, which, wait)
    loss = sums.loss / total
    after = Progress(frozen, progress.updates + (~frozen).astype(jnp.int32))
    return after, loss, loss / jnp.maximum(sums.spread / total, 1e-8)


def _add_block(learner: QLearner, memory: Memory, which: Array, place: Array, sums: _Sums) -> _Sums:
    """Add the gradients and losses of the minibatch's rows at ``place`` [R]."""
    config, size, actions = learner.config, learner.spec.observation_size, learner.spec.action_count
    counted = place < config.batch_size
    start = read(memory.index, which * config.batch_size + place, counted) * width(size)  # of each packed row
    wide = padded(size)
    column = columns(place.shape[0], wide)
    inside = counted[:, None] & (column < size)
    scale = read_array(memory.scale, (size,), other=1.0)[None, :]
    observation = read(memory.rows, start[:, None] + column, inside) / scale
    following = read(memory.rows, start[:, None] + column + size, inside) / scale
    action, reward, terminated, weight = (read(memory.rows, start + (2 * size + i), counted) for i in range(4))

    online, target_network = (read_layers(each, widths(learner)) for each in (memory.networks.online, memory.networks.target))
    value = forward(target_network, following, "relu")
    if config.target == "double":
        best = pick(value, first_best(forward(online, following, "relu"), actions))
    else:
        best = pick(value, first_best(value, actions))
    target = reward + memory.numbers.discount[0] * (jnp.where(terminated > 0.5, 0.0, 1.0) * best)

    values, kept = forward_kept(online, observation)
    error = pick(values, action.astype(jnp.int32)) - target
    if config.loss == "squared":
        loss, slope = error * error, 2 * error
    else:
        delta, distance = memory.numbers.huber_delta[0], jnp.abs(error)
        loss = jnp.where(distance <= delta, 0.5 * error * error, delta * (distance - 0.5 * delta))
        slope = jnp.clip(error, -delta, delta)
    chosen = columns(*values.shape) == action.astype(jnp.int32)[:, None]
    gradients = backward(online, kept, jnp.where(chosen, (weight * slope)[:, None], 0.0))

    here = jnp.sum(weight)
    mean = jnp.sum(weight * target) / jnp.maximum(here, LEAST_WEIGHT)
    spread = jnp.sum(weight * jnp.square(target - mean))
    both, apart = sums.weight + here, mean - sums.mean  # moments of two parts put together (Chan et al. 1979)
    share = here / jnp.maximum(both, LEAST_WEIGHT)
    return _Sums(
        jax.tree.map(jnp.add, sums.gradients, gradients),
        sums.loss + jnp.sum(weight * loss),
        both,
        sums.mean + apart * share,
        sums.spread + spread + apart * apart * sums.weight * share,
    )


def _descend(
    memory: Memory, sizes: tuple[int, ...], frozen: Array, gradients: Layers, which: Array, wait: Callable[[], None]
) -> Array:
    """Adam's step and the target network's, unless ``frozen`` or to parameters that are not finite, [] bool."""
    schedule, networks = memory.schedule, memory.networks
    rate, first, second = schedule.learning_rate[which], schedule.mean_correction[which], schedule.square_correction[which]
    refs = (networks.mean, networks.square, networks.target, networks.online)
    every = [
        each for layer, *rest in zip(shapes(sizes), *refs, gradients, strict=True) for each in zip(layer, *rest, strict=True)
    ]

    def moments(size: tuple[int, ...], mean: Any, square: Any, gradient: Array) -> tuple[Array, Array]:
        m, s = read_array(mean, size), read_array(square, size)
        return (1 - B1) * gradient + B1 * m, (1 - B2) * (gradient * gradient) + B2 * s

    stepped = []
    for size, mean, square, _, online, gradient in every:
        m, s = moments(size, mean, square, gradient)
        stepped.append(read_array(online, size) - rate * ((m / first) / (jnp.sqrt(s / second) + EPSILON)))
    bad = ~_all_finite(stepped)
    wait()  # until all have read; what is written is written in a second pass, once it is known that the step is made
    share, made = memory.numbers.target_rate[0], ~(frozen | bad)
    for (size, mean, square, target, online, gradient), p in zip(every, stepped, strict=True):
        m, s = moments(size, mean, square, gradient)
        t = read_array(target, size)
        write_array(mean, size, m, made)
        write_array(square, size, s, made)
        write_array(target, size, t + share * (p - t), made)
        write_array(online, size, p, made)
    wait()
    return bad


def _all_finite(arrays: Sequence[Array]) -> Array:
    """[] bool, whether every number is finite."""
    bad = jnp.zeros((), jnp.int32)
    for values in arrays:
        wrong = (~(jnp.abs(values) < jnp.inf)).astype(jnp.int32)
        bad = bad + jnp.sum(jnp.sum(wrong, axis=0) if values.ndim == 2 else wrong)
    return bad == 0
