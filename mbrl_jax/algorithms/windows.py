"""Windows of simulated steps, whose gradient may come from a learned model, and how wrong that gradient's Jacobians are."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.agents.policy_gradient import lambda_returns
from mbrl_jax.config import DMOConfig
from mbrl_jax.environments import (
    Environment,
    EnvironmentState,
    Transition,
    draw_actions,
    draw_pool,
    from_pool,
)
from mbrl_jax.imagination.horizon import HorizonController, View
from mbrl_jax.model import jacobians
from mbrl_jax.model.protocol import WorldModel, members_step

FINITE_STEP = 1e-2  # of an action from -1 to 1, to either side
sg = jax.lax.stop_gradient


class Steps(NamedTuple):
    """The random numbers of the steps of a window."""

    explore: Array  # [H, N] uniform
    action: Array  # [H, N, A] uniform from -1 to 1
    reset: Array  # [H, N] int32


class Draws(NamedTuple):
    """The random numbers of W windows."""

    explore: Array  # [W, H, N] uniform
    action: Array  # [W, H, N, A] uniform from -1 to 1, which makes the policy's noise
    reset: Array  # [W, H, N] int32, which reset of the pool an episode that ends goes on from
    minibatch: Array  # [W, updates, rows] int32, places in a window
    pool: Any  # [P] resets, the same for all windows


def draw(config: DMOConfig, task: Environment, key: Array, windows: int) -> Draws:
    """Draw all that ``windows`` windows consume."""
    keys = jax.random.split(key, 4)
    shape = (windows, config.window_steps, config.copies)
    size = windows * config.window_transitions
    return Draws(
        explore=draws_.uniform(keys[0], shape),
        action=draw_actions(task.spec, keys[1], shape),
        reset=jnp.arange(size, dtype=jnp.int32).reshape(shape),
        minibatch=draws_.integers(keys[2], (windows, config.critic_updates, config.critic_batch), config.window_transitions),
        pool=draw_pool(task, keys[3], size),
    )


class Window(NamedTuple):
    """What N simulators did in H steps. Leaves [H, N, ...]."""

    path: Transition  # to be differentiated; ``truncated`` where its gradient ends for another reason than a termination
    simulated: Transition  # by the simulator, not to be differentiated
    begun: EnvironmentState  # [H, P, ...] the first P simulators before each step


Policy = Callable[[Array, Array, Array], Array]  # (observations [N, D], uniform [N], random actions [N, A]) -> actions [N, A]


def members_mean(world: WorldModel, params: Any, observation: Array, action: Array) -> tuple[Array, Array, Array]:
    """The mean of the members' mean steps: next observations [N, D], rewards [N], and the share of them that terminate [N]."""
    told = members_step(world, params, observation, action, jacobians.ASKS)
    each = (world.features(told.belief), told.reward, told.terminated)
    following, reward, share = (jnp.mean(leaf.astype(observation.dtype), axis=0) for leaf in each)
    return following, reward, share


def surrogate_step(
    world: WorldModel, params: Any, task: Environment, observation: Array, action: Array, told: Transition
) -> tuple[Array, Array]:
    """What the simulator has ``told`` of a step, next observations [N, D] and rewards [N], with the model's gradients."""
    following, reward, _ = members_mean(world, params, observation, action)
    following = sg(told.next_observation) + following - sg(following)
    if world.spec.reward_known:
        assert task.reward is not None, "the model says that it is known"
        reward = task.reward(observation, action, following)
    return following, sg(told.reward) + reward - sg(reward)


def unroll(
    config: DMOConfig,
    task: Environment,
    world: WorldModel,
    params: Any,
    controller: HorizonController,
    policy: Policy,
    carried: tuple[EnvironmentState, Any],
    time: Array,
    error: Array,
    draws: Draws,
) -> tuple[tuple[EnvironmentState, Any], Window]:
    """Unroll a window by the gradient that ``config.gradient`` names, as a function of the policy.

    Args:
      config: of the run.
      task: the simulator.
      world: the surrogate, with its ``params``.
      params: of the world.
      controller: ends paths within the window.
      policy: with relaxed actions.
      carried: episodes [N] in progress, and what the controller carries.
      time: [] int32 steps of the simulators so far.
      error: [] of the surrogate in the window before, minus infinity before the first.
      draws: of one window, and the pool.

    """
    none = jnp.zeros(config.copies, jnp.int32)

    def step(carry: Any, drawn: Steps) -> tuple[Any, Window]:
        episode, observation, depth, horizon = carry
        fresh = jax.vmap(lambda number: from_pool(draws.pool, number))(drawn.reset)
        action = policy(observation, drawn.explore, drawn.action)
        if config.gradient == "true":
            after, told = jax.vmap(task.step)(episode, action, fresh)
            path = told
        elif config.gradient == "decoupled":
            after, told = jax.vmap(task.step)(episode, sg(action), fresh)
            following, reward = surrogate_step(world, params, task, observation, action, told)
            path = told._replace(observation=observation, action=action, next_observation=following, reward=reward)
        else:
            after, told = jax.vmap(task.step)(episode, sg(policy(episode.observation, drawn.explore, drawn.action)), fresh)
            following, reward, share = members_mean(world, params, observation, action)
            path = Transition(observation, action, reward, following, share > 0.5, told.terminated | told.truncated, depth)
        view = View(
            time=time,
            depth=depth,
            root=sg(observation),
            observation=sg(observation),
            action=sg(action),
            next_observation=sg(path.next_observation),
            reward=sg(path.reward),
            terminated=path.terminated,
            active=jnp.ones(config.copies, bool),
            member=none,
            everyone=None,
            truth=None,
            gradient_error=jnp.broadcast_to(error[None], (config.copies,)),
        )
        horizon, decision = controller.step(horizon, view)
        path = path._replace(truncated=path.truncated | decision.stop)
        ended = path.terminated | path.truncated
        after = jax.tree.map(partial(_where, ended), sg(after), after)
        goes_on = after.observation if config.gradient == "true" else path.next_observation
        observation = _where(ended, sg(after.observation), goes_on)
        begun = jax.tree.map(lambda leaf: sg(leaf[: config.probes]), episode)
        return (after, observation, jnp.where(ended, 0, depth + 1), horizon), Window(path, sg(told), begun)

    episode, horizon = carried
    begin = (episode, episode.observation, none, horizon)
    (episode, _, _, horizon), window = jax.lax.scan(step, begin, Steps(draws.explore, draws.action, draws.reset))
    ends = jnp.zeros_like(window.path.truncated).at[-1].set(~window.path.terminated[-1])
    window = window._replace(path=window.path._replace(truncated=window.path.truncated | ends))
    return (sg(episode), horizon), window


def objective(path: Transition, value: Array, discount: Array | float) -> Array:
    """[] mean over N x H steps of the discounted rewards of paths [H, N], with ``value`` [H, N] of the next states where they end
    without a termination; a path that follows another within the window begins at a discount of 1.
    """
    ended = path.terminated | path.truncated
    returns = lambda_returns(path.reward, path.terminated, ended, value, discount, 1.0)
    begins = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
    return jnp.mean(jnp.where(begins, returns, 0.0))


def _where(condition: Array, a: Array, b: Array) -> Array:
    """Row by row, [N] against [N, ...]."""
    return jnp.where(condition.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)


# -------------------------------------------------------------------------------------------- the surrogate


class SurrogateLog(NamedTuple):
    """How far the model's Jacobians are from what ``surrogate_error`` holds them against, by the step of the window."""

    error: Array  # [H] relative error
    cosine: Array  # [H]


def measure_surrogate(config: DMOConfig, task: Environment, world: WorldModel, params: Any, window: Window) -> SurrogateLog:
    """How far the model's Jacobians are from those that ``config.surrogate_error`` names, at the first P simulators' steps."""
    spec, size = task.spec, task.spec.observation_size
    told = jax.tree.map(lambda leaf: leaf[:, : config.probes], window.simulated)
    observation, action = told.observation, told.action
    found = jacobians.in_task_units(spec, jacobians.members_jacobians(world, params, observation, action), observation[None])
    if config.surrogate_error == "spread":
        error, cosine = jacobians.spread(found)
    else:
        mean = jnp.mean(found, axis=0)
        if config.surrogate_error == "true":
            dynamics = task.dynamics
            assert dynamics is not None, "make_train refuses a truth that there is not"
            x = jnp.concatenate([observation, action], axis=-1)
            true = jacobians.jacobian(lambda x: dynamics(x[..., :size], x[..., size:]), x)
            true = jacobians.in_task_units(spec, true, observation)
        else:
            one = partial(jax.vmap, in_axes=(0, 0, 0))

            def simulate(action: Array) -> Array:
                return one(one(task.step))(window.begun, action, window.begun)[1].next_observation

            true = jacobians.finite_differences(simulate, action, FINITE_STEP)
            true = true / jnp.asarray(spec.observation_scale, true.dtype).reshape(1, 1, -1, 1)
            mean = mean[..., size:]
        error, cosine = jacobians.relative_error(mean, true), jacobians.cosine(mean, true)
    return SurrogateLog(jnp.mean(error, axis=1), jnp.mean(cosine, axis=1))
