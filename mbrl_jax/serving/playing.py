"""Loads saved policies and plays them, in gymnax or in gymnasium's own environments."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import trees
from mbrl_jax.algorithms.hosted import judge
from mbrl_jax.algorithms.phases import play_policy
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, RunConfig, check_seeds, check_whole, expand, from_dict
from mbrl_jax.environments import Environment, EnvironmentSpec, environment_of, in_units
from mbrl_jax.environments.episodes import Episodes, play
from mbrl_jax.environments.host import Host
from mbrl_jax.runs import checkpoint, results
from mbrl_jax.runs.results import CHECKPOINTS, RUN
from mbrl_jax.simulators.spaces import SimulatorError


class Policy:
    """The greedy policies of a run's seeds, for callers outside the library.

    Observations are NumPy arrays or lists. Actions are NumPy arrays in the task's own units: what ``step`` of the task in
    gymnasium takes. The action for one observation is an ``np.int64`` of a discrete task and an array [A] of float32 of a
    continuous one; actions for several are arrays of int64 [...] or of float32 [..., A]. In an environment on the host one
    observation is what its simulator gives, as a dictionary, and its action what ``step`` there takes.

    >>> policy = mbrl_jax.load_policy("runs/first")
    >>> observation, *_ = env.step(policy(observation, seed=0))

    Attributes:
      config: of the run.
      spec: sizes and limits of its task.
      params: network parameters, leaves [seeds, ...].

    """

    def __init__(self, config: RunConfig, params: Any, environment: Environment | None = None):
        """Made by :func:`load_policy`."""
        self.config, self.params = config, jax.tree.map(jnp.asarray, params)
        task = environment_of(config.environment, environment)
        self.spec, self._interface = task.spec, None if task.host is None else task.host.interface
        policy = algorithm_of(config).policy(config, task)

        def first_actions(params: Any, observation: jax.Array) -> jax.Array:
            """Actions [...] in observations [..., D], in each of which an episode begins."""
            flat = observation.reshape(-1, observation.shape[-1])
            _, action = policy.act(params, policy.begin(params, jax.random.key(0), len(flat)), flat)
            return action.reshape(*observation.shape[:-1], *task.spec.action_shape)

        self._policy = policy
        self._one = jax.jit(lambda params, seed, s: first_actions(jax.tree.map(lambda leaf: leaf[seed], params), s))
        self._all = jax.jit(jax.vmap(first_actions))

    def __len__(self) -> int:
        """How many seeds there are."""
        return len(jax.tree.leaves(self.params)[0])

    def __call__(self, observation: Any, seed: int | None = None) -> Any:
        """Actions [...] of one seed's policy for observations [..., D]; without a seed, [seeds, ...] for [seeds, ..., D].

        Raises:
          ConfigError: there is no such seed, or these are no observations of the task.

        """
        if seed is None:
            return actions_for_others(self.spec, self._all(self.params, self._checked(observation, (len(self),))))
        check_whole(seed, "seed")
        if not 0 <= seed < len(self):
            raise ConfigError(f"seed: {seed!r} is out of range; it must be from 0 to {len(self) - 1}")
        if self._interface is not None and self._interface.is_one(observation):
            try:
                flat = self._interface.read(observation)
            except SimulatorError as error:
                raise ConfigError(str(error)) from error
            return self._interface.write(np.asarray(self._one(self.params, seed, flat)))
        observation = self._checked(observation, ())
        return actions_for_others(self.spec, self._one(self.params, seed, observation))

    def play(self, episodes: int = 1, *, seed: int = 0, base_seed: int = 0) -> "Playing":
        """Episodes side by side by one seed's policy, which remembers each from call to call, as a planner or a filter does.

        >>> playing = policy.play(seed=0)
        >>> observation, *_ = env.step(playing(observation[None])[0])

        Args:
          episodes: how many.
          seed: whose policy.
          base_seed: of what the policy draws at random, if it does.

        Raises:
          ConfigError: there is no such seed, or no episode.

        """
        check_whole(seed, "seed")
        check_whole(episodes, "episodes")
        if not 0 <= seed < len(self):
            raise ConfigError(f"seed: {seed!r} is out of range; it must be from 0 to {len(self) - 1}")
        if episodes < 1:
            raise ConfigError(f"episodes: {episodes!r} is out of range; it must be at least 1")
        return Playing(self, jax.tree.map(lambda leaf: leaf[seed], self.params), episodes, base_seed)

    def _checked(self, observation: Any, lead: tuple[int, ...]) -> np.ndarray:
        """Observations [*lead, ..., D] in float32, if they are such."""
        size, task = self.spec.observation_size, self.spec.name
        right = f"[{', '.join(map(str, (*lead, '...', size)))}]"
        try:
            given = np.asarray(observation)
        except ValueError as error:
            raise ConfigError(f"observation: it is no array ({error}); it must be {right} numbers, as of {task}") from error
        if given.dtype.kind not in "fiu":
            raise ConfigError(f"observation: dtype {given.dtype} does not fit; it must be floats, as of {task}")
        if given.ndim <= len(lead) or given.shape[-1] != size or given.shape[: len(lead)] != lead:
            hint = "; for one policy name its seed, as in policy(observation, seed=0)" if lead else ""
            raise ConfigError(f"observation: shape {list(given.shape)} does not fit; it must be {right}, as of {task}{hint}")
        return given.astype(np.float32)


class Playing:
    """Episodes that go on, with what the policy remembers of them; made by :meth:`Policy.play`."""

    def __init__(self, policy: Policy, params: Any, episodes: int, base_seed: int):
        """Made by :meth:`Policy.play`."""
        self._policy, self._params, self._episodes = policy, params, episodes
        self._memory = policy._policy.begin(params, seed_keys(base_seed, 1)[0], episodes)
        self._act = jax.jit(policy._policy.act)

    def __call__(self, observation: Any) -> Any:
        """Actions [n] for the next observations [n, D] of the n episodes.

        Raises:
          ConfigError: these are no observations of so many episodes.

        """
        seen = self._policy._checked(observation, (self._episodes,))
        if seen.ndim != 2:
            raise ConfigError(f"observation: shape {list(seen.shape)} does not fit; it must be one for each of the episodes")
        self._memory, action = self._act(self._params, self._memory, seen)
        return actions_for_others(self._policy.spec, action)


def actions_for_others(spec: EnvironmentSpec, action: jax.Array) -> Any:
    """A policy's actions [...] as a simulator outside the library takes them.

    Returns:
      For continuous actions, float32 [..., A] in the task's own units and within its bounds. For discrete ones, int64 [...], an
      ``np.int64`` if there is but one.

    """
    if not spec.continuous:
        return np.asarray(action).astype(np.int64)[()]
    return in_units(spec, np.clip(np.asarray(action, np.float32), -1.0, 1.0))  # a planner's mean may exceed 1 by rounding


def load_policy(
    folder: str | Path, which: Literal["chosen", "last"] | None = None, *, environment: Environment | None = None
) -> Policy:
    """The policies of a run, or of a run's last checkpoint if it is not finished.

    Args:
      folder: the run's.
      which: the ones chosen in imagination or those of the last update; none takes the chosen ones where there are any.
      environment: the one that they were trained in, where its name is not known.

    Raises:
      ConfigError: the folder holds no run, or it has no such policies.

    """
    config, policies = load_policies(folder, environment=environment)
    name = which or ("chosen" if "chosen" in policies else "last")
    if name not in policies:
        raise ConfigError(f"which: {name!r} does not fit; the run in {str(folder)!r} has the policies {', '.join(policies)}")
    return Policy(config, policies[name], environment)


def load_policies(folder: str | Path, *, environment: Environment | None = None) -> tuple[RunConfig, dict[str, Any]]:
    """The settings of a run and its policies, ``last`` and perhaps ``chosen``, as parameters [seeds, ...].

    Of a run that is not finished, those of its last checkpoint.

    Raises:
      ConfigError: the folder does not hold a run, or it has not been saved yet.

    """
    folder = expand(folder, "folder")
    if (folder / "policies.npz").exists() or not (folder / RUN).exists():
        config, found = results.read_config(folder), trees.nest(results.load_arrays(folder / "policies.npz"))
    else:
        there = checkpoint.rounds(folder / CHECKPOINTS)
        if not there:
            raise ConfigError(f"{str(folder)!r}: the run in it is not finished and has no checkpoint yet")
        found = trees.nest(checkpoint.read(folder / CHECKPOINTS, there[-1]).arrays)["policies"]
        config = from_dict(results.read_run(folder)["config"])
    template = algorithm_of(config).params(config, environment_of(config.environment, environment))
    return config, {name: results.filled(template, nested) for name, nested in found.items()}


def play_policies(
    config: RunConfig,
    params: Any,
    episodes: int,
    simulator: Literal["gymnax", "gymnasium"],
    seed: int,
    *,
    environment: Environment | None = None,
) -> np.ndarray:
    """Returns [seeds, episodes] of greedy episodes of every seed's policy.

    Args:
      config: of the run.
      params: leaves [seeds, ...].
      episodes: at least 1.
      simulator: whose implementation of the task; ``gymnax`` is the one that the run was trained in.
      seed: of the initial states.
      environment: the one that they were trained in, where its name is not known.

    Raises:
      ConfigError: no episodes, a seed that cannot be, or gymnasium has no such task.

    """
    if episodes < 1:
        raise ConfigError(f"episodes: {episodes!r} is out of range; it must be at least 1")
    check_seeds(len(jax.tree.leaves(params)[0]), seed)
    task = environment_of(config.environment, environment)
    if task.host is not None:
        return _play_on_host(config, task, params, episodes, seed)
    if simulator == "gymnasium":
        return _play_gymnasium(config, task, params, episodes, seed)
    policy = algorithm_of(config).policy(config, task)
    seeds = len(jax.tree.leaves(params)[0])

    def one(params: Any, key: jax.Array) -> jax.Array:
        return play_policy(task, policy, params, task.draw_resets(key, (episodes,)), jax.random.fold_in(key, 1))

    return np.asarray(jax.jit(jax.vmap(one))(params, seed_keys(seed, seeds)))


def _play_on_host(config: RunConfig, task: Environment, params: Any, episodes: int, seed: int) -> np.ndarray:
    """The same in the simulators of an environment on the host; NaN where one fails."""
    host: Host = cast(Any, task.host)
    policy, keys = algorithm_of(config).policy(config, task), seed_keys(seed, len(jax.tree.leaves(params)[0]))
    memory = jax.vmap(lambda params, key: policy.begin(params, key, 1))(params, keys)
    act = jax.jit(jax.vmap(partial(judge, policy)))
    copies = host.copies(len(keys))

    def choose(playing: Episodes) -> np.ndarray:
        nonlocal memory
        memory, action = act(params, memory, playing.observation, playing.begins, keys)
        return np.asarray(action)

    try:
        return play(Episodes(copies, [seed + place for place in range(len(keys))]), choose, episodes)
    finally:
        copies.close()


def _play_gymnasium(config: RunConfig, task: Environment, params: Any, episodes: int, seed: int) -> np.ndarray:
    import gymnasium

    if config.environment.name not in gymnasium.registry:
        raise ConfigError(f"env: 'gymnasium' does not fit; it has no {config.environment.name!r}; it must be gymnax")
    for wrapper in ("distractors", "observed", "delay"):
        if getattr(task.spec, wrapper):
            raise ConfigError(
                f"env: 'gymnasium' does not fit environment.{wrapper}, which its simulator does not know; it must be gymnax"
            )
    policy = algorithm_of(config).policy(config, task)
    seeds = len(jax.tree.leaves(params)[0])
    memory = jax.vmap(lambda params, key: policy.begin(params, key, episodes))(params, seed_keys(seed, seeds))
    act = jax.jit(jax.vmap(policy.act))
    environments: Any = gymnasium.make_vec(
        config.environment.name,
        num_envs=seeds * episodes,
        vectorization_mode="sync",
        max_episode_steps=task.spec.time_limit,
    )
    observation, _ = environments.reset(seed=seed)
    running, returns = np.ones(seeds * episodes, bool), np.zeros(seeds * episodes)
    while running.any():
        table = jnp.asarray(observation, jnp.float32).reshape(seeds, episodes, -1)
        memory, actions = act(params, memory, table)
        action = actions_for_others(task.spec, actions).reshape(-1, *task.spec.action_shape)
        observation, reward, terminated, truncated, _ = environments.step(action)
        returns += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    environments.close()
    return returns.reshape(seeds, episodes)
