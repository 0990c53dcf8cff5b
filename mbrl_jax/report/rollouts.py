"""What the report plays: policies in the real environment and in imagination, from starts of its own.

The random numbers are fixed, so that the same runs give the same report.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import environment as env
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ModelBasedConfig, RunConfig
from mbrl_jax.environment import Environment, Transition, make_environment
from mbrl_jax.evaluation import Greedy
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members
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


def calibration(config: ModelBasedConfig, policies: Params, members: Members) -> dict[str, Predicted]:
    """Predictions of Gaussian members on states of every seed's own greedy policy and of the random one.

    Args:
      config: of the run.
      policies: leaves [seeds, ...].
      members: leaves [seeds, ...]; of more than 64 seeds the first 64 are asked.

    """
    task = make_environment(config.environment)
    ensemble = ensemble_of(config, task)
    greedy = algorithm_of(config).greedy(config, task)

    def one(params: Params, members: Members, key: Array) -> tuple[Any, Any]:
        key_policy, key_random = jax.random.split(key)
        own = play_on(task, lambda s: greedy(params, s), key_policy, CALIBRATION_STEPS)
        _, random, _ = env.collect(task, env.draw_collection(task, key_random, CALIBRATION_STEPS))
        return _predict(ensemble, members, own), _predict(ensemble, members, random)

    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:CALIBRATION_SEEDS]), (policies, members))
    keys = seed_keys(BASE_SEED, len(jax.tree.leaves(few)[0]))
    on_policy, on_random = jax.jit(jax.vmap(one))(*few, keys)
    return {"own policy": Predicted(*map(np.asarray, on_policy)), "random policy": Predicted(*map(np.asarray, on_random))}


def episode(config: RunConfig, policy: Params, members: Members | None) -> Episode:
    """A real episode of one seed's greedy policy and, if there are members, the same one as each imagines it.

    Args:
      config: of the run.
      policy: of one seed.
      members: of the same seed, none without a model.

    """
    task = make_environment(config.environment)
    greedy = algorithm_of(config).greedy(config, task)
    key = seed_keys(BASE_SEED, 1)[0]
    limit = task.spec.time_limit
    policy = jax.tree.map(jnp.asarray, policy)
    played = jax.jit(lambda params: play_on(task, lambda s: greedy(params, s), key, limit))(policy)
    ended = np.flatnonzero(np.asarray(played.terminated | played.truncated))
    length = int(ended[0]) + 1 if len(ended) else limit
    real = np.concatenate([np.asarray(played.observation[:1]), np.asarray(played.next_observation[:length])])
    terminated = bool(played.terminated[length - 1])
    if members is None:
        return Episode(real, terminated, [])
    assert isinstance(config, ModelBasedConfig)
    ensemble = ensemble_of(config, task)

    def dream(params: Params, members: Members, start: Array) -> tuple[Array, Array]:
        return imagine(ensemble, members, lambda s: greedy(params, s), start, limit)

    states, over = jax.jit(dream)(policy, jax.tree.map(jnp.asarray, members), jnp.asarray(real[0]))
    return Episode(real, terminated, [_until(states[:, m], over[:, m], real) for m in range(states.shape[1])])


def ensemble_of(config: ModelBasedConfig, task: Environment) -> Ensemble:
    """The shape of the run's world model."""
    return Ensemble(config.model, task.spec, task.reward, task.terminated)


def play_on(task: Environment, greedy: Greedy, key: Array, steps: int) -> Transition:
    """[steps] transitions of a policy in the real environment, one episode after another."""
    key_first, key_resets = jax.random.split(key)

    def step(state: Any, fresh: Any) -> tuple[Any, Transition]:
        return task.step(state, greedy(state.observation), fresh)

    return jax.lax.scan(step, task.draw_resets(key_first, ()), task.draw_resets(key_resets, (steps,)))[1]


def imagine(ensemble: Ensemble, members: Members, greedy: Greedy, start: Array, steps: int) -> tuple[Array, Array]:
    """[steps, M, D] states that follow a start [D] as each member imagines them by its mean, and [steps, M] whether it ends."""

    def step(observation: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        action = greedy(observation)
        prediction = ens.predict(ensemble, members, observation[:, None], action[:, None])
        told = ens.decode(ensemble, members.normaliser, prediction, observation[:, None], action[:, None], None)
        return told.next_observation[:, 0], (told.next_observation[:, 0], told.terminated[:, 0])

    begin = jnp.broadcast_to(start[None], (ensemble.sampling_members, start.shape[0]))
    return jax.lax.scan(step, begin, None, length=steps)[1]


def _predict(ensemble: Ensemble, members: Members, transitions: Transition) -> tuple[Array, Array, Array]:
    """The truth [T, D], and means and deviations [M, T, D] of one seed's members, all normalised."""
    size = ensemble.spec.observation_size
    shift, scale = (each[None, :size] for each in (members.normaliser.target_mean, members.normaliser.target_scale))
    truth = (transitions.next_observation - transitions.observation - shift) / scale
    said = ens.predict_all(ensemble, members, transitions.observation, transitions.action)
    assert said.log_variance is not None
    return truth, said.mean[..., :size], jnp.exp(0.5 * said.log_variance[..., :size])


def _until(states: Array, over: Array, real: np.ndarray) -> np.ndarray:
    """One member's states from the real start on, until it terminates or the real episode ends."""
    ended = np.flatnonzero(np.asarray(over))
    length = min(len(real) - 1, int(ended[0]) + 1 if len(ended) else len(over))
    return np.concatenate([real[:1], np.asarray(states[:length])])
