"""The steps of a round by one launch: K lanes of H imagined steps and the updates of each."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.q_learning import QState, UpdateLog
from mbrl_jax.config import DynaQConfig
from mbrl_jax.cuda import coverage
from mbrl_jax.cuda.kernels import round_kernel
from mbrl_jax.cuda.parameters import flat, tree
from mbrl_jax.cuda.setup import Setup, adam_schedule, largest_that_fits, world_operands
from mbrl_jax.cuda.sizes import RoundSizes, check_round, variants_of
from mbrl_jax.engine import Loop
from mbrl_jax.environments import EnvironmentState, from_pool
from mbrl_jax.environments.gymnax import inner_of
from mbrl_jax.imagination.lanes import LaneLog, Lanes, log_of
from mbrl_jax.model.ensemble import Members

STOPPED, TERMINATED, ENDED, ACTIVE, DEPTH_FROM = 1, 2, 4, 8, 4  # bits of the code that tells what a lane's step was


def sizes_of(setup: Setup) -> RoundSizes:
    """The sizes of the round's kernel, in the variant of memory that the GPU has room for.

    Raises:
      ConfigError: a size that the kernel does not have, or none of its variants fits.

    """
    config, lanes, agent = setup.config, setup.config.imagination, setup.config.agent
    sizes = RoundSizes(
        **setup.networks,
        **setup.playing,
        lanes=lanes.lanes,
        horizon=lanes.steps,
        batch=agent.batch_size,
        updates=agent.updates_per_step,
        capacity=lanes.capacity,
        real_capacity=config.real_transitions,
        target=coverage.TARGETS[agent.target],
        loss=coverage.LOSSES[agent.loss],
        sampler=coverage.SAMPLERS[lanes.sampling],
        restart=int(lanes.restart == "per_step"),
        protocol=int(config.protocol == "interactive"),
        time_limit=setup.task.spec.time_limit,
    )
    check_round(sizes)
    return largest_that_fits(setup.gpu, variants_of(sizes), "agent.hidden, agent.batch_size and model.hidden")


def advance_of(setup: Setup) -> Callable[[DynaQConfig, Members, Loop, Any], tuple[Loop, tuple[UpdateLog, LaneLog]]]:
    """:attr:`mbrl_jax.engine.Engine.advance`. Raises ConfigError: as :func:`sizes_of`."""
    sizes, interactive = sizes_of(setup), setup.config.protocol == "interactive"

    def advance(hyper: DynaQConfig, model: Members, loop: Loop, draws: Any) -> tuple[Loop, tuple[UpdateLog, LaneLog]]:
        steps = draws.imagined.shape[0]
        learner, episode = loop.agent, cast(EnvironmentState, loop.episode)
        adam = learner.optimizer
        counters = jnp.stack(
            [
                jnp.int32(steps),
                loop.imagined.written,
                loop.real.written,
                learner.frozen.astype(jnp.int32),
                learner.updates,
                episode.inner.time.astype(jnp.int32) if interactive else jnp.int32(0),
                jnp.int32(0),
                jnp.int32(0),
            ]
        )
        lanes = draws.lanes
        operands = [
            *map(flat, (learner.online, learner.target, adam.mu, adam.nu)),
            loop.imagined.rows,
            loop.lanes.belief,
            loop.lanes.root,
            loop.lanes.depth,
            loop.lanes.idle.astype(jnp.int32),
            counters,
            loop.real.rows,
            *world_operands(model),
            lanes.root,
            lanes.explore,
            lanes.action,
            jnp.zeros(1, jnp.int32) if lanes.model.deal is None else lanes.model.deal,
            lanes.model.noise,
            draws.imagined,
            step_schedule(hyper, loop.time, steps),
            update_schedule(hyper, adam.count, loop.time, steps),
            setup.settings(hyper.agent.discount, hyper.agent.target_rate, hyper.agent.huber_delta),
        ]
        if interactive:
            resets = jax.vmap(lambda place: from_pool(draws.pool, place).observation)(draws.behaviour.reset)
            operands += [draws.behaviour.explore, draws.behaviour.action, resets, episode.observation]
        results = setup.launch(round_kernel(sizes, steps))(*operands)
        after = _taken_up(setup, loop, results, steps)
        losses, codes = results[12:14] if interactive else results[10:12]
        return after, (UpdateLog(losses[:, 0], losses[:, 1]), jax.vmap(_lane_log)(codes))

    return advance


def _taken_up(setup: Setup, loop: Loop, results: list[Array], steps: int) -> Loop:
    """The loop after a launch. What all seeds share is counted here, so that it stays shared."""
    config, learner = setup.config, loop.agent
    online, target, first, second = (tree(vector, setup.policy_sizes) for vector in results[:4])
    rows, belief, root, depth, idle, counters = results[4:10]
    made = counters[4] - learner.updates
    optimizer = learner.optimizer._replace(count=learner.optimizer.count + made, mu=first, nu=second)
    written = loop.imagined.written + steps * config.imagination.steps * config.imagination.lanes
    after = loop._replace(
        time=loop.time + steps,
        imagined=loop.imagined._replace(rows=rows, written=written),
        lanes=Lanes(belief, root, depth, idle != 0, loop.lanes.controller),
        agent=QState(online, target, optimizer, counters[3] != 0, counters[4]),
    )
    if config.protocol != "interactive":
        return after
    real, observation = results[10:12]
    inner = cast(EnvironmentState, loop.episode).inner
    inner = inner.replace(**inner_of(setup.task.spec.name, observation), time=counters[5].astype(inner.time.dtype))
    return after._replace(
        episode=EnvironmentState(inner, observation),
        real=loop.real._replace(rows=real, written=loop.real.written + steps),
    )


def _lane_log(codes: Array) -> LaneLog:
    """The log of one real step from what its lanes' steps [H, K] were."""
    stopped, terminated, ended, active = ((codes & bit) != 0 for bit in (STOPPED, TERMINATED, ENDED, ACTIVE))
    return log_of(active.astype(jnp.float32), codes >> DEPTH_FROM, stopped, terminated, ended)


def progress(hyper: DynaQConfig, time: Array, steps: int) -> Array:
    """[T] the share of the run that is done at each of the ``steps`` from ``time`` [] on."""
    return (time + jnp.arange(steps, dtype=jnp.int32)).astype(jnp.float32) / max(hyper.steps - 1, 1)


def step_schedule(hyper: DynaQConfig, time: Array, steps: int) -> Array:
    """[T, 4] the share of random actions in imagination, the depth at which the controller stops a lane, the cap on depth, and
    the share of random actions in the real environment.
    """
    lanes, exploration = hyper.imagination, hyper.exploration
    real = exploration.start + progress(hyper, time, steps) * (exploration.end - exploration.start)
    columns = [lanes.epsilon, stopping_depth(lanes.controller, time, steps), lanes.cap, real]
    return jnp.stack([jnp.broadcast_to(jnp.asarray(column, jnp.float32), steps) for column in columns], axis=-1)


def stopping_depth(controller: Any, time: Array, steps: int) -> Array:
    """[T] the depth at which a lane is stopped, its own step counted; as the controllers ``fixed`` and ``schedule`` do."""
    if controller.kind == "fixed":
        return jnp.broadcast_to(jnp.asarray(controller.length, jnp.float32), steps)
    start, end, first, last = (
        jnp.asarray(each, jnp.float32) for each in (controller.start, controller.end, controller.first, controller.last)
    )
    share = ((time + jnp.arange(steps, dtype=jnp.int32)).astype(jnp.float32) - start) / (end - start)
    return jnp.floor(jnp.clip(first + share * (last - first), jnp.minimum(first, last), jnp.maximum(first, last)))


def update_schedule(hyper: DynaQConfig, count: Array, time: Array, steps: int) -> Array:
    """[T, U, 2] as :func:`mbrl_jax.cuda.setup.adam_schedule` gives it, for the updates of every step."""
    agent = hyper.agent
    rate = agent.learning_rate * (1 - agent.learning_rate_decay * progress(hyper, time, steps))
    number = jnp.arange(steps * agent.updates_per_step, dtype=jnp.int32).reshape(steps, agent.updates_per_step)
    return adam_schedule(count, number, jnp.broadcast_to(rate[:, None], number.shape))
