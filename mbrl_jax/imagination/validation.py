"""What a model gets wrong on logged episodes that it was not fitted to: where nothing can be asked, all that can be measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm

from mbrl_jax.config import ConfigError
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.replay import Rows

STEPS = 20  # that a member is followed for
WINDOWS = 200  # of so many steps, that are looked at
LEVELS = (0.5, 0.8, 0.95)  # probabilities of the central intervals whose coverage is measured
BINS = 10  # of the histogram of probability integral transforms


class HeldOut(NamedTuple):
    """Errors on held-out episodes, of M members.

    Errors of states are root mean squares over axes in units of the data's deviation of the state change, as in a
    :class:`mbrl_jax.imagination.diagnosis.Diagnosis`. Where there is no row they are minus infinity.
    """

    error: Array  # [M, K] of a member's own mean rollout after 1 to K steps, by the actions that were taken
    still: Array  # [K] of the prediction that nothing changes
    windows: Array  # [K] how many rollouts got so far
    coverage: Array | None  # [3] share of the next states' numbers in the central 50, 80 and 95 % of what the members predict
    transform: Array | None  # [10] histogram of their probability integral transform, flat where uncertainty is calibrated
    reward_error: Array  # [M] root mean square of the predicted reward's error, in the reward's units
    missed: Array  # [M] share of the terminations that a member does not predict, minus infinity if there are none
    false_alarms: Array  # [M] share of the other rows of which it says that they terminate


def windows_of(elapsed: np.ndarray, holdout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where followed rollouts begin, and how long they can be.

    Args:
      elapsed: [N] steps since the episode began.
      holdout: [h] numbers of the rows of held-out episodes, ascending.

    Returns:
      [w] int32 numbers of rows, evenly spaced over the held-out ones, and [w] int32 the steps that are left of the episode
      there, :data:`STEPS` at the most.

    """
    starts = np.flatnonzero(elapsed == 0)
    ends = np.append(starts[1:], len(elapsed))
    left = ends[np.searchsorted(starts, holdout, side="right") - 1] - holdout
    chosen = np.unique(np.linspace(0, len(holdout) - 1, min(WINDOWS, len(holdout))).astype(np.int64))
    return holdout[chosen].astype(np.int32), np.minimum(left[chosen], STEPS).astype(np.int32)


def validate(world: WorldModel, params: Any, rows: Rows, elapsed: np.ndarray, holdout: np.ndarray) -> HeldOut:
    """Follow members along held-out episodes, and set what they expect beside what happened.

    Args:
      world: whose features tell where a rollout stands.
      params: its, of M members.
      rows: [N] the logged transitions.
      elapsed: [N] steps since the episode began.
      holdout: [h] numbers of the held-out rows.

    Raises:
      ConfigError: the world's features do not tell where a rollout stands.

    """
    if world.belief is None:
        raise ConfigError("model.kind: it does not fit held-out episodes, which need features that tell where a rollout stands")
    starts, left = windows_of(elapsed, holdout)
    error, still = _follow(world, params, rows, jnp.asarray(starts), jnp.asarray(left))
    held = jax.tree.map(lambda leaf: leaf[holdout], rows)
    asked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (world.spec.members, *leaf.shape)), held)
    imagined = world.expect(params, world.belief(asked.observation), asked.action)
    coverage = transform = None
    if world.spec.has_variance:
        assert imagined.everyone is not None and imagined.everyone.log_variance is not None  # noqa: PT018, one fact
        size, scale = held.observation.shape[-1], world.scale(params)[None, None]
        deviation = jnp.exp(0.5 * imagined.everyone.log_variance[..., :size]) * scale
        coverage, transform = calibration(world.features(imagined.belief), deviation, held.next_observation, scale[0, 0])
    over = imagined.terminated

    def share(which: Array, of: Array) -> Array:
        """[M] of the rows ``of`` [h] those that are ``which`` [M, h]."""
        count = jnp.sum(of, dtype=jnp.int32)
        found = jnp.sum(which & of[None], axis=1, dtype=jnp.int32)
        return jnp.where(count > 0, found / jnp.maximum(count, 1), -jnp.inf)

    return HeldOut(
        error=error,
        still=still,
        windows=jnp.sum(left[:, None] > np.arange(STEPS)[None], axis=0).astype(jnp.int32),
        coverage=coverage,
        transform=transform,
        reward_error=jnp.sqrt(jnp.mean(jnp.square(imagined.reward - held.reward[None]), axis=1)),
        missed=share(~over, held.terminated),
        false_alarms=share(over, ~held.terminated),
    )


def calibration(mean: Array, deviation: Array, true: Array, scale: Array) -> tuple[Array, Array]:
    """How often what happened lies where an equal mixture of Gaussians [M, h, D] says that it should.

    Args:
      mean: [M, h, D].
      deviation: [M, h, D], standard ones.
      true: [h, D].
      scale: [D] typical changes; an axis that changes by rounding alone does not count.

    Returns:
      [3] share within the central intervals of :data:`LEVELS`, and [10] the histogram of the probability integral transform,
      which sums to 1.

    """
    below = jnp.mean(norm.cdf((true[None] - mean) / deviation), axis=0)  # [h, D]
    weight = jnp.broadcast_to((scale > 1e-8).astype(below.dtype)[None], below.shape)
    weight = weight / jnp.sum(weight)
    levels = jnp.asarray(LEVELS, below.dtype)[:, None, None]
    coverage = jnp.sum(weight[None] * (2 * jnp.abs(below - 0.5)[None] <= levels).astype(below.dtype), axis=(1, 2))
    place = jnp.clip((below * BINS).astype(jnp.int32), 0, BINS - 1)
    bins = jnp.arange(BINS, dtype=jnp.int32)[:, None, None]
    return coverage, jnp.sum(weight[None] * (place[None] == bins).astype(below.dtype), axis=(1, 2))


def _follow(world: WorldModel, params: Any, rows: Rows, starts: Array, left: Array) -> tuple[Array, Array]:
    """[M, K] errors of the members' mean rollouts from rows ``starts`` [w], ``left`` [w] steps long, and [K] of no change."""
    assert world.belief is not None
    members, scale = world.spec.members, world.scale(params)
    last = rows.reward.shape[0] - 1
    begin = rows.observation[starts]
    belief = world.belief(jnp.broadcast_to(begin[None], (members, *begin.shape)))

    def step(belief: Any, number: Array) -> tuple[Any, tuple[Array, Array]]:
        place = jnp.minimum(starts + number, last)
        action, true = rows.action[place], rows.next_observation[place]
        imagined = world.expect(params, belief, jnp.broadcast_to(action[None], (members, *action.shape)))
        weight = (left > number).astype(true.dtype)
        count = jnp.sum(weight)

        def rms(predicted: Array) -> Array:
            """[m] over windows [m, w, D] that still run."""
            square = jnp.mean(jnp.square((predicted - true[None]) / scale[None, None]), axis=-1)
            mean = jnp.sum(jnp.where(weight[None] > 0, square, 0.0), axis=-1) / jnp.maximum(count, 1.0)
            return jnp.where(count > 0, jnp.sqrt(mean), -jnp.inf)

        return imagined.belief, (rms(world.features(imagined.belief)), rms(begin[None])[0])

    _, (error, still) = jax.lax.scan(step, belief, jnp.arange(STEPS, dtype=jnp.int32))
    return error.T, still
