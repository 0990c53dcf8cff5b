"""The random numbers of a whole function, in few calls of the generator.

Deriving a key from a key and drawing numbers from a key are both one hash, threefry (Salmon et al. 2011). Written where they are
needed, a program has twenty to forty hashes. The compiler takes long for each of them, and for a GPU it computes a key anew,
with all keys before it, wherever it is used. Few wait for each other: :func:`in_bulk` computes the others at once.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core
from jax.extend.core.primitives import jit_p, random_bits_p, random_fold_in_p, random_split_p
from jax.extend.random import threefry2x32_p

P = ParamSpec("P")
T = TypeVar("T")

HASHES = (random_bits_p, random_fold_in_p, random_split_p)
FEW = 2048  # numbers of a hash; those of more wait until no others are left, which may be keys that more hashes need
MOST = 2**22  # numbers of several hashes together, 16 MiB


class _Variable(NamedTuple):
    """A variable of a traced function, in one of the calls of it: where a function is called twice it has two."""

    call: int
    variable: core.Var


class _Equation(NamedTuple):
    """One operation of a traced function."""

    operation: core.JaxprEqn
    inputs: list[Any]  # each a _Variable, or a core.Literal
    outputs: list[_Variable]


def in_bulk(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with the same results to the last bit, its random keys and numbers computed together where they can be.

    The function is traced, and its operations are done in another order: first all that need no random numbers. When nothing
    else can go on, all keys that can be derived are derived in one hash; when no key is left, all numbers are drawn in one.
    Loops within the function keep the order that they have.

    With ``JAX_DISABLE_JIT``, which is for going through a function step by step, it is called as it is. So are keys of another
    generator than threefry.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        config: Any = jax.config
        if config.jax_disable_jit or not config.jax_threefry_partitionable:
            return function(*args, **kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
        results: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            whole = list(leaves)  # plain numbers stay plain: a function may ask for their value
            for place, array in zip(places, arrays, strict=True):
                whole[place] = array
            own_args, own_kwargs = jax.tree.unflatten(tree, whole)
            out, structure = jax.tree.flatten(function(*own_args, **own_kwargs))
            results.append(structure)
            return out

        arrays = [leaves[place] for place in places]
        traced = jax.make_jaxpr(flat)(*arrays)
        return jax.tree.unflatten(results[0], _evaluate(traced, arrays))  # type: ignore[no-any-return]

    return call


def _evaluate(traced: core.ClosedJaxpr, arguments: list[Any]) -> list[Any]:
    """What a traced function returns for these arguments."""
    jaxpr = traced.jaxpr
    same: dict[_Variable, Any] = {}
    known: dict[_Variable, Any] = {}
    waiting = list(_flattened(jaxpr, 0, iter(range(1, 2**31)), same, known))
    known.update((_Variable(0, variable), value) for variable, value in zip(jaxpr.constvars, traced.consts, strict=True))
    known.update((_Variable(0, variable), value) for variable, value in zip(jaxpr.invars, arguments, strict=True))

    def find(inputs: list[Any]) -> list[Any]:
        return [each.val if isinstance(each, core.Literal) else known[each] for each in inputs]

    while waiting:
        later, hashes = [], []
        for equation in waiting:
            if not all(isinstance(each, core.Literal) or each in known for each in equation.inputs):
                later.append(equation)
            elif _is_hash(equation.operation):
                hashes.append(equation)
            else:
                known.update(zip(equation.outputs, _do(equation.operation, find(equation.inputs)), strict=True))
        if now := _next(hashes):
            drawn = _hash_all([(equation.operation, find(equation.inputs)) for equation in now])
            known.update((equation.outputs[0], value) for equation, value in zip(now, drawn, strict=True))
        remaining = [equation for equation in hashes if equation not in now] + later
        assert len(remaining) < len(waiting), "every operation waits for one before it"
        waiting = remaining
    return find([_resolved(_input(each, 0), same) for each in jaxpr.outvars])


def _next(hashes: list[_Equation]) -> list[_Equation]:
    """Those of the hashes that are to be computed first, together: all small ones, else as many as :data:`MOST` allows."""
    small = [equation for equation in hashes if _size(equation.operation) <= FEW]
    if small:
        return small
    sizes = itertools.accumulate(_size(equation.operation) for equation in hashes)
    return [equation for place, (equation, size) in enumerate(zip(hashes, sizes, strict=True)) if place == 0 or size <= MOST]


def _flattened(
    jaxpr: core.Jaxpr, call: int, fresh: Iterator[int], same: dict[_Variable, Any], known: dict[_Variable, Any]
) -> Iterator[_Equation]:
    """The operations of a function and of those that it calls, if there are hashes in them.

    Args:
      jaxpr: the function.
      call: the number of this call.
      fresh: numbers for other calls.
      same: is extended by which variables are the same, as an argument inside a call and outside it are.
      known: is extended by the arrays that the functions called were made with, not given.

    """
    for operation in jaxpr.eqns:
        inner = operation.params["jaxpr"].jaxpr if operation.primitive is jit_p else None
        if inner is None or not _has_hashes(inner):
            inputs = [_resolved(_input(each, call), same) for each in operation.invars]
            yield _Equation(operation, inputs, [_Variable(call, each) for each in operation.outvars])
            continue
        number, constants = next(fresh), operation.params["jaxpr"].consts
        known.update((_Variable(number, each), value) for each, value in zip(inner.constvars, constants, strict=True))
        for inside, outside in zip(inner.invars, operation.invars, strict=True):
            same[_Variable(number, inside)] = _resolved(_input(outside, call), same)
        yield from _flattened(inner, number, fresh, same, known)
        for outside, inside in zip(operation.outvars, inner.outvars, strict=True):
            same[_Variable(call, outside)] = _resolved(_input(inside, number), same)


def _input(atom: Any, call: int) -> Any:
    return atom if isinstance(atom, core.Literal) else _Variable(call, atom)


def _resolved(atom: Any, same: dict[_Variable, Any]) -> Any:
    return atom if isinstance(atom, core.Literal) else same.get(atom, atom)


def _has_hashes(jaxpr: core.Jaxpr) -> bool:
    """Whether there are hashes in a function, or in one that it calls."""
    return any(
        _is_hash(operation) or (operation.primitive is jit_p and _has_hashes(operation.params["jaxpr"].jaxpr))
        for operation in jaxpr.eqns
    )


def _is_hash(operation: core.JaxprEqn) -> bool:
    """Whether it is a hash of a threefry key, to whole numbers of 32 bits."""
    key: Any = operation.invars[0].aval if operation.primitive in HASHES else None
    return (
        key is not None
        and key.dtype == _threefry()
        and operation.params.get("bit_width", 32) == 32
        and 0 < _size(operation) < 2**32
    )


@functools.cache
def _threefry() -> Any:
    """The type of its keys."""
    return jax.random.key(0, impl="threefry2x32").dtype


def _size(operation: core.JaxprEqn) -> int:
    """The numbers that a hash gives."""
    return math.prod(_shape(operation))


def _shape(operation: core.JaxprEqn) -> tuple[int, ...]:
    """Of what a hash gives."""
    result: Any = operation.outvars[0].aval
    return result.shape  # type: ignore[no-any-return]


def _do(operation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """What any operation gives."""
    result = operation.primitive.bind(*inputs, **operation.primitive.get_bind_params(operation.params))
    return list(result) if operation.primitive.multiple_results else [result]


def _hash_all(hashes: list[tuple[core.JaxprEqn, list[Any]]]) -> list[Array]:
    """The results of several hashes, of one after all."""
    asked = [_asked(operation, inputs) for operation, inputs in hashes]
    left, right, counters = (jnp.concatenate(each) if len(each) > 1 else each[0] for each in zip(*asked, strict=True))
    first, second = threefry2x32_p.bind(left, right, jnp.zeros_like(counters), counters)
    numbers = all(operation.primitive is random_bits_p for operation, _ in hashes)
    # Written to memory: for a GPU the compiler would hash anew wherever a number is used, and all keys before it.
    words = jax.lax.optimization_barrier((first ^ second,) if numbers else (first, second))
    results, start = [], 0
    for operation, _ in hashes:
        shape, end = _shape(operation), start + _size(operation)
        own = [word[start:end].reshape(shape) for word in words]
        if operation.primitive is random_bits_p:
            results.append(own[0] if numbers else own[0] ^ own[1])
        else:
            results.append(jax.random.wrap_key_data(jnp.stack(own, axis=-1), impl="threefry2x32"))
        start = end
    return results


def _asked(operation: core.JaxprEqn, inputs: list[Any]) -> tuple[Array, Array, Array]:
    """The two words of the key [n] and the counter [n] of each number of a hash."""
    shape = _shape(operation)
    data, own = jax.random.key_data(inputs[0]), inputs[0].ndim  # [..., 2]
    key = [jax.lax.index_in_dim(data, word, axis=-1, keepdims=False) for word in range(2)]
    if operation.primitive is random_fold_in_p:
        counters = jnp.asarray(inputs[1], jnp.uint32)
        words = [jnp.broadcast_to(each, shape).reshape(-1) for each in (*key, counters)]
        return words[0], words[1], words[2]
    each = math.prod(shape[own:])
    left, right = (jnp.broadcast_to(word[..., None], (*shape[:own], each)).reshape(-1) for word in key)
    counters = jnp.broadcast_to(jnp.arange(each, dtype=jnp.uint32), (math.prod(shape[:own]), each)).reshape(-1)
    return left, right, counters
