"""Choosing among snapshots of a policy in imagination, which costs no real transition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import SelectionConfig
from mbrl_jax.evaluation import play_imagined
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.networks import Params
from mbrl_jax.replay import ReplayState

GreedyOf = Callable[[Params, Array], Array]  # (parameters, s [..., D]) -> actions [...]


class Snapshot(NamedTuple):
    """A policy and the mean return of its imagined episodes."""

    params: Params
    score: Array  # [], minus infinity in a world that is not finite


def choose(
    config: SelectionConfig,
    world: WorldModel,
    model: Any,
    greedy: GreedyOf,
    params: Params,
    incumbent: Snapshot,
    real: ReplayState,
    key: Array,
    *,
    anew: bool,
    play: Callable[[Any, Params, Any, Any], Array] | None = None,
) -> tuple[Snapshot, Array, Array]:
    """The better of the snapshot chosen so far and the present policy, as imagination scores them.

    Args:
      config: how many episodes, and of how many steps.
      world: the world model, in which a rollout stays with its member.
      model: its parameters.
      greedy: what a policy of given parameters does.
      params: the present policy.
      incumbent: chosen so far; its score is -inf if there is none.
      real: in whose first states the imagined episodes begin.
      key: of this choice alone.
      anew: score the incumbent again beside its challenger, from the same starts and with the same noise, as it must be where the
        model has been refitted: another world scores. An incumbent that stays although this world is not finite for it keeps its
        old score, so that it is scored again in the next world.
      play: ``(model, policy, start [n, ...], draws [steps, n, ...]) -> returns [n]``, in place of
        :func:`mbrl_jax.evaluation.play_imagined`.

    Returns:
      The snapshot, the present policy's score, and whether it is the one chosen.

    """
    key_start, key_noise = jax.random.split(key)
    first = world.first(model, real, draws.bits(key_start, (config.episodes,)))

    def score_of(params: Params) -> Array:
        if play is not None:
            drawn = world.draw(key_noise, key_noise, (config.steps, config.episodes))
            return jnp.mean(play(model, params, first, drawn))
        return jnp.mean(play_imagined(world, model, lambda s: greedy(params, s), first, key_noise, config.steps))

    challenger, score = Snapshot(params, score_of(params)), incumbent.score
    if anew:
        never = jnp.isneginf(score)
        score = jnp.where(never, -jnp.inf, score_of(incumbent.params))
        incumbent = incumbent._replace(score=jnp.where(jnp.isneginf(score), incumbent.score, score))
    better = challenger.score > score
    chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), challenger, incumbent)
    return chosen, challenger.score, better
