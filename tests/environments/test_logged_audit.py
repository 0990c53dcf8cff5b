import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from logs import episodes, log_of

from mbrl_jax.config import ConfigError
from mbrl_jax.environments import Environment, EnvironmentSpec
from mbrl_jax.environments.logged import audit as audit_
from mbrl_jax.environments.logged import columns as columns_
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.findings import find, require_sound
from mbrl_jax.environments.protocol import no_simulator

LENGTHS = (20, 30, 1, 25)


def audit_of(columns, size=7, task=None, **declared):
    return Audit([log_of(columns, size)._replace(**declared)], task)


def told(columns, level="error", **options):
    return [finding.text for finding in find(audit_of(columns, **options)) if finding.level == level]


def a_task(**changes):
    """The task of ``logs.episodes``: pushed along a line, over at the 20th step."""
    spec = EnvironmentSpec("a walk", observation_size=2, action_count=2, time_limit=100, observation_scale=(10.0, 50.0))
    return Environment(spec._replace(**changes), no_simulator, no_simulator)


def test_what_is_counted_is_what_is_there():
    columns = episodes(LENGTHS, truncated=(1,))
    found = audit_of(columns)
    assert (found.rows, found.episodes, found.terminated, found.truncated) == (76, 4, 3, 1)
    np.testing.assert_array_equal(found.lengths, LENGTHS)
    parts = np.split(columns["reward"].astype(np.float64), np.cumsum(LENGTHS)[:-1])
    np.testing.assert_allclose(found.returns, [part.sum() for part in parts], rtol=1e-6)
    np.testing.assert_allclose(found.observation.mean, columns["observation"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.observation.std, columns["observation"].std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.observation.low, columns["observation"].min(axis=0))
    np.testing.assert_array_equal(found.observation.high, columns["observation"].max(axis=0))
    np.testing.assert_array_equal(found.action_counts, np.bincount(columns["action"]))
    assert found.duplicates == 0
    assert [finding.level for finding in find(found)] == []


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_audit_is_the_same_wherever_blocks_part_the_file(size):
    columns = episodes(LENGTHS, truncated=(1,))
    ours, theirs = audit_of(columns, size), audit_of(columns)
    for name in ("lengths", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(ours.step.std, theirs.step.std)


def test_the_sample_is_spread_over_all_rows(monkeypatch):
    monkeypatch.setattr(audit_, "KEPT_ROWS", 10)
    columns = episodes(LENGTHS)
    sample = audit_of(columns).sample
    np.testing.assert_array_equal(sample.observation, columns["observation"][::7])


def with_row(columns, name, row, value):
    changed = columns[name].copy()
    changed[row] = value
    return columns | {name: changed}


def constant(columns, name):
    return columns | {name: np.zeros_like(columns[name])}


def shuffled(columns):
    order = np.random.default_rng(0).permutation(len(columns["reward"]))
    return {name: values[order] for name, values in columns.items() if name != "episode"}


def repeated(columns):
    return {name: np.concatenate([values, values, values]) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: with_row(c, "reward", 40, np.nan), "reward: 1 rows have a number that is not finite, the first is row 40;"),
        (
            lambda c: with_row(c, "observation", 3, np.inf),
            "observation: 1 rows have a number that is not finite, the first is row 3",
        ),
        (lambda c: with_row(c, "action", 41, -1), "action: 1 are out of range, the first is -1 in row 41; they must be whole"),
        (shuffled, r"next_observation: \d+ rows, the first is row \d+, do not lead to the observation of the next row"),
        (lambda c: episodes((40,)), "episodes: 1 does not fit; there must be at least 2"),
        (lambda c: episodes((5, 5)), "rows: 10 do not fit; there must be at least 32"),
        (lambda c: constant(c, "action"), "action: it never varies"),
        (lambda c: c | {"next_observation": c["observation"]}, "next_observation: it is always the observation"),
        (lambda c: constant(episodes(LENGTHS, truncated=range(4)), "reward"), "reward: it is 0 in every row and none is a term"),
        (repeated, "rows: 67% repeat another row"),
    ],
)
def test_data_with_which_no_training_could_be_right_are_an_error(change, error):
    columns = change(episodes(LENGTHS))
    assert any(re.match(error, text) for text in told(columns)), told(columns)
    with pytest.raises(ConfigError, match=f"data: 'made up': {error}"):
        require_sound(audit_of(columns))


def test_actions_beyond_what_the_file_declares_are_out_of_range():
    discrete, continuous = episodes(LENGTHS), episodes(LENGTHS, continuous=True)
    assert told(discrete, action_count=2) == told(continuous, action_scale=(2.0,)) == []
    assert "they must be whole numbers from 0 to 0" in told(discrete, action_count=1)[0]
    assert "they must be of a magnitude of at most 1.5" in told(continuous, action_scale=(1.5,))[0]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda c: constant(constant(c, "observation"), "next_observation"), None),
        (
            lambda c: c | {name: c[name] * np.float32([5000, 1]) for name in ("observation", "next_observation")},
            "observation axis 0 reaches .*: in the right units",
        ),
        (
            lambda c: {k: v % np.float32(64) if v.ndim == 2 else v for k, v in episodes((200, 200)).items()},
            "observation axis 1 jumps by 63, of a range of 63, in one step: an angle that wraps",
        ),
        (lambda c: c | {"action": 2 * c["action"]}, "action 1 was never taken"),
        (
            lambda c: {
                k: np.concatenate([v, v[:5], v[5:20]]) if k != "episode" else np.append(v, [9] * 20) for k, v in c.items()
            },
            "20.8% of the rows repeat another row",
        ),
        (
            lambda c: {name: values for name, values in c.items() if name != "next_observation"},
            "4 rows at the ends of episodes are left out, 4 of them terminations",
        ),
    ],
)
def test_what_looks_wrong_is_a_warning(change, warning):
    columns = change(episodes(LENGTHS))
    found = told(columns, "warning")
    if warning is None:
        assert [text for text in found if "never varies" in text] == [
            f"observation axis {axis} never varies: it is 0 in every row" for axis in (0, 1)
        ]
    else:
        assert any(re.match(warning, text) for text in found), found


def test_what_should_be_known_is_a_note():
    assert told(constant(episodes(LENGTHS), "reward"), "note") == [
        "the reward is 0 in every row: only terminations tell good from bad"
    ]
    assert "no row is a termination" in told(episodes(LENGTHS, truncated=range(4)), "note")[0]


def test_logged_rewards_and_terminations_are_held_against_those_of_the_task():
    columns = episodes((20, 20, 20))
    right = a_task()._replace(
        reward=lambda s, a, s2: 0.5 * jnp.asarray(s[..., 0]), terminated=lambda s, a, s2: jnp.asarray(s2[..., 1] >= 20)
    )
    columns["reward"] = 0.5 * columns["observation"][:, 0]
    assert told(columns, task=right) == []
    wrong = columns | {"reward": columns["reward"] + 1}
    assert "reward: it differs from the task's own in 60 of 60 rows" in told(wrong, task=right)[0]
    early = right._replace(terminated=lambda s, a, s2: jnp.asarray(s2[..., 1] >= 19))
    assert "terminated: it differs from the task's own in 3 of 60 rows" in told(columns, task=early)[0]


def test_where_the_task_tells_when_it_is_over_a_file_need_not_have_seen_it():
    columns = constant(episodes((20, 20), truncated=(0, 1)), "reward")
    assert "so that nothing tells good from bad" in told(columns)[0]
    task = a_task()._replace(terminated=lambda s, a, s2: jnp.asarray(s2[..., 1] > 20))
    assert told(columns, task=task) == []


def test_units_are_held_against_the_scale_of_the_task():
    assert told(episodes((20, 20)), "warning", task=a_task()) == []
    narrow = a_task(observation_scale=(10.0, 0.5))
    assert "observation axis 1 reaches 19, 38 times the task's scale" in told(episodes((20, 20)), "warning", task=narrow)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_size": 3}, "observations of 2 numbers do not fit; those of a walk have 3"),
        ({"action_count": 0, "action_size": 2}, "actions that are whole numbers do not fit; those of a walk are 2 numbers"),
    ],
)
def test_data_of_another_space_than_the_task_s_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"data: 'made up': {message}"):
        audit_of(episodes(LENGTHS), task=a_task(**changes))


def test_files_that_declare_different_actions_are_refused():
    logs = [log_of(episodes(LENGTHS))._replace(action_count=count) for count in (2, 3)]
    with pytest.raises(ConfigError, match="the files differ in action_count: 2 in 'made up', 3 in 'made up'"):
        Audit(logs)


def test_repetitions_are_still_found_where_hashes_are_thinned(monkeypatch):
    monkeypatch.setattr(columns_, "KEPT_HASHES", 2_000)
    columns = repeated(episodes([20] * 1_000))
    assert audit_of(columns, size=4_096).duplicates == pytest.approx(2 / 3, abs=0.05)
    assert audit_of(episodes([20] * 1_000), size=4_096).duplicates == 0


def test_memory_does_not_grow_with_the_file(monkeypatch):
    columns = episodes([100] * 200)
    size = sum(values.nbytes for values in columns.values())

    def peak(times):
        """Of the audit, where the same rows with other numbers come so many times."""

        def blocks():
            for number in range(times):
                moved = {name: values + np.float32(number) if values.ndim == 2 else values for name, values in columns.items()}
                yield from log_of(moved, 5_000).blocks()

        tracemalloc.start()
        try:
            found = Audit([log_of(columns)._replace(blocks=blocks, rows=20_000 * times)])
            return found.rows, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(audit_, "KEPT_ROWS", 1_000)
    monkeypatch.setattr(columns_, "KEPT_HASHES", 10_000)
    (few, small), (many, large) = peak(2), peak(20)
    assert (few, many) == (40_000, 400_000)
    assert large < small + size < 10 * size
