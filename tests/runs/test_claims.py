import contextlib
import errno
import os

import pytest

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError
from mbrl_jax.runs import claims, interruption
from mbrl_jax.runs.claims import InUseError, claimed


def enter(opened):
    with opened:
        pass


def clean_up():
    """What a signal does that ends the process."""
    for clean in reversed(interruption._cleanups):
        clean()


def test_a_new_folder_is_removed_with_those_above_it_unless_something_is_in_it(tmp_path):
    def fail_in(name, file=None):
        with claimed(tmp_path / name):
            if file is not None:
                (tmp_path / file).touch()
            raise RuntimeError

    for name in ("a/b/c", "d"):
        with pytest.raises(RuntimeError):
            fail_in(name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        fail_in("a/b/c", file="a/b/file")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_lock_that_is_removed_while_another_process_takes_it_is_taken_anew(tmp_path, monkeypatch):
    flock, removed = claims.fcntl.flock, []

    def flock_late(descriptor, how):
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(claims.fcntl, "flock", flock_late)
    with claims.hold(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InUseError):
            enter(claims.hold(tmp_path))
    assert removed


def test_what_somebody_else_has_put_there_is_left_as_it_is_and_not_locked(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").touch()
    monkeypatch.setattr(claims, "hold", lambda path: pytest.fail("locked"))
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="exists already and is left as it is; name a new folder"):
            enter(claimed(path))
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "file"}


def test_who_resumes_is_told_whether_something_was_begun(tmp_path):
    with claimed(tmp_path / "new", resume=True) as begun:
        assert not begun
        (tmp_path / "new" / ".run.json.new").write_text("{")  # and is killed before it takes its place
    with claimed(tmp_path / "new", resume=True) as begun:
        assert not begun
        (tmp_path / "new" / "run.json").write_text("{}")
    with claimed(tmp_path / "new", resume=True) as begun:
        assert begun
    with pytest.raises(ConfigError, match="exists already"):
        enter(claimed(tmp_path / "new"))


def test_a_signal_leaves_no_folder_in_which_nothing_was_begun_be_it_locked_already_or_not(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # a signal when the folder has just been made
        patch.setattr(claims, "hold", lambda path: contextlib.nullcontext(clean_up()))
        with claimed(tmp_path / "a" / "b"):
            assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b"), claimed(tmp_path / "a" / "b" / "c"):  # as a comparison and its arms are
        clean_up()
        assert list(tmp_path.iterdir()) == []


def test_a_signal_leaves_what_was_begun_and_its_lock(tmp_path):
    with claimed(tmp_path / "a"):
        (tmp_path / "a" / "run.json").touch()
        clean_up()
        assert {path.name for path in (tmp_path / "a").iterdir()} == {".lock", "run.json"}
        with pytest.raises(InUseError):
            enter(claimed(tmp_path / "a", resume=True))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"run.json"}


def test_who_finds_a_folder_in_use_leaves_the_lock_of_the_other(tmp_path):
    with claimed(tmp_path / "a"):
        with pytest.raises(InUseError, match="another process works on the run in .*; wait for it or name a new folder"):
            enter(claimed(tmp_path / "a"))
        assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "smoke", "--seeds", "1"],
        ["sweep", "smoke", "--grid", "agent.discount=0.9,0.8", "--seeds", "1"],
        ["compare", "--protocol", "batch", "--seeds", "1"],
        ["reference", "smoke", "--seeds", "1"],
    ],
)
def test_every_command_that_trains_works_alone_and_finds_out_before_it_compiles(words, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with claimed(tmp_path / "out"), pytest.raises(SystemExit):
        command_line.main([*words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "another process works on the run" in said
    assert "compiling" not in said
    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    with pytest.raises(SystemExit):
        command_line.main([*words, "--out", str(tmp_path / "deep" / "out")])
    said = capsys.readouterr().err
    assert "cannot be locked: [Errno 37] No locks available" in said
    assert "compiling" not in said
    assert list(tmp_path.iterdir()) == []
