"""Signals, each to a process of its own, as it comes from a terminal or a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

IMPORTING = """
import importlib.abc, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jax":
            print("importing", file=sys.stderr, flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from mbrl_jax import command
command.main()
"""
WATCHING = """
import sys, time
from mbrl_jax.runs import interruption
def say(text):
    print(text, file=sys.stderr, flush=True)
with interruption.at_once(), interruption.watch(lambda: say("asked"), lambda: say("left")) as told:
    with interruption.at_once(), interruption.on_leaving(lambda: say("cleaned last")), interruption.on_leaving(lambda: 1 / 0):
        if "inside" in sys.argv:
            say("waiting")
            time.sleep(60)
    say("waiting")
    while not told.requested:
        time.sleep(0.01)
    say("finishing the round")
    time.sleep(60)
"""
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


class Process:
    """A process, what it has said on standard error, and how it ends."""

    def __init__(self, *words, **settings):
        self.said = []
        environment = os.environ | {"JAX_PLATFORMS": "cpu", **settings}
        self.process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=environment)

    def wait_until(self, text):
        """Read what it says until ``text`` is in it."""
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"it ended with {self.process.wait()} before it said {text!r}: {self.said}")

    def stop(self, number):
        """Its status, and the lines that it says after a signal; it has to end soon."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        assert time.monotonic() - start < 5
        return self.process.returncode, rest.splitlines()


def stopped(number):
    return 128 + number, [f"mbrl-jax: stopped by {number.name}"]


def is_alive(process):
    """Whether a process has not ended, by its number; one that nobody has waited for has."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


@SIGNALS
def test_a_signal_while_the_package_is_imported_ends_the_command_in_one_line(number):
    process = Process("-c", IMPORTING, "train", "smoke", "--help")
    process.wait_until("importing")
    assert process.stop(number) == stopped(number)
    assert process.said == ["importing\n"]


@pytest.mark.parametrize(
    ("number", "after", "words"),
    [
        (signal.SIGINT, 0, ["train", "smoke"]),
        (signal.SIGTERM, 4, ["train", "smoke", "--resume"]),
        (signal.SIGINT, 2, ["compare", "--protocol", "batch"]),
        (signal.SIGTERM, 1, ["sweep", "smoke", "--grid", "agent.discount=0.9,0.8"]),
    ],
)
def test_a_signal_while_a_run_is_compiled_ends_the_command_at_once_and_leaves_no_folder(tmp_path, number, after, words):
    out = tmp_path / "deep" / "down"
    words = [*words, "--seeds", "2", "--out", str(out)]
    process = Process("-m", "mbrl_jax.command", *words, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))
    process.wait_until("compiling")
    assert out.is_dir()
    time.sleep(after)  # to trace comes first, then the compiler's own threads work
    assert process.stop(number) == stopped(number)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


@SIGNALS
def test_where_nothing_is_lost_a_signal_is_not_noted_but_obeyed_and_all_is_cleaned_up(number):
    process = Process("-c", WATCHING, "inside")
    process.wait_until("waiting")
    status, said = stopped(number)
    assert process.stop(number) == (status, ["cleaned last", *said])


@SIGNALS
def test_where_a_run_trains_the_first_signal_is_noted_and_the_second_obeyed(number):
    process = Process("-c", WATCHING)
    process.wait_until("waiting")
    process.process.send_signal(number)
    process.wait_until("finishing the round")
    assert "asked\n" in process.said
    status, said = stopped(number)
    assert process.stop(number) == (status, ["left", *said])


def test_the_processes_that_a_command_started_end_with_it(tmp_path):
    pytest.importorskip("torch", reason="the reference is written in PyTorch: pip install 'mbrl-jax[torch]'")
    words = ["reference", "cartpole_batch", "--seeds", "2", "--processes", "2", "--out", str(tmp_path / "run")]
    process = Process("-m", "mbrl_jax.command", *words)
    process.wait_until("training")
    children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(started := children.read_text().split()) < 3:  # two, and what cares for them
        time.sleep(0.05)
    assert process.stop(signal.SIGTERM) == stopped(signal.SIGTERM)
    while time.monotonic() < deadline and any(map(is_alive, started)):
        time.sleep(0.05)
    assert [each for each in started if is_alive(each)] == []
    assert list(tmp_path.iterdir()) == []
