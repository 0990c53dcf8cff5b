"""Functions in primitives that other runtimes know, with everything that depends on parameters alone computed beforehand."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

INNER = ("jaxpr", "call_jaxpr")  # parameters of primitives that call a function once, with its operands as they are
LOOPS = ("scan", "while", "cond")


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function without calls, without the library's own products, and with constants folded.

    A run's parameters, which ``function`` closes over, become the constants of a few matrix products. The number of rows may be
    symbolic. Loops stay as they are.
    """

    def wrapped(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return wrapped


def _evaluate(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of a traced function, with its equations bound anew."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        sizes = [size for variable in equation.outvars for size in variable.aval.shape]  # type: ignore[attr-defined]
        if any(isinstance(operand, jax.core.Tracer) for operand in operands) or not all(isinstance(size, int) for size in sizes):
            results = _bind(equation, operands)
        else:
            with jax.ensure_compile_time_eval():
                results = _bind(equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _bind(equation: Any, operands: list[Any]) -> list[Any]:
    """The results of one equation."""
    name, parameters = equation.primitive.name, equation.params
    if name == "product_of_rows":
        rows, kernel = operands
        return [rows @ kernel]
    if name == "product_of_columns":
        kernel, columns = operands
        return [jnp.swapaxes(kernel, -1, -2) @ columns]
    inner = next((parameters[key] for key in INNER if key in parameters), None)
    if isinstance(inner, ClosedJaxpr) and name not in LOOPS:
        return _evaluate(inner.jaxpr, inner.consts, operands)
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(parameters))
    return list(results) if equation.primitive.multiple_results else [results]
