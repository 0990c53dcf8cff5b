"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import contextlib
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

from mbrl_jax.runs import interruption, terminal
from mbrl_jax.runs.callbacks import Callback, SoFar
from mbrl_jax.runs.metrics import Entry

HINTS = {"compiling": "about 10 to 40 s on a CPU the first time"}  # how long a phase may take that shows no progress


class Display(Callback):
    """Shows the phases of a run and, while training, its rounds with the current IQM. Use as a context manager."""

    def __init__(self, title: str, console: Console | None):
        """Title what is shown; without a console nothing is."""
        self.title = title
        self.console = console
        self.live = console is not None and console.is_terminal
        self._started = time.perf_counter()
        self._done = self._total = 0
        self._phase, self._hinted, self._left = "", False, False
        self._hints = dict(HINTS)  # that have not been shown yet
        self._leaving = contextlib.ExitStack()
        self._progress = Progress(
            SpinnerColumn("dots" if console is None or console.encoding.startswith("utf") else "line"),
            TextColumn("{task.fields[title]}", style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
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
        return cls(title, terminal.Progress())

    def __enter__(self) -> Self:
        self._leaving.enter_context(interruption.on_leaving(self.leave))
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        self._leaving.close()

    def phase(self, name: str, total: int | None = None, done: int = 0, note: str = "") -> None:
        """Show that a phase begins; of ``total`` rounds, if it has any, of which some may be done already.

        A phase that goes on in several steps is shown once, the first one of its name with how long it may take.
        """
        if name == self._phase and total is None and not note:
            return
        self._phase = name
        hint = "" if note else self._hints.pop(name, "")
        if total is not None:
            self._done, self._total = done, total
            self._progress.update(self._task, total=total, completed=done)
        self._progress.update(self._task, description=name)
        if note or hint or self._hinted:
            self._progress.update(self._task, note=note or hint)
        self._hinted = bool(hint)
        self._line(f"{name} ({note or hint})" if note or hint else name)

    def say(self, text: str) -> None:
        """Tell the person something that stays to be read."""
        if self.console is not None and self.live:
            self._progress.console.print(f"{self.title}: {text}", markup=False, highlight=False, soft_wrap=True)
        self._line(text)

    def leave(self) -> None:
        """Put the terminal in order for a process that ends at once."""
        if self.console is not None and self.live and not self._left:
            self._left = True
            self.console.show_cursor(True)
            self.console.file.write("\n")  # what follows has a line of its own

    def begin(self, so_far: SoFar) -> None:
        """Show that training begins or goes on."""
        self._so_far, self._begun = so_far, (so_far.done, so_far.seconds["train"])
        self.phase("training", total=so_far.rounds, done=so_far.done, note=f"compiled in {so_far.seconds['compile']:.1f} s")

    def round(self, entry: Entry) -> None:
        """Show that a round is done, with its return and the speed since the first one in this process."""
        config, agents, (done, seconds) = self._so_far.config, self._so_far.agents, self._begun
        steps = (entry.step - done * config.round_steps) * agents / (entry.seconds - seconds)
        parts = [f"IQM {entry.values['curve_return']:.0f}", f"{steps:,.0f} steps/s"]
        if config.imagined_per_step:
            parts.append(f"{steps * config.imagined_per_step:,.0f} imagined/s")
        if entry.frozen:
            parts.append(f"{entry.frozen} of {agents} seeds frozen")
        self.advance(", ".join(parts))

    def end(self) -> None:
        """Show that all is done."""
        self.phase("done")

    def advance(self, note: str) -> None:
        """Show that one of the phase's rounds is done, with a note."""
        self._done += 1
        self._progress.update(self._task, advance=1, note=note)
        if self._done % max(1, self._total // 5) == 0:
            self._line(f"round {self._done}/{self._total}, {note}")

    def _line(self, text: str) -> None:
        if self.console is not None and not self.live:
            self.console.print(
                f"[{time.perf_counter() - self._started:6.1f} s] {self.title}: {text}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
