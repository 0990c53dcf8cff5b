import io
import os
import sys

import pytest
from rich.console import Console

from mbrl_jax.runs.display import Display


def shown(terminal):
    with io.StringIO() as file:
        console = Console(file=file, force_terminal=terminal, width=120)
        with Display("a run", console) as display:
            for _ in range(5):  # one function after another
                display.phase("compiling")
            display.phase("training", total=4, done=1, note="compiled in 8.3 s")
            display.advance("IQM 23, 100 steps/s, 2 of 8 seeds frozen")
            display.say("stops after this round and saves")
            display.advance("IQM 42, 101 steps/s")
            display.phase("compiling")
            display.phase("evaluating")
        return file.getvalue()


def test_how_long_a_phase_may_take_is_not_said_of_the_next_one():
    with io.StringIO() as file, Display("a run", Console(file=file, force_terminal=True, width=120)) as display:
        display.phase("compiling")
        display._progress.refresh()
        assert "about 10 to 40 s" in file.getvalue()
        file.truncate(0)
        display.phase("collecting")
        display._progress.refresh()
        assert "collecting" in file.getvalue()
        assert "about 10 to 40 s" not in file.getvalue()


@pytest.mark.parametrize("name", ["lr[best]", "a[/b]", ":smile:"])
@pytest.mark.parametrize("live", [True, False])
def test_nothing_that_is_shown_is_markup(monkeypatch, name, live):
    file = io.StringIO()
    file.isatty = lambda: live
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("TERM", "xterm")
    with Display.standard(f"of {name}") as display:
        display.phase(f"phase {name}", note=f"note {name}")
        display.say(f"saying {name}")
        display._progress.refresh()
    for word in ("of", "phase", "note", "saying"):
        assert f"{word} {name}" in file.getvalue()


def test_a_run_goes_on_when_nobody_reads_what_is_shown(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Display.standard("a run") as display:
            for _ in range(3):
                display.say("something")
                display.phase("training", total=1)


def test_without_a_terminal_there_are_plain_lines_with_the_time():
    lines = shown(False).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "a run: compiling (about 10 to 40 s on a CPU the first time)",
        "a run: training (compiled in 8.3 s)",
        "a run: round 2/4, IQM 23, 100 steps/s, 2 of 8 seeds frozen",
        "a run: stops after this round and saves",
        "a run: round 3/4, IQM 42, 101 steps/s",
        "a run: compiling",
        "a run: evaluating",
    ]


def test_on_a_terminal_there_is_a_bar_and_what_was_said_stays():
    text = shown(True)
    last = [line for line in text.splitlines() if "a run" in line][-1]
    assert "3/4" in last
    assert "evaluating" in last
    assert "IQM 42, 101 steps/s" in text
    assert "a run: stops after this round and saves" in text


def test_a_silent_one_shows_nothing(capsys):
    with Display.silent() as display:
        display.phase("training", total=1)
        display.advance("IQM 1")
        display.say("something")
    assert capsys.readouterr() == ("", "")
