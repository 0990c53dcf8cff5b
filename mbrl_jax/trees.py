"""Trees of arrays as nested dictionaries by name, and back: what is stored of them."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

DAMAGED = (
    *(EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""What reading an archive of arrays raises that is damaged."""


def named(tree: Any) -> dict[str, Any]:
    """A tree as nested dictionaries, whose keys are those of its dictionaries and the fields of its NamedTuples.

    A tree that is one leaf has the key "".
    """
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *inner, last = (jax.tree_util.keystr((key,), simple=True) for key in path) if path else ("",)
        place = nested
        for name in inner:
            place = place.setdefault(name, {})
        place[last] = leaf
    return nested


def like(template: Any, nested: Mapping[str, Any]) -> Any:
    """The tree of the structure of ``template`` whose leaves :func:`named` gave.

    Raises:
      ValueError: a leaf is missing.

    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = []
    for path, _ in paths:
        place: Any = nested
        for key in path:
            name = jax.tree_util.keystr((key,), simple=True)
            if not isinstance(place, Mapping) or name not in place:
                raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/')} is missing")
            place = place[name]
        leaves.append(place[""] if isinstance(place, Mapping) and "" in place else place)
    return jax.tree.unflatten(structure, leaves)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their path, names joined by slashes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def nest(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested dictionaries whose leaves :func:`flatten` named."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *inner, leaf = path.split("/")
        place = tree
        for name in inner:
            place = place.setdefault(name, {})
        place[leaf] = array
    return tree
