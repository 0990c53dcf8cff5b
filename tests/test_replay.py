import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax import replay
from mbrl_jax.replay import Replay, Rows

epoch_minibatches = jax.jit(replay.epoch_minibatches, static_argnums=(1, 2, 3))


def random_rows(shape, size=3, seed=0):
    generator = np.random.default_rng(seed)
    return Rows(
        observation=generator.normal(size=(*shape, size)).astype(np.float32),
        next_observation=generator.normal(size=(*shape, size)).astype(np.float32),
        action=generator.integers(0, 5, shape).astype(np.int32),
        reward=generator.normal(size=shape).astype(np.float32),
        terminated=generator.random(shape) < 0.5,
        weight=generator.random(shape).astype(np.float32),
        depth=generator.integers(0, 500, shape).astype(np.int32),
    )


def numbered(first, count, width=7):
    """[count, width] rows that each hold their own number throughout."""
    return jnp.broadcast_to(jnp.arange(first, first + count, dtype=jnp.float32)[:, None], (count, width))


def filled(capacity, written):
    """A ring of numbered rows after ``written`` of them."""
    places = np.zeros(capacity)
    for number in range(written):
        places[number % capacity] = number
    rows = np.broadcast_to(places[:, None], (capacity, 7)).astype(np.float32)
    return Replay(rows=jnp.asarray(rows), written=jnp.array(written, jnp.int32))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_unpacking_a_packed_row_gives_it_back(shape):
    rows = random_rows(shape)
    packed = replay.pack(jax.tree.map(jnp.asarray, rows))
    assert packed.shape == (*shape, replay.width(3)) == (*shape, 11)
    back = replay.unpack(packed)
    for name, before, after in zip(Rows._fields, rows, back, strict=True):
        np.testing.assert_array_equal(after, before, err_msg=name)
        assert after.dtype == before.dtype, name


@pytest.mark.parametrize("numbers", [1, 2])
def test_the_numbers_of_a_continuous_action_are_kept_as_they_are(numbers):
    action = np.random.default_rng(1).uniform(-1, 1, (6, numbers)).astype(np.float32)
    rows = random_rows((6,))._replace(action=action)
    packed = replay.pack(jax.tree.map(jnp.asarray, rows))
    assert packed.shape == (6, replay.width(3, numbers)) == (6, 10 + numbers)
    for before, after in zip(rows, replay.unpack(packed, numbers), strict=True):
        np.testing.assert_array_equal(after, before)
    assert replay.create(4, 3, numbers).rows.shape == (4, 10 + numbers)


def test_packing_an_unpacked_row_gives_it_back():
    packed = replay.pack(jax.tree.map(jnp.asarray, random_rows((5,))))
    np.testing.assert_array_equal(replay.pack(replay.unpack(packed)), packed)


def test_a_new_replay_is_empty():
    empty = replay.create(12, 4)
    assert empty.rows.shape == (12, 13)
    assert replay.size(empty) == 0


@pytest.mark.parametrize(("capacity", "count"), [(10, 4), (12, 5), (8, 8), (6, 3), (7, 1), (9, 6)])
def test_a_full_ring_wraps_and_overwrites_its_oldest_rows(capacity, count):
    write = jax.jit(replay.write)
    ring = replay.create(capacity, 1)
    for first in range(0, 5 * count, count):
        ring = write(ring, numbered(first, count))
        expected = filled(capacity, first + count)
        np.testing.assert_array_equal(ring.rows, expected.rows)
        assert ring.written == first + count
        assert replay.size(ring) == min(first + count, capacity)


@pytest.mark.parametrize("shape", [(4, 6), (4, 8), (7,), (1, 4, 7), (13, 7)])
def test_rows_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="do not fit a replay of shape"):
        replay.write(replay.create(12, 1), jnp.zeros(shape))


@pytest.mark.parametrize(("capacity", "written", "held"), [(100, 30, range(30)), (64, 64, range(64)), (50, 75, range(25, 75))])
def test_sampling_is_uniform_over_the_rows_that_hold_data(capacity, written, held):
    bits = jax.random.bits(jax.random.key(0), (200, 100))
    sampled = replay.sample(filled(capacity, written), bits)
    assert sampled.shape == (200, 100, 7)
    numbers, counts = np.unique(np.asarray(sampled[..., 0]), return_counts=True)
    assert numbers.tolist() == list(held)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_sample_is_whole_rows():
    sampled = np.asarray(replay.sample(filled(20, 13), jax.random.bits(jax.random.key(1), (50,))))
    np.testing.assert_array_equal(sampled, np.broadcast_to(sampled[:, :1], sampled.shape))


def test_mapped_replays_keep_one_counter_for_all():
    stacked = Replay(rows=jnp.zeros((3, 6, 7)), written=jnp.zeros((), jnp.int32))
    write = jax.jit(jax.vmap(replay.write, in_axes=(replay.AXES, 0), out_axes=replay.AXES))
    for first in (0, 4):
        rows = jnp.stack([numbered(first, 4) + 100.0 * seed for seed in range(3)])
        stacked = write(stacked, rows)
    assert stacked.written.shape == ()
    assert stacked.written == 8
    for seed in range(3):
        np.testing.assert_array_equal(stacked.rows[seed], filled(6, 8).rows + 100.0 * seed)


def test_a_mapped_write_at_the_shared_counter_compiles_to_no_scatter():
    stacked = Replay(rows=jnp.zeros((3, 6, 7)), written=jnp.zeros((), jnp.int32))
    write = jax.jit(jax.vmap(replay.write, in_axes=(replay.AXES, 0), out_axes=replay.AXES))
    compiled = write.lower(stacked, jnp.zeros((3, 2, 7))).compile().as_text()
    assert " scatter(" not in compiled
    assert " dynamic-update-slice(" in compiled


def test_an_epoch_is_a_shuffle_without_repeats_for_every_member():
    batches = np.asarray(epoch_minibatches(jax.random.key(3), 4, 26, 5))
    assert batches.shape == (5, 4, 5)
    assert batches.dtype == np.int32
    for member in range(4):
        rows = batches[:, member].ravel()
        assert len(set(rows)) == 25
        assert set(rows) <= set(range(26))


def test_members_pass_over_the_rows_in_orders_of_their_own():
    batches = np.asarray(epoch_minibatches(jax.random.key(3), 4, 26, 5))
    orders = {tuple(batches[:, member].ravel()) for member in range(4)}
    assert len(orders) == 4
    assert tuple(range(25)) not in orders


def test_the_remainder_that_an_epoch_drops_is_another_one_each_time():
    keys = jax.random.split(jax.random.key(5), 60)
    batches = jax.jit(jax.vmap(lambda key: replay.epoch_minibatches(key, 1, 7, 3)))(keys)
    counts = np.bincount(np.asarray(batches).ravel(), minlength=7)
    assert counts.sum() == 60 * 6
    assert (counts > 35).all()
