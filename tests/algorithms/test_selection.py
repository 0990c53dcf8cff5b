"""The choice among snapshots, in a world that is not finite for some of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import stored, world_of

from mbrl_jax.algorithms.selection import Snapshot, choose
from mbrl_jax.config import SelectionConfig
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Members
from mbrl_jax.replay import Rows

STEPS = 10
OLD, NEW = jnp.float32(0.5), jnp.float32(1.5)  # policies that are numbers: the world breaks for some of them


@pytest.fixture(scope="module")
def chosen(make_ensemble, make_params):
    """``(incumbent's score, reward of the new policy, of the old one, anew) -> (snapshot, score, whether it is chosen)``.

    Policies differ by the action that they take always: the old one by action 0, the new one by action 1.
    """
    ensemble = make_ensemble(prediction="deterministic")
    members = Members(
        jax.tree.map(jnp.zeros_like, make_params(ensemble)[0]), make_params(ensemble)[1], ens.init_normaliser(ensemble)
    )
    zeros, ones = jnp.zeros((6, 4)), jnp.ones(6)
    rows = Rows(zeros, zeros, jnp.zeros(6, jnp.int32), ones, ones < 0, ones, jnp.zeros(6, jnp.int32))

    def greedy(params, observation):
        return jnp.full(observation.shape[:-1], 1, jnp.int32) * (params > 1).astype(jnp.int32)

    def run(score, of_new, of_old, anew):
        rewarded = ensemble._replace(reward=lambda s, a, s2: jnp.where(a == 1, of_new, of_old).astype(s.dtype))
        world, replay = world_of(rewarded, 6, by="ts_infinity")
        incumbent, config = Snapshot(OLD, jnp.float32(score)), SelectionConfig(episodes=4, steps=STEPS)
        return choose(config, world, members, greedy, NEW, incumbent, stored(replay, rows), jax.random.key(0), anew=anew)

    return run


@pytest.mark.parametrize("anew", [False, True])
def test_a_snapshot_whose_world_is_not_finite_is_never_chosen(chosen, anew):
    after, score, better = chosen(-np.inf, np.nan, 1.0, anew)
    assert (float(after.params), float(score), bool(better)) == (OLD, -np.inf, False)
    after, score, better = chosen(-np.inf, 2.0, 1.0, anew)
    assert (float(after.params), float(after.score), bool(better)) == (NEW, 2.0 * STEPS, True)


def test_a_challenger_beats_an_incumbent_for_which_the_new_world_is_not_finite(chosen):
    after, _, better = chosen(300.0, 1.0, np.inf, True)
    assert (float(after.params), float(after.score), bool(better)) == (NEW, 1.0 * STEPS, True)


def test_an_incumbent_is_kept_through_a_world_that_is_finite_for_neither_and_compared_in_the_next(chosen):
    after, score, better = chosen(300.0, np.nan, np.nan, True)
    assert (float(after.params), float(after.score), float(score), bool(better)) == (OLD, 300.0, -np.inf, False)
    after, _, better = chosen(after.score, 1.0, 2.0, True)
    assert (float(after.params), float(after.score), bool(better)) == (OLD, 2.0 * STEPS, False)
    after, _, better = chosen(after.score, 3.0, 2.0, True)
    assert (float(after.params), float(after.score), bool(better)) == (NEW, 3.0 * STEPS, True)
