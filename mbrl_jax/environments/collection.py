"""Random real transitions, and the resets that running episodes go on from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition

POOL_BYTES = 2**20  # that the resets of a seed may take; a state of CartPole has 36, so that 29,000 steps have one each
SMALLEST_POOL = 64


def draw_actions(spec: EnvironmentSpec, key: Array, shape: tuple[int, ...]) -> Array:
    """Actions ``shape`` of the uniform random policy: int32, or [*shape, A] strictly between -1 and 1."""
    if not spec.continuous:
        return draws.integers(key, shape, spec.action_count)
    return draws.symmetric(key, (*shape, spec.action_size))


def draw_pool(environment: Environment, key: Array, steps: int) -> EnvironmentState:
    """Draw the resets that ``steps`` steps may need, leaves [P, ...]: step t goes on from number ``t % P``.

    P is ``steps`` unless as many states take more than :data:`POOL_BYTES`.
    """
    one = jax.eval_shape(lambda key: environment.draw_resets(key, ()), key)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    return environment.draw_resets(key, (min(steps, max(SMALLEST_POOL, POOL_BYTES // max(size, 1))),))


def from_pool(pool: EnvironmentState, step: Array) -> EnvironmentState:
    """The reset of step ``step`` [] of a pool [P]."""
    place = step % jax.tree.leaves(pool)[0].shape[0]
    return jax.tree.map(lambda leaf: leaf[place], pool)


class CollectionDraws(NamedTuple):
    """The random numbers of a collection of N transitions."""

    first: EnvironmentState  # [] where it begins
    actions: Array  # [N]
    resets: EnvironmentState  # [P] where to go on if an episode ends, as :func:`draw_pool` has them


def draw_collection(environment: Environment, key: Array, transitions: int) -> CollectionDraws:
    """Draw all that :func:`collect` consumes for ``transitions`` steps."""
    key_first, key_actions, key_resets = jax.random.split(key, 3)
    return CollectionDraws(
        first=environment.draw_resets(key_first, ()),
        actions=draw_actions(environment.spec, key_actions, (transitions,)),
        resets=draw_pool(environment, key_resets, transitions),
    )


def collect(environment: Environment, drawn: CollectionDraws) -> tuple[EnvironmentState, Transition, Array]:
    """Act by the uniform random policy.

    Returns:
      The state reached, the transitions [N], and [N] the return of the episode that ended at each step, minus infinity where
      none did: NaN is left to faults, so that ``JAX_DEBUG_NANS`` finds them.

    """

    def step(carry: tuple[EnvironmentState, Array], draw: tuple[Array, Array]) -> tuple[Any, Any]:
        (state, so_far), (action, time) = carry, draw
        state, transition = environment.step(state, action, from_pool(drawn.resets, time))
        so_far = so_far + transition.reward
        ended = transition.terminated | transition.truncated
        return (state, jnp.where(ended, 0.0, so_far)), (transition, jnp.where(ended, so_far, -jnp.inf))

    start = (drawn.first, jnp.zeros((), drawn.first.observation.dtype))
    times = jnp.arange(drawn.actions.shape[0], dtype=jnp.int32)
    (state, _), (transitions, returns) = jax.lax.scan(step, start, (drawn.actions, times))
    return state, transitions, returns
