"""A run that is kept in its folder while it goes on, all seeds at once or in batches one after another."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError, expand
from mbrl_jax.runs import engines, folder, interruption, results, runner, shards, transitions, warm_start
from mbrl_jax.runs.callbacks import Callback, TensorBoard, WeightsAndBiases, require
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked, RunFolder
from mbrl_jax.runs.hosted import HostedProgram
from mbrl_jax.runs.interruption import Interrupted
from mbrl_jax.runs.program import Batch, Program
from mbrl_jax.runs.results import SHARDS, Draw
from mbrl_jax.runs.run import Run
from mbrl_jax.runs.training import train
from mbrl_jax.runs.warm_start import Start


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
    engine: engines.Named = "xla"
    record: transitions.Wish = "auto"  # whether the run leaves its own real transitions
    start: Path | None = None  # the folder of a finished run whose world models this one begins with


def keep(asked: Asked, out: Path, keeping: Keeping, command: str, display: Display, draw: Draw | None = None) -> Run:
    """Begin a run, or go on with the one in its folder; leave its results there.

    Args:
      asked: what the run is of.
      out: its folder.
      keeping: how it is kept.
      command: the words that began it.
      display: shows progress.
      draw: draws the results.

    Raises:
      ConfigError: what was asked for cannot work, or the folder cannot be used.

    """
    check(asked, keeping)
    start = None if keeping.start is None else warm_start.read(expand(keeping.start, "from"), asked.config)
    with taken(asked, out, keeping.resume, display, keeping.resume_from) as begun:
        program = runner.prepare(
            [asked.config],
            asked.numbers,
            base_seed=asked.base_seed,
            display=display,
            diagnose=asked.diagnose,
            memory=keeping.memory,
            devices=keeping.devices,
            engine=keeping.engine,
            at_once=folder.at_once(out) if begun else None,
        )
        in_batches = program.at_once < asked.seeds or (out / SHARDS).exists()
        if in_batches and keeping.resume_from is not None:
            raise ConfigError(f"resume_from: {keeping.resume_from} does not fit a run in batches; go on with --resume")
        if not begun:
            folder.begin(out, asked, command, program.at_once)
        recording = transitions.records(keeping.record, program, asked.seeds, display.say)
        work = _Work(program, asked, keeping, shards.again(command, keeping.resume), display, recording, start)
        options: dict[str, Any] = {"every": keeping.every, "keep": keeping.keep, "say": display.say}
        if not in_batches:
            return work.complete(asked, folder.followed(out, asked, begun, keeping.resume_from, **options), draw)
        for place, shard in shards.left(out, asked).items():
            display.say(f"batch {place.name}: seeds {shard.first} to {shard.numbers[-1]}")
            work.complete(shard, folder.opened(place, shard, command, resume=True, **options), None)
        return shards.finish(out, asked, work.again, draw, display.say)


def check(asked: Asked, keeping: Keeping) -> None:
    """Refuse what cannot work before a folder is made. Raises ConfigError: naming it."""
    algorithm = runner.check([asked.config], asked.diagnose, engine=keeping.engine)
    transitions.check(keeping.record, asked.config, algorithm)
    warm_start.check(asked.config, keeping.start is not None)
    if keeping.tensorboard:
        require("tensorboardX", "tensorboard")
    if keeping.wandb is not None:
        require("wandb", "wandb")


@contextlib.contextmanager
def taken(asked: Asked, out: Path, resume: bool, display: Display, number: int | None = None) -> Iterator[bool]:
    """Work in the run's folder alone; yield whether the run was begun there before.

    Raises ConfigError: as :func:`mbrl_jax.runs.claims.claimed`, the run there is of something else, or there is none of which the
    round ``number`` could be taken up.
    """
    with claimed(out, resume) as begun:
        if begun:
            folder.check_same(out, asked)
            folder.clear(out)
        elif number is not None:
            raise ConfigError(f"resume_from: {number} does not fit; there is no run in {str(out)!r} to go on with")
        elif resume:
            display.say(f"there is no run in {out} yet: one begins")
        yield begun


class _Work(NamedTuple):
    """What every batch of a run needs to be trained."""

    program: Program
    asked: Asked  # of the whole run
    keeping: Keeping
    again: str  # the command that goes on
    display: Display
    recording: bool  # of the run's own real transitions
    start: Start | None  # where the world models begin

    def complete(self, asked: Asked, opening: contextlib.AbstractContextManager[RunFolder], draw: Draw | None) -> Run:
        """Train the seeds of a folder and write their results; say with every error what is saved of them."""
        with opening as opened:
            try:
                run = self.train(asked, opened)
                with folder.writing(opened.path, self.again):
                    transitions.write(self.program, opened.path, asked.numbers, self.recording)
                    results.write(run, opened.path, draw, self.display.say)
                opened.finished()
                transitions.clear(opened.path)
            except Exception as error:
                saved = opened.checkpoints.wait()
                error.add_note(f"Round {saved} of the run in {str(opened.path)!r} is saved. To go on: {self.again}")
                raise
        return run

    def train(self, asked: Asked, opened: RunFolder) -> Run:
        """Train the seeds of a folder, until the first signal at the most."""

        def asked_to_stop() -> None:
            self.display.say("finishes the rounds in hand and saves; Ctrl-C again stops at once")

        with (
            interruption.watch(asked_to_stop, self.display.leave) as told,
            self.loggers(asked, opened) as loggers,
            self.journal(asked, opened),
        ):
            try:
                return train(
                    self.program,
                    Batch(asked.first - self.asked.first, asked.seeds),
                    callbacks=[opened.lines, *loggers, opened.checkpoints],
                    found=opened.found,
                    interruption=told,
                    start=self.start,
                    diagnose=asked.diagnose,
                )
            except Interrupted as stopped:
                self.display.say(f"{stopped}; round {opened.checkpoints.wait()} is saved. To go on: {self.again}")
                raise SystemExit(130) from None

    @contextlib.contextmanager
    def journal(self, asked: Asked, opened: RunFolder) -> Iterator[None]:
        """Append the transitions of the host's simulators to the folder's journal, if they are recorded."""
        program = self.program
        if not (self.recording and isinstance(program, HostedProgram)):
            yield
            return
        after = opened.found.round if opened.found else 0
        journal = transitions.Journal(opened.path, program.task.spec, asked.numbers, after, self.display.say)
        program.journal = journal.add
        with contextlib.closing(journal):
            yield
        program.journal = None

    @contextlib.contextmanager
    def loggers(self, asked: Asked, opened: RunFolder) -> Iterator[list[Callback]]:
        """TensorBoard and Weights & Biases, as far as they were asked for."""
        with contextlib.ExitStack() as closing:
            made: list[Callback] = []
            if self.keeping.tensorboard:
                done = opened.found.round if opened.found else 0
                made.append(closing.enter_context(contextlib.closing(TensorBoard(opened.path, done * asked.config.round_steps))))
            if self.keeping.wandb is not None:
                run = WeightsAndBiases(self.keeping.wandb, opened.path, settings.to_dict(asked.config))
                made.append(closing.enter_context(contextlib.closing(run)))
            yield made
