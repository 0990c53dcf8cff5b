"""The command ``compare``."""

import shlex
from pathlib import Path
from typing import Literal

import tyro

from mbrl_jax.command_line.training import kept
from mbrl_jax.config import ConfigError, RunConfig, expand, read_preset
from mbrl_jax.runs import engines, execution, results, runner, terminal
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.results import RUN
from mbrl_jax.runs.run import Run


def compare(words: list[str]) -> None:
    """``mbrl-jax compare``."""

    def flags(
        protocol: Literal["batch", "interactive"],
        seeds: int,
        out: Path,
        seed: int = 0,
        model_based: str | None = None,
        model_free: str | None = None,
        resume: bool = False,
        engine: engines.Named = "xla",
    ) -> None:
        """Train both arms on the same real data and set them side by side.

        Args:
            protocol: all real data at random beforehand, or an agent that goes on acting
            seeds: agents in each arm
            out: a new folder
            seed: base seed
            model_based: a preset for the model-based arm in place of cartpole_PROTOCOL
            model_free: a preset for the other arm in place of cartpole_PROTOCOL_model_free
            resume: go on with a comparison that was stopped
            engine: what trains the model-based arm; XLA trains the other

        """
        ours = read_preset(model_based or f"cartpole_{protocol}")
        theirs = read_preset(model_free or f"cartpole_{protocol}_model_free")
        for config in (ours, theirs):
            if config.protocol != protocol:
                raise ConfigError(f"protocol: {config.protocol!r} in a preset does not fit --protocol {protocol}")
        _train(
            ours, theirs, seeds, expand(out), seed, Keeping(resume, engine=engine), shlex.join(["mbrl-jax", "compare", *words])
        )

    tyro.cli(flags, args=words, prog="mbrl-jax compare")


def _train(
    model_based: RunConfig,
    model_free: RunConfig,
    seeds: int,
    out: Path,
    seed: int,
    keeping: Keeping,
    command: str,
) -> None:
    """Train both arms, or what is left of them, and write a folder for each, the table and the figure.

    XLA trains the model-free arm, whichever engine trains the other.

    Raises ConfigError: the arms do not compare, cannot work, or the folder cannot be used.
    """
    from mbrl_jax.report import comparison, figures

    comparison.check_arms(model_based, model_free)
    arms = {"model_based": (model_based, keeping), "model_free": (model_free, keeping._replace(engine="xla"))}
    runner.seed_numbers(seeds, seed)
    execution.use_all_cores()
    execution.check_jax()
    for config, own in arms.values():
        runner.check([config], engine=own.engine)
    runs: list[Run] = []
    with claimed(out, keeping.resume) as begun:
        if begun and (out / RUN).exists():
            raise ConfigError(f"out: {str(out)!r} holds a run, and no comparison that could go on; name a new folder")
        for name, (config, own) in arms.items():
            with Display.standard(name) as display:
                run = kept(Asked(config, seeds, seed, False), out / name, own, command, display)
                if run is None:
                    display.say("is finished already")
                runs.append(results.read(out / name) if run is None else run)
        ours, theirs = runs
        measured = comparison.compare(ours, theirs)
        results.write_json(out / "comparison.json", comparison.as_json(measured))
        say = Display.standard("compare").say
        results.draw_or_say(lambda: figures.draw_comparison(ours, theirs, out / "comparison.png"), say)
        task, transitions = model_based.environment.name, f"{model_based.real_transitions:,} real transitions"
        title = f"{task}, {model_based.protocol}: {transitions}, {seeds} seeds"
        compiling = sum(run.seconds.compile for run in runs)
        told = f"besides, {compiling:.0f} s of compilation; figure and data in {out}"
        terminal.show(comparison.as_table(measured, title), told)
