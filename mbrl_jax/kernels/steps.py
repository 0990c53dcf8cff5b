"""Whole real steps as one kernel.

One program of the grid is one seed. It runs T real steps, each of H imagined steps of K lanes and then its updates, where the
plain path runs some two hundred kernels for every step of all seeds. ``jax.vmap`` over seeds adds the grid's axis.

What a program takes, found by compiling it for 8 warps and the sizes of ``cartpole_batch`` (``benchmarks/kernel_resources.py``):
all 255 registers of each thread and 232 bytes of stack on an RTX 4090, 472 on an H100, and 52 KB of shared memory of the 99 and
227 KB that one program may have. A multiprocessor has 64 K registers, so it runs one program at a time.

What it moves: the learner's four sets of parameters (4 x 18 KB) and the members (101 KB) come from the device's memory once a
launch, and the learner goes back once. In between they lie in the seed's own memory, from which every block of rows loads its
weights: caches hold them, because no other program touches them and few programs run at a time. Every step gathers its minibatch,
reads its draws and writes its rows: 24 KB, where the plain path moves at least 2.2 MB.

Precision: products in TF32, and under ``highest`` three of TF32 for each, close to float32; all else in float32.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbrl_jax.agents.q_learning import QLearner, QState, UpdateLog
from mbrl_jax.imagination.lanes import LaneLog, Lanes
from mbrl_jax.kernels import imagination as imagination_
from mbrl_jax.kernels import learner as learner_
from mbrl_jax.kernels.imagination import Given, LaneState, World, lane_log
from mbrl_jax.kernels.learner import B1, B2, Memory, Networks, Numbers, Progress, Schedule
from mbrl_jax.kernels.perceptron import Layer, Layers, layers_of, params_of
from mbrl_jax.model.ensemble import Ensemble, Members

WARPS = 8


class Imagination(NamedTuple):
    """What the lanes of T real steps need."""

    ensemble: Ensemble
    members: Members
    length: Array | float  # depth at which the controller ends a rollout
    cap: Array | int  # depth at which any rollout ends
    root: Array  # [T, H, K, D] where a lane would begin
    forced: Array  # [T, H, K] int32, the action of a lane that explores, -1 where it is greedy
    member: Array  # [T, H, K] int32, who predicts
    noise: Array  # [T, H, K, D] standard normal


class _Inputs(NamedTuple):
    """Flat arrays."""

    networks: Networks
    counters: Any  # [2] int32: frozen, updates
    ring: Any  # [N * (2 D + 5)], where rows are read and imagined ones written
    index: Any  # [T * U * B] int32
    scale: Any  # [D]
    numbers: Numbers
    schedule: Schedule
    lanes: LaneState | None
    world: World | None
    given: Given | None


class _Outputs(NamedTuple):
    """Flat arrays."""

    networks: Networks
    counters: Any
    losses: Any  # [T * U]
    scaled_losses: Any  # [T * U]
    ring: Any
    lanes: LaneState | None
    codes: Any  # [T * H * K] int32


def run(
    learner: QLearner,
    state: QState,
    ring: Array,
    index: Array,
    learning_rate: Array,
    lanes: Lanes | None = None,
    written: Array | None = None,
    imagination: Imagination | None = None,
    *,
    interpret: bool = False,
) -> tuple[QState, UpdateLog, Array, Lanes | None, LaneLog | None]:
    """T real steps of a seed in one kernel.

    Args:
      learner: its settings, which must be among those of :mod:`mbrl_jax.kernels.limits`.
      state: the learner.
      ring: [N, 2 D + 5] packed rows, from which minibatches come and to which imagined rows go.
      index: [T, U, B] int32, which rows each of U updates takes, counted after the imagined rows of its own step are written.
      learning_rate: [T] of the updates of each step.
      lanes: none where nothing is imagined.
      written: [] int32, rows that the ring has been given so far.
      imagination: what the lanes need.
      interpret: run the kernel as ordinary JAX operations, on any device and slowly.

    Returns:
      The learner, its log [T, U], the ring, the lanes, and their log [T].

    """
    steps, updates, _ = index.shape
    if ring.dtype != jnp.float32:
        raise TypeError(f"the kernels compute in float32; these rows are {ring.dtype}")
    given, world, shape = None, None, None
    if imagination is not None:
        assert lanes is not None
        assert written is not None
        given, world, shape = _given(imagination, written, ring.shape[0]), _world(imagination), imagination.member.shape
    inputs = _Inputs(
        networks=_networks(state),
        counters=jnp.stack([state.frozen.astype(jnp.int32), state.updates]),
        ring=ring,
        index=index,
        scale=jnp.asarray(learner.spec.observation_scale if learner.config.input_scale is None else learner.config.input_scale),
        numbers=Numbers(*(_one(x) for x in (learner.config.discount, learner.config.target_rate, learner.config.huber_delta))),
        schedule=_schedule(state, learning_rate, updates),
        lanes=None if lanes is None else LaneState(lanes.observation, lanes.root, lanes.depth),
        world=world,
        given=given,
    )
    flat = jax.tree.map(lambda x: x.reshape(-1), inputs)
    losses = jax.ShapeDtypeStruct((steps * updates,), jnp.float32)
    codes = None if shape is None else jax.ShapeDtypeStruct((steps * shape[1] * shape[2],), jnp.int32)
    changed = _Outputs(flat.networks, flat.counters, losses, losses, flat.ring, flat.lanes, codes)
    outputs: _Outputs = pl.pallas_call(
        functools.partial(
            _kernel, learner, None if imagination is None else imagination.ensemble, shape, (steps, updates), not interpret
        ),
        out_shape=(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), changed),),
        input_output_aliases=_aliases(flat, changed),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="real_steps",
    )(flat)[0]
    log = UpdateLog(outputs.losses.reshape(steps, updates), outputs.scaled_losses.reshape(steps, updates))
    after = _state(state, outputs)
    if lanes is None:
        return after, log, outputs.ring.reshape(ring.shape), None, None
    moved = jax.tree.map(lambda new, old: new.reshape(old.shape), outputs.lanes, inputs.lanes)
    lanes = lanes._replace(observation=moved.observation, root=moved.root, depth=moved.depth)
    return after, log, outputs.ring.reshape(ring.shape), lanes, lane_log(outputs.codes.reshape(shape))


def _kernel(
    learner: QLearner,
    ensemble: Ensemble | None,
    shape: tuple[int, ...] | None,
    counts: tuple[int, int],
    threads: bool,
    inputs: _Inputs,
    outputs: _Outputs,
) -> None:
    """One seed. ``threads`` says that it is compiled: what is written is read by other threads, which must wait for it."""
    if threads and jax.config.jax_default_matmul_precision == "highest":  # type: ignore[attr-defined]
        precision = jax.default_matmul_precision("TF32_TF32_F32_X3")
    else:
        precision = contextlib.nullcontext()
    with precision:
        _run(learner, ensemble, shape, counts, plgpu.debug_barrier if threads else lambda: None, inputs, outputs)


def _run(
    learner: QLearner,
    ensemble: Ensemble | None,
    shape: tuple[int, ...] | None,
    counts: tuple[int, int],
    wait: Callable[[], None],
    inputs: _Inputs,
    outputs: _Outputs,
) -> None:
    steps, updates = counts
    size = learner.spec.observation_size
    ring = outputs.ring  # the same memory as the input's
    memory = Memory(outputs.networks, ring, inputs.index, inputs.scale, inputs.numbers, inputs.schedule)
    learning = Progress(inputs.counters[0] > 0, inputs.counters[1])
    lanes = None
    if shape is not None:
        lanes = imagination_.read_lanes(inputs.lanes, shape[2], size)  # type: ignore[arg-type]

    def step(t: Array, carry: tuple[Progress, LaneState | None]) -> tuple[Progress, LaneState | None]:
        learning, lanes = carry

        def imagine(h: Array, lanes: LaneState) -> LaneState:
            assert shape is not None
            assert ensemble is not None
            assert inputs.world is not None
            assert inputs.given is not None
            return imagination_.imagine(
                learner,
                ensemble,
                outputs.networks.online,
                inputs.world,
                inputs.scale,
                inputs.given,
                ring,
                outputs.codes,
                shape[2],
                lanes,
                t * shape[1] + h,
            )

        def update(u: Array, learning: Progress) -> Progress:
            which = t * updates + u
            learning, loss, scaled = learner_.update(learner, memory, learning, which, wait)
            outputs.losses[which] = loss
            outputs.scaled_losses[which] = scaled
            return learning

        if shape is not None:
            lanes = jax.lax.fori_loop(0, shape[1], imagine, lanes)
            wait()  # for the rows, before they are sampled
        learning = jax.lax.fori_loop(0, updates, update, learning)
        if shape is not None:
            wait()  # for the samples, before their rows are overwritten
        return learning, lanes

    learning, lanes = jax.lax.fori_loop(0, steps, step, (learning, lanes))
    outputs.counters[0] = learning.frozen.astype(jnp.int32)
    outputs.counters[1] = learning.updates
    if lanes is not None:
        imagination_.write_lanes(outputs.lanes, shape[2], size, lanes)  # type: ignore[arg-type, index]


# ------------------------------------------------------------------------------------------------ what goes in and comes out


def _networks(state: QState) -> Networks:
    optimizer = state.optimizer
    return Networks(*(layers_of(params) for params in (state.online, state.target, optimizer.mu, optimizer.nu)))


def _state(before: QState, outputs: _Outputs) -> QState:
    """The learner from what the kernel wrote. Adam's counter stops with the updates when it freezes."""
    shapes = _networks(before)
    networks = jax.tree.map(lambda new, old: new.reshape(old.shape), outputs.networks, shapes)
    online, target, mean, square = (params_of(layers) for layers in networks)
    made = outputs.counters[1] - before.updates
    optimizer = before.optimizer._replace(count=before.optimizer.count + made, mu=mean, nu=square)
    return QState(online, target, optimizer, outputs.counters[0] > 0, outputs.counters[1])


def _schedule(state: QState, learning_rate: Array, updates: int) -> Schedule:
    """The step sizes of all updates; a frozen learner's are not used."""
    count = state.optimizer.count + 1 + jnp.arange(learning_rate.shape[0] * updates, dtype=state.optimizer.count.dtype)
    with jax.numpy_dtype_promotion("standard"):
        first, second = (jnp.asarray(1 - decay**count, jnp.float32) for decay in (B1, B2))
    return Schedule(jnp.repeat(learning_rate.astype(jnp.float32), updates), first, second)


def _given(imagination: Imagination, written: Array, capacity: int) -> Given:
    return Given(
        root=imagination.root,
        forced=imagination.forced,
        member=imagination.member,
        noise=imagination.noise,
        length=_one(imagination.length),
        cap=_one(imagination.cap),
        first=(written % capacity).reshape(1),
    )


def _world(imagination: Imagination) -> World:
    """The members, their last layers split into the part that says the mean and the part that says the log-variance."""
    *hidden, last = layers_of(imagination.members.params)
    targets, normaliser, bounds = imagination.ensemble.targets, imagination.members.normaliser, imagination.members.bounds

    def part(where: slice) -> Layers:
        return (Layer(last.kernel[..., where], last.bias[..., where]),)

    return World(tuple(hidden), part(slice(targets)), part(slice(targets, None)), bounds.minimum, bounds.maximum, *normaliser)


def _aliases(inputs: _Inputs, outputs: _Outputs) -> dict[int, int]:
    """Which output, counted in order, takes the memory of which input."""
    order = iter(range(len(jax.tree.leaves(inputs))))
    numbered = jax.tree.map(lambda _: next(order), inputs)
    order = iter(range(len(jax.tree.leaves(outputs))))
    told = jax.tree.map(lambda _: next(order), outputs)
    names = ("networks", "counters", "ring", "lanes")
    pairs = [(jax.tree.leaves(getattr(numbered, name)), jax.tree.leaves(getattr(told, name))) for name in names]
    return {a: b for first, second in pairs for a, b in zip(first, second, strict=True)}


def _one(number: Array | float) -> Array:
    return jnp.asarray(number, jnp.float32).reshape(1)
