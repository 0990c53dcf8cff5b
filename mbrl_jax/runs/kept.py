"""A run that is kept in its folder while it goes on: all seeds at once, or in parts, by one process or by several.

The parts of a run have a folder each. A process takes one that nobody works on, and when it has done that the next, until none is
left; then whoever comes first makes one run of them. What a process that died has begun another one takes up, from the last
checkpoint. Locks say who works where, and a process that ends in whatever way gives up its own.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError
from mbrl_jax.runs import execution, hosts, interruption, parts, results, run_folder, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.hosts import Host
from mbrl_jax.runs.interruption import Interrupted
from mbrl_jax.runs.journals import TensorBoard, WeightsAndBiases, require
from mbrl_jax.runs.parts import Part
from mbrl_jax.runs.program import Program
from mbrl_jax.runs.results import PARTS, RUN
from mbrl_jax.runs.run_folder import Asked, FinishedError, InUseError, RunFolder
from mbrl_jax.runs.runner import Run

GLANCE = 0.5  # seconds after which a process that waits for others looks again
BEGINNING = 60.0  # seconds that process 0 has to begin the run on which all have agreed


class Keeping(NamedTuple):
    """How a run is kept while it goes on."""

    resume: bool = False  # go on with the run in the folder, if there is one
    resume_from: int | None = None  # the round of the checkpoint to go on from; none takes the last one
    every: float = 300.0  # seconds between checkpoints
    keep: int = 2  # checkpoints that are kept
    tensorboard: bool = False
    wandb: str | None = None  # the project
    memory: int | None = None  # bytes that may be used, in place of what the devices have
    devices: int | None = None  # how many; none uses all
    host: Host | None = None  # which of several processes this is, none if it is the only one


def keep(asked: Asked, out: Path, keeping: Keeping, command: str, display: Display) -> Run | None:
    """A run begins, or goes on with what is in its folder, and leaves its results there.

    Args:
      asked: what the run is of.
      out: its folder.
      keeping: how it is kept.
      command: the words that began it.
      display: shows progress.

    Returns:
      The run; none where another process has made one run of the parts.

    Raises:
      ConfigError: what was asked for cannot work, or the folder cannot be used.

    """
    algorithm = runner.make_train(asked.config)  # refuses what cannot work before a folder is made
    runner.check_diagnosis(asked.diagnose, algorithm, asked.config)
    if keeping.tensorboard:
        require("tensorboardX", "tensorboard")
    if keeping.wandb is not None:
        require("wandb", "wandb")
    begun = keeping.resume and not results.is_untouched(out)
    if begun:
        run_folder.check_same(out, asked)
        at_once = run_folder.at_once(out)
        program = Program(algorithm, [asked.config], asked.seeds, asked.base_seed, display, keeping.devices, at_once)
    else:
        if keeping.resume:
            display.say(f"there is no run in {out} yet: one begins")
        program = _prepare(asked, out, keeping, display)
    again = command if keeping.resume else f"{command} --resume"
    work = _Work(program, asked, out, keeping, command, again, display)
    batches = parts.split(asked.seeds, program.at_once)
    if len(batches) > 1:
        return work.in_parts(batches, begun)
    with work.folder(asked, out) as folder:
        return work.complete(asked, folder)


def write(run: Run, folder: Path) -> None:
    """Write the results of a run and draw it, the summary last."""

    def draw() -> None:
        from mbrl_jax.report import figures, horizon_figures

        figures.draw_run(run, folder / "curves.png")
        if run.diagnosis is not None:
            horizon_figures.draw_imagination(run, folder / "imagination.png")

    results.write(run, folder, draw)


def clear(out: Path) -> None:
    """Remove the parts of a finished run, if it was killed before it did this."""
    if (out / PARTS).exists():
        shutil.rmtree(out / PARTS)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _prepare(asked: Asked, out: Path, keeping: Keeping, display: Display) -> Program:
    """The compiled program of a run that begins; that the folder can be made is found out before."""
    host = keeping.host
    if host is not None and asked.seeds < host.processes:
        raise ConfigError(
            f"num_processes: {host.processes} does not fit; for {asked.seeds} seeds it must be at most {asked.seeds}"
        )
    if host is not None and host.number and not results.is_untouched(out):
        raise ConfigError(f"out: {str(out)!r} exists already and is left as it is; name a new folder, or go on with --resume")

    def program(most: int | None) -> Program:
        return runner.prepare(
            asked.config,
            asked.seeds,
            base_seed=asked.base_seed,
            display=display,
            diagnose=asked.diagnose,
            memory=keeping.memory,
            devices=keeping.devices,
            most=most,
        )

    with contextlib.nullcontext() if host is not None and host.number else results.new_folder(out):
        if host is None:
            return program(None)
        made = program(-(-asked.seeds // host.processes))
        display.phase(f"waiting for the other{'s' if host.processes > 2 else ''}")
        at_once = hosts.agree(host, asked.settings(), made.at_once)
        return made if at_once == made.at_once else program(at_once)


class _Work(NamedTuple):
    """A process that works on a run."""

    program: Program
    asked: Asked
    out: Path
    keeping: Keeping
    command: str
    again: str  # the command that goes on
    display: Display

    def in_parts(self, batches: Sequence[Part], begun: bool) -> Run | None:
        """All parts, those of them that others do not do, and in the end one run of them."""
        if self.keeping.resume_from is not None:
            raise ConfigError(f"resume_from: {self.keeping.resume_from} does not fit a run in batches; go on with --resume")
        number, count = self.keeping.host[:2] if self.keeping.host else (0, 1)
        if begun or number:
            self._wait_until_begun()
        else:
            os.close(run_folder.begin(self.out, self.asked, self.command, execution.PACKAGES, self.program.at_once))
        places = {self.out / PARTS / f"{i:04d}": part for i, part in enumerate(batches)}
        order = sorted(places, key=lambda place: (int(place.name) - number) % count)  # this one's own first
        lock, waiting = run_folder.hold(self.out, shared=True, wait=True), False  # while anybody has it, the parts stay
        try:
            while not run_folder.is_finished(self.out) and (left := [each for each in order if not run_folder.is_finished(each)]):
                if any(self._part(place, places[place]) for place in left):
                    waiting = False
                    continue
                if not waiting:
                    self.display.phase("waiting for other processes")
                waiting = True
                time.sleep(GLANCE)
        finally:
            os.close(lock)
        lock = run_folder.hold(self.out, wait=True)
        try:
            if run_folder.is_finished(self.out):
                return None
            run_folder.clear(self.out)
            whole = parts.joined([results.read(place) for place in places])
            self.leave(whole, self.out)
            clear(self.out)
        finally:
            os.close(lock)
        return whole

    def _wait_until_begun(self) -> None:
        deadline = time.monotonic() + BEGINNING
        while not (self.out / RUN).exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"out: process 0 has begun no run in {str(self.out)!r} within {BEGINNING:.0f} s; either it could not, as it "
                    "says, or this is not a folder that all processes see"
                )
            time.sleep(GLANCE)
        run_folder.check_same(self.out, self.asked)

    def _part(self, place: Path, part: Part) -> bool:
        """Whether a part was there to be trained, and now is."""
        its = self.asked._replace(seeds=part.agents, first=part.first)
        try:
            folder = self.folder(its, place, resume=True)
        except (InUseError, FinishedError):
            return False
        self.display.say(f"batch {place.name}: {part}")
        with folder:
            self.complete(its, folder, figures=False)
        return True

    def folder(self, asked: Asked, out: Path, resume: bool = False) -> RunFolder:
        """The folder of a run, or of a part of one, that begins or goes on."""
        keeping, say = self.keeping, self.display.say
        if (keeping.resume or resume) and not results.is_untouched(out):
            return run_folder.take_up(out, asked, keeping.every, keeping.keep, say, keeping.resume_from)
        return run_folder.create(out, asked, self.command, execution.PACKAGES, keeping.every, keeping.keep, say)

    def complete(self, asked: Asked, folder: RunFolder, figures: bool = True) -> Run:
        """Train the seeds of a folder and write their results; say with every error what is saved of them."""
        try:
            run = self.train(asked, folder)
            self.leave(run, folder.path, figures)
            folder.finished()
        except Exception as error:
            error.add_note(f"Round {folder.wait()} of the run in {str(folder.path)!r} is saved. To go on: {self.again}")
            raise
        return run

    def train(self, asked: Asked, folder: RunFolder) -> Run:
        """Train the seeds of a folder."""
        display = self.display
        with interruption.watch(_asked_to_stop(display), display.leave) as told:
            self._add_journals(folder, asked)
            part = Part(asked.first, asked.seeds)
            try:
                return runner.run_part(self.program, part, diagnose=asked.diagnose, keeper=folder, interruption=told)
            except Interrupted as stopped:
                display.say(f"{stopped}; round {folder.wait()} is saved. To go on: {self.again}")
                raise SystemExit(130) from None

    def leave(self, run: Run, out: Path, figures: bool = True) -> None:
        """Write the results of a run that can go on if that fails."""
        try:
            if figures:
                write(run, out)
            else:
                results.write(run, out)
        except OSError as error:
            told = f"the results cannot be written to {str(out)!r}: {error}. Then go on with: {self.again}"
            raise ConfigError(f"out: {told}") from error

    def _add_journals(self, folder: RunFolder, asked: Asked) -> None:
        done = folder.found.round if folder.found else 0
        if self.keeping.tensorboard:
            folder.add(TensorBoard(folder.path, done * asked.config.round_steps))
        if self.keeping.wandb is not None:
            folder.add(WeightsAndBiases(self.keeping.wandb, folder.path, settings.to_dict(asked.config)))


def _asked_to_stop(display: Display) -> Callable[[], None]:
    return lambda: display.say("finishes the rounds in hand and saves; Ctrl-C again stops at once")
