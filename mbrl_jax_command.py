"""The ``mbrl-jax`` command, which can be stopped while the package is still being imported, as that takes seconds."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run the command. Ctrl-C and SIGTERM end it in one line at any time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from mbrl_jax.runs import command_line

    command_line.main()


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """End the process as :func:`mbrl_jax.runs.interruption.leave` does, which has not been imported yet."""
    print(f"mbrl-jax: stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
