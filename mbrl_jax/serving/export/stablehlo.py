"""StableHLO files: a function as ``jax.export`` serialises it, for any number of rows, on CPUs and GPUs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mbrl_jax.agents.protocol import Policy
from mbrl_jax.environments import EnvironmentSpec, in_units
from mbrl_jax.serving.contract import Port
from mbrl_jax.serving.export.agreement import Run
from mbrl_jax.serving.export.graphs import Graph, action_port, observation_port

PLATFORMS = ("cpu", "cuda")


def write(graph: Graph) -> bytes:
    """A graph, serialised."""
    return _serialised(graph.function, graph.inputs)


def load(content: bytes, graph: Graph) -> Run:
    """What a serialised graph gives for rows."""
    call = jax.jit(export.deserialize(bytearray(content)).call)
    return lambda *inputs: [np.asarray(each) for each in call(*inputs)]


def _serialised(function: Callable[..., Any], inputs: Sequence[Port]) -> bytes:
    (rows,) = export.symbolic_shape("B")
    shapes = [jax.ShapeDtypeStruct(tuple(rows if size == "B" else size for size in port.shape), port.dtype) for port in inputs]
    with jax.default_matmul_precision("highest"):
        return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*shapes).serialize())


class Planner(NamedTuple):
    """A policy with memory as two functions of one episode: where it begins, and one step with the memory in and out."""

    begin: Callable[..., tuple[Any, ...]]  # (seed [] uint32) -> memory
    step: Callable[..., tuple[Any, ...]]  # (observation [1, D], *memory) -> (action [1, ...], *memory)
    begin_inputs: tuple[Port, ...]
    step_inputs: tuple[Port, ...]
    memory: tuple[Port, ...]
    outputs: tuple[Port, ...]


def planner_of(policy: Policy, spec: EnvironmentSpec, axes: tuple[str, ...], params: Any) -> Planner:
    """The functions of a policy with memory; random keys in the memory are their bits."""

    def flat(memory: Any) -> tuple[Any, ...]:
        return tuple(jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(memory))

    template = jax.eval_shape(lambda: policy.begin(params, jax.random.key(0, impl="threefry2x32"), 1))
    structure, kinds = jax.tree.structure(template), [_is_key(leaf) for leaf in jax.tree.leaves(template)]

    def begin(seed: jax.Array) -> tuple[Any, ...]:
        return flat(policy.begin(params, jax.random.key(seed, impl="threefry2x32"), 1))

    def step(observation: jax.Array, *leaves: jax.Array) -> tuple[Any, ...]:
        wrapped = [
            jax.random.wrap_key_data(leaf, impl="threefry2x32") if is_key else leaf
            for leaf, is_key in zip(leaves, kinds, strict=True)
        ]
        memory, action = policy.act(params, jax.tree.unflatten(structure, wrapped), observation)
        return in_units(spec, jnp.clip(action, -1.0, 1.0)) if spec.continuous else action, *flat(memory)

    shapes = jax.eval_shape(lambda: begin(jnp.zeros((), jnp.uint32)))
    memory = tuple(
        Port(f"memory{place}", leaf.shape, leaf.dtype.name, "memory of the episode, as the last step or begin gave it")
        for place, leaf in enumerate(shapes)
    )
    one = observation_port(spec, axes)
    seed = Port("seed", (), "uint32", "from which all random numbers of the episode follow")
    action = action_port(spec)
    single = [port._replace(shape=tuple(1 if size == "B" else size for size in port.shape)) for port in (one, action)]
    return Planner(begin, step, (seed,), (single[0], *memory), memory, (single[1], *memory))


def write_planner(planner: Planner) -> tuple[bytes, bytes]:
    """The function that begins and the one that steps, serialised; both are of one episode."""
    return _serialised(planner.begin, planner.begin_inputs), _serialised(planner.step, planner.step_inputs)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
