"""Q-learning from real transitions alone: the baseline.

The same learner, networks, number of updates and real transitions as Dyna-Q, without a model: every minibatch is real.

* batch: N random transitions, then one round of updates after another, no further contact with the environment;
* interactive: after the random transitions the agent acts epsilon-greedily, one update for each step.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.q_learning import UpdateLog
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ModelFreeQConfig
from mbrl_jax.environments import Environment, EnvironmentState, environment_of
from mbrl_jax.replay import ReplayState, make_replay


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState | None  # the real episode in progress, none where all transitions are logged ones
    real: ReplayState
    agent: Any


_SHARED: dict[str, Any] = {"time": None, "real": replay.AXES}
AXES = State(**{**dict.fromkeys(State._fields, 0), **_SHARED})


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: UpdateLog  # leaves [blocks]
    curve_return: Array  # [] mean return of the target network's greedy real episodes
    frozen: Array  # [] bool, the learner has gone non-finite


class Draws(NamedTuple):
    """The random numbers of a round of T steps."""

    behaviour: BehaviourDraws | None  # leaves [T, ...], none in the batch protocol
    pool: Any  # [P] resets, the same for all steps, none in the batch protocol
    batch: Array  # [T, updates, B] uint32
    update: Any  # the agent's own, leaves [T, updates, ...]


def draw(config: ModelFreeQConfig, task: Environment, agent: Agent, key: Array, steps: int) -> Draws:
    """Draw all that ``steps`` steps consume."""
    key_behaviour, key_batch = jax.random.split(key)
    interactive = config.protocol == "interactive"
    behaviour = pool = None
    if interactive:
        behaviour, pool = training.draw_behaviour(task, key_behaviour, steps)
    assert agent.minibatches is not None, "it learns from transitions"
    updates = (steps, agent.minibatches.updates)
    batch = draws_.bits(key_batch, (*updates, agent.minibatches.rows))
    return Draws(behaviour, pool, batch, agent.draw(jax.random.fold_in(key, 0), updates))


def make_train(config: ModelFreeQConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    config = phases.settled(config, ModelFreeQConfig, environment)
    task = environment_of(config.environment, environment)
    real_replay = make_replay(task.spec, config.real_transitions)

    def agent_of(hyper: ModelFreeQConfig) -> Agent:
        return make_agent(hyper.agent, task.spec)

    agent_of(config)  # refuses what does not fit the task

    def init(key: Array, hyper: ModelFreeQConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        episode, real, collected = phases.begin(config, task, real_replay, key, hyper)
        return State(jnp.zeros((), jnp.int32), key, episode, real, agent_of(hyper).init(stream(key, Stream.AGENT))), collected

    def fit(state: State, hyper: ModelFreeQConfig) -> tuple[State, tuple[()]]:
        return state, ()

    def learn(state: State, hyper: ModelFreeQConfig, steps: int) -> tuple[State, UpdateLog]:
        agent = agent_of(hyper)

        def step(carry: Any, draws: Draws) -> tuple[Any, Any]:
            time, episode, real, learner = carry
            progress = training.progress(time, config.steps)

            # act in the real environment
            if draws.behaviour is not None:
                epsilon = training.exploration_rate(hyper.exploration, progress)
                acting = agent.acting(learner)
                episode, real = phases.act(task, agent, real_replay, episode, real, acting, epsilon, draws.behaviour, draws.pool)

            # learn
            def update(learner: Any, drawn: tuple[Array, Any]) -> tuple[Any, Any]:
                return agent.update(learner, real_replay.sample(real, drawn[0]), drawn[1], progress, None)

            learner, log = training.successive(update, learner, (draws.batch, draws.update))
            return (time + 1, episode, real, learner), jax.tree.map(jnp.mean, log)

        drawing, key = partial(draw, config, task, agent), stream(state.key, Stream.ROUND, state.time)
        carry = (state.time, state.episode, state.real, state.agent)
        (time, episode, real, learner), log = training.scan_round(step, carry, drawing, key, steps)
        return State(time, state.key, episode, real, learner), log

    def close(state: State, hyper: ModelFreeQConfig, log: UpdateLog) -> tuple[State, Metrics]:
        agent = agent_of(hyper)
        curve = phases.curve_return(config, task, agent.mode, agent.judged(state.agent), state.key, state.time)
        return state, Metrics(training.average_blocks(log, config.metric_steps), curve, state.agent.frozen)

    def finish(state: State, hyper: ModelFreeQConfig) -> Outcome:
        return phases.finish(config, task, agent_of(hyper), state)

    def policies(state: State) -> tuple[Any, None]:
        return agent_of(config).judged(state.agent), None

    return training.assemble(
        config, init, fit, learn, close, finish, policies, phases.axes_of(config, AXES), on_host=task.host is not None
    )
