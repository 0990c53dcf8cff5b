"""MACURA: trust the model where it trusts itself (Frauenknecht et al. 2024, arXiv:2405.19014)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.disagreement import gjs, quantile_of_valid
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View, limits, predictions, uncalibrated
from mbrl_jax.model.protocol import ModelSpec

ROOTS_PER_LANE = 4  # of how many roots the percentile is taken


class State(NamedTuple):
    """The divergence at the latest roots and the mark that follows from it."""

    roots: Array  # [4 K] at the latest roots, newest first
    filled: Array  # [] int32, how many of these there are yet
    mark: Array  # []
    updates: Array  # [] how often the mark has moved


@limits(scale=Limits(minimum=0), percentile=Limits(minimum=0, maximum=100), memory=Limits(minimum=1))
def macura(*, scale: Array | float, percentile: Array | float, memory: Array | float) -> HorizonController:
    """Stop where the divergence reaches a multiple of what it is at nearly all roots; the row that does is not kept.

    The mark is the running mean of ``scale`` times a percentile of the divergence at the latest roots. A rollout whose root is
    already beyond it contributes nothing. Where all members say the same no rollout is stopped.

    Args:
      scale: the paper's xi, per task.
      percentile: from 0 to 100, the paper's zeta.
      memory: steps that the running mean reaches back: exact for the first so many, then older ones fade exponentially.

    """

    def init(lanes: int, spec: ModelSpec) -> State:
        return State(jnp.zeros(ROOTS_PER_LANE * lanes), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def step(state: State, view: View) -> tuple[State, Decision]:
        divergence = gjs(predictions(view))
        fresh = view.active & (view.depth == 0)
        state = _move(_remember(state, divergence, fresh), jnp.any(fresh))
        beyond = (divergence >= state.mark) & (divergence > 0)
        return state, Decision(keep=~beyond, stop=beyond, penalty=jnp.zeros_like(view.reward))

    def _remember(state: State, divergence: Array, fresh: Array) -> State:
        """Push the divergence [K] of the lanes that are at a root, ``fresh`` [K]."""
        size = state.roots.shape[0]
        offered = jnp.concatenate([divergence[::-1], state.roots])
        taken = jnp.concatenate([fresh[::-1], jnp.ones(size, bool)])
        order = jnp.argsort(~taken, stable=True)[:size]
        filled = jnp.minimum(state.filled + jnp.sum(fresh, dtype=jnp.int32), size)
        return state._replace(roots=offered[order], filled=filled)

    def _move(state: State, moves: Array) -> State:
        """Move the mark towards what the roots say, if ``moves`` []."""
        valid = jnp.arange(state.roots.shape[0], dtype=jnp.int32) < state.filled
        new = scale * quantile_of_valid(state.roots, valid, jnp.asarray(percentile, state.roots.dtype) / 100)
        updates = state.updates + 1
        mark = state.mark + (new - state.mark) / jnp.minimum(updates, memory)
        return state._replace(mark=jnp.where(moves, mark, state.mark), updates=jnp.where(moves, updates, state.updates))

    return HorizonController(init, uncalibrated, step, needs_members=True, needs_variance=True)
