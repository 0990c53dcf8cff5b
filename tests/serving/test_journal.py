import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from mbrl_jax.environments.logged.episodes import Episodes
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.errors import ConfigError
from mbrl_jax.serving.contract import Task
from mbrl_jax.serving.server import journal as journals
from mbrl_jax.serving.server.journal import Journal
from mbrl_jax.serving.server.reading import Limits, transitions
from mbrl_jax.serving.server.refusal import Refused

from . import exports

TASK = Task("CartPole-v1", exports.AXES["CartPole-v1"], 2, (), (), 500, (-1.0,) * 4, (1.0,) * 4)
TORQUE = Task("Pendulum-v1", exports.AXES["Pendulum-v1"], 0, (-2.0,), (2.0,), 200, (-1.0,) * 3, (1.0,) * 3)


def rows(episode, first=(0.0,) * 4, count=3, end=None, seed=0):
    content, last = exports.transitions(episode, np.array(first), count, end=end, generator=np.random.default_rng(seed))
    return transitions(content, TASK, Limits()), last


@pytest.fixture
def open_journal():
    """Opens journals, and lets go of those that a test leaves open, as the end of their process would."""
    made = []

    def opened(folder, task=TASK):
        made.append(Journal(folder, task))
        return made[-1]

    yield opened
    for journal in made:
        if not journal._file.closed:
            journal._file.close()
            journal._release()


def put(journal, *several):
    for each in several:
        journal.check(each)
    journal.append(several)


def kept(folder):
    """All that training would read of a folder, and the transitions in its journal."""
    parts = sorted(str(path) for path in folder.glob("part-*.parquet"))
    found = [block for part in parts for block in Episodes([open_log(part)])]
    return np.concatenate([block.observation for block in found]) if found else np.zeros((0, 4), np.float32)


def test_ended_episodes_become_a_file_that_training_reads_and_others_go_on(tmp_path, open_journal):
    journal = open_journal(tmp_path)
    first, last = rows("a", count=3)
    other, _ = rows("b", count=2, seed=1)
    put(journal, first, other)
    ended, _ = rows("a", last, count=4, end="truncated", seed=2)
    put(journal, ended)
    assert (journal.rows, journal.ended_rows) == (9, 7)
    assert journal.seal() == 7
    assert (journal.seal(), journal.ended_rows) == (0, 0)
    log = open_log(str(tmp_path / "part-000001.parquet"))
    assert (log.rows, log.action_count) == (7, 2)
    (block,) = Episodes([log])
    np.testing.assert_array_equal(block.observation, np.concatenate([first.observation, ended.observation]))
    np.testing.assert_array_equal(block.action, np.concatenate([first.action, ended.action]))
    np.testing.assert_array_equal(block.truncated, [False] * 6 + [True])
    np.testing.assert_array_equal(block.elapsed, np.arange(7))
    assert not block.broken.any()
    journal.close()
    assert not (tmp_path / "journal-000001.bin").exists()
    again = open_journal(tmp_path)
    follows, _ = rows("b", other.next_observation[-1], count=1, end="terminated", seed=3)
    put(again, follows)
    assert again.seal() == 3
    assert len(kept(tmp_path)) == 10


def test_continuous_actions_are_kept_with_their_scale(tmp_path, open_journal):
    journal = open_journal(tmp_path, TORQUE)
    walk = np.linspace(-1, 1, 15).reshape(5, 3)
    content = {"episode": "a", "observation": walk[:-1].tolist(), "next_observation": walk[1:].tolist(), "reward": [0.5] * 4}
    content |= {"action": [[-2.0], [0.5], [1.0], [2.0]], "terminated": [False] * 4, "truncated": [False] * 3 + [True]}
    put(journal, transitions(content, TORQUE, Limits()))
    journal.close()
    log = open_log(str(tmp_path / "part-000001.parquet"))
    assert log.action_scale == (2.0,)
    (block,) = Episodes([log])
    np.testing.assert_array_equal(block.action, content["action"])


def test_a_journal_cut_at_any_byte_keeps_every_whole_record_and_counts_the_rest(tmp_path, open_journal):
    journal = open_journal(tmp_path / "whole")
    sizes = [0]
    path = tmp_path / "whole" / "journal-000001.bin"
    for number in range(3):
        put(journal, rows(f"e{number}", count=2, seed=number)[0])
        sizes.append(path.stat().st_size)
    content = path.read_bytes()
    for cut in range(0, len(content) + 1, 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal-000001.bin").write_bytes(content[:cut])
        torn = open_journal(folder)
        whole = max(place for place, size in enumerate(sizes) if size <= cut)
        assert (len(torn._going), torn.dropped_bytes) == (whole, cut - sizes[whole])
        put(torn, rows("after", end="terminated")[0])
        torn.close()
        assert len(kept(folder)) == 3
    damaged = bytearray(content)
    damaged[sizes[1] + 40] ^= 1
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "journal-000001.bin").write_bytes(damaged)
    assert len(open_journal(tmp_path / "damaged")._going) == 1


class Killed(BaseException):
    """The process has ended here."""


@pytest.mark.parametrize("step", range(9))
def test_a_process_killed_at_any_step_of_sealing_leaves_every_transition_once(tmp_path, open_journal, monkeypatch, step):
    journal = open_journal(tmp_path)
    ended, going = rows("a", end="terminated")[0], rows("b", count=2, seed=1)[0]
    put(journal, ended, going)
    calls = 0

    def killed(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as during:
        for name in ("replace", "unlink", "write_bytes"):
            during.setattr(journals.Path, name, killed(getattr(journals.Path, name)))
        during.setattr(journals.os, "fsync", killed(os.fsync))
        during.setattr(journals, "write_part", killed(journals.write_part))
        try:
            journal.seal()
        except Killed:
            pass
        else:
            assert step == 8  # all of its steps were done
    journal._file.close()
    journal._release()
    again = open_journal(tmp_path)
    assert [len(parts[0].reward) for parts in again._going.values()] == [2]
    again.close()
    assert len(kept(tmp_path)) == 3


def test_rows_that_do_not_follow_and_episodes_without_number_are_refused(tmp_path, open_journal, monkeypatch):
    journal = open_journal(tmp_path)
    first, last = rows("a")
    put(journal, first)
    with pytest.raises(Refused, match="it is not where 'a' stands") as refused:
        journal.check(rows("a", last + 1)[0])
    assert refused.value.status == 409
    journal.check(rows("a", last)[0])  # where it stands has not changed
    monkeypatch.setattr(journals, "MOST_EPISODES", 1)
    with pytest.raises(Refused, match="1 episodes go on at the same time"):
        journal.check(rows("another")[0])


def test_a_full_disk_loses_what_was_not_acknowledged_and_nothing_else(tmp_path, open_journal, monkeypatch):
    journal = open_journal(tmp_path)
    first, last = rows("a")
    put(journal, first)
    lost, after_lost = rows("a", last, seed=1)
    journal.check(lost)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as during:
        during.setattr(journals, "_sync", full)
        with pytest.raises(OSError, match="no space"):
            journal.append([lost])
    journal.forget([lost])
    with pytest.raises(Refused):
        journal.check(rows("a", after_lost)[0])
    put(journal, rows("a", last, end="truncated", seed=2)[0])
    journal.close()
    assert len(kept(tmp_path)) == 6
    assert journal.rows == 6


def test_one_process_writes_to_a_folder_and_of_one_task(tmp_path, open_journal):
    journal = open_journal(tmp_path)
    with pytest.raises(ConfigError, match="another process writes to"):
        open_journal(tmp_path)
    put(journal, rows("a")[0])
    journal.close()
    with pytest.raises(ConfigError, match="has transitions of another task than Pendulum-v1"):
        open_journal(tmp_path, TORQUE)
    open_journal(tmp_path).close()  # the lock was given back
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        open_journal(tmp_path / "file" / "below")


def test_nothing_of_the_server_imports_jax(tmp_path):
    folder = exports.write_export(tmp_path / "export")
    code = (
        "import sys\nfrom pathlib import Path\nfrom mbrl_jax import command\nfrom mbrl_jax.serving.server import app\n"
        "from mbrl_jax.serving.server import command as serve\n"
        f"app.make_app(app.Settings(Path({str(folder)!r}), data=Path({str(tmp_path / 'data')!r})))\n"
        "print(sorted(name for name in ('jax', 'flax', 'torch', 'gymnax', 'optax') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
