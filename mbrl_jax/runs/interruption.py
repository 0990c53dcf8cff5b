"""Ctrl-C stops a command at once, and a run that trains where it can go on from; a second one stops that at once too."""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # SIGTERM is what a cluster sends before it takes the machine away

_handlers: list[Callable[[int], None]] = []  # the last one gets the signals
_cleanups: list[Callable[[], None]] = []  # called by leave, the last one first


class Interrupted(Exception):  # noqa: N818, it is no error
    """A run was asked to stop, and stopped after ``round`` rounds."""

    def __init__(self, round: int):
        super().__init__(f"stopped after round {round}")
        self.round = round


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Leave the process at the first of :data:`SIGNALS`, also where :func:`watch` would wait for the round's end.

    The signals are seen by a thread of its own, so also while the main thread compiles or waits for the device.
    """
    with _handling(leave):
        yield


@contextlib.contextmanager
def watch(on_request: Callable[[], None], on_exit: Callable[[], None]) -> Iterator[Interruption]:
    """Note the first of :data:`SIGNALS`, and leave the process at the second one.

    Leaving at once does no harm: whatever a run writes takes its place in one step.

    Args:
      on_request: called in the thread that sees the signals at the first one.
      on_exit: called in that thread at the second one, before :func:`leave`.

    """
    told = Interruption()

    def handle(number: int) -> None:
        if told.requested:
            on_exit()
            leave(number)
        told.requested = True
        on_request()

    with _handling(handle):
        yield told


@contextlib.contextmanager
def on_leaving(clean: Callable[[], None]) -> Iterator[None]:
    """Call ``clean`` if :func:`leave` ends the process meanwhile, as ``finally`` would at an exception."""
    mine = functools.partial(clean)  # unlike all others
    _cleanups.append(mine)
    try:
        yield
    finally:
        _cleanups.remove(mine)


def leave(number: int) -> NoReturn:
    """Clean up, say so in one line, and end the process with status 128 + the signal's number, whatever its threads are at."""
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # below a bar, not above it
    with contextlib.ExitStack() as last:  # each of them is called whatever another one raises
        last.callback(os._exit, 128 + number)
        last.callback(print, f"mbrl-jax: stopped by {signal.Signals(number).name}", file=stream, flush=True)
        for clean in _cleanups:
            last.callback(clean)
        for child in multiprocessing.active_children():
            last.callback(child.kill)
    raise AssertionError("the process has ended")


@contextlib.contextmanager
def _handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Send the signals to ``handler``. Only the main thread can ask for them; elsewhere they go where they went before."""
    is_main = threading.current_thread() is threading.main_thread()
    mine = functools.partial(handler)  # unlike all others
    _handlers.append(mine)
    try:
        with _listening() if is_main and len(_handlers) == 1 else contextlib.nullcontext():
            yield
    finally:
        _handlers.remove(mine)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Have a thread that passes the signals on to the last of the handlers."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while received := reader.recv(1):
            if received[0] in SIGNALS and _handlers:
                _handlers[-1](received[0])

    listener = threading.Thread(target=listen, name="interruption", daemon=True)
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    previous_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()
