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
from mbrl_jax import replay
from mbrl_jax.config import ImaginationConfig
from mbrl_jax.imagination.horizon import HorizonController, View
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members, Prediction

Act = Callable[[Array, Array, Array], Array]  # (s [..., D], explore [...] uniform, random action [...]) -> action [...] int32


class Lanes(NamedTuple):
    """K imagined rollouts in progress."""

    observation: Array  # [K, D] where the lane stands
    root: Array  # [K, D] where it began
    depth: Array  # [K] int32, imagined steps since the root; at 0 the next step begins at a new root
    idle: Array  # [K] bool, ended and waiting for the next real step (restart: per_step)
    controller: Any  # what the horizon controller carries


class LaneDraws(NamedTuple):
    """The random numbers of H imagined steps of K lanes. Leading axes may come before these."""

    root: Array  # [H, K] uint32, which real row would be the root
    explore: Array  # [H, K] uniform, explores where it is below epsilon
    action: Array  # [H, K] int32, the action of an exploring lane
    deal: Array  # [H, K] int32, a permutation: place i of the dealing gets lane deal[i]
    noise: Array  # [H, K, D] standard normal


class LaneLog(NamedTuple):
    """What happened in the H steps of one real step."""

    depth: Array  # [] mean depth of the rows kept, the root's first step counting 1
    kept: Array  # [] share of the rows that were kept
    stopped: Array  # [] share of the steps at which the controller ended a lane
    terminated: Array  # [] share of the steps at which the imagined episode terminated


def init(config: ImaginationConfig, controller: HorizonController, observation_size: int) -> Lanes:
    """K lanes, each about to take its first root."""
    lanes, zeros = config.lanes, jnp.zeros((config.lanes, observation_size))
    return Lanes(zeros, zeros, jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool), controller.init(lanes))


def draw(config: ImaginationConfig, ensemble: Ensemble, key: Array, shape: tuple[int, ...]) -> LaneDraws:
    """Draw all that :func:`advance` consumes, with leading axes ``shape``; what the settings never use is left empty."""
    keys = jax.random.split(key, 5)
    full = (*shape, config.steps, config.lanes)
    dealt = full if config.sampling == "ts1" else (*full[:-1], 0)
    noisy = (*full, ensemble.spec.observation_size if ensemble.config.kind == "gaussian" else 0)
    return LaneDraws(
        root=draws_.bits(keys[0], full),
        explore=draws_.uniform(keys[1], full),
        action=draws_.integers(keys[2], full, ensemble.spec.action_count),
        deal=draws_.permutations(keys[3], dealt),
        noise=draws_.normal(keys[4], noisy),
    )


def advance(
    config: ImaginationConfig,
    ensemble: Ensemble,
    controller: HorizonController,
    lanes: Lanes,
    members: Members,
    act: Act,
    real: replay.Replay,
    time: Array,
    draws: LaneDraws,
) -> tuple[Lanes, Array, LaneLog]:
    """Advance every lane by H imagined steps.

    Args:
      config: the lanes' settings.
      ensemble: the shape of the world model.
      controller: decides keep, stop and penalty.
      lanes: as the last real step left them.
      members: M of them.
      act: the imagination policy.
      real: where roots come from, not empty.
      time: [] int32 real steps so far.
      draws: [H, ...].

    Returns:
      The lanes, the packed rows [H * K, 2 D + 5] that go to the imagined replay, and what happened.

    """
    chex.assert_shape(draws.root, (config.steps, config.lanes))
    chex.assert_shape(lanes.observation, (config.lanes, ensemble.spec.observation_size))
    if config.restart == "per_step":
        lanes = lanes._replace(depth=jnp.zeros_like(lanes.depth), idle=jnp.zeros_like(lanes.idle))
    roots = replay.unpack(replay.sample(real, draws.root)).observation  # [H, K, D], one gather for the whole real step

    def imagine(lanes: Lanes, inputs: tuple[LaneDraws, Array]) -> tuple[Lanes, tuple[replay.Rows, Array, Array]]:
        draw, fresh = inputs
        rooting = (lanes.depth == 0)[:, None]
        observation = jnp.where(rooting, fresh, lanes.observation)
        root = jnp.where(rooting, fresh, lanes.root)
        action = act(observation, draw.explore, draw.action)
        prediction, member, everyone = _ask(config, ensemble, members, observation, action, draw, controller.needs_members)
        noise = draw.noise if ensemble.config.kind == "gaussian" else None
        imagined = ens.decode(ensemble, members.normaliser, prediction, observation, action, noise)
        active = ~lanes.idle
        view = View(
            time=time,
            depth=lanes.depth,
            root=root,
            observation=observation,
            action=action,
            next_observation=imagined.next_observation,
            reward=imagined.reward,
            terminated=imagined.terminated,
            active=active,
            member=member,
            everyone=everyone,
        )
        state, decision = controller.step(lanes.controller, view)
        chex.assert_shape(list(decision), (config.lanes,))
        keep = decision.keep & active
        rows = replay.Rows(
            observation=observation,
            next_observation=imagined.next_observation,
            action=action,
            reward=imagined.reward - decision.penalty,
            terminated=imagined.terminated,
            weight=keep.astype(observation.dtype),
            depth=lanes.depth,
        )
        ended = imagined.terminated | decision.stop | (lanes.depth + 1 >= config.cap)
        after = Lanes(
            observation=imagined.next_observation,
            root=root,
            depth=jnp.where(ended, 0, lanes.depth + 1),
            idle=(lanes.idle | ended) if config.restart == "per_step" else lanes.idle,
            controller=state,
        )
        return after, (rows, decision.stop & active, imagined.terminated & active)

    lanes, (rows, stopped, terminated) = jax.lax.scan(imagine, lanes, (draws, roots), unroll=min(config.steps, 4))
    kept = jnp.sum(rows.weight)
    log = LaneLog(
        depth=jnp.sum(rows.weight * (rows.depth + 1).astype(rows.weight.dtype)) / jnp.maximum(kept, 1.0),
        kept=kept / rows.weight.size,
        stopped=jnp.mean(stopped.astype(rows.weight.dtype)),
        terminated=jnp.mean(terminated.astype(rows.weight.dtype)),
    )
    return lanes, replay.pack(rows).reshape(config.steps * config.lanes, -1), log


def _ask(
    config: ImaginationConfig,
    ensemble: Ensemble,
    members: Members,
    observation: Array,
    action: Array,
    draw: LaneDraws,
    needs_members: bool,
) -> tuple[Prediction, Array, Prediction | None]:
    """The prediction that moves each lane [K, ...], the member [K] it is from, and every member's [M, K, ...] if needed.

    * ``ts1``: lanes are dealt evenly to members by a fresh permutation at each step, so that each member has K / M lanes and
      the whole ensemble costs one forward pass over K rows (TS1 of Chua et al. 2018, stratified).
    * ``ts_infinity``: lane k belongs to member k // (K / M) for good. As roots are drawn at random this is a member that stays
      with the rollout, at the same cost, and every member moves equally many lanes.
    * ``mean``: the mean of all members.
    """
    lanes, count = config.lanes, ensemble.sampling_members
    place = jnp.arange(lanes, dtype=jnp.int32)
    owner = jnp.zeros(lanes, jnp.int32) if config.sampling == "mean" else place // (lanes // count)
    if config.sampling == "ts1":
        place = jnp.zeros_like(place).at[draw.deal].set(place, unique_indices=True, mode="promise_in_bounds")
    member = owner[place]

    if needs_members or config.sampling == "mean":
        everyone = ens.predict(
            ensemble,
            members,
            jnp.broadcast_to(observation[None], (count, *observation.shape)),
            jnp.broadcast_to(action[None], (count, lanes)),
        )
        if config.sampling == "mean":
            return ens.mixture_mean(everyone), member, everyone
        return jax.tree.map(lambda leaf: leaf[member, jnp.arange(lanes, dtype=jnp.int32)], everyone), member, everyone

    dealt_observation, dealt_action = observation, action
    if config.sampling == "ts1":
        dealt_observation, dealt_action = observation[draw.deal], action[draw.deal]
    dealt = ens.predict(ensemble, members, dealt_observation.reshape(count, lanes // count, -1), dealt_action.reshape(count, -1))
    prediction = jax.tree.map(lambda leaf: leaf.reshape(lanes, *leaf.shape[2:]), dealt)
    if config.sampling == "ts1":
        prediction = jax.tree.map(lambda leaf: leaf[place], prediction)
    return prediction, member, None
