"""Copies of a simulator side by side, as one of Gymnasium's vector environments; one that fails costs itself alone.

Gymnasium's own vector environments end with the first failure of a copy. Here a copy that raises, hangs, ends its process or
gives what does not fit is noted in ``failures`` and left out from then on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import cloudpickle
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from mbrl_jax.simulators.spaces import FLOAT, Interface, SimulatorError

T = TypeVar("T")

START_SECONDS = 300.0  # that a process may take before its first answer, beside the time of a step

Make = Callable[[], gymnasium.Env]


class Step(NamedTuple):
    """What a simulator gives of one step."""

    observation: np.ndarray  # [D] float32
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class Seat:
    """One simulator, of which all that it gives is checked."""

    def __init__(self, make: Make, interface: Interface):
        self.interface, self.simulator = interface, make()

    def reset(self, seed: int | None) -> Step:
        """Begin an episode. Raises SimulatorError: as :meth:`Interface.read`, or this is no pair."""
        told = self.simulator.reset(seed=seed)
        if not (isinstance(told, tuple) and len(told) == 2):
            raise SimulatorError(f"reset of {self.interface.name}: {told!r} does not fit; it must be (observation, info)")
        return Step(self.interface.read(told[0]))

    def step(self, action: np.ndarray) -> Step:
        """Make a step. Raises SimulatorError: something is not as Gymnasium has it, or not finite."""
        name, told = self.interface.name, self.simulator.step(self.interface.write(action))
        if not (isinstance(told, tuple) and len(told) == 5):
            right = "(observation, reward, terminated, truncated, info)"
            raise SimulatorError(f"step of {name}: {told!r} does not fit; it must be {right}")
        observation, reward, terminated, truncated, _ = told
        found = np.asarray(reward)
        if found.dtype.kind not in "fiub" or found.size != 1 or not np.isfinite(found).all():
            raise SimulatorError(f"reward of {name}: {reward!r} does not fit; it must be one finite number")
        for what, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                raise SimulatorError(f"{what} of {name}: {flag!r} does not fit; it must be True or False")
        return Step(self.interface.read(observation), float(found.reshape(())), bool(terminated), bool(truncated))

    def close(self) -> None:
        """Let the simulator go."""
        self.simulator.close()


class Copies(VectorEnv):
    """As many copies as there are makers; a reset happens where it is asked for, by ``options={"reset_mask": …}``.

    Observations are [n, D] float32, actions those of the library. Of a copy that has failed everything is 0 and False.

    Attributes:
      failures: by a copy's number what went wrong, with the traceback where there is one.

    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012, as in every environment of Gymnasium

    def __init__(self, makers: Sequence[Make], interface: Interface, *, processes: bool = False, timeout: float = 60.0):
        """Make them, here or each in a process of its own, where a step may take ``timeout`` seconds."""
        size = interface.observation_size
        self.num_envs, self._size = len(makers), size
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (size,), FLOAT)
        self.single_action_space = (
            interface.action
            if isinstance(interface.action, spaces.Discrete)
            else spaces.Box(-1.0, 1.0, (interface.action_units()[0].size,), FLOAT)
        )
        self.failures: dict[int, str] = {}
        self._seats: dict[int, Seat | _Process] = {}
        for place, make in enumerate(makers):
            begin: Any = partial(_Process, make, interface, timeout) if processes else partial(Seat, make, interface)
            made: Any = self._try(place, begin)
            if made is not None:
                self._seats[place] = made

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes where ``options["reset_mask"]`` [n] holds, everywhere if there is none.

        Args:
          seed: a list of a number or none for each copy; none goes on with each copy's own random numbers.
          options: only the mask is known.

        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        seeds = [None] * self.num_envs if seed is None else seed
        steps = self._all("reset", {place: seeds[place] for place in np.flatnonzero(mask).tolist()})
        return self._table(steps), {}

    def step(
        self, actions: Any, *, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every copy, or those that are ``active`` [n], by its action [n, ...]; no infos are passed on."""
        steps = self._all("step", {place: each for place, each in enumerate(actions) if active is None or active[place]})
        reward, terminated, truncated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for place, step in steps.items():
            reward[place], terminated[place], truncated[place] = step.reward, step.terminated, step.truncated
        return self._table(steps), reward, terminated, truncated, {}

    def leave_out(self, places: Collection[int]) -> None:
        """Make no use of these copies any more."""
        for place in places:
            self._fail(place, "left out")

    def _table(self, steps: dict[int, Step]) -> np.ndarray:
        table = np.zeros((self.num_envs, self._size), FLOAT)
        for place, step in steps.items():
            table[place] = step.observation
        return table

    def _all(self, what: str, arguments: dict[int, Any]) -> dict[int, Step]:
        """Ask the copies that have not failed: processes all at once, others one after another."""
        found: dict[int, Step | None] = {}
        asked = {place: argument for place, argument in arguments.items() if place in self._seats}
        for place, argument in asked.items():
            seat = self._seats[place]
            if isinstance(seat, _Process):
                self._try(place, partial(seat.ask, what, argument))
            else:
                found[place] = self._try(place, partial(getattr(seat, what), argument))
        for place in asked:
            if isinstance(working := self._seats.get(place), _Process):
                found[place] = self._try(place, working.answer)
        return {place: step for place, step in found.items() if step is not None}

    def _try(self, place: int, action: Callable[[], T]) -> T | None:
        """What it gives; none if it fails, which whatever a simulator raises is."""
        try:
            return action()
        except _ProcessError as error:
            self._fail(place, str(error))
        except Exception:
            self._fail(place, traceback.format_exc())
        return None

    def _fail(self, place: int, text: str) -> None:
        self.failures[place] = text
        seat = self._seats.pop(place, None)
        if isinstance(seat, _Process):
            seat.kill()

    def close_extras(self, **kwargs: Any) -> None:
        """Let all simulators go."""
        for place, seat in list(self._seats.items()):
            self._try(place, seat.close)
        self._seats.clear()


# -------------------------------------------------------------------------------------------------- a process of its own


class _ProcessError(RuntimeError):
    """A simulator in a process failed; the message is the traceback from there, or what became of the process."""


class _Process:
    """A :class:`Seat` in a process of its own, which ends when this one does."""

    def __init__(self, make: Make, interface: Interface, timeout: float):
        here, there = Pipe()
        life, end = os.pipe()  # nothing is ever written; its other end tells that this process is gone
        self._life: int | None = end
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({there.fileno()}, {life})"],
                pass_fds=(there.fileno(), life),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            )
        finally:
            there.close()
            os.close(life)
        self._pipe, self._timeout, self._asked = here, timeout, "start"
        self._limit = time.monotonic() + timeout + START_SECONDS
        here.send_bytes(cloudpickle.dumps((make, interface)))

    def ask(self, what: str, argument: Any) -> None:
        """Let the process begin to work."""
        if self._asked == "start":
            self._limit += self._timeout
        else:
            self._limit = time.monotonic() + self._timeout
        self._asked = what
        try:
            self._pipe.send((what, argument))
        except OSError as error:
            raise _ProcessError(self._ended()) from error

    def answer(self) -> Step:
        """What came of it. Raises _ProcessError: it failed, hangs, or there is no such process any more."""
        try:
            if not self._pipe.poll(max(self._limit - time.monotonic(), 0.0)):
                raise _ProcessError(f"{self._asked}: there was no answer within environment.timeout ({self._timeout} s)")
            step, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _ProcessError(self._ended()) from error
        if failure is not None:
            raise _ProcessError(failure)
        answered: Step = step
        return answered

    def _ended(self) -> str:
        self.kill()
        return f"{self._asked}: its process ended by itself with exit code {self._process.returncode}"

    def kill(self) -> None:
        """End the process, at once if it does not end by itself."""
        try:
            self._process.wait(5.0 if self._process.poll() is None and self._asked == "close" else 0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()
        if self._life is not None:
            os.close(self._life)
            self._life = None

    def close(self) -> None:
        """Let the simulator close and the process end."""
        self._asked = "close"
        with contextlib.suppress(OSError):  # it may have ended already
            self._pipe.send(("close", None))
        self.kill()


def end_with(life: int) -> None:
    """End this process as soon as the other end of a pipe is closed, whatever it does then.

    A simulator that hangs may hold the interpreter's lock, so that no thread would notice; on Linux the kernel does it.
    """
    if sys.platform == "linux":
        import fcntl  # which Windows lacks

        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
        return

    def wait() -> None:
        os.read(life, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def serve(handle: int, life: int) -> None:
    """Do what the other end of a pipe asks until it asks to close, or is gone: what a simulator's own process runs."""
    end_with(life)
    pipe, seat = Connection(handle), None
    made = pipe.recv_bytes()
    while True:
        try:
            what, argument = pipe.recv()
        except EOFError:
            return
        step, failure = None, None
        try:
            seat = Seat(*cloudpickle.loads(made)) if seat is None else seat
            if what == "close":
                seat.close()
                return
            step = getattr(seat, what)(argument)
        except Exception:
            failure = traceback.format_exc()
        pipe.send((step, failure))
