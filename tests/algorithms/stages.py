"""A run's functions, each compiled once for all tests of a file."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Stages(NamedTuple):
    """Those of an algorithm for one config."""

    init: Callable[..., Any]
    fit: Callable[..., Any]
    advance: jax.stages.Compiled  # the state's memory becomes that of the next one
    finish: Callable[..., Any]


def stages_of(algorithm: Any, config: Any, key: Any, axes: Any = None) -> Stages:
    """For one key, or for several with the ``axes`` of the algorithm's state."""
    many = (lambda function, *_: function) if axes is None else jax.vmap
    init = jax.jit(many(algorithm.init, 0, (axes, 0)))
    fit = jax.jit(many(algorithm.fit, (axes, None), (axes, 0)))
    advance = jax.jit(many(algorithm.advance, (axes, None), (axes, 0)), donate_argnums=0)
    finish = jax.jit(many(algorithm.finish, (axes, None)))
    return Stages(init, fit, advance.lower(init.eval_shape(key)[0], config).compile(), finish)
