import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import as_table, episodes, log_of, write

from mbrl_jax.config import ConfigError
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.environments.logged import arrays, blocks, tables
from mbrl_jax.environments.logged.episodes import Episodes, Logged, concatenate
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.writing import write_parquet

D4RL = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
    "terminated": "terminals",
    "truncated": "timeouts",
}
LENGTHS, CUT = (4, 6, 1, 9), (1, 3)
SUFFIXES = (".parquet", ".arrow", ".feather", ".npz", ".hdf5")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that episodes cross them."""
    for module in (blocks, arrays, tables):
        monkeypatch.setattr(module, "BLOCK", 3)


def rows_of(*files):
    return concatenate(list(Episodes(files)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("continuous", [False, True])
def test_every_kind_of_file_gives_the_rows_that_were_written(suffix, continuous, tmp_path, small_blocks):
    columns = episodes(LENGTHS, continuous=continuous, truncated=CUT)
    there = {D4RL.get(name, name): values for name, values in columns.items()} if suffix == ".hdf5" else columns
    log = open_log(write(there, tmp_path / f"log{suffix}"))
    rows = rows_of(log)
    assert log.rows == 20
    for name in ("observation", "action", "reward", "next_observation", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(rows, name), columns[name], err_msg=name)
    np.testing.assert_array_equal(rows.elapsed, np.concatenate([np.arange(length) for length in LENGTHS]))
    assert not rows.broken.any()


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_an_episode_is_the_same_wherever_blocks_part_it(size):
    columns = episodes(LENGTHS, truncated=CUT)
    whole, parted = rows_of(log_of(columns, 20)), rows_of(log_of(columns, size))
    for name, ours, theirs in zip(Logged._fields, whole, parted, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_new_episode_number_truncates_the_episode_before(size):
    columns = episodes(LENGTHS, truncated=CUT)
    del columns["truncated"]
    rows = rows_of(log_of(columns, size))
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [9, 19])
    np.testing.assert_array_equal(np.flatnonzero(rows.terminated), [3, 10])


def test_the_end_of_a_file_truncates_an_episode_that_goes_on():
    columns = episodes((4, 6))
    cut = {name: values[:7] for name, values in columns.items() if name != "episode"}
    rows = rows_of(log_of(cut), log_of(cut))
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [6, 13])
    np.testing.assert_array_equal(rows.elapsed[6:9], [2, 0, 1])


def test_a_row_that_is_terminated_and_truncated_is_a_termination():
    columns = episodes((4, 6))
    columns["truncated"] = columns["terminated"].copy()
    assert not rows_of(log_of(columns)).truncated.any()


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_without_next_observations_the_last_row_of_each_episode_goes(size):
    columns = episodes(LENGTHS, truncated=CUT)
    known = np.isin(np.arange(20), (3, 9, 10, 19), invert=True)
    del columns["next_observation"]
    blocks_ = Episodes([log_of(columns, size)])
    rows = concatenate(list(blocks_))
    assert (blocks_.lost, blocks_.lost_terminated) == (4, 2)
    np.testing.assert_array_equal(rows.observation, columns["observation"][known])
    np.testing.assert_array_equal(rows.next_observation[:3], columns["observation"][1:4])
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [2, 7, 15])
    assert not rows.terminated.any()
    assert not rows.broken.any()


def test_rows_that_do_not_lead_to_the_next_one_are_told():
    columns = episodes((5, 5))
    order = [0, 2, 1, 3, 4, 5, 6, 7, 8, 9]
    rows = rows_of(log_of({name: values[order] for name, values in columns.items()}))
    np.testing.assert_array_equal(np.flatnonzero(rows.broken), [0, 1, 2])


def test_a_vector_may_be_numbered_columns(tmp_path):
    columns = episodes(LENGTHS, continuous=True)
    flat = {name: values for name, values in columns.items() if values.ndim == 1}
    for name in ("observation", "next_observation", "action"):
        flat |= {f"{name}.{axis}": column for axis, column in enumerate(columns[name].T)}
    rows = rows_of(open_log(write(flat, tmp_path / "flat.parquet")))
    np.testing.assert_array_equal(rows.observation, columns["observation"])
    np.testing.assert_array_equal(rows.action, columns["action"])


def test_a_parquet_file_says_how_many_actions_there_are_or_what_scale_they_have(tmp_path):
    discrete = write(episodes((4, 4)), tmp_path / "discrete.parquet", action_count=5)
    continuous = write(episodes((4, 4), continuous=True), tmp_path / "continuous.parquet", action_scale=[2])
    assert open_log(discrete)[3:] == (5, None)
    assert open_log(continuous)[3:] == (None, (2.0,))


def test_a_parquet_file_is_not_held_in_memory_while_it_is_read(tmp_path):
    rows = concatenate(list(Episodes([log_of(episodes([100] * 200), 20_000)])))
    spec = EnvironmentSpec("a walk", observation_size=2, action_count=2, time_limit=100, observation_scale=(1.0, 1.0))
    moved = (rows._replace(observation=rows.observation + np.float32(i), reward=rows.reward + np.float32(i)) for i in range(20))
    write_parquet(tmp_path / "log.parquet", moved, spec)
    before, held = pa.total_allocated_bytes(), []
    for block in open_log(str(tmp_path / "log.parquet")).blocks():
        assert len(block.reward) <= 20_000
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 20
    assert max(held[10:]) < 1.5 * max(held[:5])


def test_a_missing_number_is_not_a_number(tmp_path):
    table = as_table(episodes((4, 4)))
    reward = pa.array([None, *table["reward"].to_pylist()[1:]], pa.float32())
    pq.write_table(table.set_column(table.schema.get_field_index("reward"), "reward", reward), tmp_path / "log.parquet")
    assert np.isnan(rows_of(open_log(str(tmp_path / "log.parquet"))).reward[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "has no column 'reward'; it must be called reward or rewards; there are action, episode, next_obs"),
        ({"truncated": None, "episode": None}, "has no column 'truncated'; it must say where episodes were cut, or a column"),
        ({"terminated": None, "done": np.zeros(8, bool)}, "a 'done' does not tell a termination from a truncation"),
        (
            {"terminated": np.full(8, 0.5)},
            r"column 'terminated', rows from 0: float64\[\] does not fit; it must be true or false",
        ),
        ({"observation": np.array(["a"] * 8)}, "column 'observation', rows from 0: .* does not fit; it must be D numbers a row"),
        (
            {"action": np.zeros((8, 2), np.int64)},
            r"'action', rows from 0: int64\[2\] does not fit; it must be a whole number or A",
        ),
        ({"reward": np.zeros((8, 2))}, r"column 'reward', rows from 0: float64\[2\] does not fit; it must be one number a row"),
        (
            {"next_observation": np.zeros((8, 3), np.float32)},
            "'next_observation': 3 numbers do not fit; 'observation' has 2 numbers",
        ),
    ],
)
def test_a_column_that_cannot_be_is_refused(change, message, tmp_path):
    columns = {name: values for name, values in (episodes((4, 4)) | change).items() if values is not None}
    path = write(columns, tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match=f"data: '{path}'.*{message}"):
        rows_of(open_log(path))


def test_lists_of_mixed_lengths_are_refused_with_the_row(tmp_path):
    columns = episodes((4, 4))
    table = as_table(columns)
    lists = columns["observation"].tolist()
    lists[5] = [1.0, 2.0, 3.0]
    place = table.schema.get_field_index("observation")
    pq.write_table(table.set_column(place, "observation", pa.array(lists)), tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match=r"'observation', row 5: a list of 3 does not fit; each row .* the first \(2\)"):
        rows_of(open_log(str(tmp_path / "log.parquet")))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_arrays_of_mixed_lengths_are_refused(suffix, tmp_path):
    columns = episodes((4, 4)) | {"action": np.zeros(7, np.int64)}
    with pytest.raises(ConfigError, match="'action' has 7 rows and 'reward' 8; they must be as many"):
        open_log(write(columns, tmp_path / f"log{suffix}"))


def test_files_of_other_shapes_are_refused_together():
    columns = episodes((4, 4))
    other = columns | {"observation": np.zeros((8, 3), np.float32), "next_observation": np.zeros((8, 3), np.float32)}
    with pytest.raises(ConfigError, match=r"column 'observation': float32\[3\] does not fit; the rows before have float32\[2\]"):
        rows_of(log_of(columns), log_of(other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.parquet", "there is no such file"),
        ("log.csv", "its name must end in one of .parquet, .arrow"),
        ("broken.parquet", "cannot be read: "),
        ("broken.npz", "cannot be read: "),
        ("broken.arrow", "cannot be read"),
        ("broken.hdf5", "cannot be read: "),
        ("objects.npz", "array 'action': Python objects do not fit"),
        ("fortran.npz", "array 'observation' is stored column by column; it must be in C order"),
    ],
)
def test_what_is_no_log_is_refused(name, message, tmp_path):
    columns = episodes((4, 4))
    np.savez(tmp_path / "objects.npz", **(columns | {"action": np.array([None] * 8)}))
    np.savez(tmp_path / "fortran.npz", **(columns | {"observation": np.asfortranarray(columns["observation"])}))
    for each in ("log.csv", "broken.parquet", "broken.npz", "broken.arrow", "broken.hdf5"):
        (tmp_path / each).write_bytes(b"nothing that anybody reads")
    with pytest.raises(ConfigError, match=f"data: '{tmp_path / name}'.*{message}"):
        open_log(str(tmp_path / name))


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    path = write(episodes((4, 4)), tmp_path / "log.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"needs h5py, which is not installed: pip install 'mbrl-jax\[data\]'"):
        open_log(path)
