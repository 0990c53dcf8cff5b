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
from mbrl_jax.config import ConfigError, LanesConfig
from mbrl_jax.environment import draw_actions
from mbrl_jax.imagination.disagreement import fuse, variance
from mbrl_jax.imagination.horizon import HorizonController, View
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members, Prediction

Act = Callable[[Array, Array, Array], Array]  # (s [..., D], explore [...] uniform, random action [...]) -> action [...]
# A policy that is differentiated through the model may answer with weights [..., A] of discrete actions, 1 for the one it takes.
Dynamics = Callable[[Array, Array], Array]  # (s [..., D], action [...]) -> s' [..., D]

DEPTH_EDGES = (1, 2, 3, 4, 5, 10, 20, 50, 100)
"""Upper edges of the bins of the log's histogram over depth; the last bin is open."""
DEALT = ("ts1", "infoprop")  # samplings by which lanes are dealt to members at every step


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
    action: Array  # [H, K] uniformly random, the action of an exploring lane
    deal: Array  # [H, K] int32, a permutation: place i of the dealing gets lane deal[i]
    place: Array  # [H, K] int32, its inverse: lane k is dealt to place[k]
    noise: Array  # [H, K, D] standard normal, [H, K, 2 D] for Infoprop: of the member's sample, then of what remains


class LaneLog(NamedTuple):
    """What happened in the H steps of one real step."""

    depth: Array  # [] mean depth of the rows kept, the root's first step counting 1
    kept: Array  # [] share of the rows that were kept
    stopped: Array  # [] share of the steps at which the controller ended a lane
    terminated: Array  # [] share of the steps at which the imagined episode terminated
    ended: Array  # [] share of the steps at which a rollout ended, for whatever reason; its inverse is the realised horizon
    histogram: Array  # [10] rows kept as a share of all, by depth in the bins of DEPTH_EDGES, the root's first step counting 1


def init(config: LanesConfig, controller: HorizonController, ensemble: Ensemble) -> Lanes:
    """K lanes, each about to take its first root."""
    lanes, zeros = config.lanes, jnp.zeros((config.lanes, ensemble.spec.observation_size))
    return Lanes(zeros, zeros, jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool), controller.init(lanes, ensemble))


def calibrated(lanes: Lanes, controller: HorizonController, ensemble: Ensemble, members: Members, real: replay.Replay) -> Lanes:
    """The lanes after their horizon controller has seen a model that has just been fitted."""
    valid = jnp.arange(real.rows.shape[0], dtype=jnp.int32) < replay.size(real)
    return lanes._replace(controller=controller.calibrate(lanes.controller, ensemble, members, real.rows, valid))


def draw(config: LanesConfig, ensemble: Ensemble, key: Array, shape: tuple[int, ...]) -> LaneDraws:
    """Draw all that :func:`advance` consumes, with leading axes ``shape``; what the settings never use is left empty."""
    keys = jax.random.split(key, 5)
    full = (*shape, config.steps, config.lanes)
    dealt = full if config.sampling in DEALT else (*full[:-1], 0)
    numbers = ensemble.spec.observation_size * (2 if config.sampling == "infoprop" else 1)
    noisy = (*full, numbers if ensemble.config.kind == "gaussian" else 0)
    deal = draws_.permutations(keys[3], dealt)
    return LaneDraws(
        root=draws_.bits(keys[0], full),
        explore=draws_.uniform(keys[1], full),
        action=draw_actions(ensemble.spec, keys[2], full),
        deal=deal,
        place=draws_.inverse(deal),
        noise=draws_.normal(keys[4], noisy),
    )


def advance(
    config: LanesConfig,
    ensemble: Ensemble,
    controller: HorizonController,
    lanes: Lanes,
    members: Members,
    act: Act,
    real: replay.Replay,
    time: Array,
    draws: LaneDraws,
    dynamics: Dynamics | None = None,
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
      dynamics: the real ones, for controllers that ask for the truth and for nothing else.

    Returns:
      The lanes, the packed rows [H * K, 2 D + 5] that go to the imagined replay, and what happened.

    """
    chex.assert_shape(draws.root, (config.steps, config.lanes))
    chex.assert_shape(lanes.observation, (config.lanes, ensemble.spec.observation_size))
    if config.restart == "per_step":
        lanes = lanes._replace(depth=jnp.zeros_like(lanes.depth), idle=jnp.zeros_like(lanes.idle))
    # [H, K, D], one gather for the whole real step
    roots = replay.unpack(replay.sample(real, draws.root), ensemble.spec.action_size).observation

    def imagine(lanes: Lanes, inputs: tuple[LaneDraws, Array]) -> tuple[Lanes, tuple[replay.Rows, Array, Array, Array]]:
        draw, fresh = inputs
        rooting = (lanes.depth == 0)[:, None]
        observation = jnp.where(rooting, fresh, lanes.observation)
        root = jnp.where(rooting, fresh, lanes.root)
        chosen = act(observation, draw.explore, draw.action)
        weighed = not ensemble.spec.continuous and jnp.issubdtype(chosen.dtype, jnp.floating)
        action = jnp.argmax(chosen, axis=-1).astype(jnp.int32) if weighed else chosen
        prediction, member, everyone = _ask(config, ensemble, members, observation, chosen, draw, controller.needs_members)
        noise = draw.noise[..., -ensemble.spec.observation_size :] if ensemble.config.kind == "gaussian" else None
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
            everyone=everyone if controller.needs_members else None,
            truth=_truth(dynamics, observation, action) if controller.needs_truth else None,
        )
        state, decision = controller.step(lanes.controller, view)
        chex.assert_shape([answer for answer in decision if answer is not None], (config.lanes,))
        keep = decision.keep & active
        terminal, reward = imagined.terminated, imagined.reward
        if decision.halt is not None:
            terminal, reward = terminal | decision.halt, jnp.where(decision.halt, 0.0, reward)
        rows = replay.Rows(
            observation=observation,
            next_observation=imagined.next_observation,
            action=action,
            reward=reward - decision.penalty,
            terminated=terminal,
            weight=keep.astype(observation.dtype),
            depth=lanes.depth,
        )
        ended = terminal | decision.stop | (lanes.depth + 1 >= config.cap)
        after = Lanes(
            observation=imagined.next_observation,
            root=root,
            depth=jnp.where(ended, 0, lanes.depth + 1),
            idle=(lanes.idle | ended) if config.restart == "per_step" else lanes.idle,
            controller=state,
        )
        return after, (rows, decision.stop & active, imagined.terminated & active, ended & active)

    lanes, (rows, stopped, terminated, ended) = jax.lax.scan(imagine, lanes, (draws, roots), unroll=min(config.steps, 4))
    kept, depth = jnp.sum(rows.weight), (rows.depth + 1).astype(rows.weight.dtype)
    edges = jnp.asarray(DEPTH_EDGES, depth.dtype)
    deeper = jnp.sum(rows.weight[None] * (depth[None] > edges[:, None, None]).astype(depth.dtype), axis=(1, 2))  # than each edge
    at_least = jnp.concatenate([kept[None], deeper, jnp.zeros_like(kept)[None]])
    log = LaneLog(
        depth=jnp.sum(rows.weight * depth) / jnp.maximum(kept, 1.0),
        kept=kept / rows.weight.size,
        stopped=jnp.mean(stopped.astype(depth.dtype)),
        terminated=jnp.mean(terminated.astype(depth.dtype)),
        ended=jnp.mean(ended.astype(depth.dtype)),
        histogram=(at_least[:-1] - at_least[1:]) / rows.weight.size,
    )
    return lanes, replay.pack(rows).reshape(config.steps * config.lanes, -1), log


def _truth(dynamics: Dynamics | None, observation: Array, action: Array) -> Array:
    if dynamics is None:
        raise ConfigError("imagination.controller: it asks for the real dynamics, and this task does not know them as a function")
    return dynamics(observation, action)


def _ask(
    config: LanesConfig,
    ensemble: Ensemble,
    members: Members,
    observation: Array,
    action: Array,
    draw: LaneDraws,
    needs_members: bool,
) -> tuple[Prediction, Array, Prediction | None]:
    """The prediction that moves each lane [K, ...], the member [K] it is from, and every member's [M, K, ...] if it was made.

    * ``ts1``: lanes are dealt evenly to members by a fresh permutation at each step, so that each member has K / M lanes and
      the whole ensemble costs one forward pass over K rows (TS1 of Chua et al. 2018, stratified).
    * ``ts_infinity``: lane k belongs to member k // (K / M) for good. As roots are drawn at random this is a member that stays
      with the rollout, at the same cost, and every member moves equally many lanes.
    * ``mean``: the mean of all members.
    * ``fused``: their precision-weighted fusion.
    * ``infoprop``: a dealt member's sample is a noisy observation of the fusion, which it corrects by the gain; what varies once
      the sample is known remains (Frauenknecht et al. 2025). ``fused`` is the same with the sample forgotten.
    """
    lanes, count = config.lanes, ensemble.sampling_members
    place = jnp.arange(lanes, dtype=jnp.int32)
    nobody = config.sampling in ("mean", "fused")
    owner = jnp.zeros(lanes, jnp.int32) if nobody else place // (lanes // count)
    if config.sampling in DEALT:
        place = draw.place
    member = owner[place]

    if needs_members or config.sampling not in ("ts1", "ts_infinity"):
        everyone = ens.predict_all(ensemble, members, observation, action)
        if config.sampling == "mean":
            return ens.mixture_mean(everyone), member, everyone
        own = jax.tree.map(lambda leaf: leaf[member, jnp.arange(lanes, dtype=jnp.int32)], everyone)
        if config.sampling in ("fused", "infoprop"):
            return _fused(config, everyone, own, draw.noise[..., : ensemble.spec.observation_size]), member, everyone
        return own, member, everyone

    dealt_observation, dealt_action = observation, action
    if config.sampling == "ts1":
        dealt_observation, dealt_action = observation[draw.deal], action[draw.deal]
    dealt_action = dealt_action.reshape(count, lanes // count, *action.shape[1:])
    dealt = ens.predict(ensemble, members, dealt_observation.reshape(count, lanes // count, -1), dealt_action)
    prediction = jax.tree.map(lambda leaf: leaf.reshape(lanes, *leaf.shape[2:]), dealt)
    if config.sampling == "ts1":
        prediction = jax.tree.map(lambda leaf: leaf[place], prediction)
    return prediction, member, None


def _fused(config: LanesConfig, everyone: Prediction, own: Prediction, noise: Array) -> Prediction:
    """The fusion of every member's prediction [M, K, ...], for Infoprop corrected by the sample of each lane's own [K, ...].

    A learned reward is the fusion's and a learned termination the members' mean; only the state is corrected.
    """
    fusion, logit = fuse(everyone), ens.mixture_mean(everyone).termination_logit
    if config.sampling == "fused":
        return Prediction(fusion.mean, jnp.log(fusion.variance), logit)
    size = noise.shape[-1]
    sample = own.mean[..., :size] + jnp.sqrt(variance(own)[..., :size]) * noise
    corrected = fusion.mean[..., :size] + fusion.gain[..., :size] * (sample - fusion.mean[..., :size])
    mean = jnp.concatenate([corrected, fusion.mean[..., size:]], axis=-1)
    return Prediction(mean, jnp.log(fusion.remaining), logit)
