"""Model-predictive control: at every real step a planner looks for a sequence of actions in the learned world, and its first
action is taken (PETS, Chua et al. 2018, arXiv:1805.12114, and its relatives by other planners).

After the random transitions and a first fit the planner acts, every step is one more real transition, and the model is refitted
at the end of every round. What comes after the planner's horizon can be valued by an agent, a Q-learner or the critics of soft
actor-critic (as in TD-MPC, Hansen et al. 2022, arXiv:2203.04955), which learns at every real step from minibatches of the real
transitions; and what its policy would do can be among the sequences that are tried.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.protocol import Agent, Policy
from mbrl_jax.agents.q_learning import UpdateLog
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.hosted import Behaviour
from mbrl_jax.algorithms.training import Outcome, Stream, Train, stream
from mbrl_jax.config import ConfigError, MPCConfig, check
from mbrl_jax.environments import Environment, EnvironmentState, draw_pool, environment_of, from_pool
from mbrl_jax.environments.host import told_at
from mbrl_jax.model.protocol import FitLog, belief_at
from mbrl_jax.networks import Params, all_finite
from mbrl_jax.planning.planners import Plan, PlanDraws, PlanLog, Planner, sequences
from mbrl_jax.planning.rollouts import Act, Value
from mbrl_jax.replay import ReplayState, make_replay
from mbrl_jax.trees import like, named

MOST_SEQUENCES = 4_096  # that are enumerated


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    real: ReplayState
    model: Any  # the world model's
    plan: Plan  # that the next step begins with
    agent: Any  # values what comes after the horizon, none where nothing does


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None, "real": replay.AXES})  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    plan: PlanLog  # leaves [blocks]
    update: UpdateLog | None  # the agent's log, leaves [blocks], none without one
    curve_return: Array  # [] mean return of real episodes by the planner, with the model as it is then
    refit: FitLog  # leaves [E]
    frozen: Array  # [] bool, the model or the agent has gone non-finite


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    plan: PlanDraws  # leaves [T, ...]
    reset: Array  # [T] int32, which reset of the pool an episode that ends goes on from
    pool: Any  # [P] resets, the same for all steps
    real: Array | None  # [T, updates, B] uint32, rows of the minibatches, none without an agent
    update: Any  # the agent's own, leaves [T, updates, ...]


def draw(config: MPCConfig, task: Environment, planner: Planner, key: Array, steps: int) -> Draws:
    """Draw all that ``steps`` steps consume."""
    key_plan, key_reset, key_real = jax.random.split(key, 3)
    agent = valuing_agent(config, task)
    asked = None if agent is None else agent.minibatches
    real = update = None
    if agent is not None and asked is not None:
        real = draws_.bits(key_real, (steps, asked.updates, asked.rows))
        update = agent.draw(jax.random.fold_in(key, 0), (steps, asked.updates))
    return Draws(
        plan=planner.draw(key_plan, (steps,)),
        reset=jnp.arange(steps, dtype=jnp.int32),
        pool=draw_pool(task, key_reset, steps),
        real=real,
        update=update,
    )


def valuing_agent(config: MPCConfig, task: Environment) -> Agent | None:
    """The agent that values what comes after the horizon, none where nothing does.

    Raises:
      ConfigError: its kind cannot value a state, or learns from segments, or it does not fit the task.

    """
    if config.planning.terminal != "value":
        return None
    agent = make_agent(config.agent, task.spec)
    if agent.value is None or agent.minibatches is None:
        raise ConfigError(
            f"agent.kind: {config.agent.kind!r} does not fit; planning.terminal: value needs one that values states and "
            "learns from transitions, as 'q_learning', 'sac' and 'crossq' do"
        )
    return agent


class Advice(NamedTuple):
    """What an agent tells a planner."""

    value: Value | None  # of where plans end, none where it counts for nothing
    act: Act | None  # the policy that proposes sequences, none where none does


class Known(NamedTuple):
    """What of an agent's state its advice needs; empty without an agent."""

    critic: Any = None
    actor: Any = None


def known_of(config: MPCConfig, task: Environment, learner: Any) -> Known:
    """What advice needs of an agent's state."""
    agent = valuing_agent(config, task)
    if agent is None or agent.valuing is None:
        return Known()
    return Known(agent.valuing(learner), agent.acting(learner) if config.planning.proposals else None)


def advice_of(config: MPCConfig, task: Environment, known: Known) -> Advice:
    """The agent's advice; in each member the first of its proposals is greedy."""
    agent = valuing_agent(config, task)
    if agent is None or agent.value is None:
        return Advice(None, None)
    value = partial(agent.value, known.critic)
    if not config.planning.proposals:
        return Advice(value, None)
    each = config.planning.proposals // phases.world_of(config, task).spec.members

    def act(features: Array, random: Array) -> Array:
        count = len(features)
        drawn = agent.act(known.actor, features, 0.0, jnp.ones(count, features.dtype), random)
        greedy = (jnp.arange(count, dtype=jnp.int32) % each == 0).reshape((count,) + (1,) * (drawn.ndim - 1))
        return jnp.where(greedy, agent.mode(known.actor, features), drawn)

    return Advice(value, act)


def policy_params(config: MPCConfig, task: Environment, model: Any, learner: Any) -> Params:
    """What the planner acts by, as a tree of dictionaries: the world model's parameters, and what the agent's advice needs."""
    known = known_of(config, task, learner)._asdict()
    return {**named(model), **{name: named(part) for name, part in known.items() if part is not None}}


def planner_of(config: MPCConfig, task: Environment) -> Planner:
    """The planner of a run in its learned world."""
    return Planner(config.planning, task.spec, phases.world_of(config, task))


def params_of(config: MPCConfig, task: Environment) -> Any:
    """Shapes and dtypes of what :func:`policy_params` gives."""
    world, agent = phases.world_of(config, task), valuing_agent(config, task)

    def params(key: Array) -> Params:
        return policy_params(config, task, world.acting(world.init(key)), None if agent is None else agent.init(key))

    return jax.eval_shape(params, jax.random.key(0))


def policy_of(config: MPCConfig, task: Environment) -> Policy:
    """The planner as a policy, with parameters as :func:`policy_params` gives them; its memory is the plan."""
    planner = planner_of(config, task)
    world = planner.world
    agent, key = valuing_agent(config, task), jax.random.key(0)
    template = jax.eval_shape(lambda: world.acting(world.init(key)))
    known = jax.eval_shape(lambda: known_of(config, task, None if agent is None else agent.init(key)))

    def begin(params: Params, key: Array, episodes: int) -> Any:
        return planner.begin(key, episodes)

    def act(params: Params, memory: Any, observation: Array) -> tuple[Any, Array]:
        given = Known(*(None if part is None else like(part, params[name]) for name, part in known._asdict().items()))
        return planner.act(like(template, params), memory, observation, *advice_of(config, task, given))

    return Policy(begin, act)


def behaviour_of(config: MPCConfig, task: Environment) -> Behaviour:
    """The planner as it acts while the run goes on, step by step; it tells how planning went."""

    def params(state: State, hyper: MPCConfig) -> Any:
        model = planner_of(hyper, task).world.acting(state.model)
        return hyper, model, known_of(hyper, task, state.agent)

    def draw_plans(hyper: MPCConfig, key: Array, time: Array, steps: int) -> PlanDraws:
        return planner_of(hyper, task).draw(key, (steps,))

    def begin(params: Any) -> Plan:
        return planner_of(params[0], task).init()

    def act(params: Any, memory: Plan, observation: Array, drawn: PlanDraws) -> tuple[Plan, Array, PlanLog]:
        hyper, model, known = params
        planner = planner_of(hyper, task)
        start = belief_at(planner.world, "a planner")(observation)
        return planner.plan(model, memory, start, drawn, *advice_of(hyper, task, known), explore=True)

    return Behaviour(params, draw_plans, begin, act)


def make_train(config: MPCConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` runs one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, MPCConfig)
    task = environment_of(config.environment, environment)
    _check_task(config, task)
    real_replay = make_replay(task.spec, config.real_transitions)

    def agent_of(hyper: MPCConfig) -> Agent | None:
        return valuing_agent(hyper, task)

    def init(key: Array, hyper: MPCConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        planner, agent = planner_of(hyper, task), agent_of(hyper)
        episode, real, collected = phases.collect(task, real_replay, key, config.random_transitions)
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            real=real,
            model=planner.world.init(stream(key, Stream.MODEL)),
            plan=planner.init(),
            agent=None if agent is None else agent.init(stream(key, Stream.AGENT)),
        )
        return state, collected

    def fit(state: State, hyper: MPCConfig) -> tuple[State, FitLog]:
        return phases.fit(planner_of(hyper, task).world, state)

    def learn(state: State, hyper: MPCConfig, steps: int) -> tuple[State, tuple[PlanLog, Any]]:
        planner, agent = planner_of(hyper, task), agent_of(hyper)
        world = planner.world
        model = world.acting(state.model)
        at = belief_at(world, "a planner")

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[PlanLog, Any]]:
            time, episode, real, plan, learner = carry

            # plan
            if task.host is None:
                advice, start = advice_of(hyper, task, known_of(hyper, task, learner)), at(episode.observation)
                plan, action, plan_log = planner.plan(model, plan, start, draws.plan, *advice, explore=True)
            else:  # by `behaviour_of`, before the host made the step
                action, plan_log = planner.action(plan), told_at(episode)

            # act in the real environment
            episode, transition = task.step(episode, action, from_pool(draws.pool, draws.reset))
            real = real_replay.write(real, training.real_rows(transition))
            ended = transition.terminated | transition.truncated
            plan = jax.tree.map(lambda blank, plan: jnp.where(ended, blank, plan), planner.init(), plan)

            # learn what comes after the horizon
            update_log = None
            if agent is not None:

                def update(learner: Any, drawn: Any) -> tuple[Any, Any]:
                    batch, progress = real_replay.sample(real, drawn[0]), training.progress(time, config.steps)
                    return agent.update(learner, batch, drawn[1], progress, None)

                learner, log = training.successive(update, learner, (draws.real, draws.update))
                update_log = jax.tree.map(jnp.mean, log)
            return (time + 1, episode, real, plan, learner), (plan_log, update_log)

        drawing, key = partial(draw, config, task, planner), stream(state.key, Stream.ROUND, state.time)
        carry = (state.time, state.episode, state.real, state.plan, state.agent)
        (time, episode, real, plan, learner), logs = training.scan_round(step, carry, drawing, key, steps)
        return State(time, state.key, episode, real, state.model, plan, learner), logs

    def close(state: State, hyper: MPCConfig, logs: tuple[PlanLog, Any]) -> tuple[State, Metrics]:
        state, refit_log = phases.refit(planner_of(hyper, task).world, state, agent=agent_of(hyper))
        starts = task.draw_resets(stream(state.key, Stream.CURVE, state.time), (config.evaluation.curve_episodes,))
        curve = jnp.mean(returns_from(state, hyper, starts, stream(state.key, Stream.PLANNING, state.time)))
        plan_log, update_log = training.average_blocks(logs, config.metric_steps)
        return state, Metrics(plan_log, update_log, curve, refit_log, frozen(state))

    def frozen(state: State) -> Array:
        """[] whether the model or the agent has gone non-finite."""
        broken = ~all_finite(planner_of(config, task).world.acting(state.model))
        return broken if state.agent is None else broken | state.agent.frozen

    def returns_from(state: State, hyper: MPCConfig, starts: EnvironmentState, key: Array) -> Array:
        """[n] returns of real episodes from the starts [n], by the planner in the world as it has been learned by now."""
        params = policies(state)[0]
        return phases.play_policy(task, policy_of(hyper, task), params, starts, key)

    def finish(state: State, hyper: MPCConfig) -> Outcome:
        starts = phases.final_starts(config, task, state.key)
        returns = returns_from(state, hyper, starts, stream(state.key, Stream.PLANNING))
        model = planner_of(hyper, task).world.acting(state.model)
        updates = jnp.zeros((), jnp.int32) if state.agent is None else state.agent.updates
        return Outcome(policy_params(config, task, model, state.agent), None, returns, None, frozen(state), updates, model)

    def policies(state: State) -> tuple[Params, None]:
        return policy_params(config, task, planner_of(config, task).world.acting(state.model), state.agent), None

    return training.assemble(config, init, fit, learn, close, finish, policies, AXES, on_host=task.host is not None)


def _check_task(config: MPCConfig, task: Environment) -> None:
    """Refuse a planner that does not suit the task's actions."""
    planning = config.planning
    phases.check_value(config, phases.world_of(config, task), valuing_agent(config, task))
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
