"""One imagined step of K lanes inside a kernel: what ``lanes.advance`` does under the ``fixed`` controller."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.q_learning import QLearner
from mbrl_jax.imagination.lanes import DEPTH_EDGES, LaneLog
from mbrl_jax.kernels.arrays import Columns, columns, first_best, padded, places, read, read_array, write, write_array
from mbrl_jax.kernels.perceptron import ACTIVATIONS, Layer, Layers, dense, forward, product, read_layers
from mbrl_jax.model.ensemble import Bounds, Ensemble, bound_log_variance
from mbrl_jax.replay import width


class World(NamedTuple):
    """The members: references to flat arrays."""

    hidden: Layers  # each of M members one after the other
    mean: Layers  # [M, in, D] and [M, D], the last layer's part that says the mean
    log_variance: Layers  # the same for the log-variance
    minimum: Any  # [M, D] bounds of the log-variance
    maximum: Any
    state_mean: Any  # [D]
    state_std: Any
    target_mean: Any  # [D]
    target_std: Any


class Given(NamedTuple):
    """What T real steps of imagination are given: references to flat arrays."""

    root: Any  # [T, H, K, D] where a lane would begin
    forced: Any  # [T, H, K] int32, the action of a lane that explores, -1 where it is greedy
    member: Any  # [T, H, K] int32, who predicts
    noise: Any  # [T, H, K, D] standard normal
    length: Any  # [1] depth at which the controller ends a rollout
    cap: Any  # [1] depth at which any rollout ends
    first: Any  # [1] int32, place of the ring where the first row goes


class LaneState(NamedTuple):
    """The lanes, in memory or as padded values."""

    observation: Any  # [K, D]
    root: Any  # [K, D]
    depth: Any  # [K] int32


STOPPED, TERMINATED, ENDED, DEPTH = 1, 2, 4, 8  # what the code of an imagined step is made of


def read_lanes(refs: LaneState, lanes: int, size: int) -> LaneState:
    """Bring the lanes on chip, observations [L, W] for K lanes and D axes padded."""
    observation, root = (read_array(ref, (lanes, size)) for ref in (refs.observation, refs.root))
    return LaneState(observation, root, read_array(refs.depth, (lanes,)))


def write_lanes(refs: LaneState, lanes: int, size: int, state: LaneState) -> None:
    """Write the lanes back to memory."""
    write_array(refs.observation, (lanes, size), state.observation)
    write_array(refs.root, (lanes, size), state.root)
    write_array(refs.depth, (lanes,), state.depth)


def imagine(
    learner: QLearner,
    ensemble: Ensemble,
    online: Layers,
    world: World,
    scale: Any,
    given: Given,
    ring: Any,
    codes: Any,
    lanes: int,
    state: LaneState,
    which: Array,
) -> LaneState:
    """Imagined step number ``which``, counted over all of them.

    Args:
      learner: whose actions are imagined.
      ensemble: the shape of the world model.
      online: its network.
      world: the members, in memory.
      scale: [D] what the learner divides observations by.
      given: roots and draws.
      ring: [N * (2 D + 5)] where the rows go.
      codes: [T * H * K] int32, where it is written what happened.
      lanes: K.
      state: the lanes.
      which: [] int32.

    """
    size = learner.spec.observation_size
    first = which * lanes
    place = places(padded(lanes))
    here, counted = first + place, place < lanes

    fresh = read_array(given.root, (lanes, size), first * size)
    rooting = (state.depth == 0)[:, None]
    observation = jnp.where(rooting, fresh, state.observation)
    root = jnp.where(rooting, fresh, state.root)
    forced = read(given.forced, here, counted)
    network = read_layers(online, (size, *learner.config.hidden, learner.spec.action_count))
    values = forward(network, observation / read_array(scale, (size,), other=1.0)[None, :], "relu")
    action = jnp.where(forced >= 0, forced, first_best(values, learner.spec.action_count))

    noise = read_array(given.noise, (lanes, size), first * size)
    change = _predict(ensemble, world, observation, action, read(given.member, here, counted), noise)
    shift, by = (read_array(ref, (size,))[None, :] for ref in (world.target_mean, world.target_std))
    following = observation + shift + by * change
    before, after = Columns(observation, size), Columns(following, size)
    reward = ensemble.reward(before, action, after)  # type: ignore[arg-type]
    terminated = ensemble.terminated(before, action, after)  # type: ignore[arg-type]

    reached = (state.depth + 1).astype(jnp.float32)
    stop = reached >= given.length[0]
    ended = terminated | stop | (reached >= given.cap[0])
    _write_rows(ring, given.first[0] + here, counted, size, observation, following, (action, reward, terminated, 1, state.depth))
    code = jnp.where(stop, STOPPED, 0) + jnp.where(terminated, TERMINATED, 0) + jnp.where(ended, ENDED, 0) + DEPTH * state.depth
    write(codes, here, code, counted)
    return LaneState(following, root, jnp.where(ended, 0, state.depth + 1))


def lane_log(codes: Array) -> LaneLog:
    """The log [T] of imagined steps [T, H, K] of which every row was kept."""
    depth = (codes // DEPTH + 1).astype(jnp.float32)
    at_least = jnp.stack(
        [jnp.ones(codes.shape[0]), *(jnp.mean((depth > edge).astype(jnp.float32), axis=(1, 2)) for edge in DEPTH_EDGES)], axis=1
    )

    def share(flag: int) -> Array:
        return jnp.mean(((codes // flag) % 2).astype(jnp.float32), axis=(1, 2))

    return LaneLog(
        depth=jnp.mean(depth, axis=(1, 2)),
        kept=jnp.ones(codes.shape[0]),
        stopped=share(STOPPED),
        terminated=share(TERMINATED),
        ended=share(ENDED),
        histogram=at_least - jnp.pad(at_least[:, 1:], ((0, 0), (0, 1))),
    )


def _predict(ensemble: Ensemble, world: World, observation: Array, action: Array, member: Array, noise: Array) -> Array:
    """[L, W] the sampled change of state in normalised units, each lane's by its own member [L] int32.

    Every member looks at all lanes and each lane takes one of the answers. Dealing them out would save little: a matrix product
    has at least 16 rows, so that 5 members cost 5 x 16 rows where 25 lanes are dealt and 5 x 32 where they are not.
    """
    size, hidden = ensemble.spec.observation_size, ensemble.config.hidden
    mean = read_array(world.state_mean, (size,))[None, :]
    deviation = read_array(world.state_std, (size,), other=1.0)[None, :]
    state = (observation - mean) / deviation
    bend = ACTIVATIONS[ensemble.config.activation]

    def ask(m: Array, change: Array) -> Array:
        x = bend(_first_layer(ensemble, world.hidden[0], m, state, action))
        for layer in read_layers(world.hidden[1:], hidden, m):
            x = bend(dense(layer, x))
        head = (hidden[-1], size)
        (centre,), (raw,) = read_layers(world.mean, head, m), read_layers(world.log_variance, head, m)
        low, high = (read_array(ref, (size,), m * size)[None, :] for ref in (world.minimum, world.maximum))
        bounded = bound_log_variance(dense(raw, x), Bounds(low, high))
        sample = dense(centre, x) + jnp.exp(0.5 * bounded) * noise
        return jnp.where((member == m)[:, None], sample, change)

    return jax.lax.fori_loop(0, ensemble.sampling_members, ask, jnp.zeros_like(noise))


def _write_rows(
    ring: Any, number: Array, counted: Array, size: int, observation: Array, following: Array, scalars: tuple[Any, ...]
) -> None:
    """Write packed rows to the places ``number`` [L] of the ring, which goes round."""
    row = width(size)
    start = (number % (ring.shape[0] // row)) * row
    column = columns(*observation.shape)
    inside = counted[:, None] & (column < size)
    write(ring, start[:, None] + column, observation, inside)
    write(ring, start[:, None] + column + size, following, inside)
    for i, values in enumerate(scalars):
        write(ring, start + (2 * size + i), jnp.broadcast_to(jnp.asarray(values).astype(ring.dtype), start.shape), counted)


def _first_layer(ensemble: Ensemble, layer: Layer, member: Array, state: Array, action: Array) -> Array:
    """[L, out] of one member's first layer, whose kernel holds the rows of the state and then those of the encoded action."""
    size, out = ensemble.spec.observation_size, ensemble.config.hidden[0]
    start = member * (ensemble.input_size * out)
    outputs = product(state, read_array(layer.kernel, (size, out), start)) + read_array(layer.bias, (out,), member * out)[None, :]
    actions, start = ensemble.spec.action_count, start + size * out
    if actions == 2:
        return outputs + (2 * action - 1).astype(state.dtype)[:, None] * read_array(layer.kernel, (out,), start)[None, :]
    chosen = jnp.where(columns(state.shape[0], padded(actions)) == action[:, None], 1.0, 0.0)
    return outputs + product(chosen, read_array(layer.kernel, (actions, out), start))
