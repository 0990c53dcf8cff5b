"""Matrix products of a network's layers, laid out as a CPU multiplies fastest; elsewhere they are plain.

The fast products that XLA has for a CPU take no transposed left side, and the slow one takes two to seven times as long. So what
would be a transposed left side is transposed first, in the products themselves and in those that their gradients are made of.
Both products are bilinear primitives: they can be differentiated in either mode, any number of times, and mapped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Rule = Callable[[Array, Array], Array]


def _transposed(x: Array) -> Array:
    """[..., n, m] from [..., m, n]."""
    return jnp.swapaxes(x, -1, -2)


def _written_first(x: Array) -> Array:
    """The array, on a CPU written to memory before it is used."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _bilinear(name: str, forward: Rule, left: Rule, right: Rule) -> Rule:
    """Make a product of two arrays with the same leading axes.

    Args:
      name: of the primitive.
      forward: the product itself.
      left: ``(cotangent, right) -> cotangent of left``.
      right: ``(cotangent, left) -> cotangent of right``.

    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(forward))

    def shape(x: jax.core.ShapedArray, y: jax.core.ShapedArray) -> jax.core.ShapedArray:
        result = jax.eval_shape(forward, *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (x, y)))
        return x.update(shape=result.shape, dtype=result.dtype, weak_type=False)

    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(forward, multiple_results=False))
    ad.defbilinear(primitive, lambda back, x, y: left(back, y), lambda back, x, y: right(back, x))

    def batch(operands: tuple[Array, Array], axes: tuple[int | None, int | None]) -> tuple[Array, int]:
        size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
        moved = [
            jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
        ]
        return primitive.bind(*moved), 0

    batching.primitive_batchers[primitive] = batch
    return lambda x, y: primitive.bind(x, y)


def _of_rows(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _of_columns(kernel: Array, x: Array) -> Array:
    return _written_first(_transposed(kernel)) @ x


_rows = _bilinear(
    "product_of_rows",
    _of_rows,
    left=lambda back, kernel: back @ _transposed(kernel),
    right=lambda back, x: _written_first(_transposed(x)) @ back,
)
_columns = _bilinear(
    "product_of_columns",
    _of_columns,
    left=lambda back, x: _written_first(x) @ _transposed(back),
    right=lambda back, kernel: kernel @ back,
)


def product(x: Array, kernel: Array) -> Array:
    """``x @ kernel``, [B, outputs] from rows [B, inputs] and [inputs, outputs]."""
    return _rows(x, kernel)


def product_of_columns(kernel: Array, x: Array) -> Array:
    """``kernel.T @ x``, [outputs, B] from [inputs, outputs] and columns [inputs, B]."""
    return _columns(kernel, x)
