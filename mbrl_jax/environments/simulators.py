"""What the simulators of others need to be run by this library."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Let a simulator mix dtypes and ranks, whatever the caller's own code may."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def strong(tree: Any) -> Any:
    """Arrays without weak types, so that a state keeps its type through a scan."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), tree)


def like(tree: Any, template: Any) -> Any:
    """Arrays with the dtypes and shapes of those of ``template``, for a simulator whose step gives others than its reset."""
    return jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype).reshape(old.shape), tree, template)
