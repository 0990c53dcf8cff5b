"""Judging policies: greedy episodes in the real environment, and in imagination to choose among snapshots."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.environments import Environment, EnvironmentState
from mbrl_jax.model.protocol import WorldModel

BLOCK = 25  # steps after which it is asked whether an episode still runs

Greedy = Callable[[Array], Array]  # observations [..., D] -> actions [...]


def play(environment: Environment, greedy: Greedy, starts: EnvironmentState) -> Array:
    """Returns [n] of one real episode from each of the starts [n], up to the time limit."""
    return play_with_memory(environment, lambda memory, s: (memory, greedy(s)), (), starts)


def play_with_memory(
    environment: Environment, act: Callable[[Any, Array], tuple[Any, Array]], memory: Any, starts: EnvironmentState
) -> Array:
    """The same by a policy ``(memory, observations [n, D]) -> (memory, actions [n])`` and the memory that it begins with.

    Of an environment that the host steps returns are minus infinity; the host plays the episodes.
    """
    if environment.host is not None:
        return jnp.full_like(starts.observation[:, 0], -jnp.inf)

    def step(carry: tuple[Any, Array, Array], _: Array) -> tuple[Any, Array, Array]:
        (states, memory), running, returns = carry
        memory, actions = act(memory, states.observation)
        after, transition = jax.vmap(environment.step)(states, actions, states)
        returns = returns + jnp.where(running, transition.reward, 0.0)
        running = running & ~transition.terminated & ~transition.truncated
        return (after, memory), running, returns

    count = starts.observation.shape[0]
    carry = ((starts, memory), jnp.ones(count, bool), jnp.zeros(count, starts.observation.dtype))
    return _until_all_have_ended(step, carry, environment.spec.time_limit)[2]


def _until_all_have_ended(step: Callable[[Any, Array], Any], carry: Any, steps: int) -> Any:
    """``carry = step(carry, t)`` for t = 0, 1, …, or fewer times where nothing more comes of it, as no episode runs any longer.

    Whether one does, by ``carry[1]``, is asked once in a block: often enough to pay where policies are bad, and too seldom to be
    felt where the devices have to report to the host for it. After ``steps`` steps none does.
    """

    def goes_on(state: tuple[Array, Any]) -> Array:
        time, (_, running, _) = state
        return (time < steps) & jnp.any(running)

    def go_on(state: tuple[Array, Any]) -> tuple[Array, Any]:
        def one(carry: Any, time: Array) -> tuple[Any, None]:
            where, running, returns = carry
            return step((where, running & (time < steps), returns), time), None

        time, carry = state
        carry, _ = jax.lax.scan(one, carry, time + jnp.arange(BLOCK, dtype=time.dtype))
        return time + BLOCK, carry

    return jax.lax.while_loop(goes_on, go_on, (jnp.zeros((), jnp.int32), carry))[1]


def play_imagined(world: WorldModel, params: Any, greedy: Greedy, start: Any, key: Array, steps: int) -> Array:
    """Returns [n] of one imagined episode from each of the beliefs ``start`` [n].

    An episode in which a feature or a reward is not finite returns minus infinity: no policy earns anything in such a world.

    Args:
      world: in which a rollout stays with the member that it is dealt to (``ts_infinity``).
      params: its, of M members of which n is a multiple.
      greedy: the policy, on features.
      start: [n, ...].
      key: consumed for the model's noise.
      steps: after which an episode is cut.

    """
    count = jax.tree.leaves(start)[0].shape[0]
    draws = world.draw(key, key, (steps, count))

    def step(carry: tuple[Any, Array, Array], time: Array) -> tuple[Any, Array, Array]:
        belief, running, returns = carry
        now = jax.tree.map(lambda leaf: leaf[jnp.minimum(time, steps - 1)], draws)
        imagined = world.step(params, belief, greedy(world.features(belief)), now)
        sound = jnp.all(jnp.isfinite(world.features(imagined.belief)), axis=-1) & jnp.isfinite(imagined.reward)
        returns = jnp.where(running, jnp.where(sound, returns + imagined.reward, -jnp.inf), returns)
        return imagined.belief, running & sound & ~imagined.terminated, returns

    carry = (start, jnp.ones(count, bool), jnp.zeros(count))
    return _until_all_have_ended(step, carry, steps)[2]
