import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import draws

SHAPE = (3, 5, 7)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (draws.bits, jax.random.bits),
        (draws.uniform, jax.random.uniform),
        (draws.normal, jax.random.normal),
        (lambda key, shape: draws.integers(key, shape, 6), lambda key, shape: jax.random.randint(key, shape, 0, 6, jnp.int32)),
    ],
    ids=["bits", "uniform", "normal", "integers"],
)
def test_flat_draws_are_the_numbers_of_jax_random(ours, theirs):
    np.testing.assert_array_equal(ours(KEY, SHAPE), theirs(KEY, SHAPE))


@pytest.mark.parametrize("length", [0, 1, 2, 25, 256, 257, 2**16 + 1])
def test_every_last_axis_is_a_permutation(length):
    drawn = np.asarray(draws.permutations(KEY, (2, length)))
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(np.sort(drawn, axis=-1), np.broadcast_to(np.arange(length), (2, length)))


def test_every_place_is_equally_likely_to_come_anywhere():
    drawn = np.asarray(draws.permutations(KEY, (6_000, 5)))
    counts = np.array([[np.sum(drawn[:, place] == number) for number in range(5)] for place in range(5)])
    assert np.abs(counts - 1_200).max() < 5 * np.sqrt(1_200 * 0.8)


def test_permutations_of_one_draw_differ():
    drawn = np.asarray(draws.permutations(KEY, (50, 25)))
    assert len({tuple(row) for row in drawn}) == 50


def test_initial_weights_have_the_variance_of_lecun_and_are_cut_at_two_deviations():
    weights = np.asarray(draws.lecun_normal(KEY, (400, 300), jnp.float32))
    assert weights.shape == (400, 300)
    assert weights.std() == pytest.approx(400**-0.5, rel=0.02)
    assert np.abs(weights).max() <= 2 * 400**-0.5 / 0.8796
    assert abs(weights.mean()) < 1e-3


def test_an_inverse_undoes_each_permutation():
    drawn = draws.permutations(jax.random.key(3), (4, 3, 7))
    undone = np.take_along_axis(np.asarray(draws.inverse(drawn)), np.asarray(drawn), axis=-1)
    np.testing.assert_array_equal(undone, np.broadcast_to(np.arange(7), (4, 3, 7)))
    assert draws.inverse(jnp.zeros((5, 0), jnp.int32)).shape == (5, 0)
