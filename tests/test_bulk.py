"""What a function draws in bulk are the numbers that it draws by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import bulk, draws
from mbrl_jax.bulk import in_bulk

KEY = jax.random.key(3)


def everything(key, time, factor=1.0):
    """Keys and numbers of every kind, that wait for each other and that do not."""
    first, second = jax.random.split(key)
    later = jax.random.fold_in(jax.random.fold_in(second, time), 7)
    total, drawn = jax.lax.scan(lambda so_far, key: (so_far + 1, jax.random.uniform(key)), time, jax.random.split(later, 3))
    return {
        "key": later,
        "keys": jax.random.split(first, (2, 2)),
        "folded": jax.vmap(jax.random.fold_in, in_axes=(None, 0))(second, jnp.arange(4)),
        "each": jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.random.split(later, 3)),
        "integers": draws.integers(first, (5,), 6),
        "normal": draws.normal(later, (3, 4)) * factor,
        "more": draws.bits(second, (bulk.FEW + 3,)),
        "order": draws.permutations(later, (2, bulk.FEW)),
        "nothing": draws.bits(second, (0,)),
        "half": jax.random.bits(second, (3,), jnp.uint16),
        "waits": jax.random.fold_in(later, draws.bits(first, (bulk.FEW + 1,))[0]),
        "given": time,
        "again": key,
        "scan": (total, drawn),
    }


def numbers(tree):
    def plain(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return jax.tree.map(plain, tree)


def hashes(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("threefry2x32")


def test_many_seeds_draw_in_bulk_what_each_draws_by_itself():
    def run(function):
        keys, time = jax.random.split(KEY, 3), jnp.asarray(5, jnp.int32)
        return numbers(jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, time))

    jax.tree.map(np.testing.assert_array_equal, run(in_bulk(everything)), run(everything))


def test_a_key_waits_for_numbers_that_it_is_folded_with():
    def chain(key):
        return jax.random.fold_in(key, draws.bits(key, (bulk.FEW + 1,))[-1])

    np.testing.assert_array_equal(numbers(in_bulk(chain)(KEY)), numbers(chain(KEY)))
    assert hashes(in_bulk(chain), KEY) == 2


def test_a_compiled_function_that_holds_arrays_of_its_own_draws_in_bulk():
    scale = jnp.arange(1.0, 4.0)
    inner = jax.jit(lambda key: jax.random.uniform(key, (3,)) * scale)

    def both(key):
        first, second = jax.random.split(key)
        return inner(first) + inner(second)

    np.testing.assert_array_equal(in_bulk(both)(KEY), both(KEY))
    assert hashes(in_bulk(both), KEY) == 2  # the keys, the numbers


def test_what_does_not_wait_is_one_hash():
    def family(key):
        return [draws.uniform(child, (4,)) for child in jax.random.split(key, 5)]

    assert hashes(in_bulk(family), KEY) == 2  # the keys, the numbers


def test_large_draws_wait_until_no_key_is_left_and_are_one_hash():
    def mixed(key):
        large = draws.bits(key, (bulk.FEW + 1,))
        return large, draws.bits(jax.random.split(jax.random.split(key)[0])[1], (bulk.FEW + 1,))

    assert hashes(in_bulk(mixed), KEY) == 3  # two generations of keys, and then both


def test_hashes_together_are_bounded(monkeypatch):
    def two(key):
        return [draws.bits(child, (bulk.FEW + 1,)) for child in jax.random.split(key)]

    assert hashes(in_bulk(two), KEY) == 2
    monkeypatch.setattr(bulk, "MOST", bulk.FEW + 2)
    assert hashes(in_bulk(two), KEY) == 3
    jax.tree.map(np.testing.assert_array_equal, in_bulk(two)(KEY), two(KEY))


def test_a_function_that_is_called_twice_is_computed_twice():
    @jax.jit
    def inner(key):
        return jax.random.uniform(key, (2,))

    def outer(key):
        return inner(key), inner(jax.random.fold_in(key, 1))

    jax.tree.map(np.testing.assert_array_equal, in_bulk(outer)(KEY), outer(KEY))


def test_plain_numbers_stay_plain_and_arrays_are_differentiated():
    def loss(key, weight, kind):
        assert isinstance(kind, float)  # a function may ask for its value
        return jnp.sum(jax.random.normal(key, (3,)) * weight) * (kind if kind > 0 else 1.0)

    weight = jnp.arange(3.0)
    plain, own = (jax.grad(function, argnums=1)(KEY, weight, 2.0) for function in (loss, in_bulk(loss)))
    np.testing.assert_array_equal(plain, own)


def test_keys_of_another_generator_are_left_to_it():
    def function(key):
        return draws.bits(jax.random.split(key)[0], (3,))

    key = jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(in_bulk(function)(key), function(key))
    assert hashes(in_bulk(function), key) == 0


def test_without_jit_the_function_is_called_as_it_is():
    seen = []

    def function(key):
        seen.append(float(jax.random.uniform(key)))
        return key

    with jax.disable_jit():
        in_bulk(function)(KEY)
    assert seen == [float(jax.random.uniform(KEY))]
