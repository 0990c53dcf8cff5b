"""What an export is made of: a run's policies and world model, real observations of its task, and real episodes in it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.agents.protocol import Policy
from mbrl_jax.algorithms.training import Stream, keys_of, stream
from mbrl_jax.config import ConfigError, RunConfig, check_whole
from mbrl_jax.environments import Environment, collect, draw_collection, environment_of, in_units, view_of
from mbrl_jax.environments import data as data_
from mbrl_jax.environments.episodes import Episodes
from mbrl_jax.runs import results
from mbrl_jax.runs.run import Run
from mbrl_jax.serving import recording
from mbrl_jax.serving.export.graphs import learned_units

ROWS = 10_000  # real observations that every file is held against
EPISODES = 50  # real ones that every policy plays
EXPLORATION = 0.1  # share of random actions among those that visit these observations
KEY = 17  # of these rows and episodes, which no run has learned from

Play = Callable[[np.ndarray], np.ndarray]  # observations [n, D] -> actions [n, ...] in the task's own units


class Source(NamedTuple):
    """A run and what of it is exported."""

    run: Run
    task: Environment
    axes: tuple[str, ...]  # D names of the observation's numbers
    which: str  # chosen or last: the policies
    seed: int | None  # place of the seed whose policy it is, none for the vote of all
    params: Any  # of that policy, or of all, leaves [seeds, ...]
    score: float | None  # mean imagined return of the policy chosen, none where nothing was chosen
    model_seed: int  # place of the seed whose world model it is
    model: Any  # its parameters, none of a run without a model

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.run.config


class Rows(NamedTuple):
    """Real observations with the actions that were taken in them."""

    observation: np.ndarray  # [n, D]
    action: np.ndarray  # [n] int32, or [n, A] in the task's own units
    low: np.ndarray  # [D] of the data that the run learned from
    high: np.ndarray  # [D]
    about: str  # which data these are


def open_source(folder: Path, seed: int | None, best: bool, ensemble: bool, environment: Environment | None = None) -> Source:
    """Read what is to be exported from a finished run.

    Args:
      folder: the run's.
      seed: place of the seed; none takes the first.
      best: the seed whose policy imagination scored best, in place of that.
      ensemble: the vote of all seeds, in place of that.
      environment: the one that it was trained in, where its name is not known.

    Raises:
      ConfigError: there is no such run or seed, more than one of these is asked for, or what it would be has numbers that are not
        finite.

    """
    if (seed is not None) + best + ensemble > 1:
        raise ConfigError("seed: --seed, --best and --ensemble do not go together; name one of them")
    run = results.read(folder, environment=environment)
    outcome, count = run.result.outcome, len(run.result.outcome.frozen)
    which = "last" if outcome.chosen is None else "chosen"
    scores = _scores(run)
    if best and scores is None:
        raise ConfigError(f"best: it does not fit the run in {str(folder)!r}, which scored no policy in imagination; use --seed")
    if seed is not None:
        check_whole(seed, "seed")
        if not 0 <= seed < count:
            raise ConfigError(f"seed: {seed!r} is out of range; it must be from 0 to {count - 1}")
    chosen = int(np.argmax(scores)) if best and scores is not None else seed or 0
    each = outcome.last if outcome.chosen is None else outcome.chosen
    params = each if ensemble else jax.tree.map(lambda leaf: leaf[chosen], each)
    model = None if outcome.model is None else jax.tree.map(lambda leaf: leaf[chosen], outcome.model)
    for name, tree in (("policy", params), ("model", model)):
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
            raise ConfigError(f"seed: the {name} of seed {chosen} has numbers that are not finite; name another seed")
    task = environment_of(run.config.environment, environment)
    score = None if scores is None or ensemble else float(scores[chosen])
    names = task.spec.axes or view_of(task.spec.name, task.spec.observation_size).axes
    return Source(run, task, tuple(names), which, None if ensemble else chosen, params, score, chosen, model)


def _scores(run: Run) -> np.ndarray | None:
    """[seeds] mean imagined returns of the policies that were chosen; none where nothing was chosen."""
    scores = getattr(run.result.metrics, "chosen_score", None)
    return None if scores is None else np.where(np.isfinite(scores), scores, -np.inf)[:, -1]


# ------------------------------------------------------------------------------------------------------------ real rows


def rows_of(source: Source, policy: Policy, count: int = ROWS) -> Rows:
    """Real observations: of the files that the run learned from, or, where there are none, visited by its policy.

    Args:
      source: what is exported.
      policy: its policy, with actions as the library has them.
      count: how many.

    """
    config, task = source.config, source.task
    if config.data is not None:
        logged = data_.load(config, task).rows
        some = np.linspace(0, len(logged.reward) - 1, min(count, len(logged.reward)), dtype=np.int64)
        low, high = logged.observation.min(axis=0), logged.observation.max(axis=0)
        return _rows(task, logged.observation[some], logged.action[some], low, high, "the logged transitions of the run")
    if task.host is not None:
        seen, taken = _visited_on_host(task, policy, source.params, count)
        return _rows(task, seen, taken, seen.min(axis=0), seen.max(axis=0), "visited by the policy in real episodes")
    key = jax.random.key(KEY, impl="threefry2x32")
    parts = list(recording.record(task, policy, source.params, key, count, EXPLORATION))
    seen = np.concatenate([part.observation for part in parts])
    taken = np.concatenate([learned_units(task.spec, part.action) for part in parts])
    first = _first_data(source)
    everything = np.concatenate([first, seen]) if config.protocol == "interactive" else first
    about = f"visited by the policy in real episodes, with {EXPLORATION:.0%} of random actions"
    return _rows(task, seen, taken, everything.min(axis=0), everything.max(axis=0), about)


def _rows(task: Environment, seen: np.ndarray, taken: np.ndarray, low: np.ndarray, high: np.ndarray, about: str) -> Rows:
    action = in_units(task.spec, taken.astype(np.float32)) if task.spec.continuous else taken.astype(np.int32)
    return Rows(seen.astype(np.float32), action, low, high, about)


def _first_data(source: Source) -> np.ndarray:
    """[N, D] observations of the random transitions that the run began with, without measuring noise."""
    task, config, number = source.task, source.config, source.run.first_seed + source.model_seed

    def drawn() -> Any:
        key = stream(keys_of(source.run.base_seed, jnp.asarray([number], jnp.int32))[0], Stream.COLLECTION)
        return collect(task, draw_collection(task, key, config.random_transitions))[1].observation

    return np.asarray(jax.jit(drawn)())


def _visited_on_host(task: Environment, policy: Policy, params: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n, D] and actions [n, ...] of the policy in simulators, a share of the actions being random."""
    simulators, generator = 10, np.random.default_rng(KEY)
    copies = task.host.copies(simulators)  # type: ignore[union-attr]
    act = jax.jit(policy.act)
    memory = policy.begin(params, jax.random.key(KEY), simulators)
    seen, taken = [], []
    try:
        episodes = Episodes(copies, [KEY + place for place in range(simulators)])
        for _ in range(-(-count // simulators)):
            memory, action = act(params, memory, episodes.observation)
            action = np.array(action)
            random = generator.random(simulators) < EXPLORATION
            if task.spec.continuous:
                action[random] = generator.uniform(-1, 1, action.shape)[random]
            else:
                action[random] = generator.integers(0, task.spec.action_count, simulators)[random]
            seen.append(episodes.observation)
            taken.append(action)
            episodes.step(action)
    finally:
        copies.close()
    return np.concatenate(seen)[:count], np.concatenate(taken)[:count]


# -------------------------------------------------------------------------------------------------------- real episodes


def can_play(task: Environment) -> bool:
    """Whether there is something to play in."""
    return task.has_simulator or task.host is not None


def returns_of(task: Environment, act: Play, episodes: int = EPISODES) -> np.ndarray:
    """[episodes] returns of real episodes, from the same starts for every policy.

    Args:
      task: where; it has a simulator.
      act: the policy.
      episodes: how many.

    """
    if task.host is not None:
        return _returns_on_host(task, act, episodes)
    state = jax.jit(lambda key: task.draw_resets(key, (episodes,)))(jax.random.key(KEY + 1, impl="threefry2x32"))
    step = jax.jit(lambda state, action: jax.vmap(task.step)(state, action, state))
    running, returns = np.ones(episodes, bool), np.zeros(episodes)
    for _ in range(task.spec.time_limit):
        action = learned_units(task.spec, act(np.asarray(state.observation, np.float32)))
        state, made = step(state, jnp.asarray(action))
        returns += np.where(running, np.asarray(made.reward, np.float64), 0.0)
        running &= ~(np.asarray(made.terminated) | np.asarray(made.truncated))
        if not running.any():
            break
    return returns


def _returns_on_host(task: Environment, act: Play, episodes: int) -> np.ndarray:
    copies = task.host.copies(episodes)  # type: ignore[union-attr]
    running, returns = np.ones(episodes, bool), np.zeros(episodes)
    try:
        playing = Episodes(copies, [KEY + 1 + place for place in range(episodes)])
        while running.any():
            made = playing.step(learned_units(task.spec, act(playing.observation)), running)
            returns += np.where(running, made.reward, 0.0)
            running &= ~(made.terminated | made.truncated)
    finally:
        copies.close()
    if not playing.running.all():
        raise ConfigError(
            f"environment.name: a simulator of {task.spec.name!r} failed while the policy was played: {copies.failures}"
        )
    return returns


def describe(source: Source, rows: Rows) -> dict[str, Any]:
    """The task, as the contract has it."""
    spec = source.task.spec
    scale = rows.observation.std(axis=0)
    axes = [
        {
            "name": name,
            "low": float(low),
            "high": float(high),
            "scale": float(size),
            "units": "the task's own",
            "deviation": float(std),
        }
        for name, low, high, size, std in zip(source.axes, rows.low, rows.high, spec.observation_scale, scale, strict=True)
    ]
    if spec.continuous:
        low, high = (in_units(spec, np.full(spec.action_shape, end, np.float32)).tolist() for end in (-1.0, 1.0))
        action: dict[str, Any] = {"kind": "continuous", "low": low, "high": high, "units": "the task's own"}
    else:
        meanings = MEANINGS.get(spec.name, tuple(f"action {number} of {spec.name}" for number in range(spec.action_count)))
        action = {"kind": "discrete", "count": spec.action_count, "meaning": list(meanings)}
    environment = dataclasses.asdict(source.config.environment)
    return {
        "name": spec.name,
        "environment": environment,
        "time_limit": spec.time_limit,
        "observation": {"shape": list(spec.observation_shape or (spec.observation_size,)), "axes": axes},
        "action": action,
        "data": f"low and high are of the data that the run learned from; deviation is of observations {rows.about}",
    }


MEANINGS = {
    "CartPole-v1": ("push the cart to the left", "push the cart to the right"),
    "Acrobot-v1": ("torque of -1 at the joint", "no torque", "torque of 1 at the joint"),
    "MountainCar-v0": ("push to the left", "no push", "push to the right"),
}
