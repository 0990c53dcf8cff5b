"""Q-learning from real transitions alone: the baseline.

The same learner, networks, number of updates and real transitions as Dyna-Q, without a model: every minibatch is real.

* batch: N random transitions, then one round of updates after another, no further contact with the environment;
* interactive: after the random transitions the agent acts epsilon-greedily, one update for each step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.q_learning import QState, UpdateLog, make_q_learner
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import ModelFreeQConfig, check
from mbrl_jax.environment import Environment, EnvironmentState, make_environment
from mbrl_jax.evaluation import play
from mbrl_jax.replay import Replay


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    real: Replay
    agent: QState


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
    batch: Array  # [T, updates, B] uint32


def draw(config: ModelFreeQConfig, task: Environment, key: Array) -> Draws:
    """Draw all that the steps of one round consume."""
    key_behaviour, key_batch = jax.random.split(key)
    interactive = config.protocol == "interactive"
    behaviour = training.draw_behaviour(task, key_behaviour, config.round_steps) if interactive else None
    shape = (config.round_steps, config.agent.updates_per_step, config.agent.batch_size)
    return Draws(behaviour, draws_.bits(key_batch, shape))


def make_train(config: ModelFreeQConfig, *, environment: Environment | None = None) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, ModelFreeQConfig)
    task = make_environment(config.environment) if environment is None else environment
    make_q_learner(config.agent, task.spec)  # refuses what does not fit the task

    def init(key: Array, hyper: ModelFreeQConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        agent = make_q_learner(config.agent, task.spec).init(stream(key, Stream.AGENT))
        real = replay.create(config.real_transitions, task.spec.observation_size)
        noise = hyper.environment.observation_noise
        episode, real, collected = training.collect_into(real, task, key, config.random_transitions, noise=noise)
        return State(jnp.zeros((), jnp.int32), key, episode, real, agent), collected

    def fit(state: State, hyper: ModelFreeQConfig) -> tuple[State, tuple[()]]:
        return state, ()

    def advance(state: State, hyper: ModelFreeQConfig) -> tuple[State, Metrics]:
        learner = make_q_learner(hyper.agent, task.spec)

        def step(carry: Any, draws: Draws) -> tuple[Any, UpdateLog]:
            time, episode, real, agent = carry
            progress = training.progress(time, config.steps)
            if draws.behaviour is not None:
                explore, random_action, fresh = draws.behaviour
                epsilon = training.exploration_rate(hyper.exploration, progress)
                action = learner.act(agent.online, episode.observation, epsilon, explore, random_action)
                episode, transition = task.step(episode, action, fresh)
                real = replay.write(real, training.real_rows(transition)[None])

            def update(agent: QState, bits: Array) -> tuple[QState, UpdateLog]:
                return learner.update(agent, replay.unpack(replay.sample(real, bits)), progress=progress)

            agent, log = jax.lax.scan(update, agent, draws.batch, unroll=True)
            return (time + 1, episode, real, agent), jax.tree.map(jnp.mean, log)

        carry = (state.time, state.episode, state.real, state.agent)
        draws = draw(config, task, stream(state.key, Stream.ROUND, state.time))
        (time, episode, real, agent), log = jax.lax.scan(step, carry, draws)
        state = State(time, state.key, episode, real, agent)
        curve = training.curve_return(task, config.evaluation, lambda s: learner.greedy(agent.target, s), state.key, state.time)
        return state, Metrics(training.average_blocks(log, config.metric_steps), curve, agent.frozen)

    def finish(state: State, hyper: ModelFreeQConfig) -> Outcome:
        learner = make_q_learner(hyper.agent, task.spec)
        starts = task.draw_resets(stream(state.key, Stream.FINAL_EVALUATION), (config.evaluation.episodes,))
        returns = play(task, lambda s: learner.greedy(state.agent.target, s), starts)
        return Outcome(state.agent.target, None, returns, None, state.agent.frozen, state.agent.updates, None)

    return training.assemble(config, init, fit, advance, finish, lambda state: (state.agent.target, None), AXES)
