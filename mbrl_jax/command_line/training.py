"""The commands that make a run: ``train``, ``reference``, and ``join``."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from mbrl_jax import config as settings
from mbrl_jax.command_line.flags import ENGINE, MACHINE, machine, parse
from mbrl_jax.config import ConfigError, expand
from mbrl_jax.runs import execution, folder, keeping, launch, results, runner, shards, sweep, terminal, transitions
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.launch import Launcher, Work
from mbrl_jax.runs.run import Run


def train(words: list[str], work: Work) -> None:
    """``mbrl-jax train``: train all seeds, or go on with a run that was stopped, write its folder, and print its figures."""
    given = parse(
        "train",
        words,
        ("diagnose", bool, False),
        ("start", Annotated[Path | None, tyro.conf.arg(name="from")], None),
        ("resume", bool, False),
        ("resume_from", int | None, None),
        ("checkpoint_every", float, 300.0),
        ("checkpoints", int, 2),
        ("tensorboard", bool, False),
        ("wandb", str | None, None),
        ("record_transitions", transitions.Wish, "auto"),
        ENGINE,
        *MACHINE,
    )
    memory, devices, launcher = machine(given, work)
    if not 0 <= given.checkpoint_every < math.inf:
        raise ConfigError(
            f"checkpoint_every: {given.checkpoint_every!r} is out of range; it must be at least 0 seconds, and finite"
        )
    if given.wandb == "":
        raise ConfigError("wandb: '' does not fit; it must be a project's name")
    if given.checkpoints < 1:
        raise ConfigError(f"checkpoints: {given.checkpoints!r} is out of range; it must be at least 1")
    resume = given.resume or given.resume_from is not None
    saving = (given.checkpoint_every, given.checkpoints, given.tensorboard, given.wandb)
    keep = Keeping(resume, given.resume_from, *saving, memory, devices, given.engine, given.record_transitions, given.start)
    if given.start is not None and launcher is not None:
        raise ConfigError("from: it does not fit --launcher; train the shards one by one with --seeds FIRST:END")
    asked = Asked(given.config, len(given.seeds), given.seed, given.diagnose, given.seeds.start)
    command, out = shlex.join(["mbrl-jax", "train", *words]), given.out
    execution.check_jax()
    with Display.standard(settings.algorithm_name(asked.config)) as display:
        run = kept(asked, out, keep, command, display, launcher)
    if run is None:
        terminal.show(f"the run in {out} is finished already")
    else:
        _print(run, results.read_summary(out), out)


def kept(asked: Asked, out: Path, keep: Keeping, command: str, display: Display, launcher: Launcher | None = None) -> Run | None:
    """The run once it is trained; none if it was finished before."""
    if keep.resume and folder.is_finished(out):
        folder.check_same(out, asked)
        shards.remove(out)  # if it was killed before it did this
        transitions.clear(out)
        return None
    if launcher is not None:
        return launch.train(asked, out, keep, command, launcher, display, _draw)
    return keeping.keep(asked, out, keep, command, display, _draw)


def join(words: list[str]) -> None:
    """``mbrl-jax join``."""

    def flags(out: tyro.conf.Positional[Path], shard: tyro.conf.Positional[tuple[Path, ...]]) -> None:
        """Make one run of the shards of a run, or one sweep of those of a sweep; the shards stay as they are.

        Args:
            out: a new folder
            shard: the folders of all shards

        """
        target, parts = expand(out), [expand(each) for each in shard]
        with Display.standard("join") as display:
            if any((each / sweep.TABLE).exists() for each in parts):
                sweep.join(target, parts)
                terminal.show(f"written to {target}")
            else:
                run = shards.command(target, parts, shlex.join(["mbrl-jax", "join", *words]), _draw, display.say)
                _print(run, results.read_summary(target), target)

    tyro.cli(flags, args=words, prog="mbrl-jax join")


def reference(words: list[str]) -> None:
    """``mbrl-jax reference``: the same run in plain PyTorch."""
    options = (("compile", bool, False), ("processes", int, 1), ("device", str, "cpu"))
    given = parse("reference", words, *options)
    from mbrl_jax import reference_run

    execution.find_devices()
    runner.make_train(given.config)  # refuses what cannot work before a folder is made
    title = f"reference, {settings.algorithm_name(given.config)}"
    if given.seeds.start:
        raise ConfigError(f"seeds: {given.seeds.start}:{given.seeds.stop} does not fit; the reference trains seeds from 0 on")
    out = given.out
    with claimed(out), Display.standard(title) as display:
        run = reference_run.run(
            given.config,
            len(given.seeds),
            base_seed=given.seed,
            compiled=given.compile,
            processes=given.processes,
            device=given.device,
            display=display,
        )
        summary = results.write(run, out, _draw, display.say)
    _print(run, summary, out)


def _draw(run: Run, out: Path) -> None:
    """Draw a run into its folder."""
    from mbrl_jax.report import figures, horizon_figures

    figures.draw_run(run, out / "curves.png")
    if run.diagnosis is not None:
        horizon_figures.draw_imagination(run, out / "imagination.png")


def _print(run: Run, summary: Mapping[str, Any], out: Path) -> None:
    """Print the figures of a run."""
    from mbrl_jax.report import printed

    terminal.show(*printed.of_run(run, summary), f"written to {out}")
