"""A policy gradient on imagined segments: actor and critic, or REINFORCE, in the world of a learned dynamics ensemble.

For every real step, K lanes go on for H imagined steps by the present policy, and the segment that they make is used for one
update and then forgotten: the estimate is on-policy. A lane that a segment leaves unfinished goes on in the next.

* batch: N random transitions, one fit of the model, and no further contact with the environment;
* interactive: after the random transitions and a first fit the policy acts, and the model is refitted every round.

At the end of a round the target actor is scored by imagined episodes, and the best-scored snapshot is the chosen policy, as in
Dyna.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import replay
from mbrl_jax.agents.policy_gradient import (
    PGState,
    PolicyGradient,
    PolicyGradientLog,
    Segment,
    segment_of,
)
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import phases, training, value_errors
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ImaginedPGConfig
from mbrl_jax.environments import Environment, EnvironmentState, environment_of
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.imagination.lanes import Act, LaneDraws, LaneLog, Lanes
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
    model: Any  # the world model's
    lanes: Lanes
    agent: PGState
    chosen: Snapshot | None  # none where no policy is chosen


_SHARED: dict[str, Any] = {"time": None, "real": replay.AXES}
AXES = State(**{**dict.fromkeys(State._fields, 0), **_SHARED})


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: PolicyGradientLog  # leaves [blocks]
    lanes: LaneLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target actor's greedy real episodes
    score: Array | None  # [] mean return of its imagined episodes, none where no policy is chosen
    chosen_score: Array | None  # [] that of the snapshot chosen so far
    is_chosen: Array | None  # [] bool, whether this round's snapshot became the chosen one
    refit: FitLog | None  # leaves [E], none in the batch protocol
    frozen: Array  # [] bool, the learner has gone non-finite
    mismatch: Mismatch | None = None  # none unless it is asked for


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    behaviour: BehaviourDraws | None  # leaves [T, ...], none in the batch protocol
    pool: Any  # [P] resets, the same for all steps, none in the batch protocol
    lanes: LaneDraws  # leaves [T, H, ...]


def draw(config: ImaginedPGConfig, task: Environment, world: WorldModel, key: Array, steps: int) -> Draws:
    """Draw all that ``steps`` steps consume."""
    key_behaviour, key_lanes = jax.random.split(key)
    interactive = config.protocol == "interactive"
    behaviour = pool = None
    if interactive:
        behaviour, pool = training.draw_behaviour(task, key_behaviour, steps)
    return Draws(
        behaviour=behaviour,
        pool=pool,
        lanes=lanes_.draw(config.imagination, task.spec, world, key_lanes, (steps,)),
    )


def make_train(
    config: ImaginedPGConfig, *, environment: Environment | None = None, controller: HorizonController | None = None
) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.
      controller: a horizon controller in place of the one that ``config.imagination`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    config = phases.settled(config, ImaginedPGConfig, environment)
    task = environment_of(config.environment, environment)
    real_replay = make_replay(task.spec, config.real_transitions)

    def imagination_of(hyper: ImaginedPGConfig) -> phases.Imagination:
        return phases.imagination_of(hyper, task, real_replay, controller)

    def agent_of(hyper: ImaginedPGConfig) -> Agent:
        return make_agent(hyper.agent, task.spec)

    phases.check_value(config, imagination_of(config).world, agent_of(config))  # they refuse what does not fit the task
    value_errors.check_mismatch(config, task, agent_of(config))

    def init(key: Array, hyper: ImaginedPGConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        agent, (world, _, horizon) = agent_of(hyper), imagination_of(hyper)
        episode, real, collected = phases.begin(config, task, real_replay, key, hyper)
        learner, model = agent.init(stream(key, Stream.AGENT)), world.init(stream(key, Stream.MODEL))
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            model=model,
            lanes=lanes_.init(config.imagination, horizon, world, world.acting(model), real),
            agent=learner,
            chosen=phases.first_snapshot(config, agent.judged(learner)),
        )
        return state, collected

    def fit(state: State, hyper: ImaginedPGConfig) -> tuple[State, FitLog]:
        imagination = imagination_of(hyper)
        state, log = phases.fit(imagination.world, state)
        return phases.calibrate(imagination, real_replay, state), log

    def learn(state: State, hyper: ImaginedPGConfig, steps: int) -> tuple[State, tuple[PolicyGradientLog, LaneLog]]:
        agent, imagination = agent_of(hyper), imagination_of(hyper)
        learner, (world, _, horizon) = PolicyGradient(hyper.agent, task.spec), imagination
        model = world.acting(state.model)

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[PolicyGradientLog, LaneLog]]:
            time, episode, real, lanes, now = carry

            # act in the real environment
            if draws.behaviour is not None:
                episode, real = phases.act(
                    task, agent, real_replay, episode, real, agent.acting(now), 0.0, draws.behaviour, draws.pool
                )

            # imagine K lanes of H steps
            def imagine(policy: Act) -> tuple[Segment, tuple[Lanes, LaneLog]]:
                after, rows, log = lanes_.advance(
                    hyper.imagination, world, horizon, lanes, model, policy, real, time, draws.lanes, task.dynamics
                )
                return segment_of(rows), (after, log)

            # learn
            now, (after, lane_log), update_log = learner.learn(now, imagine, training.progress(time, config.steps))
            return (time + 1, episode, real, after, now), (update_log, lane_log)

        drawing, key = partial(draw, config, task, world), stream(state.key, Stream.ROUND, state.time)
        carry = (state.time, state.episode, state.real, state.lanes, state.agent)
        (time, episode, real, lanes, now), logs = training.scan_round(step, carry, drawing, key, steps)
        return state._replace(time=time, episode=episode, real=real, lanes=lanes, agent=now), logs

    def close(state: State, hyper: ImaginedPGConfig, logs: tuple[PolicyGradientLog, LaneLog]) -> tuple[State, Metrics]:
        agent, imagination = agent_of(hyper), imagination_of(hyper)
        state, end = phases.end_of_round(config, task, real_replay, imagination, agent, state)
        update_log, lane_log = training.average_blocks(logs, config.metric_steps)
        told = value_errors.mismatch_of(hyper, task, real_replay, imagination.world, agent, state)
        return state, Metrics(update_log, lane_log, *end, frozen=state.agent.frozen, mismatch=told)

    def finish(state: State, hyper: ImaginedPGConfig) -> Outcome:
        return phases.finish(config, task, agent_of(hyper), state, chosen=state.chosen, judge=imagination_of(hyper).judge)

    def policies(state: State) -> tuple[Params, Params | None]:
        return agent_of(config).judged(state.agent), None if state.chosen is None else state.chosen.params

    def diagnose(state: State, hyper: ImaginedPGConfig) -> Diagnosis:
        return phases.diagnose(hyper, task, imagination_of(hyper), agent_of(hyper), 0.0, state)

    return training.assemble(
        config, init, fit, learn, close, finish, policies, phases.axes_of(config, AXES), diagnose, on_host=task.host is not None
    )
