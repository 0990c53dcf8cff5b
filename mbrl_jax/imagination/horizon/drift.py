"""Rollouts that end where they have left what real data look like."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.drift import Bank, bank_of, distance
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View, limits, stop_where
from mbrl_jax.model.protocol import ModelSpec, WorldModel
from mbrl_jax.replay import Rows

SEQUENCES, LENGTH, KEPT = 32, 16, 8  # of real transitions that beliefs are filtered along, and beliefs of each that are kept


class Marked(NamedTuple):
    """Features of real states, and how far from them a rollout may go."""

    bank: Bank
    mark: Array  # []


@limits(quantile=Limits(minimum=0, maximum=1))
def drift(*, quantile: Array | float) -> HorizonController:
    """Stop where the features are further from those of real states than that share of these are from each other.

    Real states are 256 of the replay, measured at every fit; in a latent world they are beliefs, filtered along real sequences.

    Args:
      quantile: that share, from 0 to 1.

    """

    def init(lanes: int, spec: ModelSpec) -> Marked:
        count = SEQUENCES * KEPT
        size = spec.feature_size
        bank = Bank(jnp.zeros((count, size)), jnp.zeros(size), jnp.ones(size), jnp.zeros(count))
        return Marked(bank, jnp.full((), jnp.inf))

    def calibrate(state: Marked, world: WorldModel, params: Any, rows: Rows, valid: Array) -> Marked:
        bank = bank_of(*real_states(world, params, rows, valid))
        place = jnp.asarray(quantile * (bank.distances.shape[0] - 1)).astype(jnp.int32)
        return Marked(bank, bank.distances[place])  # without interpolation: of few data there are infinite distances

    def step(state: Marked, view: View) -> tuple[Marked, Decision]:
        return state, stop_where(distance(state.bank, view.next_observation) > state.mark, view)

    return HorizonController(init, calibrate, step)


def real_states(world: WorldModel, params: Any, rows: Rows, valid: Array) -> tuple[Array, Array]:
    """Features [256, F] of states along real rows [N], of which the first ones are valid [N], and the group of each.

    Of an ensemble they are observations, each a group by itself, however often it is there. Of a latent world they are the
    beliefs of the last 8 of 16 successive rows, and those of a sequence are one group.
    """
    size = jnp.maximum(jnp.sum(valid.astype(jnp.int32)), 1)
    if world.observe is None:
        count = SEQUENCES * KEPT
        chosen = (jnp.linspace(0, 1, count, endpoint=False) * size.astype(jnp.zeros(()).dtype)).astype(jnp.int32)
        return rows.observation[chosen], chosen
    apart = jnp.maximum(size - LENGTH, 0) // SEQUENCES
    places = jnp.arange(LENGTH, dtype=jnp.int32)[:, None] + apart * jnp.arange(SEQUENCES, dtype=jnp.int32)[None]
    some = jax.tree.map(lambda leaf: leaf[places % size], rows)  # [16, 32]
    observe = world.observe
    blank = observe(params, None, None, some.observation[0], None, None)

    def follow(carry: tuple[Any, Array], row: Rows) -> tuple[tuple[Any, Array], Array]:
        belief = observe(params, *carry, row.observation, row.depth == 0, None)
        return (belief, row.action), world.features(belief)

    later = jax.tree.map(lambda leaf: leaf[1:], some)
    _, features = jax.lax.scan(follow, (blank, some.action[0]), later)
    kept = features[-KEPT:]
    group = jnp.broadcast_to(places[:1], (KEPT, SEQUENCES))  # where each begins
    return kept.reshape(-1, kept.shape[-1]), group.reshape(-1)
