"""Records transitions of a policy in an environment, for a file of logged transitions."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import draws
from mbrl_jax.agents.protocol import Policy
from mbrl_jax.environments import Environment, EnvironmentState, Transition, draw_actions, draw_pool, from_pool, in_units
from mbrl_jax.environments.logged.episodes import Logged

BLOCK = 10_000  # steps that are recorded at a time


class _Recording(NamedTuple):
    """Where a recording stands."""

    episode: EnvironmentState
    memory: Any  # the policy's


def record(
    task: Environment, policy: Policy | None, params: Any, key: Array, transitions: int, epsilon: float = 0.0
) -> Iterator[Logged]:
    """Yield successive transitions block by block, with actions in the task's own units; the last episode is cut.

    Args:
      task: the environment.
      policy: what plays; none acts uniformly at random.
      params: of the policy.
      key: everything random follows from it.
      transitions: how many.
      epsilon: share of the actions that are random instead of the policy's.

    """
    key_first, key_memory, key_blocks = jax.random.split(key, 3)

    def begin() -> Any:
        return () if policy is None else policy.begin(params, key_memory, 1)

    def step(now: _Recording, draw: tuple[Array, Array, Array], pool: Any) -> tuple[_Recording, Transition]:
        explore, action, number = draw
        memory = now.memory
        if policy is not None:
            memory, chosen = policy.act(params, memory, now.episode.observation[None])
            action = jnp.where(explore < epsilon, action, chosen[0].astype(action.dtype))
        episode, transition = task.step(now.episode, action, from_pool(pool, number))
        ended = transition.terminated | transition.truncated
        memory = jax.tree.map(lambda fresh, old: jnp.where(ended, fresh, old), begin(), memory)
        return _Recording(episode, memory), transition

    @partial(jax.jit, static_argnums=2)
    def block(now: _Recording, key: Array, steps: int) -> tuple[_Recording, Transition]:
        key_explore, key_action, key_resets = jax.random.split(key, 3)
        pool = draw_pool(task, key_resets, steps)
        numbers = jnp.arange(steps, dtype=jnp.int32)
        drawn = draws.uniform(key_explore, (steps,)), draw_actions(task.spec, key_action, (steps,)), numbers
        return jax.lax.scan(lambda now, draw: step(now, draw, pool), now, drawn)

    now = _Recording(task.draw_resets(key_first, ()), begin())
    for first in range(0, transitions, BLOCK):
        count = min(BLOCK, transitions - first)
        now, rows = block(now, jax.random.fold_in(key_blocks, first), count)
        columns = {name: np.array(getattr(rows, name)) for name in Transition._fields}
        columns["action"] = in_units(task.spec, columns["action"])
        if first + count == transitions:
            columns["truncated"][-1] = not columns["terminated"][-1]
        yield Logged(**columns, broken=np.zeros(count, bool))
