"""Soft actor-critic with a recurrent memory, from real sequences alone: what Dreamer is without a model.

The policy remembers by a recurrent network that the actor's own loss teaches. Every few real steps sequences of real transitions
are drawn, as Dreamer draws them, and the critics and the actor make one gradient step by them. Nothing is imagined.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.protocol import Policy
from mbrl_jax.agents.recurrent import Actor, Recurrent, RecurrentDraws, RecurrentLog, RecurrentState
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import RecurrentSACConfig, check
from mbrl_jax.environments import Environment, EnvironmentState, environment_of, from_pool
from mbrl_jax.networks import Params
from mbrl_jax.replay import ReplayState, make_replay
from mbrl_jax.trees import like, named


class Memory(NamedTuple):
    """What a policy remembers of n episodes, or of one."""

    hidden: Array  # [n, U] of the actor's recurrence, before the present observation
    action: Array  # [n, ...] that was taken before it
    first: Array  # [n] bool, whether the present observation is an episode's first


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    memory: Memory  # of it, leaves [1, ...]
    real: ReplayState
    agent: RecurrentState


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None, "real": replay.AXES})  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: RecurrentLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the actor's greedy real episodes
    frozen: Array  # [] bool, the agent has gone non-finite


class Draws(NamedTuple):
    """The random numbers of N updates, each after U real steps."""

    behaviour: BehaviourDraws  # leaves [N, U, ...]
    pool: Any  # [P] resets, the same for all steps
    rows: Array  # [N, B] uint32, which sequences
    update: RecurrentDraws  # leaves [N, T, B, A]


def draw(config: RecurrentSACConfig, task: Environment, key: Array, updates: int) -> Draws:
    """Draw all that ``updates`` updates and the real steps before them consume."""
    keys = jax.random.split(key, 3)
    behaviour, pool = training.draw_behaviour(task, keys[0], updates * config.update_steps)
    return Draws(
        behaviour=jax.tree.map(lambda leaf: leaf.reshape(updates, config.update_steps, *leaf.shape[1:]), behaviour),
        pool=pool,
        rows=draws_.bits(keys[1], (updates, config.agent.batch_size)),
        update=Recurrent(config.agent, task.spec).draw(keys[2], (updates,)),
    )


# --------------------------------------------------------------------------------------------------------------- the policy


def blank_memory(config: RecurrentSACConfig, task: Environment, episodes: int) -> Memory:
    """The memory where episodes begin."""
    dtype = jnp.zeros(()).dtype if task.spec.continuous else jnp.int32
    action = jnp.zeros((episodes, *task.spec.action_shape), dtype)
    return Memory(jnp.zeros((episodes, config.agent.units)), action, jnp.ones(episodes, bool))


def remember(learner: Recurrent, actor: Actor, memory: Memory, observation: Array) -> Array:
    """[n, U] the actor's memory after observations [n, D]."""
    code = learner.code(actor.trunk, observation)
    return learner.recall(actor.trunk, memory.hidden, memory.action, code, memory.first)


def params_of(config: RecurrentSACConfig, task: Environment) -> Any:
    """Shapes and dtypes of what the policy acts by, a tree of dictionaries."""
    return jax.eval_shape(lambda key: named(Recurrent(config.agent, task.spec).init(key).actor), jax.random.key(0))


def policy_of(config: RecurrentSACConfig, task: Environment) -> Policy:
    """The actor as a policy that takes its most probable actions, with parameters as :func:`params_of` has them."""
    learner = Recurrent(config.agent, task.spec)
    shapes = jax.eval_shape(lambda key: learner.init(key).actor, jax.random.key(0))

    def begin(params: Params, key: Array, episodes: int) -> Memory:
        return blank_memory(config, task, episodes)

    def act(params: Params, memory: Memory, observation: Array) -> tuple[Memory, Array]:
        actor = like(shapes, params)
        hidden = remember(learner, actor, memory, observation)
        action = learner.greedy(actor, hidden)
        return Memory(hidden, action, jnp.zeros_like(memory.first)), action

    return Policy(begin, act)


# ----------------------------------------------------------------------------------------------------------------- the loop


def make_train(config: RecurrentSACConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, RecurrentSACConfig)
    task = environment_of(config.environment, environment)
    phases.check_stepped(task, "recurrent_sac")
    real_replay = make_replay(task.spec, config.real_transitions)

    def init(key: Array, hyper: RecurrentSACConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        episode, real, collected = phases.collect(task, real_replay, key, config.random_transitions)
        agent = Recurrent(hyper.agent, task.spec).init(stream(key, Stream.AGENT))
        return State(jnp.zeros((), jnp.int32), key, episode, blank_memory(config, task, 1), real, agent), collected

    def fit(state: State, hyper: RecurrentSACConfig) -> tuple[State, tuple[()]]:
        return state, ()

    def learn(state: State, hyper: RecurrentSACConfig, steps: int) -> tuple[State, RecurrentLog]:
        learner = Recurrent(hyper.agent, task.spec)

        def update(carry: Any, draws: Draws) -> tuple[Any, RecurrentLog]:
            time, episode, memory, real, agent = carry

            # act in the real environment, by what is remembered
            def act(carry: Any, drawn: BehaviourDraws) -> tuple[Any, None]:
                episode, memory, real = carry
                hidden = remember(learner, agent.actor, memory, episode.observation[None])
                action = learner.act(agent.actor, hidden, drawn.explore[None], drawn.action[None])
                episode, transition = task.step(episode, action[0], from_pool(draws.pool, drawn.reset))
                real = real_replay.write(real, training.real_rows(transition))
                return (episode, Memory(hidden, action, (transition.terminated | transition.truncated)[None]), real), None

            (episode, memory, real), _ = jax.lax.scan(act, (episode, memory, real), draws.behaviour)

            # learn from real sequences
            sampled = real_replay.sample_sequences(real, draws.rows, config.agent.sequence)
            rows, first = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), sampled)
            first = first.at[0].set(True)  # of what was before a sequence nothing is known
            agent, log = learner.update(agent, rows, first, draws.update, training.progress(time, config.steps))
            return (time + config.update_steps, episode, memory, real, agent), log

        key = stream(state.key, Stream.ROUND, state.time)
        carry = (state.time, state.episode, state.memory, state.real, state.agent)
        (time, *rest), log = training.scan_round(update, carry, partial(draw, hyper, task), key, steps // config.update_steps)
        return State(time, state.key, *rest), log

    def close(state: State, hyper: RecurrentSACConfig, log: RecurrentLog) -> tuple[State, Metrics]:
        starts = task.draw_resets(stream(state.key, Stream.CURVE, state.time), (config.evaluation.curve_episodes,))
        curve = jnp.mean(returns_from(state, hyper, starts))
        return state, Metrics(training.average_blocks(log, config.metric_steps // config.update_steps), curve, state.agent.frozen)

    def returns_from(state: State, hyper: RecurrentSACConfig, starts: EnvironmentState) -> Array:
        """[n] returns of greedy real episodes from the starts [n]."""
        return phases.play_policy(task, policy_of(hyper, task), policies(state)[0], starts, state.key)

    def finish(state: State, hyper: RecurrentSACConfig) -> Outcome:
        returns = returns_from(state, hyper, phases.final_starts(config, task, state.key))
        return Outcome(policies(state)[0], None, returns, None, state.agent.frozen, state.agent.updates, None)

    def policies(state: State) -> tuple[Params, None]:
        return named(state.agent.actor), None

    return training.assemble(config, init, fit, learn, close, finish, policies, AXES)
