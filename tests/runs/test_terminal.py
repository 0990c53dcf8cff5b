import io
import os
import re
import sys

import pytest
from rich.console import Console

from mbrl_jax.runs import terminal

NAMES = ("lr[best]", "a[/b]", "[red]", ":smile:", "back\\slash[x]")


@pytest.fixture
def nobody_reads():
    """The writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", closefd=False) as stream:  # a test may have sent it nowhere, and closes it itself
        yield stream
    os.close(writer)


def test_what_a_person_gave_is_printed_as_it_is_in_lines_and_in_every_part_of_a_table(capsys):
    for name in NAMES:
        terminal.show(
            f"written to {name}", terminal.table((name,), [(name,)], title=f"{name} in a title that is long", caption=name)
        )
        printed = capsys.readouterr().out
        assert printed.splitlines()[0] == f"written to {name}"
        assert printed.count(name) == 5


def test_a_table_of_such_names_can_be_printed_on_any_console():
    for name in NAMES:
        file = io.StringIO()
        Console(file=file, width=80).print(
            terminal.table(("run",), [(name,)], title=f"of the run {name}", caption=f"about {name}")
        )
        assert file.getvalue().count(name) == 3


def test_what_a_script_may_read_is_never_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path, words = "/a/" + "folder/" * 60, "many words " * 30
    terminal.show(f"written to {path}", terminal.table(("path", "words"), [(path, words)], title=words, caption=words))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"written to {path}"
    assert sum(path in line and words.strip() in line for line in lines) == 1
    assert sum(words.strip() in line for line in lines) == 3


@pytest.mark.parametrize("width", [80, 20])
def test_on_a_terminal_a_table_fits_and_nothing_of_it_is_cut(monkeypatch, width):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, cells = Terminal(), ("abcdefghijklmnopqrstuvwxyz" * 3, "0123456789" * 4)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal.show(terminal.table(("a", "b"), [cells]))
    lines = re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    body = [line.split("│")[1:3] for line in lines if "│" in line]
    assert tuple("".join(line[column].strip() for line in body) for column in (0, 1)) == cells


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", rb"+- DIR ... \xf6 \u4e2d \udcff"), ("latin-1", b"+- DIR ... \xf6 " + rb"\u4e2d \udcff")],
)
def test_letters_that_an_encoding_does_not_have_are_printed_in_others(monkeypatch, encoding, expected):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, errors="strict", write_through=True))
    terminal.accept_all_letters()
    for stream in (sys.stdout, sys.stderr):
        written.seek(0)
        print("╭─ DIR … ö 中 \udcff", file=stream, end="")
        assert written.getvalue() == expected
    terminal.show(terminal.table(("run",), [("…",)]))


def test_a_file_name_that_is_no_unicode_is_printed_in_utf_8_too(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    terminal.accept_all_letters()
    terminal.show("written to ö\udcff")
    sys.stdout.flush()
    assert written.getvalue() == "written to ö\\udcff\n".encode()


def test_progress_goes_on_in_silence_when_its_reader_has_left(monkeypatch, nobody_reads):
    monkeypatch.setattr(sys, "stderr", nobody_reads)
    progress = terminal.Progress()
    for _ in range(3):
        progress.print("round 1/2")
        print("a warning", file=sys.stderr, flush=True)
    assert progress.quiet


def test_results_end_the_command_when_their_reader_has_left(monkeypatch, nobody_reads):
    monkeypatch.setattr(sys, "stdout", nobody_reads)
    with pytest.raises(BrokenPipeError):
        terminal.show("written to somewhere")
    assert terminal.discard_if_nobody_reads()
    terminal.flush()


def test_a_reader_who_is_there_has_not_left():
    assert not terminal.discard_if_nobody_reads()
