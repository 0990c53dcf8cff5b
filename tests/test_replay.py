import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from algorithms import worlds

from mbrl_jax import environments as env
from mbrl_jax import replay
from mbrl_jax.algorithms import training
from mbrl_jax.replay import Rows, make_replay

epoch_minibatches = jax.jit(replay.epoch_minibatches, static_argnums=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a row."""

    observation_size: int
    action_size: int = 0


class Ring(NamedTuple):
    """A replay's functions and its state."""

    make: replay.Replay
    state: replay.ReplayState

    def after(self, rows):
        return self._replace(state=self.make.write(self.state, rows))

    def contents(self):
        """Rows that hold data, and their places."""
        rows, valid = self.make.contents(self.state)
        return jax.tree.map(lambda leaf: leaf[np.flatnonzero(valid)], rows)


def ring(capacity, size=1, action_size=0):
    make = make_replay(Sizes(size, action_size), capacity)
    return Ring(make, make.init())


def random_rows(shape, size=3, seed=0):
    generator = np.random.default_rng(seed)
    rows = Rows(
        observation=generator.normal(size=(*shape, size)).astype(np.float32),
        next_observation=generator.normal(size=(*shape, size)).astype(np.float32),
        action=generator.integers(0, 5, shape).astype(np.int32),
        reward=generator.normal(size=shape).astype(np.float32),
        terminated=generator.random(shape) < 0.5,
        weight=generator.random(shape).astype(np.float32),
        depth=generator.integers(0, 500, shape).astype(np.int32),
    )
    return jax.tree.map(jnp.asarray, rows)


def numbered(numbers):
    """Rows [...] that each hold their own number throughout; whether they are terminated is whether it is odd."""
    number = jnp.asarray(numbers, jnp.int32)
    real = number.astype(jnp.float32)
    return Rows(real[..., None], real[..., None], number, real, number % 2 == 1, real, number)


def numbers_of(rows):
    """The number of each of the rows [...], which must all be whole."""
    for got, expected in zip(rows, numbered(rows.depth), strict=True):
        np.testing.assert_array_equal(got, expected)
    return np.asarray(rows.depth)


def filled(capacity, written, block=1):
    """A ring after that many numbered rows."""
    start = ring(capacity)
    write = jax.jit(start.make.write)
    state = start.state
    for first in range(0, written, block):
        state = write(state, numbered(range(first, first + block)))
    return start._replace(state=state)


def held(capacity, written):
    """The numbers that a ring holds, by place."""
    places = {number % capacity: number for number in range(written)}
    return [places[place] for place in sorted(places)]


def assert_same(rows, expected):
    for name, got, wanted in zip(Rows._fields, rows, expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=name)
        assert got.dtype == wanted.dtype, name


# ------------------------------------------------------------------------------------------------------- writing and reading


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_rows_come_out_of_a_replay_as_they_went_in_and_in_their_order(shape):
    rows = random_rows(shape)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(shape) :]), rows)
    assert_same(ring(6, size=3).after(rows).contents(), flat)


@pytest.mark.parametrize("numbers", [1, 2])
def test_the_numbers_of_a_continuous_action_are_kept_as_they_are(numbers):
    action = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (6, numbers)).astype(np.float32))
    rows = random_rows((6,))._replace(action=action)
    begun = ring(6, 3, numbers).after(rows)
    assert_same(begun.contents(), rows)
    drawn = begun.make.sample(begun.state, jnp.arange(6, dtype=jnp.uint32))
    assert_same(drawn, rows)


def test_what_is_read_from_a_replay_can_be_written_to_another():
    rows = ring(5, size=3).after(random_rows((5,))).contents()
    assert_same(ring(5, size=3).after(rows).contents(), rows)


def test_a_new_replay_is_empty():
    empty = ring(12, 4)
    rows, valid = empty.make.contents(empty.state)
    assert empty.make.size(empty.state) == 0
    assert empty.make.capacity == 12
    assert not np.asarray(valid).any()
    assert rows.observation.shape == (12, 4)
    assert rows.action.shape == (12,)
    assert ring(12, 4, 2).make.contents(ring(12, 4, 2).state)[0].action.shape == (12, 2)


@pytest.mark.parametrize(("capacity", "count"), [(10, 4), (12, 5), (8, 8), (6, 3), (7, 1), (9, 6)])
def test_a_full_ring_wraps_and_overwrites_its_oldest_rows(capacity, count):
    now = ring(capacity)
    write = jax.jit(now.make.write)
    for first in range(0, 5 * count, count):
        now = now._replace(state=write(now.state, numbered(range(first, first + count))))
        assert numbers_of(now.contents()).tolist() == held(capacity, first + count)
        assert now.state.written == first + count
        assert now.make.size(now.state) == min(first + count, capacity)


WRONG = {
    "observation": jnp.zeros((4, 2)),
    "next_observation": jnp.zeros((3, 1)),
    "action": jnp.zeros((4, 1), jnp.int32),
    "terminated": jnp.zeros((4, 1), bool),
    "weight": jnp.zeros(()),
    "depth": jnp.zeros((1, 4), jnp.int32),
}


@pytest.mark.parametrize("column", WRONG)
def test_a_column_of_a_wrong_shape_is_refused_by_name(column):
    rows = numbered(range(4))._replace(**{column: WRONG[column]})
    shape = {"observation": (4, 1), "next_observation": (4, 1)}.get(column, (4,))
    with pytest.raises(ValueError, match=rf"rows.{column}: shape .* does not fit; it must be \({', '.join(map(str, shape))},?\)"):
        ring(12).after(rows)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_actions_of_other_numbers_than_the_tasks_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows.action: shape .* does not fit; it must be \(4, 2\)"):
        ring(12, 1, 2).after(numbered(range(4))._replace(action=jnp.zeros(shape)))


@pytest.mark.parametrize("shape", [(13,), (2, 7)])
def test_more_rows_than_a_replay_holds_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows: 1[34] do not fit; the replay holds 12"):
        ring(12).after(numbered(np.arange(np.prod(shape)).reshape(shape)))


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_replay_of_no_rows_is_refused(capacity):
    with pytest.raises(ValueError, match=rf"capacity: {capacity} is out of range; it must be at least 1"):
        make_replay(Sizes(1), capacity)


# ---------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(("capacity", "written", "oldest"), [(100, 30, 0), (64, 64, 0), (50, 75, 25)])
def test_sampling_is_uniform_over_the_rows_that_hold_data(capacity, written, oldest):
    bits = jax.random.bits(jax.random.key(0), (200, 100))
    full = filled(capacity, written)
    sampled = numbers_of(full.make.sample(full.state, bits))
    assert sampled.shape == (200, 100)
    numbers, counts = np.unique(sampled, return_counts=True)
    assert numbers.tolist() == list(range(oldest, written))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_sample_is_whole_rows():
    full = filled(20, 13)
    numbers_of(full.make.sample(full.state, jax.random.bits(jax.random.key(1), (50,))))


@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize(("capacity", "written"), [(10, 7), (10, 10), (10, 13), (10, 28)])
def test_a_sequence_is_successive_rows_in_the_order_of_writing_also_across_the_seam(capacity, written, length):
    full = filled(capacity, written)
    rows, _ = full.make.sample_sequences(full.state, jax.random.bits(jax.random.key(2), (30, 10)), length)
    numbers = numbers_of(rows)
    assert numbers.shape == (30, 10, length)
    np.testing.assert_array_equal(np.diff(numbers, axis=-1), 1)
    oldest = max(written - capacity, 0)
    assert set(numbers[..., 0].ravel()) == set(range(oldest, written - length + 1))


def test_a_sequence_begins_at_every_row_that_has_enough_after_it_equally_often():
    full = filled(12, 20)  # rows 8 to 19
    bits = jax.random.bits(jax.random.key(3), (20_000,))
    rows, _ = full.make.sample_sequences(full.state, bits, 5)
    starts, counts = np.unique(numbers_of(rows)[:, 0], return_counts=True)
    assert starts.tolist() == list(range(8, 16))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_sequence_as_long_as_the_replay_is_all_of_it():
    full = filled(6, 9)
    rows, _ = full.make.sample_sequences(full.state, jnp.asarray([0, 5, 77], jnp.uint32), 6)
    assert numbers_of(rows).tolist() == [[3, 4, 5, 6, 7, 8]] * 3


def test_the_first_flags_of_a_sequence_are_where_episodes_begin():
    depth = jnp.asarray([0, 1, 2, 0, 1, 0, 0, 1, 2, 3], jnp.int32)
    full = ring(10).after(numbered(range(10))._replace(depth=depth))
    rows, first = full.make.sample_sequences(full.state, jnp.arange(7, dtype=jnp.uint32), 4)
    assert first.dtype == jnp.dtype(bool)
    number = np.asarray(rows.action)
    np.testing.assert_array_equal(number, np.arange(7)[:, None] + np.arange(4))
    np.testing.assert_array_equal(first, np.asarray(depth == 0)[number])


def test_one_sequence_may_be_drawn_without_leading_axes():
    full = filled(8, 8)
    rows, first = full.make.sample_sequences(full.state, jnp.uint32(3), 2)
    assert numbers_of(rows).tolist() == [3, 4]
    assert first.shape == (2,)


@pytest.mark.parametrize("length", [0, -1, 13])
def test_sequences_that_no_replay_of_that_size_holds_are_refused(length):
    full = filled(12, 12)
    with pytest.raises(ValueError, match=rf"length: {length} is out of range; of a replay of 12 rows it must be from 1 to 12"):
        full.make.sample_sequences(full.state, jnp.zeros(3, jnp.uint32), length)


def first_places(depths, written, draws=2_000):
    """Which rows, counted from 1, hold the first states that are drawn, and how often."""
    depth = jnp.asarray(depths, jnp.int32)
    rows = numbered(range(1, len(depths) + 1))._replace(depth=depth)
    part = ring(len(depths)).after(jax.tree.map(lambda leaf: leaf[:written], rows))
    found = jax.jit(part.make.first_states)(part.state, jax.random.bits(jax.random.key(0), (draws // 4, 4)))
    assert found.shape == (draws // 4, 4, 1)
    return np.unique(np.asarray(found), return_counts=True)


def test_only_first_states_of_episodes_are_drawn_and_each_as_often():
    places, counts = first_places([3, 4, 0, 1, 0, 1, 2, 0, 0, 1], written=10)
    assert places.tolist() == [3, 5, 8, 9]
    assert (np.abs(counts - 500) < 100).all()


def test_places_that_hold_no_data_yet_are_no_first_states():
    places, _ = first_places([0, 1, 2, 0, 1, 0, 0, 0, 0, 0], written=5)
    assert places.tolist() == [1, 4]


def test_first_states_of_real_data_are_the_tasks_initial_states(random_transitions, real_rows):
    real = ring(2_000, size=4).after(real_rows)
    found = jax.jit(real.make.first_states)(real.state, jax.random.bits(jax.random.key(0), (2_000,)))
    starts = np.asarray(random_transitions.observation)[np.asarray(random_transitions.elapsed) == 0]
    assert {tuple(row) for row in np.asarray(found)} == {tuple(row) for row in starts}
    assert np.abs(starts).max() <= 0.05


@pytest.mark.parametrize("numbers", [1, 2, 3, 6])
def test_first_states_are_found_among_rows_with_several_continuous_actions(numbers):
    drawn = env.draw_collection(worlds.points(numbers), jax.random.key(3), 45)
    _, transitions, _ = jax.jit(lambda drawn: env.collect(worlds.points(numbers), drawn))(drawn)
    real = ring(60, numbers, numbers).after(training.real_rows(transitions))
    found = real.make.first_states(real.state, jnp.arange(10, dtype=jnp.uint32))
    starts = np.asarray(transitions.observation)[np.asarray(transitions.elapsed) == 0]
    assert len(starts) == 5
    np.testing.assert_array_equal(found, np.concatenate([starts, starts]))


# ---------------------------------------------------------------------------------------------------------------- many seeds


def mapped(capacity, seeds=3):
    """The functions of a replay and its state for several seeds, with one counter for all."""
    make = make_replay(Sizes(1), capacity)
    write = jax.jit(jax.vmap(make.write, in_axes=(replay.AXES, 0), out_axes=replay.AXES))
    return make, jax.vmap(lambda _: make.init(), out_axes=replay.AXES)(jnp.arange(seeds)), write


def test_mapped_replays_keep_one_counter_for_all():
    make, states, write = mapped(6)
    for first in (0, 4):
        states = write(states, numbered(100 * np.arange(3)[:, None] + np.arange(first, first + 4)))
    assert states.written.shape == ()
    assert states.written == 8
    for seed in range(3):
        one = states._replace(rows=states.rows[seed])
        assert (numbers_of(make.contents(one)[0]) - 100 * seed).tolist() == held(6, 8)


def test_a_mapped_write_at_the_shared_counter_compiles_to_no_scatter():
    _, states, write = mapped(6)
    compiled = write.lower(states, numbered(np.zeros((3, 2)))).compile().as_text()
    assert " scatter(" not in compiled
    assert " dynamic-update-slice(" in compiled


# ------------------------------------------------------------------------------------------------------------ minibatches


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


def test_rows_of_weight_0_do_not_count_in_a_mean():
    mean = jax.jit(replay.weighted_mean)
    assert float(mean(jnp.asarray([1.0, 5.0]), jnp.asarray([1.0, 0.0]))) == 1
    assert float(mean(jnp.asarray([1.0, 5.0]), jnp.asarray([1.0, 3.0]))) == 4
    assert float(mean(jnp.asarray([1.0, 5.0]), jnp.zeros(2))) == 0
