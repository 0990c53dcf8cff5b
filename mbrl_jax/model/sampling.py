"""Who moves an imagined rollout: which member of the ensemble, or what of all of them.

* ``ts1``: rollouts are dealt evenly to members by a fresh permutation at each step, so that each member has K / M of them and
  the whole ensemble costs one forward pass over K rows (TS1 of Chua et al. 2018, arXiv:1805.12114, stratified).
* ``ts_infinity``: rollout k belongs to member k // (K / M) for good. Where roots are drawn at random this is a member that stays
  with the rollout, at the same cost, and every member moves equally many.
* ``mean``: the mean of all members.
* ``fused``: their precision-weighted fusion.
* ``infoprop``: a dealt member's sample is a noisy observation of the fusion, which it corrects by the gain; what varies once the
  sample is known remains (Frauenknecht et al. 2025, arXiv:2501.16918). ``fused`` is the same with the sample forgotten.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members
from mbrl_jax.model.fusion import fuse, variance
from mbrl_jax.model.protocol import Imagined, Prediction

DEALT = ("ts1", "infoprop")  # samplings by which rollouts are dealt to members at every step
UNDIVIDED = ("mean", "fused")  # samplings by which no member alone moves a rollout


class ModelDraws(NamedTuple):
    """The random numbers of one imagined step of K rollouts. Leading axes may come before these."""

    deal: Array | None  # [K] int32, a permutation: place i of the dealing gets rollout deal[i]; none where nothing is dealt
    place: Array | None  # [K] int32, its inverse: rollout k is dealt to place[k]
    noise: Array | None  # [K, D] standard normal, [K, 2 D] for Infoprop: of the member's sample, then of what remains; none where
    # members predict no variance


def draw(ensemble: Ensemble, sampling: str, key_choice: Array, key_noise: Array, shape: tuple[int, ...]) -> ModelDraws:
    """Draw all that a step of rollouts ``shape[-1]`` consumes, the other axes leading."""
    deal = place = noise = None
    if sampling in DEALT:
        deal = draws_.permutations(key_choice, shape)
        place = draws_.inverse(deal)
    if ensemble.config.prediction == "gaussian":
        numbers = ensemble.spec.observation_size * (2 if sampling == "infoprop" else 1)
        noise = draws_.normal(key_noise, (*shape, numbers))
    return ModelDraws(deal, place, noise)


def step(
    ensemble: Ensemble,
    sampling: str,
    members: Members,
    observation: Array,
    action: Array,
    draw: ModelDraws,
    *,
    everyone: bool = False,
) -> Imagined:
    """Move K rollouts by one imagined step.

    Args:
      ensemble: the shape.
      sampling: who moves them.
      members: M of them, of which K is a multiple unless the sampling asks all.
      observation: [K, D].
      action: [K], or weights [K, A] of discrete actions.
      draw: as of :func:`draw`.
      everyone: ask every member about every rollout.

    """
    prediction, member, said = _predict(ensemble, sampling, members, observation, action, draw, everyone)
    noise = None if draw.noise is None else draw.noise[..., -ensemble.spec.observation_size :]
    decoded = ens.decode(ensemble, members.normaliser, prediction, observation, taken(ensemble, action), noise)
    return Imagined(decoded.next_observation, decoded.reward, decoded.terminated, member, said)


def expect(ensemble: Ensemble, members: Members, observation: Array, action: Array) -> Imagined:
    """Each member's mean step of its own rollouts, leaves [M, ...], from observations [M, ..., D] and actions [M, ...]."""
    count, between = observation.shape[0], observation.shape[1:-1]
    own = action.shape[observation.ndim - 1 :]
    flat = ens.predict(ensemble, members, observation.reshape(count, -1, observation.shape[-1]), action.reshape(count, -1, *own))
    prediction = jax.tree.map(lambda leaf: leaf.reshape(count, *between, *leaf.shape[2:]), flat)
    decoded = ens.decode(ensemble, members.normaliser, prediction, observation, taken(ensemble, action), None)
    member = jnp.arange(count, dtype=jnp.int32).reshape((count,) + (1,) * len(between))
    member = jnp.broadcast_to(member, observation.shape[:-1])
    return Imagined(decoded.next_observation, decoded.reward, decoded.terminated, member, prediction)


def taken(ensemble: Ensemble, action: Array) -> Array:
    """Actions [...] of which discrete ones may have come as weights [..., A]."""
    if ensemble.spec.continuous or not jnp.issubdtype(action.dtype, jnp.floating):
        return action
    return jnp.argmax(action, axis=-1).astype(jnp.int32)


def _predict(
    ensemble: Ensemble,
    sampling: str,
    members: Members,
    observation: Array,
    action: Array,
    draw: ModelDraws,
    everyone: bool,
) -> tuple[Prediction, Array, Prediction | None]:
    """The prediction that moves each rollout [K, ...], the member [K] it is from, and every member's [M, K, ...] if made."""
    rollouts, count = observation.shape[0], ensemble.sampling_members
    number = jnp.arange(rollouts, dtype=jnp.int32)
    place = number if draw.place is None else draw.place
    owner = jnp.zeros(rollouts, jnp.int32) if sampling in UNDIVIDED else number // (rollouts // count)
    member = owner[place]

    if everyone or sampling not in ("ts1", "ts_infinity"):
        said = ens.predict_all(ensemble, members, observation, action)
        if sampling == "mean":
            return ens.mixture_mean(said), member, said
        own = jax.tree.map(lambda leaf: leaf[member, number], said)
        if sampling in ("fused", "infoprop"):
            assert draw.noise is not None, "these samplings need members that predict variances"
            return _fused(sampling, said, own, draw.noise[..., : ensemble.spec.observation_size]), member, said
        return own, member, said

    dealt_observation, dealt_action = observation, action
    if draw.deal is not None:
        dealt_observation, dealt_action = observation[draw.deal], action[draw.deal]
    dealt_action = dealt_action.reshape(count, rollouts // count, *action.shape[1:])
    dealt = ens.predict(ensemble, members, dealt_observation.reshape(count, rollouts // count, -1), dealt_action)
    prediction = jax.tree.map(lambda leaf: leaf.reshape(rollouts, *leaf.shape[2:]), dealt)
    if draw.deal is not None:
        prediction = jax.tree.map(lambda leaf: leaf[place], prediction)
    return prediction, member, None


def _fused(sampling: str, everyone: Prediction, own: Prediction, noise: Array) -> Prediction:
    """The fusion of every member's prediction [M, K, ...], for Infoprop corrected by the sample of each rollout's own [K, ...].

    A learned reward is the fusion's and a learned termination the members' mean; only the state is corrected.
    """
    fusion, logit = fuse(everyone), ens.mixture_mean(everyone).termination_logit
    if sampling == "fused":
        return Prediction(fusion.mean, jnp.log(fusion.variance), logit)
    size = noise.shape[-1]
    sample = own.mean[..., :size] + jnp.sqrt(variance(own)[..., :size]) * noise
    corrected = fusion.mean[..., :size] + fusion.gain[..., :size] * (sample - fusion.mean[..., :size])
    mean = jnp.concatenate([corrected, fusion.mean[..., size:]], axis=-1)
    return Prediction(mean, jnp.log(fusion.remaining), logit)
