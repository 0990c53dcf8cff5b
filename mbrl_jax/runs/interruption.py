"""Ctrl-C asks a run to stop where it can go on from; a second one stops it at once."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # SIGTERM is what a cluster sends before it takes the machine away


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
def watch(on_request: Callable[[], None], on_exit: Callable[[], None]) -> Iterator[Interruption]:
    """Note the first of :data:`SIGNALS`, and leave the process at the second one.

    The signals are seen by a thread of its own, so also while the main thread waits for the device. Leaving at once does no harm:
    whatever a run writes takes its place in one step.

    Args:
      on_request: called in that thread at the first signal.
      on_exit: called in that thread at the second one, before the process ends with status 128 + the signal's number.

    """
    told = Interruption()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while received := reader.recv(1):
            number = received[0]
            if number not in SIGNALS:
                continue
            if told.requested:
                on_exit()
                os._exit(128 + number)
            told.requested = True
            on_request()

    listener = threading.Thread(target=listen, name="interruption", daemon=True)
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    previous_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield told
    finally:
        signal.set_wakeup_fd(previous_descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()
