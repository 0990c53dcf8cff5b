"""Where the error of an agent's value comes from: the value function, the model, or the policy's shift away from the data.

For looking only, as the real dynamics are asked. All parts are one-step errors of the Bellman equation at the greedy policy's own
actions: with the real reward and next state ``r, s'`` and the model's ``r^, s^'``,

    V(s) - (r + g V(s'))  =  [V(s) - (r^ + g E V(s^'))]  +  [(r^ + g E V(s^')) - (r + g V(s'))]

The first bracket is what the value function has not learned in its model, the second is the model's error as the value sees it.
At the states that the policy visits the second one is the model's error on held-out data plus its change from there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.environments import Environment
from mbrl_jax.model.protocol import WorldModel, members_step
from mbrl_jax.replay import weighted_mean

EPISODES = 8  # greedy real episodes whose states are those that the policy visits
STEPS = 200  # of each of them, at the most


class Mismatch(NamedTuple):
    """Means in units of the return. Above 0 a state is valued too highly. ``total = value + model + shift``."""

    total: Array  # [] of the value at the states that the policy visits
    value: Array  # [] the value function's part there
    model: Array  # [] the model's part at held-out real states
    shift: Array  # [] the model's part where the policy goes, less that at held-out real states
    model_size: Array  # [] mean magnitude of the model's part at held-out real states
    visited_size: Array  # [] the same where the policy goes
    model_share: Array  # [] of 1: the model's magnitude over that and the value function's, where the policy goes


def check_task(task: Environment) -> None:
    """Refuse a task whose real dynamics cannot be asked.

    Raises:
      ConfigError: it does not tell its dynamics, its reward or its termination.

    """
    for name in ("dynamics", "reward", "terminated"):
        if getattr(task, name) is None:
            raise ConfigError(
                f"evaluation.mismatch: True does not fit; {task.spec.name} does not tell its {name} as a function of observations"
            )


def visited(task: Environment, greedy: Callable[[Array], Array], key: Array) -> tuple[Array, Array]:
    """Observations [STEPS * EPISODES, D] of greedy real episodes, and their weights [...], 0 after an episode's end."""
    dynamics, terminated = task.dynamics, task.terminated
    assert dynamics is not None
    assert terminated is not None
    steps = min(STEPS, task.spec.time_limit)
    start = task.draw_resets(key, (EPISODES,)).observation

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        seen, running = carry
        action = greedy(seen)
        after = dynamics(seen, action)
        return (after, running & ~terminated(seen, action, after)), (seen, running)

    _, (seen, running) = jax.lax.scan(step, (start, jnp.ones(EPISODES, bool)), None, length=steps)
    return seen.reshape(-1, seen.shape[-1]), running.reshape(-1).astype(seen.dtype)


def target(value: Callable[[Array], Array], discount: Array | float, reward: Array, terminated: Array, after: Array) -> Array:
    """[...] rewards [...] and, where nothing has terminated [...], the discounted value of the states [..., D] after them."""
    return reward + discount * (1 - terminated.astype(reward.dtype)) * value(after)


def members_targets(
    world: WorldModel,
    params: Any,
    value: Callable[[Array], Array],
    discount: Array | float,
    observation: Array,
    action: Array,
    asks: str,
) -> Array:
    """[M, n] the target after each member's mean step from observations [n, D] by actions [n, ...].

    Raises:
      ConfigError: the world's features do not tell where a rollout stands; ``asks`` names who asks.

    """
    told = members_step(world, params, observation, action, asks)
    return target(value, discount, told.reward, told.terminated, world.features(told.belief))


def residuals(
    task: Environment,
    world: WorldModel,
    params: Any,
    greedy: Callable[[Array], Array],
    value: Callable[[Array], Array],
    discount: Array | float,
    observation: Array,
) -> tuple[Array, Array]:
    """The value function's part and the model's part [n] at observations [n, D].

    The expectation over the model is the mean over members of the value after each one's mean step.
    """
    dynamics, reward, terminated = task.dynamics, task.reward, task.terminated
    assert dynamics is not None
    assert reward is not None
    assert terminated is not None
    action = greedy(observation)
    after = dynamics(observation, action)
    real = target(value, discount, reward(observation, action, after), terminated(observation, action, after), after)
    each = members_targets(world, params, value, discount, observation, action, "evaluation.mismatch")
    expected = jnp.mean(each, axis=0)
    return value(observation) - expected, expected - real


def decompose(
    task: Environment,
    world: WorldModel,
    params: Any,
    greedy: Callable[[Array], Array],
    value: Callable[[Array], Array],
    discount: Array | float,
    held_out: Array,
    weight: Array,
    key: Array,
) -> Mismatch:
    """Tell the value's error apart.

    Args:
      task: whose real dynamics are asked.
      world: the world model.
      params: its, as imagination uses them.
      greedy: ``observations [..., D] -> actions [...]`` of the policy that is judged.
      value: ``features [..., F] -> [...]``, the agent's.
      discount: the agent's.
      held_out: [h, D] real observations that the model is not trained on.
      weight: [h] 1 for those that are data, else 0.
      key: of the resets from which the policy's own episodes begin.

    """
    there, counted = visited(task, greedy, key)
    of_value, of_model = residuals(task, world, params, greedy, value, discount, there)
    _, on_data = residuals(task, world, params, greedy, value, discount, held_out)
    value_part, model_part = weighted_mean(of_value, counted), weighted_mean(of_model, counted)
    model = weighted_mean(on_data, weight)
    size, value_size = weighted_mean(jnp.abs(of_model), counted), weighted_mean(jnp.abs(of_value), counted)
    return Mismatch(
        total=value_part + model_part,
        value=value_part,
        model=model,
        shift=model_part - model,
        model_size=weighted_mean(jnp.abs(on_data), weight),
        visited_size=size,
        model_share=size / jnp.maximum(size + value_size, jnp.finfo(size.dtype).tiny),
    )
