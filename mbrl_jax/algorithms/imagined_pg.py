"""A policy gradient on imagined segments: actor and critic, or REINFORCE, in the world of a learned dynamics ensemble.

For every real step, K lanes go on for H imagined steps by the present policy, and the segment that they make is used for one
update and then forgotten: the estimate is on-policy. A lane that a segment leaves unfinished goes on in the next.

* batch: N random transitions, one fit of the model, and no further contact with the environment;
* interactive: after the random transitions and a first fit the policy acts, and the model is refitted every round.

At the end of a round the target actor is scored by imagined episodes, and the best-scored snapshot is the chosen policy, as in
Dyna-Q.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import replay
from mbrl_jax.agents.policy_gradient import PGState, PolicyGradient, PolicyGradientLog, Segment, segment_of
from mbrl_jax.algorithms import selection, training
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ImaginedPGConfig, check, holdout_stride
from mbrl_jax.environment import Environment, EnvironmentState, make_environment
from mbrl_jax.evaluation import play
from mbrl_jax.imagination import diagnosis
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController, check_controller, controller_of
from mbrl_jax.imagination.lanes import Act, LaneDraws, LaneLog, Lanes
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
    model: ModelState
    lanes: Lanes
    agent: PGState
    chosen: Snapshot


_SHARED: dict[str, Any] = {"time": None, "real": replay.AXES}
AXES = State(**{**dict.fromkeys(State._fields, 0), **_SHARED})


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: PolicyGradientLog  # leaves [blocks]
    lanes: LaneLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target actor's greedy real episodes
    score: Array  # [] mean return of its imagined episodes
    chosen_score: Array  # [] that of the snapshot chosen so far
    is_chosen: Array  # [] bool, whether this round's snapshot became the chosen one
    refit: FitLog | None  # leaves [E], none in the batch protocol
    frozen: Array  # [] bool, the learner has gone non-finite


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    behaviour: BehaviourDraws | None  # leaves [T, ...], none in the batch protocol
    lanes: LaneDraws  # leaves [T, H, ...]


def draw(config: ImaginedPGConfig, task: Environment, ensemble: Ensemble, key: Array) -> Draws:
    """Draw all that the steps of one round consume."""
    key_behaviour, key_lanes = jax.random.split(key)
    interactive = config.protocol == "interactive"
    return Draws(
        behaviour=training.draw_behaviour(task, key_behaviour, config.round_steps) if interactive else None,
        lanes=lanes_.draw(config.imagination, ensemble, key_lanes, (config.round_steps,)),
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
    check(config, ImaginedPGConfig)
    task = make_environment(config.environment) if environment is None else environment
    stride = holdout_stride(config)
    interactive = config.protocol == "interactive"

    def learner_of(hyper: ImaginedPGConfig) -> PolicyGradient:
        return PolicyGradient(hyper.agent, task.spec)

    def ensemble_of(hyper: ImaginedPGConfig) -> Ensemble:
        return Ensemble(hyper.model, task.spec, task.reward, task.terminated)

    def controller_for(hyper: ImaginedPGConfig) -> HorizonController:
        return controller_of(hyper.imagination, controller)

    check_controller(controller_for(config), config.imagination, ensemble_of(config), task.dynamics)

    def init(key: Array, hyper: ImaginedPGConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        agent = learner_of(config).init(stream(key, Stream.AGENT))
        real = replay.create(config.real_transitions, task.spec.observation_size, task.spec.action_size)
        noise = hyper.environment.observation_noise
        episode, real, collected = training.collect_into(real, task, key, config.random_transitions, noise=noise)
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            model=fitting.init(ensemble_of(config), stream(key, Stream.MODEL)),
            lanes=lanes_.init(config.imagination, controller_for(hyper), ensemble_of(hyper)),
            agent=agent,
            chosen=Snapshot(agent.target.actor, jnp.full((), -jnp.inf)),
        )
        return state, collected

    def fit(state: State, hyper: ImaginedPGConfig) -> tuple[State, FitLog]:
        rows = state.real.rows[: config.random_transitions]
        model, log = fitting.fit(ensemble_of(hyper), state.model, rows, stream(state.key, Stream.FIT), stride)
        return calibrated(state._replace(model=model), hyper), log

    def calibrated(state: State, hyper: ImaginedPGConfig) -> State:
        """Let the horizon controller see the model that has just been fitted."""
        ensemble, members = ensemble_of(hyper), fitting.members(ensemble_of(hyper), state.model)
        lanes = lanes_.calibrated(state.lanes, controller_for(hyper), ensemble, members, state.real)
        return state._replace(lanes=lanes)

    def advance(state: State, hyper: ImaginedPGConfig) -> tuple[State, Metrics]:
        learner, ensemble, horizon = learner_of(hyper), ensemble_of(hyper), controller_for(hyper)
        members = fitting.members(ensemble, state.model)

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[PolicyGradientLog, LaneLog]]:
            time, episode, real, lanes, agent = carry

            # act in the real environment
            if draws.behaviour is not None:
                uniform, random, fresh = draws.behaviour
                action = learner.act(agent.online.actor, episode.observation, uniform, random)
                episode, transition = task.step(episode, action, fresh)
                real = replay.write(real, training.real_rows(transition)[None])

            # imagine K lanes of H steps
            def imagine(policy: Act) -> tuple[Segment, Lanes, LaneLog]:
                after, rows, log = lanes_.advance(
                    hyper.imagination, ensemble, horizon, lanes, members, policy, real, time, draws.lanes, task.dynamics
                )
                return segment_of(rows, config.imagination.lanes, task.spec.action_size), after, log

            # learn
            gradient = None
            if config.agent.estimator == "pathwise":

                def loss(actor: Params) -> tuple[Array, Any]:
                    imagined = imagine(partial(learner.relaxed, actor))
                    loss, entropy = learner.pathwise_loss(actor, agent.target.critic, imagined[0])
                    return loss, (entropy, imagined)

                descent, (entropy, imagined) = jax.grad(loss, has_aux=True)(agent.online.actor)
                gradient = descent, entropy
            else:
                imagined = imagine(partial(learner.act, agent.online.actor))
            segment, lanes, lane_log = imagined
            agent, update_log = learner.update(agent, segment, training.progress(time, config.steps), gradient)
            return (time + 1, episode, real, lanes, agent), (update_log, lane_log)

        carry = (state.time, state.episode, state.real, state.lanes, state.agent)
        draws = draw(config, task, ensemble, stream(state.key, Stream.ROUND, state.time))
        (time, episode, real, lanes, agent), logs = jax.lax.scan(step, carry, draws)
        state = state._replace(time=time, episode=episode, real=real, lanes=lanes, agent=agent)

        # the round's end: refit, choose, evaluate
        refit_log = None
        if interactive:
            model, refit_log = fitting.refit(ensemble, state.model, real, stream(state.key, Stream.REFIT, time), stride)
            state = calibrated(state._replace(model=model), hyper)
        chosen, score, is_chosen = selection.choose(
            config.selection,
            ensemble,
            fitting.members(ensemble, state.model),
            learner.greedy,
            agent.target.actor,
            state.chosen,
            real,
            stream(state.key, Stream.SELECTION, time),
            anew=interactive,
        )
        state = state._replace(chosen=chosen)
        curve = training.curve_return(task, config.evaluation, lambda s: learner.greedy(agent.target.actor, s), state.key, time)
        update_log, lane_log = training.average_blocks(logs, config.metric_steps)
        return state, Metrics(update_log, lane_log, curve, score, chosen.score, is_chosen, refit_log, agent.frozen)

    def finish(state: State, hyper: ImaginedPGConfig) -> Outcome:
        learner = learner_of(hyper)
        starts = task.draw_resets(stream(state.key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))

        def returns_of(params: Params) -> Array:
            return play(task, lambda s: learner.greedy(params, s), starts)

        last, chosen, agent = state.agent.target.actor, state.chosen.params, state.agent
        model = fitting.members(ensemble_of(hyper), state.model)
        return Outcome(last, chosen, returns_of(last), returns_of(chosen), agent.frozen, agent.updates, model)

    def policies(state: State) -> tuple[Params, Params]:
        return state.agent.target.actor, state.chosen.params

    def diagnose(state: State, hyper: ImaginedPGConfig) -> Diagnosis:
        """How wrong the members are along the rollouts that would come next, and over the state space."""
        learner, ensemble = learner_of(hyper), ensemble_of(hyper)

        return diagnosis.diagnose(
            hyper.imagination,
            ensemble,
            controller_for(hyper),
            state.lanes,
            fitting.members(ensemble, state.model),
            partial(learner.act, state.agent.online.actor),
            state.real,
            state.time,
            stream(state.key, Stream.DIAGNOSIS),
            task.dynamics,
        )

    return training.assemble(config, init, fit, advance, finish, policies, AXES, diagnose)
