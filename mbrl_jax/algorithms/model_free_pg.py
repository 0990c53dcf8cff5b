"""A policy gradient from real transitions alone: the baseline.

The same actor and critic as with a model. The policy acts; every T real steps are a segment of one trajectory, which is used for
one update and then forgotten.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.policy_gradient import PGState, PolicyGradientLog, segment_of
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ModelFreePGConfig, check
from mbrl_jax.environments import Environment, EnvironmentState, environment_of, from_pool
from mbrl_jax.replay import Rows


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
    task = environment_of(config.environment, environment)

    def agent_of(hyper: ModelFreePGConfig) -> Agent:
        return make_agent(hyper.agent, task.spec)

    def init(key: Array, hyper: ModelFreePGConfig | None = None) -> tuple[State, Array]:
        agent = agent_of(config if hyper is None else hyper)
        episode = task.draw_resets(stream(key, Stream.COLLECTION), ())
        return State(jnp.zeros((), jnp.int32), key, episode, agent.init(stream(key, Stream.AGENT))), jnp.zeros(0)

    def fit(state: State, hyper: ModelFreePGConfig) -> tuple[State, tuple[()]]:
        return state, ()

    def learn(state: State, hyper: ModelFreePGConfig, steps: int) -> tuple[State, PolicyGradientLog]:
        agent, segments = agent_of(hyper), steps // config.segment_steps
        draws, pool = training.draw_behaviour(task, stream(state.key, Stream.ROUND, state.time), steps)

        def one_segment(carry: Any, draws: BehaviourDraws) -> tuple[Any, PolicyGradientLog]:
            time, episode, learner = carry

            # act in the real environment
            def step(episode: EnvironmentState, draw: BehaviourDraws) -> tuple[EnvironmentState, Rows]:
                action = agent.act(agent.acting(learner), episode.observation, 0.0, draw.explore, draw.action)
                episode, transition = task.step(episode, action, from_pool(pool, draw.reset))
                return episode, training.real_rows(transition)

            episode, rows = jax.lax.scan(step, episode, draws)

            # learn
            segment = segment_of(jax.tree.map(lambda leaf: leaf[:, None], rows))
            learner, log = agent.update(learner, segment, None, training.progress(time, config.steps), None)
            return (time + config.segment_steps, episode, learner), log

        draws = jax.tree.map(lambda leaf: leaf.reshape(segments, config.segment_steps, *leaf.shape[1:]), draws)
        (time, episode, learner), log = jax.lax.scan(one_segment, (state.time, state.episode, state.agent), draws)
        return State(time, state.key, episode, learner), log

    def close(state: State, hyper: ModelFreePGConfig, log: PolicyGradientLog) -> tuple[State, Metrics]:
        agent = agent_of(hyper)
        curve = phases.curve_return(config, task, agent.mode, agent.judged(state.agent), state.key, state.time)
        log = training.average_blocks(log, config.metric_steps // config.segment_steps)
        return state, Metrics(log, curve, state.agent.frozen)

    def finish(state: State, hyper: ModelFreePGConfig) -> Outcome:
        return phases.finish(config, task, agent_of(hyper), state)

    def policies(state: State) -> tuple[Any, None]:
        return agent_of(config).judged(state.agent), None

    return training.assemble(config, init, fit, learn, close, finish, policies, AXES, on_host=task.host is not None)
