from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.trees import like, named


class Inner(NamedTuple):
    low: Any
    high: Any


class Outer(NamedTuple):
    params: Any
    bounds: Inner


TREE = Outer({"params": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}}, Inner(jnp.array(1.0), jnp.array(2)))
NAMED = {
    "params": {"params": {"Dense_0": {"kernel": TREE.params["params"]["Dense_0"]["kernel"], "bias": jnp.zeros(3)}}},
    "bounds": {"low": jnp.array(1.0), "high": jnp.array(2)},
}


def test_a_tree_is_named_by_the_keys_of_its_dictionaries_and_the_fields_of_its_tuples():
    assert jax.tree.structure(named(TREE)) == jax.tree.structure(NAMED)
    jax.tree.map(np.testing.assert_array_equal, named(TREE), NAMED)


def test_what_was_named_becomes_the_tree_again():
    again = like(jax.eval_shape(lambda: TREE), named(TREE))
    assert type(again) is Outer
    assert type(again.bounds) is Inner
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(TREE), strict=True):
        assert found is expected


def test_leaves_may_be_of_other_shapes_and_there_may_be_more_of_them_than_are_asked_for():
    nested = {**jax.tree.map(lambda leaf: np.stack([leaf] * 2), NAMED), "critic": np.zeros(1)}
    again = like(TREE, nested)
    assert again.params["params"]["Dense_0"]["bias"].shape == (2, 3)
    np.testing.assert_array_equal(again.bounds.high, [2, 2])


@pytest.mark.parametrize(
    ("nested", "missing"),
    [
        ({}, "params/params/Dense_0/bias"),
        ({"params": NAMED["params"]}, "bounds/low"),
        ({**NAMED, "bounds": {"low": 0.0}}, "bounds/high"),
        ({**NAMED, "bounds": 3.0}, "bounds/low"),
    ],
)
def test_a_leaf_that_is_missing_is_named(nested, missing):
    with pytest.raises(ValueError, match=f"^{missing} is missing$"):
        like(TREE, nested)


def test_a_tree_that_is_one_leaf_is_named_and_found_again():
    leaf = jnp.arange(3.0)
    assert like(jax.eval_shape(lambda: leaf), named(leaf)) is leaf
    assert like(jax.eval_shape(lambda: leaf), leaf) is leaf  # as an archive gives it back
