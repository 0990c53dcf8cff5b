import io

from rich.console import Console

from mbrl_jax.runs.display import Display


def shown(terminal):
    with io.StringIO() as file:
        console = Console(file=file, force_terminal=terminal, width=120)
        with Display("a run", console) as display:
            display.phase("compiling")
            display.phase("training", total=4, done=1, note="compiled in 8.3 s")
            display.round("IQM 23, 100 steps/s, 2 of 8 seeds frozen")
            display.say("stops after this round and saves")
            display.round("IQM 42, 101 steps/s")
            display.phase("evaluating")
        return file.getvalue()


def test_without_a_terminal_there_are_plain_lines_with_the_time():
    lines = shown(False).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "a run: compiling",
        "a run: training (compiled in 8.3 s)",
        "a run: round 2/4, IQM 23, 100 steps/s, 2 of 8 seeds frozen",
        "a run: stops after this round and saves",
        "a run: round 3/4, IQM 42, 101 steps/s",
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
        display.round("IQM 1")
        display.say("something")
    assert capsys.readouterr() == ("", "")
