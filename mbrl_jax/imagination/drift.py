"""How far a latent world's belief has left what is plausible: along an open-loop rollout, and along a running episode.

Open loop, by depth, four measures of which the last two ask for the true observations:

* novelty: how far the belief's features are from those of real beliefs, as a quantile of how far these are from each other;
* round trip: how far the latents move when they are decoded and encoded again;
* divergence: of the belief that the true observations give from the one that was expected, nats;
* error: of the decoded from the true observation.

Along a running episode the filter's surprise is all there is, and it needs no truth: the divergence of the belief after each
observation from the one that expected it. An alarm is raised where its mean over some steps exceeds what it is in the data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.model import rssm_fitting
from mbrl_jax.model.rssm import RSSM, Belief, RSSMParams
from mbrl_jax.model.rssm_fitting import Sequences
from mbrl_jax.replay import Rows

LEAST_DEVIATION = 1e-2  # of an axis of the features; one that varies less is divided by this
NEIGHBOURS = 5  # of a point; the distance to the last of them says how far it is from the others


class Bank(NamedTuple):
    """Features of real beliefs, and how far each is from the others."""

    features: Array  # [N, F] less the mean, in units of the deviation
    mean: Array  # [F]
    deviation: Array  # [F]
    distances: Array  # [N] ascending, of each to its last neighbour


class Drift(NamedTuple):
    """The measures of D steps of rollouts [B]; where the episode has ended they mean nothing."""

    novelty: Array  # [D, B] from 0 to 1
    round_trip: Array  # [D, B] root mean square over the latents
    divergence: Array  # [D, B] nats
    error: Array  # [D, B] squared, on the task's scale, summed over axes
    valid: Array  # [D, B] bool, the episode has gone on so far


class OpenLoop(NamedTuple):
    """What a rollout without observations believes along the D last steps of T, beside what the filter does."""

    filtered: Sequences  # leaves [T, B, ...] along all steps, by the observations
    dreamt: Belief  # leaves [D, B, ...] without them
    prior: Array  # [D, B, P] what the rollout expected
    valid: Array  # [D, B] bool, the episode has gone on so far


def bank_of(features: Array, group: Array) -> Bank:
    """The bank of features [N, F]; neighbours of a point are of another ``group`` [N] than its own, as another episode's."""
    mean, deviation = jnp.mean(features, axis=0), jnp.maximum(jnp.std(features, axis=0), LEAST_DEVIATION)
    scaled = (features - mean[None]) / deviation[None]
    apart = jnp.where(group[:, None] == group[None], jnp.inf, _distances(scaled, scaled))
    return Bank(scaled, mean, deviation, jnp.sort(_last_neighbour(apart)))


def distance(bank: Bank, features: Array) -> Array:
    """[...] how far features [..., F] are from the bank's."""
    flat = (features.reshape(-1, features.shape[-1]) - bank.mean[None]) / bank.deviation[None]
    return _last_neighbour(_distances(flat, bank.features)).reshape(features.shape[:-1])


def novelty(bank: Bank, features: Array) -> Array:
    """[...] the share of the bank's own features that are nearer to the others than features [..., F] are."""
    far = distance(bank, features)
    return jnp.searchsorted(bank.distances, far.reshape(-1)).reshape(far.shape).astype(far.dtype) / bank.distances.shape[0]


def _distances(one: Array, other: Array) -> Array:
    """[R, N] Euclidean distances of rows [R, F] and [N, F], without an array of all three axes."""
    square = jnp.sum(jnp.square(one), -1)[:, None] + jnp.sum(jnp.square(other), -1)[None] - 2 * one @ other.T
    return jnp.sqrt(jnp.maximum(square, 0.0))


def _last_neighbour(apart: Array) -> Array:
    """[R] the distance to the last of the nearest neighbours, of distances [R, N]."""
    return -jax.lax.top_k(-apart, min(NEIGHBOURS, apart.shape[1]))[0][:, -1]


def real_features(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array) -> tuple[Array, Array]:
    """Features [T B, F] of the beliefs along sequences [T, B], for :func:`bank_of`, and which sequence each is of."""
    after = rssm_fitting.unroll(rssm, params, rows, first, None).after
    features = rssm.features(after)
    group = jnp.broadcast_to(jnp.arange(first.shape[1], dtype=jnp.int32)[None], first.shape)
    return features.reshape(-1, features.shape[-1]), group.reshape(-1)


def open_loop(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array, warm: int) -> OpenLoop:
    """Roll out by the actions of real sequences [T, B], after ``warm`` steps of the filter; arguments as of :func:`along`."""
    if not 1 <= warm < first.shape[0]:
        raise ValueError(f"warm: {warm!r} is out of range; of sequences of {first.shape[0]} it must be from 1 to one less")
    filtered = rssm_fitting.unroll(rssm, params, rows, first.at[0].set(True), None)
    start = jax.tree.map(lambda leaf: leaf[warm - 1], filtered.after)

    def step(belief: Belief, action: Array) -> tuple[Belief, tuple[Belief, Array]]:
        after = rssm.step(params, belief, action, None).belief
        return after, (after, rssm.prior(params, after.deterministic))

    _, (dreamt, prior) = jax.lax.scan(step, start, rows.action[warm:])
    ended = jnp.cumsum(first[warm:].astype(jnp.int32), axis=0) > 0
    return OpenLoop(filtered, dreamt, prior, ~ended)


def along(rssm: RSSM, params: RSSMParams, bank: Bank, rows: Rows, first: Array, warm: int) -> Drift:
    """Measure an open-loop rollout by the actions of real sequences.

    Args:
      rssm: the model.
      params: its parameters.
      bank: features of real beliefs.
      rows: [T, B] successive transitions.
      first: [T, B] bool, where an episode begins.
      warm: transitions that the filter sees before the rollout begins, below T; the measures are of the T - ``warm`` others.

    """
    told = open_loop(rssm, params, rows, first, warm)
    dreamt = told.dreamt
    features = rssm.features(dreamt)
    decoded = rssm.decode(params, features)
    again = rssm.posterior(params, dreamt.deterministic, rssm.encode(params, rssm.observation(params, features)))
    return Drift(
        novelty=novelty(bank, features),
        round_trip=jnp.sqrt(jnp.mean(jnp.square(rssm.latents.mode(again) - dreamt.stochastic), axis=-1)),
        divergence=rssm.latents.divergence(told.filtered.posterior[warm:], told.prior),
        error=jnp.sum(jnp.square(decoded - rssm.seen(rows.next_observation[warm:])), axis=-1),
        valid=told.valid,
    )


# ------------------------------------------------------------------------------------------------ along a running episode


def surprise(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array) -> Array:
    """[T, B] nats, of the filter along sequences [T, B] of real transitions."""
    told = rssm_fitting.unroll(rssm, params, rows, first, None)
    return rssm.latents.divergence(told.posterior, told.prior)


def smoothed(surprises: Array, first: Array, window: int) -> Array:
    """[T, B] means of surprises [T, B] over the last ``window`` steps of their episodes, or as many as there are."""

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (last, count), (now, begins) = carry, inputs
        count = jnp.where(begins, 0, count)
        last = jnp.concatenate([now[None], jnp.where(count[None] > jnp.arange(window - 1)[:, None], last[:-1], 0.0)])
        count = jnp.minimum(count + 1, window)
        return (last, count), jnp.sum(last, axis=0) / count.astype(now.dtype)

    blank = jnp.zeros((window, surprises.shape[1]), surprises.dtype), jnp.zeros(surprises.shape[1], jnp.int32)
    return jax.lax.scan(step, blank, (surprises, first))[1]


def alarm_mark(surprises: Array, first: Array, window: int, rate: float) -> Array:
    """[] the mark that the smoothed surprises [T, B] of known data exceed in a share ``rate`` of their steps."""
    return jnp.quantile(smoothed(surprises, first, window), 1 - rate)
