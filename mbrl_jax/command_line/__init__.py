"""The command line, ``mbrl-jax``.

What a person gives, a path above all, is printed as it is (:mod:`mbrl_jax.runs.terminal`). A signal ends a command at once
(:mod:`mbrl_jax.runs.interruption`), but for a run that trains.
"""

import logging
import sys
from collections.abc import Callable, Sequence

from mbrl_jax.command_line import comparing, reading, searching, training
from mbrl_jax.command_line.usage import USAGE, show_usage
from mbrl_jax.config import ConfigError
from mbrl_jax.runs import execution, interruption, terminal

__all__ = ["USAGE", "main", "work"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``mbrl-jax`` command. Exits with 2 after bad input, saying what was wrong."""
    terminal.accept_all_letters()
    try:
        with interruption.at_once():
            try:
                _run(list(sys.argv[1:] if arguments is None else arguments))
            except ConfigError as error:
                print(f"mbrl-jax: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            finally:
                terminal.flush()
    except BrokenPipeError:
        if not terminal.discard_if_nobody_reads():
            raise  # it was another pipe
        raise SystemExit(terminal.BROKEN_PIPE) from None


def work(words: list[str]) -> int:
    """Run ``mbrl-jax`` in this process, as a job does; return its exit status."""
    try:
        main(words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _run(words: list[str]) -> None:
    """Run the command that the first word names."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": lambda words: training.train(words, work),
        "join": training.join,
        "sweep": lambda words: searching.sweep(words, work),
        "tune": searching.tune,
        "compare": comparing.compare,
        "runs": reading.runs,
        "report": reading.report,
        "evaluate": reading.evaluate,
        "reference": training.reference,
        "data": _data,
        "export": _export,
        "serve": _serve,
    }
    if not words or words[0] not in commands:
        show_usage(words)
    try:
        execution.use_compilation_cache()
    except ConfigError:
        told = "the home folder is not known, so nothing that is compiled is kept; XDG_CACHE_HOME may name a folder for it"
        print(f"mbrl-jax: {told}", file=sys.stderr)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says the same of its own cache
    commands[words[0]](words[1:])


def _data(words: list[str]) -> None:
    from mbrl_jax.command_line import data

    data.main(words)


def _export(words: list[str]) -> None:
    from mbrl_jax.serving.export import command

    command.main(words)


def _serve(words: list[str]) -> None:
    from mbrl_jax.serving.server import command

    command.main(words)
