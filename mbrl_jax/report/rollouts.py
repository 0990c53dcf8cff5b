"""What the report plays: policies in the real environment and in imagination, from starts of its own.

The random numbers are fixed, so that the same runs give the same report.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import environments as env
from mbrl_jax.agents.protocol import Policy
from mbrl_jax.algorithms.hosted import judge
from mbrl_jax.algorithms.registry import algorithm_of, world_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, RunConfig
from mbrl_jax.environments import Environment, Transition, make_environment
from mbrl_jax.environments.episodes import Episodes, record
from mbrl_jax.environments.host import Host
from mbrl_jax.environments.observing import beneath
from mbrl_jax.model.protocol import WorldModel, belief_at
from mbrl_jax.networks import Params

BASE_SEED = 2_147_483_647  # of the report's own episodes; a run's seeds begin with the base that it was given
CALIBRATION_STEPS = 200
CALIBRATION_SEEDS = 64


class Predicted(NamedTuple):
    """What members say of transitions, beside what followed; in units of the deviations of the data's state change."""

    truth: np.ndarray  # [seeds, T, D]
    mean: np.ndarray  # [seeds, M, T, D]
    deviation: np.ndarray  # [seeds, M, T, D]


class Episode(NamedTuple):
    """One real episode, and what each member imagines from its start, by the same policy."""

    real: np.ndarray  # [n + 1, D] states from the start to the end
    terminated: bool  # the task ended it, not the time limit
    imagined: list[np.ndarray]  # M of [at most n + 1, D], by mean predictions; one ends early where the member terminates


def calibration(config: RunConfig, policies: Params, models: Any) -> dict[str, Predicted]:
    """Predictions of members that predict variances, in states of every seed's own greedy policy and of the random one.

    Args:
      config: of the run.
      policies: leaves [seeds, ...].
      models: parameters of the world model, leaves [seeds, ...]; of more than 64 seeds the first 64 are asked.

    """
    task = make_environment(config.environment)
    world, policy = world_of(config, task), algorithm_of(config).policy(config, task)

    def one(params: Params, model: Any, key: Array) -> tuple[Any, Any]:
        key_policy, key_random = jax.random.split(key)
        own = play_on(task, policy, params, key_policy, CALIBRATION_STEPS)
        _, random, _ = env.collect(task, env.draw_collection(task, key_random, CALIBRATION_STEPS))
        return _predict(world, model, own), _predict(world, model, random)

    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:CALIBRATION_SEEDS]), (policies, models))
    keys = seed_keys(BASE_SEED, len(jax.tree.leaves(few)[0]))
    if task.host is None:
        on_policy, on_random = jax.jit(jax.vmap(one))(*few, keys)
    else:
        predict = jax.jit(jax.vmap(partial(_predict, world)))
        own = play_on_host(task, policy, few[0], keys, CALIBRATION_STEPS)
        random = play_on_host(task, policy, few[0], keys, CALIBRATION_STEPS, random=True)
        on_policy, on_random = predict(few[1], own), predict(few[1], random)
    return {"own policy": Predicted(*map(np.asarray, on_policy)), "random policy": Predicted(*map(np.asarray, on_random))}


def episode(config: RunConfig, params: Params, model: Any) -> Episode:
    """A real episode of one seed's greedy policy and, if there is a model, the same one as each member imagines it.

    Args:
      config: of the run.
      params: of one seed's policy.
      model: parameters of the same seed's world model, none without one.

    """
    task = make_environment(config.environment)
    policy = algorithm_of(config).policy(config, task)
    key = seed_keys(BASE_SEED, 1)[0]
    limit = task.spec.time_limit
    params = jax.tree.map(jnp.asarray, params)
    if task.host is None:
        played = jax.jit(lambda params: play_on(task, policy, params, key, limit))(params)
    else:
        alone = jax.tree.map(lambda leaf: leaf[None], params)
        played = jax.tree.map(lambda leaf: leaf[0], play_on_host(task, policy, alone, key[None], limit))
    ended = np.flatnonzero(np.asarray(played.terminated | played.truncated))
    length = int(ended[0]) + 1 if len(ended) else limit
    real = np.concatenate([np.asarray(played.observation[:1]), np.asarray(played.next_observation[:length])])
    terminated = bool(played.terminated[length - 1])
    world = None if model is None else world_of(config, task)
    if world is None or world.belief is None:
        return Episode(real, terminated, [])

    def dream(params: Params, model: Any, start: Array) -> tuple[Array, Array]:
        return imagine(world, model, policy, params, start, limit)

    states, over = jax.jit(dream)(params, jax.tree.map(jnp.asarray, model), jnp.asarray(real[0]))
    return Episode(real, terminated, [_until(states[:, m], over[:, m], real) for m in range(states.shape[1])])


def play_on(task: Environment, policy: Policy, params: Params, key: Array, steps: int) -> Transition:
    """[steps] transitions of a policy in the real environment, one episode after another."""
    return play_beneath(task, policy, params, key, steps)[0]


def play_beneath(task: Environment, policy: Policy, params: Params, key: Array, steps: int) -> tuple[Transition, Array]:
    """The same, with the whole observations [steps, D'] of the states before the transitions, of what a task hides too."""
    key_first, key_resets = jax.random.split(key)
    fresh_memory = policy.begin(params, key, 1)

    def step(carry: Any, fresh: Any) -> tuple[Any, tuple[Transition, Array]]:
        state, memory = carry
        whole = beneath(state)
        memory, action = policy.act(params, memory, state.observation[None])
        state, transition = task.step(state, action[0], fresh)
        ended = transition.terminated | transition.truncated
        return (state, _where(ended, fresh_memory, memory)), (transition, whole)

    start = task.draw_resets(key_first, ()), fresh_memory
    return jax.lax.scan(step, start, task.draw_resets(key_resets, (steps,)))[1]


def play_on_host(
    task: Environment, policy: Policy, params: Params, keys: Array, steps: int, *, random: bool = False
) -> Transition:
    """[n, steps] transitions of policies [n], or of the uniform random one, in simulators on the host.

    Raises:
      ConfigError: a simulator fails.

    """
    host: Host = cast(Any, task.host)
    act = jax.jit(jax.vmap(partial(judge, policy)))
    memory = jax.vmap(lambda params, key: policy.begin(params, key, 1))(params, keys)
    actions = np.asarray(jax.vmap(lambda key: env.draw_actions(task.spec, key, (steps,)))(keys)) if random else None

    def choose(episodes: Episodes, step: int) -> tuple[np.ndarray, Any]:
        nonlocal memory
        if actions is not None:
            return actions[:, step], ()
        memory, action = act(params, memory, episodes.observation, episodes.begins, keys)
        return np.asarray(action), ()

    copies = host.copies(len(keys))
    try:
        transitions: Transition = record(Episodes(copies, list(range(len(keys)))), choose, steps)[0]
    finally:
        copies.close()
    if copies.failures:
        raise ConfigError(f"environment.name: a simulator of {task.spec.name!r} failed:\n{next(iter(copies.failures.values()))}")
    return transitions


def imagine(world: WorldModel, model: Any, policy: Policy, params: Params, start: Array, steps: int) -> tuple[Array, Array]:
    """[steps, M, F] features that follow a start [F] as each member imagines them by its mean, and [steps, M] whether it ends."""

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        belief, memory = carry
        memory, action = policy.act(params, memory, world.features(belief))
        imagined = world.expect(model, jax.tree.map(lambda x: x[:, None], belief), action[:, None])
        belief = jax.tree.map(lambda x: x[:, 0], imagined.belief)
        return (belief, memory), (world.features(belief), imagined.terminated[:, 0])

    members = world.spec.members
    begin = belief_at(world, "a report")(jnp.broadcast_to(start[None], (members, start.shape[0])))
    return jax.lax.scan(step, (begin, policy.begin(params, jax.random.key(0), members)), None, length=steps)[1]


def _where(condition: Array, chosen: Any, other: Any) -> Any:
    """Leaf by leaf ``chosen`` where the scalar condition holds."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _predict(world: WorldModel, model: Any, transitions: Transition) -> tuple[Array, Array, Array]:
    """The true change [T, D], and means and deviations [M, T, D] of one seed's members, all in units of the world's scale."""
    scale, before = world.scale(model)[None], transitions.observation
    asked = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (world.spec.members, *x.shape)), transitions)
    told = world.expect(model, belief_at(world, "a report")(asked.observation), asked.action)
    assert told.everyone is not None, "expect tells what every member says"
    assert told.everyone.log_variance is not None, "only predicted variances can be calibrated"
    mean = (world.features(told.belief) - before[None]) / scale[None]
    deviation = jnp.exp(0.5 * told.everyone.log_variance[..., : before.shape[-1]])
    return (transitions.next_observation - before) / scale, mean, deviation


def _until(states: Array, over: Array, real: np.ndarray) -> np.ndarray:
    """One member's states from the real start on, until it terminates or the real episode ends."""
    ended = np.flatnonzero(np.asarray(over))
    length = min(len(real) - 1, int(ended[0]) + 1 if len(ended) else len(over))
    return np.concatenate([real[:1], np.asarray(states[:length])])
