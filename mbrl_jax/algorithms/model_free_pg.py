"""A policy gradient from real transitions alone: the baseline.

The same actor and critic as with a model. The policy acts; every T real steps are a segment of one trajectory, which is used for
one update and then forgotten.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.policy_gradient import PGState, PolicyGradient, PolicyGradientLog, segment_of
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ModelFreePGConfig, check
from mbrl_jax.environment import Environment, EnvironmentState, make_environment
from mbrl_jax.evaluation import play


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    agent: PGState


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None})  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: PolicyGradientLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target actor's greedy real episodes
    frozen: Array  # [] bool, the learner has gone non-finite


def make_train(config: ModelFreePGConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, ModelFreePGConfig)
    task = make_environment(config.environment) if environment is None else environment
    segments = config.round_steps // config.segment_steps

    def init(key: Array, hyper: ModelFreePGConfig | None = None) -> tuple[State, Array]:
        agent = PolicyGradient(config.agent, task.spec).init(stream(key, Stream.AGENT))
        episode = task.draw_resets(stream(key, Stream.COLLECTION), ())
        return State(jnp.zeros((), jnp.int32), key, episode, agent), jnp.zeros(0)

    def fit(state: State, hyper: ModelFreePGConfig) -> tuple[State, tuple[()]]:
        return state, ()

    def advance(state: State, hyper: ModelFreePGConfig) -> tuple[State, Metrics]:
        learner = PolicyGradient(hyper.agent, task.spec)

        def one_segment(carry: Any, draws: BehaviourDraws) -> tuple[Any, PolicyGradientLog]:
            time, episode, agent = carry

            # act in the real environment
            def step(episode: EnvironmentState, draw: BehaviourDraws) -> tuple[EnvironmentState, Array]:
                action = learner.act(agent.online.actor, episode.observation, draw.explore, draw.action)
                episode, transition = task.step(episode, action, draw.reset)
                return episode, training.real_rows(transition)

            episode, rows = jax.lax.scan(step, episode, draws)

            # learn
            agent, log = learner.update(agent, segment_of(rows, 1, task.spec.action_size), training.progress(time, config.steps))
            return (time + config.segment_steps, episode, agent), log

        draws = training.draw_behaviour(task, stream(state.key, Stream.ROUND, state.time), config.round_steps)
        draws = jax.tree.map(lambda leaf: leaf.reshape(segments, config.segment_steps, *leaf.shape[1:]), draws)
        (time, episode, agent), log = jax.lax.scan(one_segment, (state.time, state.episode, state.agent), draws)
        state = State(time, state.key, episode, agent)
        curve = training.curve_return(task, config.evaluation, lambda s: learner.greedy(agent.target.actor, s), state.key, time)
        log = training.average_blocks(log, config.metric_steps // config.segment_steps)
        return state, Metrics(log, curve, agent.frozen)

    def finish(state: State, hyper: ModelFreePGConfig) -> Outcome:
        learner = PolicyGradient(hyper.agent, task.spec)
        starts = task.draw_resets(stream(state.key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))
        actor = state.agent.target.actor
        returns = play(task, lambda s: learner.greedy(actor, s), starts)
        return Outcome(actor, None, returns, None, state.agent.frozen, state.agent.updates, None)

    return training.assemble(config, init, fit, advance, finish, lambda state: (state.agent.target.actor, None), AXES)
