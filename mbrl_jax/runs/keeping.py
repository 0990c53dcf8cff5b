"""A run that is kept in its folder while it goes on, all seeds at once or in batches one after another."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError
from mbrl_jax.runs import folder, interruption, results, runner, shards
from mbrl_jax.runs.callbacks import Callback, TensorBoard, WeightsAndBiases, require
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.interruption import Interrupted
from mbrl_jax.runs.program import Batch, Program
from mbrl_jax.runs.results import CHECKPOINTS, SHARDS, Draw
from mbrl_jax.runs.run import Run
from mbrl_jax.runs.training import train


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
    engine: Literal["auto", "xla", "cuda"] = "xla"


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
    begun = keeping.resume and not results.is_untouched(out)
    if begun:
        folder.check_same(out, asked)
    elif keeping.resume:
        display.say(f"there is no run in {out} yet: one begins")
    with contextlib.nullcontext() if begun else results.new_folder(out):
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
    work = _Work(program, asked, keeping, command, command if keeping.resume else f"{command} --resume", display)
    if program.at_once >= asked.seeds and not (out / SHARDS).exists():
        return work.complete(asked, out, draw)
    if keeping.resume_from is not None:
        raise ConfigError(f"resume_from: {keeping.resume_from} does not fit a run in batches; go on with --resume")

    def one_after_another(left: Mapping[Path, Asked]) -> None:
        for place, shard in left.items():
            display.say(f"batch {place.name}: seeds {shard.first} to {shard.numbers[-1]}")
            work._replace(keeping=keeping._replace(resume=True)).complete(shard, place, None)

    return in_shards(asked, out, program.at_once, keeping.resume, command, display, draw, one_after_another)


def in_shards(
    asked: Asked,
    out: Path,
    at_once: int,
    resume: bool,
    command: str,
    display: Display,
    draw: Draw | None,
    train_shards: Callable[[Mapping[Path, Asked]], None],
) -> Run:
    """Train a run in shards of ``at_once`` seeds, or of as many as it was begun with, and join them.

    ``train_shards`` trains those that are not finished, in their folders. Other arguments and errors as of :func:`keep`.
    """
    begun = resume and not results.is_untouched(out)
    with contextlib.nullcontext() if begun else results.new_folder(out), folder.hold(out):
        if begun:
            folder.check_same(out, asked)
            folder.clear(out)
            if (out / CHECKPOINTS).exists():
                raise ConfigError(f"launcher: the run in {str(out)!r} was begun by one process; go on with it without a launcher")
        else:
            folder.begin(out, asked, command, at_once)
        places = shards.places(out, asked, folder.at_once(out))
        train_shards({place: shard for place, shard in places.items() if not folder.is_finished(place)})
        with reporting(out, command if resume else f"{command} --resume"):
            run = shards.join(out, list(places), draw, display.say)
        shards.remove(out)
    return run


@contextlib.contextmanager
def reporting(out: Path, again: str) -> Iterator[None]:
    """Say of results that cannot be written how to go on."""
    try:
        yield
    except OSError as error:
        told = f"the results cannot be written to {str(out)!r}: {error}. Then go on with: {again}"
        raise ConfigError(f"out: {told}") from error


def check(asked: Asked, keeping: Keeping) -> None:
    """Refuse what cannot work before a folder is made. Raises ConfigError: naming it."""
    runner.check([asked.config], asked.diagnose, engine=keeping.engine)
    if keeping.tensorboard:
        require("tensorboardX", "tensorboard")
    if keeping.wandb is not None:
        require("wandb", "wandb")


class _Work(NamedTuple):
    """What every batch of a run needs to be trained."""

    program: Program
    asked: Asked  # of the whole run
    keeping: Keeping
    command: str
    again: str  # the command that goes on
    display: Display

    def complete(self, asked: Asked, out: Path, draw: Draw | None) -> Run:
        """Train the seeds of a folder and write their results; say with every error what is saved of them."""
        resume, _, every, keep, *_ = self.keeping
        options = {"number": self.keeping.resume_from, "every": every, "keep": keep, "say": self.display.say}
        with folder.opened(out, asked, self.command, resume=resume, **options) as opened:  # type: ignore[arg-type]
            try:
                run = self.train(asked, opened)
                with reporting(out, self.again):
                    results.write(run, out, draw, self.display.say)
                opened.finished()
            except Exception as error:
                saved = opened.checkpoints.wait()
                error.add_note(f"Round {saved} of the run in {str(out)!r} is saved. To go on: {self.again}")
                raise
        return run

    def train(self, asked: Asked, opened: folder.RunFolder) -> Run:
        """Train the seeds of a folder, until the first signal at the most."""
        batch = Batch(asked.first - self.asked.first, asked.seeds)
        with interruption.watch(_asked_to_stop(self.display), self.display.leave) as told, self.loggers(asked, opened) as loggers:
            followers = [opened.lines, *loggers, opened.checkpoints]
            try:
                return train(
                    self.program,
                    batch,
                    callbacks=followers,
                    found=opened.found,
                    interruption=told,
                    diagnose=asked.diagnose,
                )
            except Interrupted as stopped:
                self.display.say(f"{stopped}; round {opened.checkpoints.wait()} is saved. To go on: {self.again}")
                raise SystemExit(130) from None

    @contextlib.contextmanager
    def loggers(self, asked: Asked, opened: folder.RunFolder) -> Iterator[list[Callback]]:
        """TensorBoard and Weights & Biases, as far as they were asked for."""
        with contextlib.ExitStack() as closing:
            made: list[Callback] = []
            if self.keeping.tensorboard:
                done = opened.found.round if opened.found else 0
                made.append(TensorBoard(opened.path, done * asked.config.round_steps))
            if self.keeping.wandb is not None:
                made.append(WeightsAndBiases(self.keeping.wandb, opened.path, settings.to_dict(asked.config)))
            for each in made:
                closing.callback(each.close)
            yield made


def _asked_to_stop(display: Display) -> Callable[[], None]:
    return lambda: display.say("finishes the rounds in hand and saves; Ctrl-C again stops at once")
