"""The phases that training loops share, each a pure function over a loop's state.

A state is a NamedTuple with, as far as a phase needs them, ``time``, ``key``, ``episode`` and ``real``; with a model ``model``,
with lanes ``lanes``, with an agent ``agent``, and with a choice among its policies ``chosen``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.agents.protocol import Agent, Policy
from mbrl_jax.algorithms import selection, training
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, stream
from mbrl_jax.config import ConfigError, DreamerConfig, ImaginingConfig, RunConfig, check, holdout_stride
from mbrl_jax.engine import PLAIN, Engine
from mbrl_jax.environments import Environment, EnvironmentState, Transition, draw_collection, from_pool
from mbrl_jax.environments import collect as collect_transitions
from mbrl_jax.environments import data as data_
from mbrl_jax.evaluation import play, play_imagined, play_with_memory
from mbrl_jax.imagination import diagnosis, validation
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController, check_controller, controller_of
from mbrl_jax.model.protocol import FitLog, WorldModel
from mbrl_jax.model.worlds import make_world
from mbrl_jax.networks import Params
from mbrl_jax.replay import Replay, ReplayState, make_replay

C = TypeVar("C", bound=RunConfig)


class Imagination(NamedTuple):
    """What imagines: made once of a configuration's numbers in each function of a loop."""

    world: WorldModel
    judge: WorldModel  # the same world, in which a rollout stays with its member; it scores policies
    controller: HorizonController


def imagination_of(
    hyper: ImaginingConfig,
    task: Environment,
    replay: Replay,
    controller: HorizonController | None,
    *,
    measures_share: bool = False,
) -> Imagination:
    """The world and the horizon controller that ``hyper`` names, or ``controller`` in its place.

    ``measures_share`` tells whether the loop measures the model's share in the value's error for a controller that follows it.

    Raises:
      ConfigError: they do not fit together.

    """
    held = None if hyper.data is None else partial(held_out, hyper, task)
    make = partial(
        make_world, hyper.model, task, replay, first_rows=hyper.random_transitions, stride=holdout_stride(hyper), holdout=held
    )
    world = make(by=hyper.imagination.sampling)
    horizon = controller_of(hyper.imagination, controller)
    check_controller(horizon, hyper.imagination, world.spec, task.dynamics, measures_share=measures_share)
    return Imagination(world, make(by="ts_infinity"), horizon)


def world_of(config: Any, task: Environment) -> WorldModel:
    """The world model of a run, in which a rollout stays with its member."""
    real = make_replay(task.spec, config.real_transitions)
    make = partial(make_world, first_rows=config.random_transitions, stride=holdout_stride(config), by="ts_infinity")
    return make(config.model, task, real, latent=isinstance(config, DreamerConfig))


# ------------------------------------------------------------------------------------------------ in the real environment


def settled(config: C, kind: type[C], environment: Environment | None) -> C:
    """The config with what follows from the files of logged transitions that it names.

    Raises:
      ConfigError: it is of another kind or cannot work, or the files do not fit.

    """
    check(config, kind)
    after = data_.settle(config, environment)
    if after is not config:
        check(after, kind)
    return after


def begin(
    config: RunConfig, task: Environment, replay: Replay, key: Array, hyper: Any
) -> tuple[EnvironmentState | None, ReplayState, Array]:
    """Fill a new replay with the logged transitions that ``config`` names, the same for all seeds, or with random ones.

    Those of the batch protocol are measured with the noise of ``hyper``. In the interactive one there is none, by the settings'
    own checks, and nothing is drawn for it.

    Returns:
      As :func:`collect`; of logged transitions there is no episode in progress.

    """
    if config.data is None:
        noise = hyper.environment.observation_noise if config.protocol == "batch" else 0.0
        return collect(task, replay, key, config.random_transitions, noise)
    rows, returns, _ = data_.load(config, task)
    arrays = Transition(*map(jnp.asarray, rows[: len(Transition._fields)]))
    return None, replay.write(replay.init(), training.real_rows(arrays)), jnp.asarray(returns)


def held_out(config: RunConfig, task: Environment) -> np.ndarray:
    """[h] int32 numbers of the logged rows that are held out, those of whole episodes."""
    return data_.load(config, task).holdout


def axes_of(config: RunConfig, axes: Any) -> Any:
    """The axes of a state for ``vmap``: logged transitions are there once for all seeds."""
    return axes if config.data is None else axes._replace(real=ReplayState(None, None))  # type: ignore[arg-type]


def collect(
    task: Environment, replay: Replay, key: Array, transitions: int, noise: Array | float = 0.0
) -> tuple[EnvironmentState, ReplayState, Array]:
    """Fill a new replay with random transitions, measured with ``noise`` as in :func:`mbrl_jax.algorithms.training.noisy`.

    Returns:
      The episode in progress, the replay, and the returns as :func:`mbrl_jax.environments.collect` gives them.

    """
    drawn = draw_collection(task, stream(key, Stream.COLLECTION), transitions)
    state, collected, returns = collect_transitions(task, drawn)
    if isinstance(noise, Array) or noise != 0:
        key1, key2 = jax.random.split(stream(key, Stream.OBSERVATION_NOISE))
        before, after = (draws_.normal(each, collected.observation.shape) for each in (key1, key2))
        collected = training.noisy(collected, noise, task.spec.observation_scale, before, after)
    return state, replay.write(replay.init(), training.real_rows(collected)), returns


def check_stepped(task: Environment, algorithm: str) -> None:
    """Refuse a task that the devices do not step; ``algorithm`` acts by its memory there.

    Raises:
      ConfigError: the host steps it, or nothing does.

    """
    name = task.spec.name
    if task.host is not None:
        raise ConfigError(
            f"environment.name: {name!r} does not fit; the host steps it, and {algorithm!r} acts by its memory on the devices"
        )
    if not task.has_simulator:
        raise ConfigError(f"environment.name: {name!r} does not fit; there is no simulator to act in")


def act(
    task: Environment,
    agent: Agent,
    replay: Replay,
    episode: EnvironmentState | None,
    real: ReplayState,
    params: Params,
    exploration: Array | float,
    drawn: BehaviourDraws,
    pool: EnvironmentState,
) -> tuple[EnvironmentState, ReplayState]:
    """Take one real step by the agent's policy, and store it; an episode that ends goes on from the pool of resets."""
    assert episode is not None, "who learns from logged transitions does not act"
    action = agent.act(params, episode.observation, exploration, drawn.explore, drawn.action)
    episode, transition = task.step(episode, action, from_pool(pool, drawn.reset))
    return episode, replay.write(real, training.real_rows(transition))


def curve_return(
    config: RunConfig, task: Environment, mode: Any, params: Params, key: Array, time: Array, engine: Engine = PLAIN
) -> Array:
    """[] mean return of the learning curve's greedy episodes, which are drawn apart from everything that is learned from."""
    starts = task.draw_resets(stream(key, Stream.CURVE, time), (config.evaluation.curve_episodes,))
    return jnp.mean(greedy_returns(task, mode, params, starts, engine))


def greedy_returns(task: Environment, mode: Any, params: Params, starts: EnvironmentState, engine: Engine = PLAIN) -> Array:
    """[n] returns of greedy real episodes from the starts [n]."""
    return play(task, partial(mode, params), starts) if engine.play is None else engine.play(params, starts)


def final_starts(config: RunConfig, task: Environment, key: Array) -> EnvironmentState:
    """[episodes] where the episodes begin that judge a final policy."""
    return task.draw_resets(stream(key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))


def finish(
    config: RunConfig,
    task: Environment,
    agent: Agent,
    state: Any,
    *,
    chosen: Snapshot | None = None,
    judge: WorldModel | None = None,
    engine: Engine = PLAIN,
) -> Outcome:
    """Play the last policy and, if there is one, the chosen policy, from the same starts: in the environment, or in the model.

    Args:
      config: of the run.
      task: the environment.
      agent: whose policies they are.
      state: of the loop.
      chosen: the snapshot that imagination chose.
      judge: the world model, in which a rollout stays with its member; none without one.
      engine: what plays them in the environment.

    """
    model = None if judge is None else judge.acting(state.model)
    starts = final_starts(config, task, state.key) if config.evaluation.where == "environment" else None

    def returns_of(params: Params) -> Array:
        if starts is not None:
            return greedy_returns(task, agent.mode, params, starts, engine)
        assert judge is not None, "without a model there is nothing but the environment to judge in"
        key = stream(state.key, Stream.FINAL_EVALUATION)
        return imagined_returns(config, judge, model, agent, state.real, key, params)

    last, frozen, updates = agent.judged(state.agent), state.agent.frozen, state.agent.updates
    best = None if chosen is None else chosen.params
    returns_chosen = None if best is None else returns_of(best)
    held = None
    if config.data is not None and judge is not None and judge.belief is not None:
        logged, rows = data_.load(config, task), make_replay(task.spec, config.real_transitions).contents(state.real)[0]
        held = validation.validate(judge, model, rows, logged.rows.elapsed, logged.holdout)
    return Outcome(last, best, returns_of(last), returns_chosen, frozen, updates, model, held)


def imagined_returns(
    config: Any, judge: WorldModel, model: Any, agent: Agent, real: ReplayState, key: Array, params: Params
) -> Array:
    """[episodes] returns of greedy imagined episodes from first states of real ones, an equal number by each member in turn."""
    key_start, key_noise = jax.random.split(key)
    first = judge.first(model, real, draws_.bits(key_start, (config.evaluation.episodes,)))
    return play_imagined(judge, model, partial(agent.mode, params), first, key_noise, config.selection.steps)


def play_policy(task: Environment, policy: Policy, params: Params, starts: EnvironmentState, key: Array) -> Array:
    """[n] returns of real episodes from the starts [n] by a policy with a memory."""
    begin = policy.begin(params, key, starts.observation.shape[0])
    return play_with_memory(task, partial(policy.act, params), begin, starts)


# ------------------------------------------------------------------------------------------------------------- the model


def fit(world: WorldModel, state: Any, how: Callable[..., tuple[Any, FitLog]] | None = None) -> tuple[Any, FitLog]:
    """Fit the model for the first time; ``how`` stands for the world's own ``fit``."""
    model, log = (world.fit if how is None else how)(state.model, state.real, stream(state.key, Stream.FIT))
    return state._replace(model=model), log


def check_value(config: Any, world: WorldModel, agent: Agent | None) -> None:
    """Refuse a loss that knows the agent's value where there is none to know.

    Raises:
      ConfigError: the agent has no value, or the model is fitted once, before the agent has learned one.

    """
    if not world.spec.wants_value:
        return
    if config.protocol == "batch":
        told = "knows the agent's value, and in the 'batch' protocol the model is fitted before there is one"
        raise ConfigError(f"model.loss: {config.model.loss!r} {told}; protocol must be 'interactive'")
    if agent is None or agent.value is None:
        told = "needs an agent with a value: q_learning, sac, or policy_gradient with baseline 'value'"
        raise ConfigError(f"model.loss: {config.model.loss!r} {told}")


def value_of(agent: Agent, learner: Any) -> Callable[[Array], Array]:
    """``features [..., F] -> [...]``, the value that the agent gives them now; of an agent that has one."""
    assert agent.value is not None, "the checks refuse agents without a value"
    assert agent.valuing is not None
    return partial(agent.value, agent.valuing(learner))


def refit(
    world: WorldModel, state: Any, how: Callable[..., tuple[Any, FitLog]] | None = None, agent: Agent | None = None
) -> tuple[Any, FitLog]:
    """Fit the model again, to all real transitions so far; ``how`` stands for the world's own ``refit``.

    A model whose loss knows the value gets that of ``agent``.
    """
    known: dict[str, Any] = {}
    if world.spec.wants_value:
        assert agent is not None, "check_value refuses it"
        known = {"value": value_of(agent, state.agent)}
    key = stream(state.key, Stream.REFIT, state.time)
    model, log = (world.refit if how is None else how)(state.model, state.real, key, **known)
    return state._replace(model=model), log


def calibrate(imagination: Imagination, replay: Replay, state: Any) -> Any:
    """Let the horizon controller see the model that has just been fitted."""
    world, params = imagination.world, imagination.world.acting(state.model)
    return state._replace(lanes=lanes_.calibrated(state.lanes, imagination.controller, world, params, replay, state.real))


def choose(
    config: ImaginingConfig, judge: WorldModel, agent: Agent, state: Any, *, anew: bool, engine: Engine = PLAIN
) -> tuple[Any, Array, Array]:
    """Keep the better of the chosen snapshot and the present policy, as imagination scores them.

    Returns:
      The state, the present policy's score [], and whether it is the one chosen [].

    """
    chosen, score, is_chosen = selection.choose(
        config.selection,
        judge,
        judge.acting(state.model),
        agent.mode,
        agent.judged(state.agent),
        state.chosen,
        state.real,
        stream(state.key, Stream.SELECTION, state.time),
        anew=anew,
        play=engine.score,
    )
    return state._replace(chosen=chosen), score, is_chosen


class RoundEnd(NamedTuple):
    """What the end of a round tells."""

    curve_return: Array  # []
    score: Array | None  # [], none where no policy is chosen
    chosen_score: Array | None  # []
    is_chosen: Array | None  # [] bool
    refit: FitLog | None


def end_of_round(
    config: ImaginingConfig,
    task: Environment,
    replay: Replay,
    imagination: Imagination,
    agent: Agent,
    state: Any,
    engine: Engine = PLAIN,
    how: Callable[..., tuple[Any, FitLog]] | None = None,
) -> tuple[Any, RoundEnd]:
    """Refit the model where the agent has acted, choose among policies in imagination, and draw a point of the learning curve.

    ``how`` stands for the world's own ``refit``, and ``engine`` computes the episodes.
    """
    log, interactive, now = None, config.protocol == "interactive", state
    if interactive:
        now, log = refit(imagination.world, now, how, agent)
        now = calibrate(imagination, replay, now)
    score = chosen_score = is_chosen = None
    if config.selection.choose:
        now, score, is_chosen = choose(config, imagination.judge, agent, now, anew=interactive, engine=engine)
        chosen_score = now.chosen.score
    if config.evaluation.where == "environment":
        curve = curve_return(config, task, agent.mode, agent.judged(now.agent), now.key, now.time, engine)
    elif score is not None:
        curve = score
    else:
        key, judge = stream(now.key, Stream.CURVE, now.time), imagination.judge
        params = judge.acting(now.model)
        curve = jnp.mean(imagined_returns(config, judge, params, agent, now.real, key, agent.judged(now.agent)))
    return now, RoundEnd(curve, score, chosen_score, is_chosen, log)


def diagnose(
    hyper: ImaginingConfig, task: Environment, imagination: Imagination, agent: Agent, exploration: Array | float, state: Any
) -> Diagnosis:
    """How wrong the model is along the rollouts that would come next, and over the state space."""
    acting = agent.acting(state.agent)

    def policy(features: Array, explore: Array, random_action: Array) -> Array:
        return agent.act(acting, features, exploration, explore, random_action)

    return diagnosis.diagnose(
        hyper.imagination,
        task,
        imagination.world,
        imagination.controller,
        state.lanes,
        imagination.world.acting(state.model),
        policy,
        state.real,
        state.time,
        stream(state.key, Stream.DIAGNOSIS),
    )


def first_snapshot(config: ImaginingConfig, params: Params) -> Snapshot | None:
    """What is chosen before anything has been scored, none where no policy is chosen."""
    return Snapshot(params, jnp.full((), -jnp.inf)) if config.selection.choose else None
