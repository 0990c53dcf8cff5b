"""A round by the plain path, and what the kernel is given for the same one."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from kernels import run

from mbrl_jax.agents.q_learning import make_q_learner, q_agent
from mbrl_jax.algorithms import phases
from mbrl_jax.algorithms.training import BehaviourDraws
from mbrl_jax.config import DynaQConfig, EnvironmentConfig, ImaginationConfig, ModelConfig, QLearningConfig
from mbrl_jax.cuda.sizes import TASKS, RoundSizes
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.horizon import controller_of
from mbrl_jax.model.worlds import make_world
from mbrl_jax.replay import AXES, ReplayState, make_replay

HELD_OUT_EVERY = 10


class Case(NamedTuple):
    """What a number of seeds begin a few steps with, in the middle of a run. Leaves [S, ...]."""

    learner: Any
    real: ReplayState
    imagined: ReplayState
    members: Any
    lanes: lanes_.Lanes
    draws: Any  # LaneDraws [S, T, H, ...]
    bits: Any  # [S, T, U, B]
    episode: Any  # of the interactive protocol
    behaviour: Any  # [S, T]
    pool: Any  # [S, T] resets


def config_of(name="CartPole-v1", precision="highest", protocol="batch", *, model=None, imagination=None, agent=None):
    """Sizes that an emulator can carry."""
    return DynaQConfig(
        precision=precision,
        protocol=protocol,
        random_transitions=60,
        steps=200,
        environment=EnvironmentConfig(name=name),
        model=ModelConfig(**{"members": 2, "hidden": (32, 64)} | (model or {})),
        imagination=ImaginationConfig(**{"lanes": 6, "steps": 2, "capacity": 120, "cap": 3} | (imagination or {})),
        agent=QLearningConfig(**{"hidden": (64, 32), "batch_size": 48, "learning_rate": 1e-3} | (agent or {})),
    )


class Parts(NamedTuple):
    """What the plain path is made of."""

    task: Any
    world: Any
    real: Any
    imagined: Any
    learner: Any


def parts_of(config: DynaQConfig, by: str | None = None) -> Parts:
    """Make them."""
    task = make_environment(config.environment)
    real = make_replay(task.spec, config.real_transitions)
    rows = config.random_transitions
    world = make_world(config.model, task, real, first_rows=rows, stride=HELD_OUT_EVERY, by=by or config.imagination.sampling)
    imagined = make_replay(task.spec, config.imagination.capacity)
    return Parts(task, world, real, imagined, make_q_learner(config.agent, task.spec))


def network(rng, shapes):
    """Numbers of the size that training gives to a tree of parameters [S, ..., inputs, outputs] and [S, ..., outputs]."""
    scaled = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    layers = {
        name: {"kernel": layer["kernel"] / np.sqrt(layer["kernel"].shape[-2]), "bias": 0.1 * layer["bias"]}
        for name, layer in scaled["params"].items()
    }
    return {"params": layers}


def case_of(config: DynaQConfig, *, seeds=2, steps=2, written=240, updates=100) -> Case:
    """A case in which lanes stand at several depths and some rows do not count."""
    rng, parts = np.random.default_rng(5), parts_of(config)
    spec, imagination, batch = parts.task.spec, config.imagination, config.agent
    size, scale, lanes = spec.observation_size, np.asarray(spec.observation_scale), imagination.lanes
    shape = (seeds, steps, imagination.steps, lanes)

    def ring(replay, written):
        rows = np.zeros((seeds, replay.capacity, 2 * size + 5))
        rows[..., :size] = 0.4 * scale * rng.normal(size=(seeds, replay.capacity, size))
        rows[..., size : 2 * size] = rows[..., :size] + 0.1 * scale * rng.normal(size=(seeds, replay.capacity, size))
        told = [
            rng.integers(0, spec.action_count, rows.shape[:2]),
            rng.normal(size=rows.shape[:2]),
            rng.random(rows.shape[:2]) < 0.1,
        ]
        rows[..., 2 * size :] = np.stack([*told, rng.random(rows.shape[:2]) < 0.8, rng.integers(0, 3, rows.shape[:2])], axis=-1)
        return ReplayState(rows, np.int32(written))

    def over_seeds(function):
        return jax.eval_shape(jax.vmap(function), jax.random.split(jax.random.key(0), seeds))

    state = over_seeds(parts.learner.init)
    online = network(rng, state.online)
    adam = state.optimizer._replace(
        count=np.full(seeds, updates),
        mu=jax.tree.map(lambda leaf: 0.02 * rng.normal(size=leaf.shape), state.optimizer.mu),
        nu=jax.tree.map(lambda leaf: 0.001 + (0.05 * rng.normal(size=leaf.shape)) ** 2, state.optimizer.nu),
    )
    target = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape), online)
    learner = state._replace(
        online=online, target=target, optimizer=adam, frozen=np.zeros(seeds, bool), updates=np.full(seeds, updates)
    )

    members = over_seeds(lambda key: parts.world.acting(parts.world.init(key)))
    change = np.abs(0.05 * scale * rng.normal(size=(seeds, size))) + 0.01
    normaliser = members.normaliser._replace(
        state_mean=0.1 * scale * rng.normal(size=(seeds, size)),
        state_std=np.broadcast_to(0.5 * scale, (seeds, size)),
        target_mean=0.3 * change,
        target_std=change * (np.arange(size) < 3),  # the last target of four does not vary
    )
    bounds = members.bounds._replace(
        minimum=-10 + rng.random(members.bounds.minimum.shape), maximum=rng.random(members.bounds.maximum.shape)
    )
    members = members._replace(params=network(rng, members.params), bounds=bounds, normaliser=normaliser)
    where = 0.5 * scale * rng.normal(size=(2, seeds, lanes, size))
    standing = lanes_.Lanes(where[0], where[1], rng.integers(0, 3, (seeds, lanes)), np.zeros((seeds, lanes), bool), ())
    deal = np.argsort(rng.random(shape), axis=-1) if imagination.sampling == "ts1" else None
    drawn = over_seeds(lambda key: lanes_.draw(imagination, spec, parts.world, key, (steps,)))
    drawn = drawn._replace(
        root=rng.integers(0, 2**32, shape, np.uint32),
        explore=rng.random(shape),
        action=rng.integers(0, spec.action_count, shape),
        model=drawn.model._replace(
            deal=deal, place=None if deal is None else np.argsort(deal, axis=-1), noise=rng.normal(size=(*shape, size))
        ),
    )
    bits = rng.integers(0, 2**32, (seeds, steps, batch.updates_per_step, batch.batch_size), np.uint32)
    episode = behaviour = pool = None
    if config.protocol == "interactive":
        behaviour = BehaviourDraws(
            rng.random((seeds, steps)), rng.integers(0, 2, (seeds, steps)), np.tile(np.arange(steps), (seeds, 1))
        )
        pool = jax.vmap(lambda key: parts.task.draw_resets(key, (steps,)))(jax.random.split(jax.random.key(2), seeds))
        episode = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), pool)
        episode = episode._replace(inner=episode.inner.replace(time=np.full(seeds, 7)))
    case = Case(
        learner,
        ring(parts.real, config.random_transitions),
        ring(parts.imagined, written),
        members,
        standing,
        drawn,
        bits,
        episode,
        behaviour,
        pool,
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf, {"f": np.float32, "i": np.int32}.get(np.asarray(leaf).dtype.kind)), case)


class Round(NamedTuple):
    """What a round leaves; leaves [S, ...]."""

    learner: Any
    real: ReplayState
    imagined: ReplayState
    lanes: lanes_.Lanes
    episode: Any
    losses: Any  # [S, T]
    log: lanes_.LaneLog  # leaves [S, T]


@partial(jax.jit, static_argnums=0)
def plain(config: DynaQConfig, case: Case, time: jax.Array) -> Round:
    """The steps of a case by the plain path, from real step ``time`` on."""
    parts, agent, acts = parts_of(config), q_agent(config.agent, parts_of(config).task.spec), config.protocol == "interactive"
    horizon = controller_of(config.imagination, None)

    def seed(case: Case) -> Round:
        def step(carry: Any, now: Any) -> Any:
            time, learner, real, imagined, lanes, episode = carry
            drawn, bits, behaviour = now
            progress = time.astype(jnp.float32) / (config.steps - 1)
            if acts:
                epsilon = config.exploration.start + progress * (config.exploration.end - config.exploration.start)
                episode, real = phases.act(
                    parts.task, agent, parts.real, episode, real, agent.acting(learner), epsilon, behaviour, case.pool
                )

            def policy(features: Any, explore: Any, action: Any) -> Any:
                return agent.act(agent.acting(learner), features, config.imagination.epsilon, explore, action)

            lanes, rows, log = lanes_.advance(
                config.imagination, parts.world, horizon, lanes, case.members, policy, real, time, drawn
            )
            imagined, told = parts.imagined.write(imagined, rows), []
            for u in range(config.agent.updates_per_step):
                learner, each = agent.update(learner, parts.imagined.sample(imagined, bits[u]), None, progress, None)
                told.append(each)
            losses = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *told)
            return (time + 1, learner, real, imagined, lanes, episode), (losses, log)

        carry = (time, case.learner, case.real, case.imagined, case.lanes, case.episode)
        (_, *after), told = jax.lax.scan(step, carry, (case.draws, case.bits, case.behaviour))
        return Round(after[0], after[1], after[2], after[3], after[4], *told)

    axes = Case(*[0] * len(Case._fields))._replace(real=AXES, imagined=AXES)
    out = Round(*[0] * len(Round._fields))._replace(real=AXES, imagined=AXES)
    with jax.default_matmul_precision("highest"):
        return jax.vmap(seed, in_axes=(axes,), out_axes=out)(case)


# ---------------------------------------------------------------------------------------------------------------- the kernel
def flat(params: Any, lead: int = 1) -> np.ndarray:
    """[*lead, P]: each layer's kernel, then its bias."""
    layers = params["params"]
    leaves = [layers[f"Dense_{i}"][name] for i in range(len(layers)) for name in ("kernel", "bias")]
    return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def sizes_of(config: DynaQConfig, **variant: int) -> RoundSizes:
    """The sizes that the kernel is compiled for."""
    spec, imagination, agent, model = parts_of(config).task.spec, config.imagination, config.agent, config.model
    return RoundSizes(
        terms=1 if config.precision == "default" else 2,
        observation=spec.observation_size,
        actions=spec.action_count,
        task=TASKS.index(config.environment.name),
        q_width1=agent.hidden[0],
        q_width2=agent.hidden[1],
        m_width1=model.hidden[0],
        m_width2=model.hidden[1],
        members=model.members,
        lanes=imagination.lanes,
        horizon=imagination.steps,
        batch=agent.batch_size,
        updates=agent.updates_per_step,
        capacity=imagination.capacity,
        real_capacity=config.real_transitions,
        target=("max", "double").index(agent.target),
        loss=("squared", "huber").index(agent.loss),
        sampler=("ts1", "ts_infinity").index(imagination.sampling),
        restart=("streaming", "per_step").index(imagination.restart),
        protocol=("batch", "interactive").index(config.protocol),
        time_limit=spec.time_limit,
        **variant,
    )


def adam_schedule(rate: Any, count: np.ndarray) -> np.ndarray:
    """[..., 2] the learning rate over 1 - b1^n and 1 over 1 - b2^n, in optax's float32: 0.999 is rounded before the power."""
    left = [1 - np.float32(decay) ** np.float32(count) for decay in (0.9, 0.999)]
    return np.stack([rate / left[0], 1 / left[1]], axis=-1)


def schedules(config: DynaQConfig, case: Case, time: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel is told of each step [S, T, 4] and of each update [S, T, U, 2]."""
    seeds, steps, updates = case.bits.shape[:3]
    times, kind, imagination = time + np.arange(steps), config.imagination.controller, config.imagination
    if kind.kind == "fixed":
        stop = np.full(steps, kind.length)
    else:
        depth = kind.first + (times - kind.start) / (kind.end - kind.start) * (kind.last - kind.first)
        stop = np.floor(np.clip(depth, min(kind.first, kind.last), max(kind.first, kind.last)))
    progress = times / (config.steps - 1)
    exploration = config.exploration.start + progress * (config.exploration.end - config.exploration.start)
    by_step = np.stack([np.full(steps, imagination.epsilon), stop, np.full(steps, imagination.cap), exploration], axis=-1)
    rate = config.agent.learning_rate * (1 - config.agent.learning_rate_decay * progress)
    count = case.learner.optimizer.count[:, None, None] + 1 + np.arange(steps * updates).reshape(1, steps, updates)
    by_update = adam_schedule(rate[None, :, None], count)
    return np.broadcast_to(by_step, (seeds, steps, 4)), by_update


KEPT = ("online", "target", "mu", "nu", "ring", "belief", "root", "depth", "idle", "counters")  # operands that become results


def operands_of(config: DynaQConfig, case: Case, time: int) -> dict[str, np.ndarray]:
    """What the kernel is given, by name, in order."""
    spec, (seeds, steps) = parts_of(config).task.spec, case.bits.shape[:2]
    by_step, by_update = schedules(config, case, time)
    counters = np.zeros((seeds, 8), np.int32)
    counters[:, 0], counters[:, 1], counters[:, 2] = steps, case.imagined.written, case.real.written
    counters[:, 3], counters[:, 4] = case.learner.frozen, case.learner.updates
    settings = np.zeros((seeds, 16))
    settings[:, :3] = config.agent.discount, config.agent.target_rate, config.agent.huber_delta
    settings[:, 8 : 8 + spec.observation_size] = config.agent.input_scale or spec.observation_scale
    learner, members, lanes, deal = case.learner, case.members, case.lanes, case.draws.model.deal
    values = {
        "online": flat(learner.online),
        "target": flat(learner.target),
        "mu": flat(learner.optimizer.mu),
        "nu": flat(learner.optimizer.nu),
        "ring": case.imagined.rows,
        "belief": lanes.belief,
        "root": lanes.root,
        "depth": lanes.depth,
        "idle": lanes.idle.astype(np.int32),
        "counters": counters,
        "real": case.real.rows,
        "members": flat(members.params, 2),
        "bounds": np.stack([members.bounds.minimum, members.bounds.maximum], axis=2),
        "normaliser": np.stack(members.normaliser, axis=1),
        "root_bits": case.draws.root,
        "explore": case.draws.explore,
        "action": case.draws.action,
        "deal": np.zeros((seeds, 1), np.int32) if deal is None else deal,
        "noise": case.draws.model.noise,
        "minibatch": case.bits,
        "step_schedule": by_step,
        "update_schedule": by_update,
        "settings": settings,
    }
    if config.protocol == "interactive":
        counters[:, 5] = case.episode.inner.time
        values |= {
            "behaviour_explore": case.behaviour.explore,
            "behaviour_action": case.behaviour.action,
            "resets": case.pool.observation,
            "episode": case.episode.observation,
        }
    return {name: np.ascontiguousarray(x, np.float32 if x.dtype.kind == "f" else x.dtype) for name, x in values.items()}


def kept_of(config: DynaQConfig) -> tuple[str, ...]:
    """The operands that become results, in order."""
    return (*KEPT, "real", "episode") if config.protocol == "interactive" else KEPT


def by_kernel(config: DynaQConfig, operands: dict[str, np.ndarray], *, backwards=False, faults=(), **variant: int):
    """What the kernel makes of its operands, by name: what they become, and ``losses`` [S, T, 2] and ``codes`` [S, T, H, K]."""
    sizes, (seeds, steps) = sizes_of(config, **variant), operands["explore"].shape[:2]
    results = {name: operands[name].copy() for name in kept_of(config)}
    results["losses"] = np.zeros((seeds, steps, 2), np.float32)
    results["codes"] = np.zeros((seeds, steps, sizes.horizon, sizes.lanes), np.int32)
    scratch = np.zeros((seeds, sizes.scratch), np.float32)
    run("round", sizes.macros, operands.values(), [*results.values(), scratch], blocks=seeds, backwards=backwards, faults=faults)
    return results


def first_steps(config: DynaQConfig, operands: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """The operands of steps ``start`` to ``stop`` of a round."""
    by_time = ("root_bits", "explore", "action", "deal", "noise", "minibatch", "step_schedule", "update_schedule")
    part = {name: np.ascontiguousarray(x[:, start:stop]) if name in by_time else x.copy() for name, x in operands.items()}
    part["counters"][:, 0] = stop - start
    return part


def with_agent(config: DynaQConfig, **changes: Any) -> DynaQConfig:
    """The configuration with other settings of its agent."""
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **changes))
