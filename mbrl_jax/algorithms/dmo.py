"""Decoupled backpropagation: paths from the simulator, their gradient through a learned model (DMO, Amigo et al. 2025,
arXiv:2509.00215), with the short windows of SHAC (Xu et al. 2022, arXiv:2204.07137).

N simulators go on side by side for a window of H steps. The window's objective is the discounted reward of every path, and the
target critic's value of its last state where it ends without a termination. The actor ascends its gradient, which comes

* decoupled: from the model's Jacobian at the simulator's states, ``s' = sg(sim(s, a)) + f(s, a) - sg(f(s, a))``, with sg what is
  not differentiated, f the mean of the members' mean steps, and the reward likewise where it is learned. The simulator may be a
  black box;
* imagined: from paths that the model makes by itself, from the same states and by the same random numbers. The simulators go on
  by the same policy, and only the critic and the model see them;
* true: through the simulator, which must be differentiable.

A simulator on the host (``gymnasium/...``) is never differentiated: the host steps the N of a seed by the window's policy and its
random numbers, and the window is then unrolled along what it recorded.

All else is the same for the three. The critic learns the lambda-returns of the simulators' paths by minibatches. The model is
refitted at every round's end, to all of the simulators' transitions.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import replay
from mbrl_jax.agents.policy_gradient import ActorCritic, PGState, PolicyGradient, Segment, segment_of
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import phases, training
from mbrl_jax.algorithms.hosted import Behaviour
from mbrl_jax.algorithms.training import Outcome, Stream, Train, stream
from mbrl_jax.algorithms.windows import Draws, Steps, SurrogateLog, draw, measure_surrogate, objective, unroll
from mbrl_jax.config import ConfigError, DMOConfig, holdout_stride
from mbrl_jax.environments import Environment, EnvironmentState, environment_of
from mbrl_jax.imagination.horizon import HorizonController, make_controller
from mbrl_jax.model.protocol import FitLog, WorldModel
from mbrl_jax.model.worlds import make_world
from mbrl_jax.networks import Params, adam_step, all_finite
from mbrl_jax.replay import ReplayState, make_replay


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the simulators so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # [N] the episodes in progress
    real: ReplayState
    model: Any  # the world model's
    controller: Any  # what the horizon controller carries
    error: Array  # [] of the model's Jacobians in the last window, minus infinity before the first
    agent: PGState


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None, "real": replay.AXES})  # type: ignore[arg-type]


class WindowLog(NamedTuple):
    """How a window's update went."""

    loss: Array  # [] the critic's mean squared error over its minibatches, in units of the return
    scaled_loss: Array  # [] the same over the variance of its targets
    entropy: Array  # [] mean entropy of the policy, nats
    gradient_norm: Array  # [] of the actor's, before it is clipped
    path_length: Array  # [] mean steps that a gradient goes back along a path


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: WindowLog  # leaves [blocks]
    surrogate: SurrogateLog  # leaves [blocks, H]
    curve_return: Array  # [] mean return of the target actor's greedy real episodes
    refit: FitLog  # leaves [E]
    frozen: Array  # [] bool, the learner has gone non-finite


# -------------------------------------------------------------------------------------------------------------- the learner


def improve(
    learner: PolicyGradient,
    state: PGState,
    segment: Segment,
    gradient: Params,
    progress: Array | float,
    minibatch: Array,
) -> tuple[PGState, Array, Array]:
    """One step of the actor down ``gradient``, many of the critic towards a segment's lambda-returns, one of the target networks.

    Args:
      learner: the agent's settings and the task's sizes.
      state: the learner.
      segment: [H, N] steps of the simulators.
      gradient: of minus the objective with respect to the actor.
      progress: share of the run that is done, by which the learning rates decay.
      minibatch: [updates, rows] places among the H N rows.

    Returns:
      The learner, the critic's mean squared error [], and the same over the variance of the returns [].

    """
    config, optimiser = learner.config, learner.optimiser
    left = 1 - config.learning_rate_decay * progress
    actor, of_actor = adam_step(state.online.actor, state.optimizer.actor, gradient, config.learning_rate * left, optimiser)
    returns = learner.returns(state.target.critic, segment)
    seen, wanted = segment.rows.observation.reshape(-1, segment.rows.observation.shape[-1]), returns.reshape(-1)
    scale = jnp.square(learner.horizon)  # so that the step does not depend on the discount

    def descend(carry: Any, places: Array) -> tuple[Any, Array]:
        critic, optimizer = carry

        def loss(critic: Params) -> Array:
            return jnp.mean(jnp.square(learner.values(critic, seen[places]) - wanted[places])) / scale

        error, slope = jax.value_and_grad(loss)(critic)
        return adam_step(critic, optimizer, slope, config.critic_learning_rate * left, optimiser), error * scale

    (critic, of_critic), errors = jax.lax.scan(descend, (state.online.critic, state.optimizer.critic), minibatch)
    online = ActorCritic(actor, critic)
    target = jax.tree.map(lambda t, p: t + config.target_rate * (p - t), state.target, online)
    after = PGState(online, target, ActorCritic(of_actor, of_critic), state.frozen, state.updates + 1)
    frozen = state.frozen | ~all_finite(online)
    after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
    error = jnp.mean(errors)
    return after._replace(frozen=frozen), error, error / jnp.maximum(jnp.var(returns), 1e-8)


# ----------------------------------------------------------------------------------------------------------------- the loop


def make_train(
    config: DMOConfig, *, environment: Environment | None = None, controller: HorizonController | None = None
) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.
      controller: a horizon controller in place of the one that ``config.controller`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    config = phases.settled(config, DMOConfig, environment)
    task = environment_of(config.environment, environment)
    real_replay = make_replay(task.spec, config.real_transitions)

    def agent_of(hyper: DMOConfig) -> Agent:
        return make_agent(hyper.agent, task.spec)

    def pieces_of(hyper: DMOConfig) -> tuple[WorldModel, HorizonController]:
        first, stride = hyper.random_transitions, holdout_stride(hyper)
        world = make_world(hyper.model, task, real_replay, first_rows=first, stride=stride, by="ts_infinity")
        named = controller or make_controller(hyper.controller.kind, hyper.controller.numbers)
        return world, named

    _check_task(config, task, *pieces_of(config))

    def init(key: Array, hyper: DMOConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        world, horizon = pieces_of(hyper)
        _, real, collected = phases.collect(task, real_replay, key, config.random_transitions)
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=task.draw_resets(stream(key, Stream.BEHAVIOUR), (config.copies,)),
            real=real,
            model=world.init(stream(key, Stream.MODEL)),
            controller=horizon.init(config.copies, world.spec),
            error=jnp.full((), -jnp.inf),
            agent=agent_of(hyper).init(stream(key, Stream.AGENT)),
        )
        return state, collected

    def fit(state: State, hyper: DMOConfig) -> tuple[State, FitLog]:
        return phases.fit(pieces_of(hyper)[0], state)

    def learn(state: State, hyper: DMOConfig, steps: int) -> tuple[State, tuple[WindowLog, SurrogateLog]]:
        learner, (world, horizon) = PolicyGradient(hyper.agent, task.spec), pieces_of(hyper)
        params = world.acting(state.model)

        def step(carry: Any, draws: Draws) -> tuple[Any, tuple[WindowLog, SurrogateLog]]:
            time, carried, before, real, now = carry

            # unroll a window, and differentiate its objective with respect to the actor
            def loss(actor: Params) -> tuple[Array, Any]:
                policy = partial(learner.relaxed, actor)
                after, window = unroll(hyper, task, world, params, horizon, policy, carried, time, before, draws)
                value = learner.values(now.target.critic, window.path.next_observation)
                gain = objective(window.path, value, hyper.agent.discount)
                entropy = jnp.mean(learner.policy.entropy(learner.outputs(actor, jax.lax.stop_gradient(window.path.observation))))
                return -gain - hyper.agent.entropy_weight * entropy, (after, window, entropy)

            gradient, (carried, window, entropy) = jax.grad(loss, has_aux=True)(now.online.actor)

            # learn, and store the simulators' transitions, those of each one after another
            rows = training.real_rows(window.simulated)
            share = training.progress(time, config.steps)
            now, error, scaled = improve(learner, now, segment_of(rows), gradient, share, draws.minibatch)
            real = real_replay.write(real, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rows))
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
            ended = (window.path.terminated | window.path.truncated).astype(error.dtype)
            log = WindowLog(error, scaled, entropy, norm, 1 / jnp.mean(ended))
            surrogate = measure_surrogate(config, task, world, params, window)
            return (time + config.window_transitions, carried, jnp.mean(surrogate.error), real, now), (log, surrogate)

        key, windows = stream(state.key, Stream.ROUND, state.time), steps // config.window_transitions
        carry = (state.time, (state.episode, state.controller), state.error, state.real, state.agent)
        (time, carried, before, real, now), logs = training.scan_round(step, carry, partial(draw, config, task), key, windows)
        return state._replace(time=time, episode=carried[0], controller=carried[1], error=before, real=real, agent=now), logs

    def close(state: State, hyper: DMOConfig, logs: tuple[WindowLog, SurrogateLog]) -> tuple[State, Metrics]:
        agent = agent_of(hyper)
        state, refit = phases.refit(pieces_of(hyper)[0], state)
        curve = phases.curve_return(config, task, agent.mode, agent.judged(state.agent), state.key, state.time)
        update, surrogate = training.average_blocks(logs, config.metric_steps // config.window_transitions)
        return state, Metrics(update, surrogate, curve, refit, state.agent.frozen)

    def finish(state: State, hyper: DMOConfig) -> Outcome:
        outcome = phases.finish(config, task, agent_of(hyper), state)
        return outcome._replace(model=pieces_of(hyper)[0].acting(state.model))

    def policies(state: State) -> tuple[Params, None]:
        return agent_of(config).judged(state.agent), None

    return training.assemble(config, init, fit, learn, close, finish, policies, AXES, on_host=task.host is not None)


def behaviour_of(config: DMOConfig, task: Environment) -> Behaviour:
    """What acts in simulators on the host: the policy of a window, by the random numbers that the window is unrolled with."""

    def begin(state: State, hyper: DMOConfig) -> tuple[Any, Params]:
        return hyper.agent, state.agent.online.actor

    def steps(hyper: DMOConfig, key: Array, time: Array, count: int) -> Steps:
        drawn = draw(config, task, key, 1)
        return jax.tree.map(lambda leaf: leaf[0], Steps(drawn.explore, drawn.action, drawn.reset))

    def act(
        params: tuple[Any, Params], memory: tuple[()], observation: Array, drawn: Steps
    ) -> tuple[tuple[()], Array, tuple[()]]:
        numbers, actor = params
        return memory, PolicyGradient(numbers, task.spec).relaxed(actor, observation, drawn.explore, drawn.action), ()

    return Behaviour(begin, steps, lambda params: (), act, Stream.ROUND)


def _check_task(config: DMOConfig, task: Environment, world: WorldModel, controller: HorizonController) -> None:
    """Refuse a task, or a controller given, that windows of simulated steps do not fit."""
    name = task.spec.name
    if task.host is not None:
        told = f"{name!r} is stepped on the host"
        if config.gradient == "true":
            raise ConfigError(
                f"gradient: 'true' does not fit; {told} and cannot be differentiated, so it must be 'decoupled' or 'imagined'"
            )
        if config.surrogate_error == "finite":
            raise ConfigError(
                f"surrogate_error: 'finite' does not fit; {told} and no step of it can be made twice, so it must be 'spread'"
            )
    if not task.has_simulator:
        raise ConfigError(f"environment.name: {name!r} does not fit; there is no simulator to unroll")
    if not task.spec.continuous:
        raise ConfigError(f"environment.name: {name!r} does not fit; its actions are discrete, and 'dmo' differentiates them")
    if config.surrogate_error == "true" and task.dynamics is None:
        right = "it must be 'spread' or 'finite'"
        raise ConfigError(f"surrogate_error: 'true' does not fit; {name!r} has no known dynamics, so {right}")
    if config.surrogate_error == "spread" and world.spec.members < 2:
        raise ConfigError("surrogate_error: 'spread' does not fit; one member imagines, so it must be 'finite' or 'true'")
    asks = controller.needs_members or controller.needs_variance or controller.needs_drawn or controller.needs_truth
    if asks or controller.follow is not None:
        raise ConfigError("controller: it asks what members predict, or for the truth; a window's goes by depth and error alone")
