"""Dyna-Q with a learned dynamics ensemble (Sutton 1991; short model rollouts as in MBPO, Janner et al. 2019).

For every real step, K lanes advance by H imagined steps from real states, their rows go to the imagined replay, and the
Q-learner is updated on minibatches of them.

* batch: N random transitions, one fit of the model, and no further contact with the environment;
* interactive: after the random transitions and a first fit the agent acts epsilon-greedily, and the model is refitted every
  round.

At the end of a round the target network is scored by imagined episodes. The best-scored snapshot is the chosen policy:
choosing it costs no real transition.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.q_learning import QState, UpdateLog, make_q_learner
from mbrl_jax.algorithms import selection, training
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import DynaQConfig, check, holdout_stride
from mbrl_jax.environment import Environment, EnvironmentState, make_environment
from mbrl_jax.evaluation import play
from mbrl_jax.imagination import diagnosis
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController, check_controller, controller_of
from mbrl_jax.imagination.lanes import LaneDraws, LaneLog, Lanes
from mbrl_jax.imagination.outcomes import expected_outcomes
from mbrl_jax.model import fitting
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.fitting import FitLog, ModelState
from mbrl_jax.networks import Params
from mbrl_jax.replay import Replay


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    real: Replay
    imagined: Replay
    model: ModelState
    lanes: Lanes
    agent: QState
    chosen: Snapshot


_SHARED: dict[str, Any] = {"time": None, "real": replay.AXES, "imagined": replay.AXES}
AXES = State(**{**dict.fromkeys(State._fields, 0), **_SHARED})


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: UpdateLog  # leaves [blocks]
    lanes: LaneLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target network's greedy real episodes
    score: Array  # [] mean return of its imagined episodes
    chosen_score: Array  # [] that of the snapshot chosen so far
    is_chosen: Array  # [] bool, whether this round's snapshot became the chosen one
    refit: FitLog | None  # leaves [E], none in the batch protocol
    frozen: Array  # [] bool, the learner has gone non-finite


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    behaviour: BehaviourDraws | None  # leaves [T, ...], none in the batch protocol
    lanes: LaneDraws  # leaves [T, H, ...]
    imagined: Array  # [T, updates, imagined rows of a minibatch] uint32
    real: Array  # [T, updates, real rows of a minibatch] uint32


def draw(config: DynaQConfig, task: Environment, ensemble: Ensemble, key: Array) -> Draws:
    """Draw all that the steps of one round consume."""
    key_behaviour, key_lanes, key_imagined, key_real = jax.random.split(key, 4)
    interactive, real_batch = config.protocol == "interactive", real_rows_of_a_minibatch(config)
    updates = (config.round_steps, config.agent.updates_per_step)
    return Draws(
        behaviour=training.draw_behaviour(task, key_behaviour, config.round_steps) if interactive else None,
        lanes=lanes_.draw(config.imagination, ensemble, key_lanes, (config.round_steps,)),
        imagined=draws_.bits(key_imagined, (*updates, config.agent.batch_size - real_batch)),
        real=draws_.bits(key_real, (*updates, real_batch)),
    )


def real_rows_of_a_minibatch(config: DynaQConfig) -> int:
    """How many rows of each minibatch come from the real replay."""
    return round(config.agent.real_ratio * config.agent.batch_size)


def make_train(
    config: DynaQConfig, *, environment: Environment | None = None, controller: HorizonController | None = None
) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.
      controller: a horizon controller in place of the one that ``config.imagination`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, DynaQConfig)
    task = make_environment(config.environment) if environment is None else environment
    make_q_learner(config.agent, task.spec)  # refuses what does not fit the task
    stride = holdout_stride(config)
    interactive = config.protocol == "interactive"
    real_batch = real_rows_of_a_minibatch(config)

    def ensemble_of(hyper: DynaQConfig) -> Ensemble:
        return Ensemble(hyper.model, task.spec, task.reward, task.terminated)

    def controller_for(hyper: DynaQConfig) -> HorizonController:
        return controller_of(hyper.imagination, controller)

    check_controller(controller_for(config), config.imagination, ensemble_of(config), task.dynamics)

    def init(key: Array, hyper: DynaQConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        size = task.spec.observation_size
        agent = make_q_learner(config.agent, task.spec).init(stream(key, Stream.AGENT))
        real = replay.create(config.real_transitions, size)
        episode, real, collected = training.collect_into(
            real, task, key, config.random_transitions, noise=hyper.environment.observation_noise
        )
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            imagined=replay.create(config.imagination.capacity, size),
            model=fitting.init(ensemble_of(config), stream(key, Stream.MODEL)),
            lanes=lanes_.init(config.imagination, controller_for(hyper), ensemble_of(hyper)),
            agent=agent,
            chosen=Snapshot(agent.target, jnp.full((), -jnp.inf)),
        )
        return state, collected

    def fit(state: State, hyper: DynaQConfig) -> tuple[State, FitLog]:
        rows = state.real.rows[: config.random_transitions]
        model, log = fitting.fit(ensemble_of(hyper), state.model, rows, stream(state.key, Stream.FIT), stride)
        return calibrated(state._replace(model=model), hyper), log

    def calibrated(state: State, hyper: DynaQConfig) -> State:
        """Let the horizon controller see the model that has just been fitted."""
        ensemble, members = ensemble_of(hyper), fitting.members(ensemble_of(hyper), state.model)
        lanes = lanes_.calibrated(state.lanes, controller_for(hyper), ensemble, members, state.real)
        return state._replace(lanes=lanes)

    def advance(state: State, hyper: DynaQConfig) -> tuple[State, Metrics]:
        learner = make_q_learner(hyper.agent, task.spec)
        ensemble, horizon = ensemble_of(hyper), controller_for(hyper)
        members = fitting.members(ensemble, state.model)

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[UpdateLog, LaneLog]]:
            time, episode, real, imagined, lanes, agent = carry

            progress = training.progress(time, config.steps)

            # act in the real environment
            if draws.behaviour is not None:
                explore, random_action, fresh = draws.behaviour
                epsilon = training.exploration_rate(hyper.exploration, progress)
                action = learner.act(agent.online, episode.observation, epsilon, explore, random_action)
                episode, transition = task.step(episode, action, fresh)
                real = replay.write(real, training.real_rows(transition)[None])

            # imagine K lanes of H steps
            def policy(observation: Array, explore: Array, random_action: Array) -> Array:
                return learner.act(agent.online, observation, hyper.imagination.epsilon, explore, random_action)

            lanes, rows, lane_log = lanes_.advance(
                hyper.imagination, ensemble, horizon, lanes, members, policy, real, time, draws.lanes, task.dynamics
            )
            imagined = replay.write(imagined, rows)

            # learn
            def update(agent: QState, bits: tuple[Array, Array]) -> tuple[QState, UpdateLog]:
                sampled = [replay.sample(imagined, bits[0]), replay.sample(real, bits[1])]
                batch = replay.unpack(jnp.concatenate(sampled) if real_batch else sampled[0])
                outcomes = expected_outcomes(hyper.agent, ensemble, members, batch, lambda s: learner.greedy(agent.online, s))
                return learner.update(agent, batch, outcomes, progress)

            agent, update_log = jax.lax.scan(update, agent, (draws.imagined, draws.real), unroll=True)
            return (time + 1, episode, real, imagined, lanes, agent), (jax.tree.map(jnp.mean, update_log), lane_log)

        carry = (state.time, state.episode, state.real, state.imagined, state.lanes, state.agent)
        draws = draw(config, task, ensemble, stream(state.key, Stream.ROUND, state.time))
        (time, episode, real, imagined, lanes, agent), logs = jax.lax.scan(step, carry, draws)
        state = state._replace(time=time, episode=episode, real=real, imagined=imagined, lanes=lanes, agent=agent)

        # the round's end: refit, choose, evaluate
        refit_log = None
        if interactive:
            model, refit_log = fitting.refit(ensemble, state.model, real, stream(state.key, Stream.REFIT, time), stride)
            state = calibrated(state._replace(model=model), hyper)
        state, score, is_chosen = choose(state, hyper)
        curve = training.curve_return(task, config.evaluation, lambda s: learner.greedy(agent.target, s), state.key, time)
        update_log, lane_log = training.average_blocks(logs, config.metric_steps)
        return state, Metrics(update_log, lane_log, curve, score, state.chosen.score, is_chosen, refit_log, agent.frozen)

    def choose(state: State, hyper: DynaQConfig) -> tuple[State, Array, Array]:
        """Keep the better of the chosen snapshot and the present target network, as imagination scores them."""
        chosen, score, is_chosen = selection.choose(
            config.selection,
            ensemble_of(hyper),
            fitting.members(ensemble_of(hyper), state.model),
            make_q_learner(hyper.agent, task.spec).greedy,
            state.agent.target,
            state.chosen,
            state.real,
            stream(state.key, Stream.SELECTION, state.time),
            anew=interactive,
        )
        return state._replace(chosen=chosen), score, is_chosen

    def finish(state: State, hyper: DynaQConfig) -> Outcome:
        learner = make_q_learner(hyper.agent, task.spec)
        starts = task.draw_resets(stream(state.key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))

        def returns_of(params: Params) -> Array:
            return play(task, lambda s: learner.greedy(params, s), starts)

        last, chosen, agent = state.agent.target, state.chosen.params, state.agent
        model = fitting.members(ensemble_of(hyper), state.model)
        return Outcome(last, chosen, returns_of(last), returns_of(chosen), agent.frozen, agent.updates, model)

    def policies(state: State) -> tuple[Params, Params]:
        return state.agent.target, state.chosen.params

    def diagnose(state: State, hyper: DynaQConfig) -> Diagnosis:
        """How wrong the members are along the rollouts that would come next, and over the state space."""
        learner, ensemble = make_q_learner(hyper.agent, task.spec), ensemble_of(hyper)

        def policy(observation: Array, explore: Array, random_action: Array) -> Array:
            return learner.act(state.agent.online, observation, hyper.imagination.epsilon, explore, random_action)

        return diagnosis.diagnose(
            hyper.imagination,
            ensemble,
            controller_for(hyper),
            state.lanes,
            fitting.members(ensemble, state.model),
            policy,
            state.real,
            state.time,
            stream(state.key, Stream.DIAGNOSIS),
            task.dynamics,
        )

    return training.assemble(config, init, fit, advance, finish, policies, AXES, diagnose)
