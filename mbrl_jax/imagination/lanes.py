"""K lanes of imagined rollouts side by side, H imagined steps for every real step.

Whatever the horizon controller decides, a real step costs K times H model steps and yields K times H rows, of which some may
carry weight 0. A lane that ends takes a new root, so that controllers differ in where their transitions come from, never in
how many there are. Four knobs stay apart: the cap on depth, whether a row is kept, whether the lane stops, and the penalty.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.config import ConfigError, LanesConfig
from mbrl_jax.environments import EnvironmentSpec, draw_actions
from mbrl_jax.imagination.horizon import HorizonController, View
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.replay import Replay, ReplayState, Rows

Act = Callable[[Array, Array, Array], Array]  # (features [..., F], explore [...] uniform, random action [...]) -> action [...]
# A policy that is differentiated through the model may answer with weights [..., A] of discrete actions, 1 for the one it takes.
Dynamics = Callable[[Array, Array], Array]  # (s [..., D], action [...]) -> s' [..., D]

DEPTH_EDGES = (1, 2, 3, 4, 5, 10, 20, 50, 100)
"""Upper edges of the bins of the log's histogram over depth; the last bin is open."""


class Lanes(NamedTuple):
    """K imagined rollouts in progress."""

    belief: Any  # [K, ...] where the lane stands
    root: Any  # [K, ...] where it began
    depth: Array  # [K] int32, imagined steps since the root; at 0 the next step begins at a new root
    idle: Array  # [K] bool, ended and waiting for the next real step (restart: per_step)
    controller: Any  # what the horizon controller carries


class LaneDraws(NamedTuple):
    """The random numbers of H imagined steps of K lanes. Leading axes may come before these."""

    root: Array  # [H, K] uint32, which real row would be the root
    explore: Array  # [H, K] uniform, explores where it is below epsilon
    action: Array  # [H, K] uniformly random, the action of an exploring lane
    model: Any  # the world model's own, leaves [H, K, ...]


class LaneLog(NamedTuple):
    """What happened in the H steps of one real step."""

    depth: Array  # [] mean depth of the rows kept, the root's first step counting 1
    kept: Array  # [] share of the rows that were kept
    stopped: Array  # [] share of the steps at which the controller ended a lane
    terminated: Array  # [] share of the steps at which the imagined episode terminated
    ended: Array  # [] share of the steps at which a rollout ended, for whatever reason; its inverse is the realised horizon
    histogram: Array  # [10] rows kept as a share of all, by depth in the bins of DEPTH_EDGES, the root's first step counting 1


def init(config: LanesConfig, controller: HorizonController, world: WorldModel, params: Any, real: ReplayState) -> Lanes:
    """K lanes, each about to take its first root; ``params`` and ``real`` may be shapes and dtypes alone."""
    lanes = config.lanes
    bits = jax.ShapeDtypeStruct((lanes,), jnp.uint32)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(world.start, params, real, bits))
    return Lanes(blank, blank, jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool), controller.init(lanes, world.spec))


def calibrated(
    lanes: Lanes, controller: HorizonController, world: WorldModel, params: Any, replay: Replay, real: ReplayState
) -> Lanes:
    """The lanes after their horizon controller has seen a model that has just been fitted."""
    return lanes._replace(controller=controller.calibrate(lanes.controller, world, params, *replay.contents(real)))


def draw(config: LanesConfig, spec: EnvironmentSpec, world: WorldModel, key: Array, shape: tuple[int, ...]) -> LaneDraws:
    """Draw all that :func:`advance` consumes, with leading axes ``shape``."""
    keys = jax.random.split(key, 5)
    full = (*shape, config.steps, config.lanes)
    return LaneDraws(
        root=draws_.bits(keys[0], full),
        explore=draws_.uniform(keys[1], full),
        action=draw_actions(spec, keys[2], full),
        model=world.draw(keys[3], keys[4], full),
    )


def advance(
    config: LanesConfig,
    world: WorldModel,
    controller: HorizonController,
    lanes: Lanes,
    params: Any,
    act: Act,
    real: ReplayState,
    time: Array,
    draws: LaneDraws,
    dynamics: Dynamics | None = None,
) -> tuple[Lanes, Rows, LaneLog]:
    """Advance every lane by H imagined steps.

    Args:
      config: the lanes' settings.
      world: the world model.
      controller: decides keep, stop and penalty.
      lanes: as the last real step left them.
      params: of the world model.
      act: the imagination policy.
      real: where roots come from, not empty.
      time: [] int32 real steps so far.
      draws: [H, ...].
      dynamics: the real ones, for controllers that ask for the truth and for nothing else.

    Returns:
      The lanes, the rows [H, K] that they made, and what happened.

    """
    chex.assert_shape(draws.root, (config.steps, config.lanes))
    chex.assert_tree_shape_prefix(lanes.belief, (config.lanes,))
    if config.restart == "per_step":
        lanes = lanes._replace(depth=jnp.zeros_like(lanes.depth), idle=jnp.zeros_like(lanes.idle))
    roots = world.start(params, real, draws.root)  # [H, K, ...], one gather for the whole real step

    def imagine(lanes: Lanes, inputs: tuple[LaneDraws, Any]) -> tuple[Lanes, tuple[Rows, Array, Array, Array]]:
        draw, fresh = inputs
        belief, root = (_where(lanes.depth == 0, fresh, each) for each in (lanes.belief, lanes.root))
        observation = world.features(belief)
        chosen = act(observation, draw.explore, draw.action)
        weighed = chosen.ndim > draw.action.ndim  # weights of discrete actions
        action = jnp.argmax(chosen, axis=-1).astype(jnp.int32) if weighed else chosen
        imagined = world.step(params, belief, chosen, draw.model, everyone=controller.needs_members)
        next_observation = world.features(imagined.belief)
        active = ~lanes.idle
        view = View(
            time=time,
            depth=lanes.depth,
            root=world.features(root),
            observation=observation,
            action=action,
            next_observation=next_observation,
            reward=imagined.reward,
            terminated=imagined.terminated,
            active=active,
            member=imagined.member,
            everyone=imagined.everyone if controller.needs_members else None,
            truth=_truth(dynamics, observation, action) if controller.needs_truth else None,
        )
        state, decision = controller.step(lanes.controller, view)
        chex.assert_shape([answer for answer in decision if answer is not None], (config.lanes,))
        keep = decision.keep & active
        terminal, reward = imagined.terminated, imagined.reward
        if decision.halt is not None:
            terminal, reward = terminal | decision.halt, jnp.where(decision.halt, 0.0, reward)
        rows = Rows(
            observation=observation,
            next_observation=next_observation,
            action=action,
            reward=reward - decision.penalty,
            terminated=terminal,
            weight=keep.astype(observation.dtype),
            depth=lanes.depth,
        )
        ended = terminal | decision.stop | (lanes.depth + 1 >= config.cap)
        after = Lanes(
            belief=imagined.belief,
            root=root,
            depth=jnp.where(ended, 0, lanes.depth + 1),
            idle=(lanes.idle | ended) if config.restart == "per_step" else lanes.idle,
            controller=state,
        )
        return after, (rows, decision.stop & active, imagined.terminated & active, ended & active)

    lanes, (rows, stopped, terminated, ended) = jax.lax.scan(imagine, lanes, (draws, roots), unroll=min(config.steps, 4))
    return lanes, rows, log_of(rows.weight, rows.depth, stopped, terminated, ended)


def log_of(weight: Array, depth: Array, stopped: Array, terminated: Array, ended: Array) -> LaneLog:
    """Sum up one real step.

    Args:
      weight: [H, K] 1 where the row is kept, else 0.
      depth: [H, K] int32, of the row, 0 at a root.
      stopped: [H, K] bool, the controller ended the lane.
      terminated: [H, K] bool, the imagined episode terminated.
      ended: [H, K] bool, the rollout ended, for whatever reason.

    """
    kept, depth = jnp.sum(weight), (depth + 1).astype(weight.dtype)
    edges = jnp.asarray(DEPTH_EDGES, depth.dtype)
    deeper = jnp.sum(weight[None] * (depth[None] > edges[:, None, None]).astype(depth.dtype), axis=(1, 2))  # than each edge
    at_least = jnp.concatenate([kept[None], deeper, jnp.zeros_like(kept)[None]])
    return LaneLog(
        depth=jnp.sum(weight * depth) / jnp.maximum(kept, 1.0),
        kept=kept / weight.size,
        stopped=jnp.mean(stopped.astype(depth.dtype)),
        terminated=jnp.mean(terminated.astype(depth.dtype)),
        ended=jnp.mean(ended.astype(depth.dtype)),
        histogram=(at_least[:-1] - at_least[1:]) / weight.size,
    )


def _where(mask: Array, chosen: Any, other: Any) -> Any:
    """Leaf by leaf ``chosen`` for the lanes [K] of ``mask``, else ``other``."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, chosen, other)


def _truth(dynamics: Dynamics | None, observation: Array, action: Array) -> Array:
    if dynamics is None:
        raise ConfigError("imagination.controller: it asks for the real dynamics, and this task does not know them as a function")
    return dynamics(observation, action)
