"""Fitting a recurrent state-space model to sequences of real transitions, and what makes it a world model.

The loss of a transition is ``reconstruction + reward + termination + a max(f, KL(sg(q) || p)) + b max(f, KL(q || sg(p)))`` of the
belief that it led to: q is the posterior, p the prior, sg what is not differentiated, and f the nats that cost nothing
(Hafner et al. 2023, arXiv:2301.04104). Where the filter begins, the observation before is reconstructed too. The observation that
a transition led to is there also at an episode's end, and so are the reward and the termination.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import ConfigError
from mbrl_jax.model.latents import symlog
from mbrl_jax.model.protocol import FitLog, ModelSpec, WorldModel
from mbrl_jax.model.rssm import RSSM, Belief, RSSMParams
from mbrl_jax.networks import adam_step, all_finite, optimiser_of
from mbrl_jax.replay import Replay, ReplayState, Rows

PARTS = 10  # of the first fit, after each of which the holdout error is measured
HELD_OUT = 10  # every ``HELD_OUT``-th part of the random transitions, the newest rows, is held out of a fit


class RSSMState(NamedTuple):
    """The model. Once an update would make it non-finite it is frozen at its last finite parameters."""

    params: RSSMParams
    optimizer: Any
    frozen: Array  # [] bool


class SequenceDraws(NamedTuple):
    """The random numbers of the latents of T x B transitions."""

    begin: Array  # [T, B, V] of the belief before, where an episode begins
    after: Array  # [T, B, V] of the belief that the transition led to


class Sequences(NamedTuple):
    """Beliefs along T x B transitions."""

    before: Belief  # leaves [T, B, ...] in which the action was taken
    after: Belief  # leaves [T, B, ...] that it led to
    prior: Array  # [T, B, P]
    posterior: Array  # [T, B, P]


class SequenceLog(NamedTuple):
    """The parts of a loss, means over the transitions."""

    loss: Array  # [] all of it
    reconstruction: Array  # [] squared error of the decoded observation on the task's scale, summed over axes
    reward: Array  # [] squared error of the reward
    termination: Array  # [] cross-entropy, nats
    divergence: Array  # [] KL of the posterior from the prior, nats


def init(rssm: RSSM, key: Array) -> RSSMState:
    """An unfitted model."""
    params = rssm.init(key)
    return RSSMState(params, _optimiser(rssm).init(params), jnp.zeros((), bool))


def draw(rssm: RSSM, key: Array, shape: tuple[int, ...]) -> SequenceDraws:
    """Draw what minibatches ``shape`` of the settings' size consume."""
    full = (*shape, rssm.config.sequence, rssm.config.batch_size)
    return SequenceDraws(*(rssm.latents.draw(each, full) for each in jax.random.split(key)))


def sample(rssm: RSSM, replay: Replay, real: ReplayState, bits: Array) -> tuple[Rows, Array]:
    """Draw sequences of real transitions by bits [B].

    Returns:
      Rows [T, B], and where the filter begins anew [T, B]: with an episode, and with the sequence.

    """
    rows, first = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), replay.sample_sequences(real, bits, rssm.config.sequence))
    return rows, first.at[0].set(True)


def unroll(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array, drawn: SequenceDraws | None) -> Sequences:
    """Filter sequences of transitions.

    Args:
      rssm: the model.
      params: its parameters.
      rows: [T, B] successive ones.
      first: [T, B] where nothing is left of the belief before.
      drawn: none takes the most likely latents.

    """
    begun = rssm.begin(params, rssm.encode(params, rows.observation), None if drawn is None else drawn.begin)
    codes = rssm.encode(params, rows.next_observation)

    def step(belief: Belief, inputs: Any) -> tuple[Belief, tuple[Belief, Belief, Array]]:
        fresh, begins, action, code, now = inputs
        before = jax.tree.map(partial(jnp.where, begins[:, None]), fresh, belief)
        after, posterior = rssm.filter(params, before, action, code, now)
        return after, (before, after, posterior)

    inputs = (begun, first, rows.action, codes, None if drawn is None else drawn.after)
    _, (before, after, posterior) = jax.lax.scan(step, rssm.blank(first.shape[1:]), inputs)
    return Sequences(before, after, rssm.prior(params, after.deterministic), posterior)


def loss(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array, drawn: SequenceDraws) -> tuple[Array, Any]:
    """[] the mean loss of transitions [T, B], their :class:`Sequences`, and its parts; arguments as of :func:`unroll`."""
    config, stop = rssm.config, jax.lax.stop_gradient
    told = unroll(rssm, params, rows, first, drawn)
    features = rssm.features(told.after)
    error = _squared(rssm, params, told.after, rows.next_observation)
    begun = jnp.where(first, _squared(rssm, params, told.before, rows.observation), 0.0)
    target = symlog(rows.reward) if config.symlog else rows.reward
    reward = jnp.square(rssm.reward(params, features) - target)
    terminated = rows.terminated.astype(error.dtype)
    termination = optax.sigmoid_binary_cross_entropy(rssm.termination(params, features), terminated)
    dynamics = rssm.latents.divergence(stop(told.posterior), told.prior)
    representation = rssm.latents.divergence(told.posterior, stop(told.prior))
    total = jnp.mean(
        0.5 * (error + begun) / jnp.square(config.decoder_deviation)
        + config.reward_weight * 0.5 * reward
        + config.continue_weight * termination
        + config.dynamics_weight * jnp.maximum(dynamics, config.free_nats)
        + config.representation_weight * jnp.maximum(representation, config.free_nats)
    )
    log = SequenceLog(total, *(jnp.mean(each) for each in (error, reward, termination, dynamics)))
    return total, (told, log)


def _squared(rssm: RSSM, params: RSSMParams, belief: Belief, observation: Array) -> Array:
    """[...] the squared error of what beliefs decode, on the task's scale and summed over axes."""
    decoded = rssm.decode(params, rssm.features(belief))
    return jnp.sum(jnp.square(decoded - rssm.seen(observation)), axis=-1)


def descend(
    rssm: RSSM, state: RSSMState, rows: Rows, first: Array, drawn: SequenceDraws
) -> tuple[RSSMState, Sequences, SequenceLog]:
    """One step of Adam by a minibatch of sequences [T, B], whose beliefs are those before the step."""
    gradient, (told, log) = jax.grad(partial(loss, rssm), has_aux=True)(state.params, rows, first, drawn)
    params, optimizer = adam_step(state.params, state.optimizer, gradient, rssm.config.learning_rate, _optimiser(rssm))
    frozen = state.frozen | ~all_finite(params)
    after = RSSMState(params, optimizer, frozen)
    return jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)._replace(frozen=frozen), told, log


def _optimiser(rssm: RSSM) -> optax.GradientTransformation:
    return optimiser_of(rssm.config.gradient_clip)


# ---------------------------------------------------------------------------------------------------------- a world model


def _fit(
    rssm: RSSM, replay: Replay, held: int, batches: int, state: RSSMState, real: ReplayState, key: Array
) -> tuple[RSSMState, FitLog]:
    """Descend by ``batches`` minibatches of all transitions but the newest ones, ``held`` sequences; errors are measured there.

    The ring must not be full, which one of all transitions of a run never is before its end.
    """
    key_rows, key_latents = jax.random.split(key)
    size = held * rssm.config.sequence
    training = real._replace(written=real.written - size)
    bits = draws.bits(key_rows, (batches, rssm.config.batch_size))
    places = real.written - size + rssm.config.sequence * jnp.arange(held, dtype=jnp.int32)
    holdout = sample(rssm, replay, real, places.astype(jnp.uint32))

    def step(state: RSSMState, inputs: tuple[Array, SequenceDraws]) -> tuple[RSSMState, Array]:
        bits, drawn = inputs
        state, _, log = descend(rssm, state, *sample(rssm, replay, training, bits), drawn)
        return state, log.loss

    state, losses = jax.lax.scan(step, state, (bits, draw(rssm, key_latents, (batches,))))
    error, surprise = errors(rssm, state.params, *holdout)
    return state, FitLog(*(each[None] for each in (jnp.mean(losses), jnp.mean(error), jnp.mean(surprise))))


def errors(rssm: RSSM, params: RSSMParams, rows: Rows, first: Array) -> tuple[Array, Array]:
    """How wrong the model is one step ahead along sequences [T, B], filtered without noise.

    Returns:
      [T, B] the squared error on the task's scale, summed over axes, of the observation that is decoded from the most likely
      prior latents; and the filter's surprise [T, B], KL of the posterior from the prior, nats.

    """
    told = unroll(rssm, params, rows, first, None)
    expected = Belief(told.after.deterministic, rssm.latents.mode(told.prior))
    return _squared(rssm, params, expected, rows.next_observation), rssm.latents.divergence(told.posterior, told.prior)


def world_of(rssm: RSSM, replay: Replay, *, first_rows: int) -> WorldModel:
    """The world model that a recurrent state-space model is.

    Args:
      rssm: the model.
      replay: the functions of the replay that it learns from.
      first_rows: transitions that the first fit is made to.

    Raises:
      ConfigError: they do not hold a sequence to learn from and one to measure errors on, or the encoder does not fit the task.

    """
    rssm.check()
    config, length = rssm.config, rssm.config.sequence
    held = max(1, first_rows // HELD_OUT // length)
    if first_rows < (held + 1) * length:
        raise ConfigError(
            f"model.sequence: {length!r} does not fit; of {first_rows} random transitions at least one sequence is learned from "
            f"and one is held out, so it must be at most {first_rows // 2}"
        )

    def fit(state: RSSMState, real: ReplayState, key: Array) -> tuple[RSSMState, FitLog]:
        def part(state: RSSMState, key: Array) -> tuple[RSSMState, FitLog]:
            return _fit(rssm, replay, held, config.fit_batches // PARTS, state, real, key)

        return jax.lax.scan(part, state, jax.random.split(key, PARTS))

    def refit(state: RSSMState, real: ReplayState, key: Array) -> tuple[RSSMState, FitLog]:
        return _fit(rssm, replay, held, config.refit_batches, state, real, key)

    def start(params: RSSMParams, real: ReplayState, bits: Array) -> Belief:
        rows, first = sample(rssm, replay, real, bits.reshape(-1))
        last = jax.tree.map(lambda leaf: leaf[-1], unroll(rssm, params, rows, first, None).before)
        return jax.tree.map(lambda leaf: leaf.reshape(*bits.shape, -1), last)

    def first(params: RSSMParams, real: ReplayState, bits: Array) -> Belief:
        return rssm.begin(params, rssm.encode(params, replay.first_states(real, bits)), None)

    def step(params: RSSMParams, belief: Belief, action: Array, drawn: Any, everyone: bool = False) -> Any:
        return rssm.step(params, belief, action, drawn)

    return WorldModel(
        spec=ModelSpec(
            name=rssm.spec.name,
            feature_size=rssm.feature_size,
            members=1,
            targets=rssm.latents.parameters,
            has_variance=False,
            reward_known=False,
        ),
        init=partial(init, rssm),
        fit=fit,
        refit=refit,
        acting=lambda state: state.params,
        draw=lambda key_choice, key_noise, shape: rssm.draw(key_noise, shape),
        start=start,
        first=first,
        step=step,
        expect=lambda params, belief, action: rssm.step(params, belief, action, None),
        features=rssm.features,
        belief=None,
        scale=lambda params: jnp.ones(rssm.feature_size),
        observe=rssm.observe,
    )
