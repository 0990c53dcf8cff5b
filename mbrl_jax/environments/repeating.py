"""Action repeat: one decision holds for several of the simulator's steps, as is usual on the DeepMind Control suite.

A repeated task has fewer decisions an episode, each of which moves further and earns the sum of its rewards.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.protocol import Environment, EnvironmentState, Transition


def repeated(environment: Environment, times: int) -> Environment:
    """A task whose every action is held for ``times`` steps of the simulator, or until the episode ends.

    The reward is the sum over those steps. As it is no function of the two observations that are left, the repeated task knows no
    reward function, and a world model learns it. Time limits and ``elapsed`` count decisions. A task that is repeated so already
    stays as it is.

    Raises:
      ConfigError: the task is repeated otherwise already, or it is no pure function.

    """
    spec = environment.spec
    if spec.action_repeat == times:
        return environment
    problem = f"environment.action_repeat: {times!r} does not fit; "
    if spec.action_repeat != 1:
        raise ConfigError(f"{problem}the environment that is given repeats each action {spec.action_repeat} times already")
    if environment.host is not None:
        raise ConfigError(f"{problem}{spec.name!r} is stepped on the host, where a wrapper of Gymnasium repeats actions")
    if not environment.has_simulator:
        raise ConfigError(f"{problem}there are only logged transitions, so it must be 1")

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        def again(carry: tuple[EnvironmentState, Transition], _: None) -> tuple[tuple[EnvironmentState, Transition], None]:
            now, told = carry
            ended = told.terminated | told.truncated
            after, more = environment.step(now, action, fresh)
            more = more._replace(observation=told.observation, reward=told.reward + more.reward, elapsed=told.elapsed)
            return jax.tree.map(lambda old, new: jnp.where(ended, old, new), carry, (after, more)), None

        (after, told), _ = jax.lax.scan(again, environment.step(state, action, fresh), None, length=times - 1)
        return after, told._replace(elapsed=told.elapsed // times)

    def dynamics(observation: Array, action: Array) -> Array:
        assert environment.dynamics is not None
        one: Any = environment.dynamics
        return jax.lax.fori_loop(0, times, lambda _, s: one(s, action), observation)  # type: ignore[no-any-return]

    return environment._replace(
        spec=spec._replace(time_limit=-(-spec.time_limit // times), action_repeat=times),
        step=step,
        reward=None,
        dynamics=None if environment.dynamics is None else dynamics,
    )
