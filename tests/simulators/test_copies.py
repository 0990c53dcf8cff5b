import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from mbrl_jax.simulators.copies import Copies
from mbrl_jax.simulators.spaces import interface_of
from tests.lines import Line, line

INTERFACE = interface_of("line", Line.observation_space, Line.action_space)
UP = np.ones(2, np.int64)


def boom(told):
    raise RuntimeError("the motor burns")


def with_reward(reward):
    return lambda told: (told[0], reward, *told[2:])


FAULTS = {
    "an exception": (boom, "RuntimeError: the motor burns"),
    "an observation that is not finite": (lambda told: (told[0] * np.nan, *told[1:]), "observation of line: number 0 is nan"),
    "an observation of another shape": (lambda told: (np.zeros(3), *told[1:]), "float64[3] does not fit; it must be float64[2]"),
    "a reward that is no number": (with_reward("a lot"), "reward of line: 'a lot' does not fit; it must be one finite number"),
    "a reward that is not finite": (with_reward(float("inf")), "reward of line: inf does not fit"),
    "several rewards": (with_reward([1.0, 2.0]), "reward of line: [1.0, 2.0] does not fit"),
    "a flag that is no flag": (
        lambda told: (*told[:2], 2, *told[3:]),
        "terminated of line: 2 does not fit; it must be True or False",
    ),
    "a step of an old form": (lambda told: told[:4], "it must be (observation, reward, terminated, truncated, info)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_costs_its_copy_alone(fault):
    function, message = FAULTS[fault]
    copies = Copies([lambda: Line(function, at=2), Line], INTERFACE)
    assert isinstance(copies, VectorEnv)
    copies.reset(seed=[0, 1])
    before, *_ = copies.step(UP)
    after, reward, terminated, truncated, _ = copies.step(UP)
    assert before.tolist() == [[0.25, 0.125], [0.25, 0.125]]
    assert after.tolist() == [[0.0, 0.0], [0.5, 0.25]]
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([0.0, 1.0], [False] * 2, [False] * 2)
    assert list(copies.failures) == [0]
    assert "Traceback" in copies.failures[0]
    assert message in copies.failures[0]
    assert copies.step(UP)[1].tolist() == [0.0, 1.5]  # the one goes on, and the other is not asked any more
    copies.close()


def test_a_copy_that_cannot_be_made_is_a_failure_too():
    copies = Copies([line, boom], INTERFACE)
    assert copies.reset(seed=[0, 1])[0].tolist() == [[0.0, 0.0]] * 2
    assert "missing 1 required positional argument" in copies.failures[1]


def test_only_the_copies_asked_for_are_reset_and_stepped():
    seeds = []
    copies = Copies([lambda: line(seeds=seeds)] * 3, INTERFACE)
    copies.reset(seed=[5, 6, 7])
    assert seeds == [5, 6, 7]
    up, active = np.ones(3, np.int64), np.array([True, True, False])
    assert copies.step(up, active=active)[0].tolist() == [[0.25, 0.125], [0.25, 0.125], [0.0, 0.0]]
    observation, _ = copies.reset(options={"reset_mask": np.array([False, True, False])})
    assert observation[1].tolist() == [0.0, 0.0]
    assert copies.step(up)[0].tolist() == [[0.5, 0.25], [0.25, 0.125], [0.25, 0.125]]
    copies.leave_out([0])
    assert copies.step(up)[0].tolist() == [[0.0, 0.0], [0.5, 0.25], [0.5, 0.25]]


def hang(told):
    time.sleep(600)


def end(told):
    os._exit(3)


def test_a_process_that_raises_hangs_or_ends_costs_its_copy_alone():
    makers = [line, lambda: line(boom, at=2), lambda: line(hang, at=2), lambda: line(end, at=2)]
    copies = Copies(makers, INTERFACE, processes=True, timeout=10.0)
    up = np.ones(4, np.int64)
    copies.reset(seed=[0, 1, 2, 3])
    assert not copies.failures
    assert copies.step(up)[0].tolist() == [[0.25, 0.125]] * 4
    observation, reward, *_ = copies.step(up)
    assert (observation[0].tolist(), reward.tolist()) == ([0.5, 0.25], [1.0, 0.0, 0.0, 0.0])
    assert sorted(copies.failures) == [1, 2, 3]
    assert "RuntimeError: the motor burns" in copies.failures[1]
    assert copies.failures[2] == "step: there was no answer within environment.timeout (10.0 s)"
    assert copies.failures[3] == "step: its process ended by itself with exit code 3"
    assert copies.step(up)[1][0] == 1.5
    process = copies._seats[0]._process
    copies.close()
    assert process.returncode == 0


def hang_in_c(told):
    ctypes.PyDLL(None).sleep(600)  # which does not let go of the interpreter's lock


def parent(pipe):
    """Have three simulators in processes, tell their numbers, and wait for two that hang."""
    copies = Copies([line, lambda: line(hang, at=1), lambda: line(hang_in_c, at=1)], INTERFACE, processes=True, timeout=600.0)
    copies.reset(seed=[0, 1, 2])
    pipe.send([seat._process.pid for seat in copies._seats.values()])
    copies.step(np.ones(3, np.int64))


def test_no_process_outlives_the_one_that_began_it_and_was_killed():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=parent, args=(there,))
    process.start()
    there.close()
    children = here.recv()
    time.sleep(0.3)  # until they hang
    assert all(alive(child) for child in children)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    limit = time.monotonic() + 10
    while any(alive(child) for child in children) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not [child for child in children if alive(child)]


def alive(child):
    """Whether a process is there that is no zombie."""
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
