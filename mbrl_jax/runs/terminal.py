"""What commands print: as it is, never as markup, in whatever encoding, to a reader who may leave.

On a terminal tables are fitted to its width, and nothing in them is cut. Elsewhere a script may read them: no line is wrapped.
"""

import codecs
import os
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

BROKEN_PIPE = 141  # 128 + SIGPIPE: the exit status of a command whose reader has left
ERRORS = "mbrl_jax.plain"
PLAIN = {"…": "...", "╭": "+", "╮": "+", "╯": "+", "╰": "+", "─": "-", "━": "-", "│": "|", "┃": "|", "•": "*"}
WIDEST = 100_000  # columns of a line that nobody needs to wrap


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that an encoding does not have: the like of it, or its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters), error.end


codecs.register_error(ERRORS, _in_plain_letters)


def accept_all_letters() -> None:
    """Let standard output and standard error print letters that their encodings do not have."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


class Output(Console):
    """Prints text as it is."""

    def __init__(self, file: IO[str] | None = None):
        """On standard output, unless there is a file."""
        super().__init__(file=file, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Let the command end, as its reader has left: rich calls this where it handles the error."""
        raise


class Progress(Output):
    """The same on standard error, where a reader may leave and the run goes on."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
        _discard(sys.stderr)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", caption: str = "", numbers: bool = False
) -> Table:
    """A table of text as it is; what does not fit into its column is folded, not cut.

    Args:
      columns: their headers.
      rows: a cell for each column.
      title: above it.
      caption: below it.
      numbers: whether the cells are aligned to the right, the first one of each row apart.

    """
    made = Table(title=Text(title, "table.title") if title else None, caption=Text(caption, "table.caption") if caption else None)
    for place, column in enumerate(columns):
        made.add_column(column, overflow="fold", justify="right" if numbers and place else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def show(*shown: str | Table) -> None:
    """Print lines and tables on standard output."""
    output = Output()
    for each in shown:
        if isinstance(each, str):
            output.print(each, soft_wrap=True)
        elif output.is_terminal:
            output.print(each)
        else:
            for text in (each.title, each.caption):
                if isinstance(text, Text):
                    text.no_wrap, text.overflow = True, "ignore"
            output.width = output.measure(each, options=output.options.update(max_width=WIDEST)).maximum
            output.print(each, crop=False)


def flush() -> None:
    """Write what is still to be written. Raises BrokenPipeError: the reader has left."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def discard_if_nobody_reads() -> bool:
    """Whether the reader of standard output or standard error has left; then nothing more is written there."""
    left = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_left(stream)]
    for stream in left:
        _discard(stream)
    return bool(left)


def _is_left(stream: Any) -> bool:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it is no file, or closed
        return False
    if not hasattr(select, "poll"):
        return True  # Windows: there is nothing to ask
    asked = select.poll()
    asked.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _discard(stream: Any) -> None:
    """Send a stream nowhere, what it has not written yet included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
