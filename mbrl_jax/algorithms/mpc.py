"""Model-predictive control: at every real step a planner looks for a sequence of actions in the learned world, and its first
action is taken (PETS, Chua et al. 2018, arXiv:1805.12114, and its relatives by other planners).

After the random transitions and a first fit the planner acts, every step is one more real transition, and the model is refitted
at the end of every round. There is no policy to learn. What comes after the planner's horizon can be valued by a Q-learner, which
is updated at every real step on minibatches of the real transitions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.q_learning import QState, UpdateLog, make_q_learner
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import Outcome, Stream, Train, stream
from mbrl_jax.config import ConfigError, MPCConfig, check, holdout_stride
from mbrl_jax.environment import Environment, EnvironmentState, make_environment
from mbrl_jax.evaluation import play_with_memory
from mbrl_jax.model import fitting
from mbrl_jax.model.ensemble import Bounds, Ensemble, Members, Normaliser
from mbrl_jax.model.fitting import FitLog, ModelState
from mbrl_jax.networks import Params, all_finite
from mbrl_jax.planning.planners import Plan, PlanDraws, PlanLog, Planner, sequences
from mbrl_jax.planning.rollouts import Value
from mbrl_jax.replay import Replay

MOST_SEQUENCES = 4_096  # that are enumerated


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    real: Replay
    model: ModelState
    plan: Plan  # that the next step begins with
    agent: QState | None  # values what comes after the horizon, none where nothing does


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None, "real": replay.AXES})  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    plan: PlanLog  # leaves [blocks]
    update: UpdateLog | None  # leaves [blocks], none without a Q-learner
    curve_return: Array  # [] mean return of real episodes by the planner, with the model as it is then
    refit: FitLog  # leaves [E]
    frozen: Array  # [] bool, the model or the Q-learner has gone non-finite


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    plan: PlanDraws  # leaves [T, ...]
    reset: EnvironmentState  # leaves [T, ...]
    real: Array | None  # [T, updates, B] uint32, rows of the minibatches, none without a Q-learner


def draw(config: MPCConfig, task: Environment, planner: Planner, key: Array) -> Draws:
    """Draw all that the steps of one round consume."""
    key_plan, key_reset, key_real = jax.random.split(key, 3)
    shape = (config.round_steps, config.agent.updates_per_step, config.agent.batch_size)
    return Draws(
        plan=planner.draw(key_plan, (config.round_steps,)),
        reset=task.draw_resets(key_reset, (config.round_steps,)),
        real=draws_.bits(key_real, shape) if config.planning.terminal == "value" else None,
    )


def policy_of(members: Members, agent: QState | None) -> Params:
    """What the planner acts by, as a tree of dictionaries, as other policies' parameters are."""
    params: dict[str, Any] = {
        "params": members.params,
        "bounds": members.bounds._asdict(),
        "normaliser": members.normaliser._asdict(),
    }
    return params if agent is None else {**params, "critic": agent.target}


def planner_of(config: MPCConfig, task: Environment) -> Planner:
    """The planner of a run in its learned world."""
    return Planner(config.planning, Ensemble(config.model, task.spec, task.reward, task.terminated))


def greedy(config: MPCConfig, task: Environment, params: Params, observation: Array) -> Array:
    """Actions [...] in observations [..., D], each planned from nothing, by a policy as :func:`policy_of` gives it."""
    members = Members(params["params"], Bounds(**params["bounds"]), Normaliser(**params["normaliser"]))
    value = _value(config, task, params.get("critic"))
    return planner_of(config, task).greedy(members, observation, value)


def _value(config: MPCConfig, task: Environment, critic: Params | None) -> Value | None:
    """The greedy value of the Q-network, where there is one."""
    if critic is None:
        return None
    learner = make_q_learner(config.agent, task.spec)
    return lambda s: jnp.max(learner.values(critic, s), axis=-1)


def make_train(config: MPCConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` runs one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, MPCConfig)
    task = make_environment(config.environment) if environment is None else environment
    _check_task(config, task)
    stride, valued = holdout_stride(config), config.planning.terminal == "value"

    def ensemble_of(hyper: MPCConfig) -> Ensemble:
        return planner_of(hyper, task).ensemble

    def init(key: Array, hyper: MPCConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        real = replay.create(config.real_transitions, task.spec.observation_size, task.spec.action_size)
        episode, real, collected = training.collect_into(real, task, key, config.random_transitions)
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            model=fitting.init(ensemble_of(config), stream(key, Stream.MODEL)),
            plan=planner_of(hyper, task).init(),
            agent=make_q_learner(config.agent, task.spec).init(stream(key, Stream.AGENT)) if valued else None,
        )
        return state, collected

    def fit(state: State, hyper: MPCConfig) -> tuple[State, FitLog]:
        rows = state.real.rows[: config.random_transitions]
        model, log = fitting.fit(ensemble_of(hyper), state.model, rows, stream(state.key, Stream.FIT), stride)
        return state._replace(model=model), log

    def advance(state: State, hyper: MPCConfig) -> tuple[State, Metrics]:
        planner, ensemble = planner_of(hyper, task), ensemble_of(hyper)
        members, learner = fitting.members(ensemble, state.model), None
        if valued:
            learner = make_q_learner(hyper.agent, task.spec)

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[PlanLog, UpdateLog | None]]:
            time, episode, real, plan, agent = carry

            # plan
            value = _value(hyper, task, None if agent is None else agent.target)
            plan, action, plan_log = planner.plan(members, plan, episode.observation, draws.plan, value)

            # act in the real environment
            episode, transition = task.step(episode, action, draws.reset)
            real = replay.write(real, training.real_rows(transition)[None])
            ended = transition.terminated | transition.truncated
            plan = jax.tree.map(lambda blank, plan: jnp.where(ended, blank, plan), planner.init(), plan)

            # learn what comes after the horizon
            update_log = None
            if learner is not None:

                def update(agent: QState, bits: Array) -> tuple[QState, UpdateLog]:
                    batch = replay.unpack(replay.sample(real, bits))
                    return learner.update(agent, batch, progress=training.progress(time, config.steps))

                agent, log = jax.lax.scan(update, agent, draws.real, unroll=True)
                update_log = jax.tree.map(jnp.mean, log)
            return (time + 1, episode, real, plan, agent), (plan_log, update_log)

        carry = (state.time, state.episode, state.real, state.plan, state.agent)
        draws = draw(config, task, planner, stream(state.key, Stream.ROUND, state.time))
        (time, episode, real, plan, agent), logs = jax.lax.scan(step, carry, draws)

        # the round's end: refit, evaluate
        model, refit_log = fitting.refit(ensemble, state.model, real, stream(state.key, Stream.REFIT, time), stride)
        state = State(time, state.key, episode, real, model, plan, agent)
        starts = task.draw_resets(stream(state.key, Stream.CURVE, time), (config.evaluation.curve_episodes,))
        curve = jnp.mean(returns_from(state, hyper, starts, stream(state.key, Stream.PLANNING, time)))
        plan_log, update_log = training.average_blocks(logs, config.metric_steps)
        frozen = ~all_finite(model.params)
        return state, Metrics(plan_log, update_log, curve, refit_log, frozen if agent is None else frozen | agent.frozen)

    def returns_from(state: State, hyper: MPCConfig, starts: EnvironmentState, key: Array) -> Array:
        """[n] returns of real episodes from the starts [n], by the planner in the world as it has been learned by now."""
        planner = planner_of(hyper, task)
        members = fitting.members(planner.ensemble, state.model)
        begin, act = planner.act(members, _value(hyper, task, None if state.agent is None else state.agent.target))
        return play_with_memory(task, act, begin(key, starts.observation.shape[0]), starts)

    def finish(state: State, hyper: MPCConfig) -> Outcome:
        starts = task.draw_resets(stream(state.key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))
        returns = returns_from(state, hyper, starts, stream(state.key, Stream.PLANNING))
        members = fitting.members(ensemble_of(hyper), state.model)
        frozen, updates = ~all_finite(state.model.params), jnp.zeros((), jnp.int32)
        if state.agent is not None:
            frozen, updates = frozen | state.agent.frozen, state.agent.updates
        return Outcome(policy_of(members, state.agent), None, returns, None, frozen, updates, members)

    def policies(state: State) -> tuple[Params, None]:
        return policy_of(fitting.members(ensemble_of(config), state.model), state.agent), None

    return training.assemble(config, init, fit, advance, finish, policies, AXES)


def _check_task(config: MPCConfig, task: Environment) -> None:
    """Refuse a planner that does not suit the task's actions."""
    planning = config.planning
    if planning.terminal == "value":
        make_q_learner(config.agent, task.spec)
    if planning.method != "enumeration":
        return
    if task.spec.continuous:
        raise ConfigError(f"planning.method: 'enumeration' does not fit; the actions of {task.spec.name} are continuous")
    count = sequences(task.spec, planning.horizon)
    if count > MOST_SEQUENCES:
        raise ConfigError(
            f"planning.horizon: {planning.horizon!r} does not fit; there are {count:,} sequences of as many actions, and at most "
            f"{MOST_SEQUENCES:,} are enumerated"
        )
