"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Shows the phases of a run and, while training, its rounds with the current IQM. Use as a context manager."""

    def __init__(self, title: str, console: Console | None):
        """Title what is shown; without a console nothing is."""
        self.title = title
        self.console = console
        self.live = console is not None and console.is_terminal
        self._started = time.perf_counter()
        self._done = self._total = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[title]}"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self._task = self._progress.add_task("", total=None, title=title, note="")

    @classmethod
    def silent(cls) -> Self:
        """A display that shows nothing."""
        return cls("", None)

    @classmethod
    def standard(cls, title: str) -> Self:
        """On standard error, so that standard output carries results only."""
        return cls(title, Console(file=sys.stderr))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Show that a phase begins; ``total`` rounds if it has any."""
        if total is not None:
            self._done, self._total = 0, total
        self._progress.update(self._task, description=name, total=total, completed=0, note="")
        self._line(name)

    def round(self, iqm: float) -> None:
        """Show that a round is done, with the IQM over seeds of its greedy returns."""
        self._done += 1
        note = f"IQM {iqm:.0f}"
        self._progress.update(self._task, advance=1, note=note)
        if self._done % max(1, self._total // 5) == 0:
            self._line(f"round {self._done}/{self._total}, {note}")

    def _line(self, text: str) -> None:
        if self.console is not None and not self.live:
            self.console.print(
                f"[{time.perf_counter() - self._started:6.1f} s] {self.title}: {text}", markup=False, highlight=False
            )
