"""Dreamer: an actor and a critic that learn in the latent world of a recurrent state-space model (Hafner et al. 2020,
arXiv:1912.01603; 2023, arXiv:2301.04104).

The policy has a memory, the model's belief: at every real step it is filtered from what is seen, and the actor acts in it. Every
few real steps there is one update:

* sequences of real transitions are drawn, and the model makes one gradient step by them;
* K lanes imagine H steps by the actor from the beliefs along these sequences, until a horizon controller or an imagined
  termination ends them;
* the actor and the critic learn from this segment by its lambda-returns, by the score-function or the pathwise estimate.

So one scan runs the task, the replay, the model and the learner.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax import replay
from mbrl_jax.agents.policy_gradient import PGState, PolicyGradient, PolicyGradientLog, Segment, segment_of
from mbrl_jax.agents.protocol import Policy
from mbrl_jax.algorithms import exploring, phases, training
from mbrl_jax.algorithms.exploring import Explored
from mbrl_jax.algorithms.training import BehaviourDraws, Outcome, Stream, Train, stream
from mbrl_jax.config import DreamerConfig, check
from mbrl_jax.environments import Environment, EnvironmentState, environment_of, from_pool
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.horizon import HorizonController, check_controller, controller_of
from mbrl_jax.imagination.lanes import Act, LaneDraws, LaneLog, Lanes
from mbrl_jax.model import rssm_fitting
from mbrl_jax.model.protocol import FitLog, WorldModel
from mbrl_jax.model.rssm import RSSM, Belief, RSSMParams
from mbrl_jax.model.rssm_fitting import RSSMState, SequenceDraws, SequenceLog
from mbrl_jax.networks import Params
from mbrl_jax.replay import ReplayState, make_replay
from mbrl_jax.trees import like, named


class Memory(NamedTuple):
    """What a policy remembers of n episodes, or of one."""

    belief: Belief  # leaves [n, ...] before the present observation
    action: Array  # [n, ...] that was taken in it
    first: Array  # [n] bool, whether the present observation is an episode's first


class State(NamedTuple):
    """The whole run between two rounds."""

    time: Array  # [] int32, steps of the main loop so far, shared by all seeds
    key: Array  # [] the seed's own, never changed
    episode: EnvironmentState  # the real episode in progress
    memory: Memory  # of it
    mark: Array  # [] nats, above which a surprise draws a random action
    real: ReplayState
    model: RSSMState
    lanes: Lanes
    agent: PGState


AXES = State(**{**dict.fromkeys(State._fields, 0), "time": None, "real": replay.AXES})  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Of one round. Blocks are of ``metric_steps`` steps."""

    update: PolicyGradientLog  # leaves [blocks]
    lanes: LaneLog  # leaves [blocks]
    world: SequenceLog  # leaves [blocks]
    random_actions: Explored | None  # leaves [blocks], none where no action is random
    curve_return: Array  # [] mean return of the target actor's greedy real episodes
    frozen: Array  # [] bool, the model or the agent has gone non-finite


class Draws(NamedTuple):
    """The random numbers of N updates, each after U real steps."""

    behaviour: BehaviourDraws  # leaves [N, U, ...]
    latent: Array  # [N, U, V] of the filter at each of them
    random: Array | None  # [N, U] uniform, which actions are random; none where no action is
    pool: Any  # [P] resets, the same for all steps
    rows: Array  # [N, B] uint32, which sequences
    model: SequenceDraws  # leaves [N, T, B, V]
    lanes: LaneDraws  # leaves [N, H, K, ...]


def draw(config: DreamerConfig, task: Environment, world: WorldModel, key: Array, updates: int) -> Draws:
    """Draw all that ``updates`` updates and the real steps before them consume."""
    keys = jax.random.split(key, 5)
    rssm = RSSM(config.model, task.spec)
    shape = (updates, config.update_steps)
    behaviour, pool = training.draw_behaviour(task, keys[0], updates * config.update_steps)
    return Draws(
        behaviour=jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), behaviour),
        latent=rssm.latents.draw(keys[1], shape),
        random=None if config.random_actions.rule == "none" else draws_.uniform(jax.random.fold_in(key, len(keys)), shape),
        pool=pool,
        rows=draws_.bits(keys[2], (updates, config.model.batch_size)),
        model=rssm_fitting.draw(rssm, keys[3], (updates,)),
        lanes=lanes_.draw(config.imagination, task.spec, world, keys[4], (updates,)),
    )


# --------------------------------------------------------------------------------------------------------------- the policy


def learner_of(config: DreamerConfig, task: Environment) -> PolicyGradient:
    """The actor and critic on the features of beliefs."""
    size = RSSM(config.model, task.spec).feature_size
    spec = task.spec._replace(observation_size=size, observation_scale=(1.0,) * size, observation_limits=None, angles=())
    return PolicyGradient(config.agent, spec)


def blank_memory(config: DreamerConfig, task: Environment, shape: tuple[int, ...]) -> Memory:
    """The memory where episodes ``shape`` begin."""
    dtype = jnp.zeros(()).dtype if task.spec.continuous else jnp.int32
    action = jnp.zeros((*shape, *task.spec.action_shape), dtype)
    return Memory(RSSM(config.model, task.spec).blank(shape), action, jnp.ones(shape, bool))


def policy_params(model: RSSMParams, actor: Params) -> Params:
    """What the policy acts by, as a tree of dictionaries: the filter and the actor."""
    return {"filter": named(_filter_of(model)), "actor": named(actor)}


def _filter_of(model: RSSMParams) -> dict[str, Params]:
    return {name: getattr(model, name) for name in ("encoder", "recurrence", "posterior")}


def _shapes(config: DreamerConfig, task: Environment) -> tuple[RSSMParams, Params]:
    """Shapes of the model's and of the actor's parameters."""
    rssm, learner = RSSM(config.model, task.spec), learner_of(config, task)
    return jax.eval_shape(lambda key: (rssm.init(key), learner.init(key).online.actor), jax.random.key(0))


def params_of(config: DreamerConfig, task: Environment) -> Any:
    """Shapes and dtypes of what :func:`policy_params` gives."""
    return jax.eval_shape(policy_params, *_shapes(config, task))


def policy_of(config: DreamerConfig, task: Environment) -> Policy:
    """The filter and the actor as a policy, with parameters as :func:`policy_params` gives them; its memory is the belief.

    Latents and actions are the most likely ones, so that it plays without random numbers.
    """
    rssm, learner = RSSM(config.model, task.spec), learner_of(config, task)
    shapes, of_actor = _shapes(config, task)

    def begin(params: Params, key: Array, episodes: int) -> Memory:
        return blank_memory(config, task, (episodes,))

    def act(params: Params, memory: Memory, observation: Array) -> tuple[Memory, Array]:
        model = RSSMParams(**{**dict.fromkeys(RSSMParams._fields), **like(_filter_of(shapes), params["filter"])})
        belief = rssm.observe(model, memory.belief, memory.action, observation, memory.first, None)
        action = learner.greedy(like(of_actor, params["actor"]), rssm.features(belief))
        return Memory(belief, action, jnp.zeros_like(memory.first)), action

    return Policy(begin, act)


# ----------------------------------------------------------------------------------------------------------------- the loop


def make_train(
    config: DreamerConfig, *, environment: Environment | None = None, controller: HorizonController | None = None
) -> Train:
    """Build the algorithm. ``jax.jit(jax.vmap(make_train(config).train))(keys)`` trains one agent for each key.

    Args:
      config: its settings.
      environment: a task in place of the one that ``config.environment`` names.
      controller: a horizon controller in place of the one that ``config.imagination`` names.

    Raises:
      ConfigError: the settings cannot work.

    """
    check(config, DreamerConfig)
    task = environment_of(config.environment, environment)
    real_replay = make_replay(task.spec, config.real_transitions)

    def world_of(hyper: DreamerConfig) -> WorldModel:
        return phases.world_of(hyper, task)._replace(start=_drawn)

    def horizon_of(hyper: DreamerConfig) -> HorizonController:
        return controller_of(hyper.imagination, controller)

    phases.check_stepped(task, "dreamer")
    check_controller(horizon_of(config), config.imagination, world_of(config).spec, None)

    def init(key: Array, hyper: DreamerConfig | None = None) -> tuple[State, Array]:
        hyper = config if hyper is None else hyper
        rssm, world, horizon = RSSM(hyper.model, task.spec), world_of(hyper), horizon_of(hyper)
        episode, real, collected = phases.collect(task, real_replay, key, config.random_transitions)
        model = world.init(stream(key, Stream.MODEL))
        roots: Any = jax.eval_shape(lambda: rssm.blank(((config.model.sequence - 1) * config.model.batch_size,)))
        state = State(
            time=jnp.zeros((), jnp.int32),
            key=key,
            episode=episode,
            memory=blank_memory(config, task, ()),
            mark=jnp.asarray(exploring.FIRST_MARK, jnp.zeros(()).dtype),
            real=real,
            model=model,
            lanes=lanes_.init(config.imagination, horizon, world, model.params, roots),
            agent=learner_of(hyper, task).init(stream(key, Stream.AGENT)),
        )
        return state, collected

    def fit(state: State, hyper: DreamerConfig) -> tuple[State, FitLog]:
        state, log = phases.fit(world_of(hyper), state)
        return calibrated(state, hyper), log

    def calibrated(state: State, hyper: DreamerConfig) -> State:
        """Let the horizon controller see the model as it is now."""
        world, horizon = world_of(hyper), horizon_of(hyper)
        lanes = lanes_.calibrated(state.lanes, horizon, world, state.model.params, real_replay, state.real)
        return state._replace(lanes=lanes)

    def learn(state: State, hyper: DreamerConfig, steps: int) -> tuple[State, tuple[Any, ...]]:
        rssm, learner = RSSM(hyper.model, task.spec), learner_of(hyper, task)
        world, horizon = world_of(hyper), horizon_of(hyper)

        def update(carry: Any, draws: Draws) -> tuple[Any, tuple[PolicyGradientLog, LaneLog, SequenceLog, Explored | None]]:
            time, episode, memory, mark, real, model, lanes, now = carry

            # act in the real environment, by the belief that is filtered from what is seen
            def act(carry: Any, drawn: tuple[BehaviourDraws, Array, Array | None]) -> tuple[Any, Explored | None]:
                (episode, memory, mark, real), (behaviour, latent, uniform) = carry, drawn
                seen = episode.observation
                belief = rssm.observe(model.params, memory.belief, memory.action, seen, memory.first, latent)
                action = learner.act(now.online.actor, rssm.features(belief), behaviour.explore, behaviour.action)
                explored = None
                if uniform is not None:  # real data where the filter is surprised, or anywhere
                    surprise = rssm.surprise(model.params, belief, seen, memory.first)
                    random, mark = exploring.explore(hyper.random_actions, mark, surprise, uniform)
                    action = jnp.where(random, behaviour.action, action)
                    explored = Explored(random.astype(mark.dtype), mark)
                episode, transition = task.step(episode, action, from_pool(draws.pool, behaviour.reset))
                real = real_replay.write(real, training.real_rows(transition))
                return (episode, Memory(belief, action, transition.terminated | transition.truncated), mark, real), explored

            acting, drawn = (episode, memory, mark, real), (draws.behaviour, draws.latent, draws.random)
            (episode, memory, mark, real), explored = jax.lax.scan(act, acting, drawn)

            # learn the world
            rows, first = rssm_fitting.sample(rssm, real_replay, real, draws.rows)
            model, told, world_log = rssm_fitting.descend(rssm, model, rows, first, draws.model)
            roots = _roots(told.before)

            # imagine K lanes of H steps
            def imagine(policy: Act) -> tuple[Segment, tuple[Lanes, LaneLog]]:
                where: Any = roots  # in place of a replay, as `_drawn` takes them
                after, rows, log = lanes_.advance(
                    hyper.imagination, world, horizon, lanes, model.params, policy, where, time, draws.lanes
                )
                return segment_of(rows), (after, log)

            # learn to act
            now, (after, lane_log), update_log = learner.learn(now, imagine, training.progress(time, config.steps))
            carry = (time + config.update_steps, episode, memory, mark, real, model, after, now)
            return carry, (update_log, lane_log, world_log, jax.tree.map(jnp.mean, explored))

        drawing, key = partial(draw, hyper, task, world), stream(state.key, Stream.ROUND, state.time)
        carry = (state.time, state.episode, state.memory, state.mark, state.real, state.model, state.lanes, state.agent)
        (time, *rest), logs = training.scan_round(update, carry, drawing, key, steps // config.update_steps)
        return State(time, state.key, *rest), logs

    def close(state: State, hyper: DreamerConfig, logs: tuple[Any, ...]) -> tuple[State, Metrics]:
        starts = task.draw_resets(stream(state.key, Stream.CURVE, state.time), (config.evaluation.curve_episodes,))
        curve = jnp.mean(returns_from(state, hyper, starts))
        updates, lanes, world, explored = training.average_blocks(logs, config.metric_steps // config.update_steps)
        return calibrated(state, hyper), Metrics(updates, lanes, world, explored, curve, frozen(state))

    def frozen(state: State) -> Array:
        return state.model.frozen | state.agent.frozen

    def returns_from(state: State, hyper: DreamerConfig, starts: EnvironmentState) -> Array:
        """[n] returns of greedy real episodes from the starts [n]."""
        return phases.play_policy(task, policy_of(hyper, task), policies(state)[0], starts, state.key)

    def finish(state: State, hyper: DreamerConfig) -> Outcome:
        returns = returns_from(state, hyper, phases.final_starts(config, task, state.key))
        return Outcome(policies(state)[0], None, returns, None, frozen(state), state.agent.updates, state.model.params)

    def policies(state: State) -> tuple[Params, None]:
        return policy_params(state.model.params, state.agent.target.actor), None

    return training.assemble(config, init, fit, learn, close, finish, policies, AXES)


def _roots(before: Belief) -> Belief:
    """Beliefs [R, ...] from which lanes begin, of those [T, B, ...] in which actions were taken.

    Those of the first transitions of the sequences are left out: where an episode did not begin there, the filter has seen but
    one observation of it.
    """
    return jax.tree.map(lambda leaf: leaf[1:].reshape(-1, leaf.shape[-1]), before)


def _drawn(params: RSSMParams, roots: Any, bits: Array) -> Belief:
    """Beliefs [..., ] drawn uniformly from the roots [R, ...] by bits [...]."""
    count = jax.tree.leaves(roots)[0].shape[0]
    return jax.tree.map(lambda leaf: leaf[bits % jnp.uint32(count)], roots)  # type: ignore[no-any-return]
