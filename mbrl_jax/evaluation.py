"""Judging policies: greedy episodes in the real environment, and in imagination to choose among snapshots."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws, replay
from mbrl_jax.environment import Environment, EnvironmentState
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members

BLOCK = 25  # steps after which it is asked whether an episode still runs

Greedy = Callable[[Array], Array]  # observations [..., D] -> actions [...]


def play(environment: Environment, greedy: Greedy, starts: EnvironmentState) -> Array:
    """Returns [n] of one real episode from each of the starts [n], up to the time limit."""
    return play_with_memory(environment, lambda memory, s: (memory, greedy(s)), (), starts)


def play_with_memory(
    environment: Environment, act: Callable[[Any, Array], tuple[Any, Array]], memory: Any, starts: EnvironmentState
) -> Array:
    """The same by a policy ``(memory, observations [n, D]) -> (memory, actions [n])`` and the memory that it begins with."""

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


def sample_first_observations(real: replay.Replay, bits: Array, action_size: int) -> Array:
    """Observations [..., D] drawn uniformly from the first states of the real episodes in a replay.

    Args:
      real: holds at least one first state that has not been overwritten.
      bits: [...] uint32.
      action_size: A, the numbers of a continuous action; 0 where actions are discrete.

    """
    rows = replay.unpack(real.rows, action_size)
    first = (rows.depth == 0) & (jnp.arange(real.rows.shape[0], dtype=jnp.int32) < replay.size(real))
    places = jnp.nonzero(first, size=real.rows.shape[0], fill_value=0)[0]
    chosen = places[bits % jnp.sum(first, dtype=jnp.uint32)]
    return rows.observation[chosen]


def play_imagined(ensemble: Ensemble, members: Members, greedy: Greedy, first: Array, key: Array, steps: int) -> Array:
    """Returns [n] of one imagined episode from each of the first observations, dealt evenly to members that stay with them.

    An episode in which an observation or a reward is not finite returns minus infinity: no policy earns anything in such a world.

    Args:
      ensemble: the shape of the world model.
      members: M of them.
      greedy: the policy.
      first: [n, D], n a multiple of M.
      key: consumed for the Gaussian members' noise.
      steps: after which an episode is cut.

    """
    count, size, own = ensemble.sampling_members, first.shape[-1], ensemble.spec.action_shape
    noise = None
    if ensemble.config.kind == "gaussian":
        noise = draws.normal(key, (steps, *first.shape))

    def step(carry: tuple[Array, Array, Array], time: Array) -> tuple[Array, Array, Array]:
        observation, running, returns = carry  # one axis of rows, member after member
        action = greedy(observation)
        prediction = ens.predict(ensemble, members, observation.reshape(count, -1, size), action.reshape(count, -1, *own))
        prediction = jax.tree.map(lambda leaf: leaf.reshape(first.shape[0], *leaf.shape[2:]), prediction)
        now = None if noise is None else noise[jnp.minimum(time, steps - 1)]
        imagined = ens.decode(ensemble, members.normaliser, prediction, observation, action, now)
        sound = jnp.all(jnp.isfinite(imagined.next_observation), axis=-1) & jnp.isfinite(imagined.reward)
        returns = jnp.where(running, jnp.where(sound, returns + imagined.reward, -jnp.inf), returns)
        return imagined.next_observation, running & sound & ~imagined.terminated, returns

    carry = (first, jnp.ones(first.shape[0], bool), jnp.zeros(first.shape[0], first.dtype))
    return _until_all_have_ended(step, carry, steps)[2]
