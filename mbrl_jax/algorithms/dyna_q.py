"""Dyna with a learned dynamics ensemble (Sutton 1991; short model rollouts as in MBPO, Janner et al. 2019).

For every real step, K lanes advance by H imagined steps from real states, their rows go to the imagined replay, and the agent is
updated on minibatches of them. Any agent that learns from transitions will do.

* batch: N random transitions, one fit of the model, and no further contact with the environment;
* interactive: after the random transitions and a first fit the agent acts, and the model is refitted every round.

At the end of a round the agent's policy is scored by imagined episodes. The best-scored snapshot is the chosen policy: choosing
it costs no real transition.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.protocol import Agent, Model
from mbrl_jax.agents.q_learning import UpdateLog
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import mixing, phases, training, value_errors
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ConfigError, DynaQConfig
from mbrl_jax.engine import PLAIN, Loop, MakeEngine
from mbrl_jax.environments import Environment, EnvironmentState, environment_of
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.imagination.lanes import LaneDraws, LaneLog, Lanes
from mbrl_jax.imagination.mismatch import Mismatch
from mbrl_jax.model.protocol import FitLog, WorldModel
from mbrl_jax.networks import Params
from mbrl_jax.replay import ReplayState, make_replay


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState | None  # the real episode in progress, none where all transitions are logged ones
    real: ReplayState
    imagined: ReplayState
    model: Any  # the world model's
    lanes: Lanes
    agent: Any
    chosen: Snapshot | None  # none where no policy is chosen
    model_share: Array | None  # [] of the model in the error of the agent's value, none where nothing follows it


_SHARED: dict[str, Any] = {"time": None, "real": replay.AXES, "imagined": replay.AXES}
AXES = State(**{**dict.fromkeys(State._fields, 0), **_SHARED})


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: UpdateLog  # leaves [blocks]
    lanes: LaneLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target network's greedy real episodes
    score: Array | None  # [] mean return of its imagined episodes, none where no policy is chosen
    chosen_score: Array | None  # [] that of the snapshot chosen so far
    is_chosen: Array | None  # [] bool, whether this round's snapshot became the chosen one
    refit: FitLog | None  # leaves [E], none in the batch protocol
    frozen: Array  # [] bool, the learner has gone non-finite
    mismatch: Mismatch | None = None  # none unless it is asked for
    model_share: Array | None = None  # [], none where nothing follows it


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    behaviour: BehaviourDraws | None  # leaves [T, ...], none in the batch protocol
    pool: Any  # [P] resets, the same for all steps, none in the batch protocol
    lanes: LaneDraws  # leaves [T, H, ...]
    imagined: Array  # [T, updates, imagined rows of a minibatch] uint32; all rows where the shares change in the run
    real: Array  # [T, updates, real rows of a minibatch] uint32; likewise
    update: Any  # the agent's own, leaves [T, updates, ...]


def draw(config: DynaQConfig, task: Environment, world: WorldModel, agent: Agent, key: Array, steps: int) -> Draws:
    """Draw all that ``steps`` steps consume."""
    key_behaviour, key_lanes, key_imagined, key_real = jax.random.split(key, 4)
    interactive, batch = config.protocol == "interactive", agent.minibatches
    assert batch is not None, "make_train refuses agents that do not learn from transitions"
    updates = (steps, batch.updates)
    adaptive = config.mixing.rule == "adaptive"
    behaviour = pool = None
    if interactive:
        behaviour, pool = training.draw_behaviour(task, key_behaviour, steps)
    return Draws(
        behaviour=behaviour,
        pool=pool,
        lanes=lanes_.draw(config.imagination, task.spec, world, key_lanes, (steps,)),
        imagined=draws_.bits(key_imagined, (*updates, batch.rows if adaptive else batch.rows - batch.real_rows)),
        real=draws_.bits(key_real, (*updates, batch.rows if adaptive else batch.real_rows)),
        update=agent.draw(jax.random.fold_in(key, 0), updates),
    )


def make_train(
    config: DynaQConfig,
    *,
    environment: Environment | None = None,
    controller: HorizonController | None = None,
    engine: MakeEngine | None = None,
) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.
      controller: a horizon controller in place of the one that ``config.imagination`` names.
      engine: makes what computes parts of the loop in place of the functions here; none leaves all of it to XLA.

    Raises:
      ConfigError: the settings cannot work, or the engine does not cover them.

    """
    config = phases.settled(config, DynaQConfig, environment)
    task = environment_of(config.environment, environment)
    real_replay = make_replay(task.spec, config.real_transitions)
    imagined_replay = make_replay(task.spec, config.imagination.capacity)

    def imagination_of(hyper: DynaQConfig) -> phases.Imagination:
        return phases.imagination_of(hyper, task, real_replay, controller, measures_share=True)

    def agent_of(hyper: DynaQConfig) -> Agent:
        return make_agent(hyper.agent, task.spec)

    phases.check_value(config, imagination_of(config).world, agent_of(config))  # they refuse what does not fit the task
    value_errors.check_mismatch(config, task, agent_of(config))
    adaptive = config.mixing.rule == "adaptive"
    measures = mixing.check(config, imagination_of(config).controller, agent_of(config))
    if engine is not None and not callable(engine):
        raise ConfigError(
            f"engine: {engine!r} does not fit; it must be a function that makes one, as mbrl_jax.cuda.engine.engine"
        )
    if engine is not None and controller is not None:
        raise ConfigError("engine: one does not fit a controller of one's own; leave out one of the two")
    if engine is not None and config.data is not None:
        raise ConfigError("engine: one does not fit data, of which whole episodes are held out; leave out one of the two")
    parts = PLAIN if engine is None else engine(config, task)

    def init(key: Array, hyper: DynaQConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        agent, (world, _, horizon) = agent_of(hyper), imagination_of(hyper)
        episode, real, collected = phases.begin(config, task, real_replay, key, hyper)
        learner, model = agent.init(stream(key, Stream.AGENT)), world.init(stream(key, Stream.MODEL))
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            imagined=imagined_replay.init(),
            model=model,
            lanes=lanes_.init(config.imagination, horizon, world, world.acting(model), real),
            agent=learner,
            chosen=phases.first_snapshot(config, agent.judged(learner)),
            model_share=jnp.ones(()) if measures else None,
        )
        return state, collected

    def fit(state: State, hyper: DynaQConfig) -> tuple[State, FitLog]:
        imagination = imagination_of(hyper)
        state, log = phases.fit(imagination.world, state, None if parts.fit is None else partial(parts.fit, hyper))
        state = phases.calibrate(imagination, real_replay, state)
        return mixing.measured(hyper, real_replay, imagination, agent_of(hyper), state, 0.0), log

    def learn(state: State, hyper: DynaQConfig, steps: int) -> tuple[State, tuple[UpdateLog, LaneLog]]:
        agent, imagination = agent_of(hyper), imagination_of(hyper)
        world, _, horizon = imagination
        model = Model(world, world.acting(state.model))
        mixed = agent.minibatches is not None and agent.minibatches.real_rows > 0

        def step(loop: Loop, draws: Draws) -> tuple[Loop, tuple[Any, LaneLog]]:
            time, episode, real, imagined, lanes, learner = loop
            progress, acting = training.progress(time, config.steps), agent.acting(learner)

            # act in the real environment
            if draws.behaviour is not None:
                epsilon = training.exploration_rate(hyper.exploration, progress)
                episode, real = phases.act(task, agent, real_replay, episode, real, acting, epsilon, draws.behaviour, draws.pool)

            # imagine K lanes of H steps
            def policy(features: Array, explore: Array, random_action: Array) -> Array:
                return agent.act(acting, features, hyper.imagination.epsilon, explore, random_action)

            lanes, rows, lane_log = lanes_.advance(
                hyper.imagination, world, horizon, lanes, model.params, policy, real, time, draws.lanes, task.dynamics
            )
            imagined = imagined_replay.write(imagined, rows)

            # learn
            def update(learner: Any, drawn: tuple[Array, Array, Any]) -> tuple[Any, Any]:
                batch = imagined_replay.sample(imagined, drawn[0])
                if adaptive:
                    batch = mixing.mixture(real_replay.sample(real, drawn[1]), batch, mixing.real_share(hyper, state.model_share))
                elif mixed:
                    batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), batch, real_replay.sample(real, drawn[1]))
                return agent.update(learner, batch, drawn[2], progress, model)

            learner, log = training.successive(update, learner, (draws.imagined, draws.real, draws.update))
            return Loop(time + 1, episode, real, imagined, lanes, learner), (jax.tree.map(jnp.mean, log), lane_log)

        drawing, key = partial(draw, config, task, world, agent), stream(state.key, Stream.ROUND, state.time)
        loop = Loop(state.time, state.episode, state.real, state.imagined, state.lanes, state.agent)
        block = None if parts.advance is None else partial(parts.advance, hyper, model.params)
        loop, logs = training.scan_round(step, loop, drawing, key, steps, block)
        return state._replace(**loop._asdict()), logs

    def close(state: State, hyper: DynaQConfig, logs: tuple[UpdateLog, LaneLog]) -> tuple[State, Metrics]:
        agent, imagination = agent_of(hyper), imagination_of(hyper)
        refit = None if parts.refit is None else partial(parts.refit, hyper)
        state, end = phases.end_of_round(config, task, real_replay, imagination, agent, state, parts, refit)
        update_log, lane_log = training.average_blocks(logs, config.metric_steps)
        state = mixing.measured(hyper, real_replay, imagination, agent, state, hyper.mixing.memory)
        told = value_errors.mismatch_of(hyper, task, real_replay, imagination.world, agent, state)
        return state, Metrics(update_log, lane_log, *end, state.agent.frozen, told, state.model_share)

    def finish(state: State, hyper: DynaQConfig) -> Outcome:
        judge = imagination_of(hyper).judge
        return phases.finish(config, task, agent_of(hyper), state, chosen=state.chosen, judge=judge, engine=parts)

    def policies(state: State) -> tuple[Params, Params | None]:
        return agent_of(config).judged(state.agent), None if state.chosen is None else state.chosen.params

    def diagnose(state: State, hyper: DynaQConfig) -> Diagnosis:
        return phases.diagnose(hyper, task, imagination_of(hyper), agent_of(hyper), hyper.imagination.epsilon, state)

    axes, on_host = phases.axes_of(config, AXES), task.host is not None
    algorithm = training.assemble(config, init, fit, learn, close, finish, policies, axes, diagnose, on_host=on_host)
    return algorithm._replace(engine=parts)
