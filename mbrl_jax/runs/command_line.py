"""The command line, ``mbrl-jax``.

What a person gives, a path above all, is printed as it is (:mod:`mbrl_jax.runs.terminal`). A signal ends a command at once
(:mod:`mbrl_jax.runs.interruption`), but for a run that trains.
"""

import dataclasses
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError, RunConfig, expand, grid, presets, read_preset
from mbrl_jax.environments import data, success_marks
from mbrl_jax.runs import (
    engines,
    execution,
    folder,
    interruption,
    keeping,
    launch,
    results,
    runner,
    shards,
    sweep,
    terminal,
    transitions,
)
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.launch import Launcher
from mbrl_jax.runs.run import Run

MANY = tyro.conf.UseAppendAction[tuple[str, ...]]
MACHINE: tuple[tuple[str, Any, Any], ...] = (  # flags
    ("memory", float | None, None),
    ("devices", str, "all"),
    ("launcher", Literal["slurm", "ray"] | None, None),
    ("shards", int | None, None),
    ("retries", int, 3),
    ("launcher_option", MANY, ()),
)
ENGINE: tuple[str, Any, Any] = ("engine", engines.Named, "xla")
USAGE = """usage: mbrl-jax COMMAND …

  train CONFIG --seeds N --out DIR [--seed BASE] [--diagnose] [--any.setting VALUE …]
      train an agent for every seed; CONFIG is a YAML file or the name of a shipped preset
      [--data FILE …] from logged transitions; [--from RUN] with the world model of a finished run as the start
      [--checkpoint-every SECONDS] [--checkpoints K] saves the run as it goes; --resume goes on with one that was stopped
      [--devices all|N] [--memory GB] how many devices and how much memory to use; seeds that do not fit go in batches
      [--engine auto|xla|cuda] cuda: on an NVIDIA GPU a round in one launch, for what its kernels cover; auto: that where it fits
      [--seeds FIRST:END] trains a shard of a run: these seeds of it
      [--launcher slurm|ray --shards N] trains N shards as jobs of a cluster, and joins them
      [--tensorboard] [--wandb PROJECT] also send every round's figures there
      [--record-transitions auto|on|off] also write transitions.parquet, which --data reads; auto: those of the host
  join OUT SHARD [SHARD …]
      make one run of the shards of a run, or one sweep of those of a sweep
  sweep CONFIG --grid PATH=V1,V2,… [--grid PATH=…] --seeds N --out DIR [--seed BASE] [--devices all|N] [--memory GB]
      [--any.other.setting VALUE …] [--resume] [--combinations 0:3,7] [--launcher slurm|ray --shards N]
      train an agent for every seed at every combination of values of some settings, in as few compiled programs as can be;
      --resume trains what an earlier call has left undone
  tune CONFIG --space FILE --trials N --seeds N --out DIR [--batch 64] [--rungs 2] [--factor 3] [--measure final|curve]
      [--sampler tpe|random] [--storage URL --study NAME] [--resume] [--engine auto|xla|cuda] [--devices all|N] [--memory GB]
      [--any.setting VALUE …]
      search for the best settings: trials in batches of one compiled program, pruned on their learning curves (extra `tune`)
  compare --protocol batch|interactive --seeds N --out DIR [--seed BASE] [--resume] [--engine auto|xla|cuda]
      train the model-based and the model-free arm on the same real data, and set them side by side
  runs DIR
      list the runs below a folder: how far they are, in which settings they differ, and what they reached
  report RUN [RUN …] --out FILE.html
      one page about one run or several: what was run, curves, model, imagination, and how the policy moves
  evaluate DIR [--episodes 50] [--env gymnax|gymnasium] [--seed BASE]
      play the policies that a run saved
  export RUN --out DIR [--seed I | --best | --ensemble] [--what policy|model|all] [--format onnx stablehlo torchscript]
      [--int8 dynamic|static]
      write a run's policy and world model for other runtimes, held against the library on real observations (extra `export`)
  serve DIR [--port 8000] [--host 127.0.0.1] [--data FOLDER] [--precision float32|int8-dynamic|int8-static] [--watch SECONDS]
      answer for actions and imagined rollouts over HTTP, keep real transitions, take up new exports (extra `serve`)
  data check FILE [FILE …] [--environment NAME] [--figure FILE.png]
      say what there is in files of logged transitions, and whether training on them could be right: `train CONFIG --data FILE …`
  data collect ENV --transitions N --out FILE.parquet [--policy random|RUN] [--epsilon E] [--seed BASE]
      make such a file
  reference CONFIG --seeds N --out DIR [--seed BASE] [--compile] [--processes N] [--device cpu] [--any.setting VALUE …]
      the same run in plain PyTorch, one seed after another, with the same files as `train` (needs the extra `torch`)

Each command says more with --help; `train CONFIG --help` lists every setting. Presets: {presets}"""


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


def _run(words: list[str]) -> None:
    """Run the command that the first word names."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "join": _join,
        "sweep": _sweep,
        "tune": _tune,
        "compare": _compare,
        "runs": _runs,
        "report": _write_report,
        "evaluate": _evaluate,
        "reference": _reference,
        "data": _data,
        "export": _export,
        "serve": _serve,
    }
    if not words or words[0] not in commands:
        _show_usage(words)
    try:
        execution.use_compilation_cache()
    except ConfigError:
        told = "the home folder is not known, so nothing that is compiled is kept; XDG_CACHE_HOME may name a folder for it"
        print(f"mbrl-jax: {told}", file=sys.stderr)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says the same of its own cache
    commands[words[0]](words[1:])


def _show_usage(words: list[str]) -> NoReturn:
    """Print how to call the command: as an answer if it was asked for, else as an error."""
    asked = bool(words) and words[0] in ("-h", "--help")
    print(USAGE.format(presets=", ".join(sorted(presets()))), file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)


def _parse(command: str, words: list[str], *options: tuple[str, Any] | tuple[str, Any, Any]) -> Any:
    """The flags of a command that takes CONFIG, a new folder, seeds, any setting, and ``options``: name, type and default."""
    if not words or words[0].startswith("-"):
        _show_usage(words)
    execution.use_all_cores()  # before a task's own functions are asked about a log file
    preset = read_preset(words[0])
    fields: list[Any] = [
        ("seeds", str),
        ("out", Path),
        ("seed", int, 0),
        *options,
        ("config", Annotated[type(preset), tyro.conf.arg(name="")], preset),
    ]
    flags = dataclasses.make_dataclass(command.capitalize(), fields, kw_only=True)
    given: Any = tyro.cli(flags, args=words[1:], prog=f"mbrl-jax {command} {words[0]}", description=type(preset).__doc__)
    given.out, given.seeds = expand(given.out), shards.parse_seeds(given.seeds)
    settings.check(given.config)
    given.config = data.settle(given.config)
    settings.check(given.config)
    runner.seed_numbers(given.seeds, given.seed)
    return given


def _train(words: list[str]) -> None:
    given = _parse(
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
    memory, devices, launcher = _machine(given)
    if given.checkpoint_every < 0:
        raise ConfigError(f"checkpoint_every: {given.checkpoint_every!r} is out of range; it must be at least 0 seconds")
    if given.checkpoints < 1:
        raise ConfigError(f"checkpoints: {given.checkpoints!r} is out of range; it must be at least 1")
    resume = given.resume or given.resume_from is not None
    saving = (given.checkpoint_every, given.checkpoints, given.tensorboard, given.wandb)
    keep = Keeping(resume, given.resume_from, *saving, memory, devices, given.engine, given.record_transitions, given.start)
    if given.start is not None and launcher is not None:
        raise ConfigError("from: it does not fit --launcher; train the shards one by one with --seeds FIRST:END")
    asked = Asked(given.config, len(given.seeds), given.seed, given.diagnose, given.seeds.start)
    train(asked, given.out, keep, shlex.join(["mbrl-jax", "train", *words]), launcher)


def _memory_and_devices(given: Any) -> tuple[int | None, int | None]:
    """How many bytes and devices may be used, none for all."""
    memory, devices = given.memory, given.devices
    if memory is not None and memory <= 0:
        raise ConfigError(f"memory: {memory!r} is out of range; it must be a positive number of GB")
    if devices != "all" and not devices.isdecimal():
        raise ConfigError(f"devices: {devices!r} does not fit; it must be all or a number")
    return None if memory is None else max(1, int(1e9 * memory)), None if devices == "all" else int(devices)


def _machine(given: Any) -> tuple[int | None, int | None, Launcher | None]:
    """The same, and what launches shards."""
    memory, devices = _memory_and_devices(given)
    launcher = None
    if given.launcher is not None and given.shards is not None:
        launcher = Launcher(given.launcher, given.shards, work, given.retries, given.launcher_option)
    elif given.launcher is not None or given.shards is not None:
        raise ConfigError("launcher: --launcher and --shards go together; without them this process trains all seeds")
    return memory, devices, launcher


def work(words: list[str]) -> int:
    """Run ``mbrl-jax`` in this process, as a job does; return its exit status."""
    try:
        main(words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def train(asked: Asked, out: Path, keep: Keeping, command: str, launcher: Launcher | None = None) -> None:
    """Train all seeds, or go on with a run that was stopped, write its folder, and print its figures.

    Raises ConfigError: what was asked for cannot work, or the folder cannot be used.
    """
    execution.use_all_cores()
    execution.check_jax()
    with Display.standard(settings.algorithm_name(asked.config)) as display:
        run = _kept(asked, out, keep, command, display, launcher)
    if run is None:
        terminal.show(f"the run in {out} is finished already")
    else:
        _print(run, results.read_summary(out), out)


def _kept(asked: Asked, out: Path, keep: Keeping, command: str, display: Display, launcher: Launcher | None = None) -> Run | None:
    """The run once it is trained; none if it was finished before."""
    if keep.resume and folder.is_finished(out):
        folder.check_same(out, asked)
        shards.remove(out)  # if it was killed before it did this
        transitions.clear(out)
        return None
    if launcher is not None:
        return launch.train(asked, out, keep, command, launcher, display, _draw)
    return keeping.keep(asked, out, keep, command, display, _draw)


def _draw(run: Run, out: Path) -> None:
    """Draw a run into its folder."""
    from mbrl_jax.report import figures, horizon_figures

    figures.draw_run(run, out / "curves.png")
    if run.diagnosis is not None:
        horizon_figures.draw_imagination(run, out / "imagination.png")


def _join(words: list[str]) -> None:
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


def _sweep(words: list[str]) -> None:
    options = (("grid", MANY, ()), ("resume", bool, False), ("combinations", str | None, None))
    given = _parse("sweep", words, *options, ENGINE, *MACHINE)
    memory, devices, launcher = _machine(given)
    only = None
    if given.combinations is not None:
        ranges = map(shards.parse_numbers, given.combinations.split(","))
        only = [number for numbers in ranges for number in numbers]
    execution.check_jax()
    table = sweep.Table(given.out, given.config, grid.parse(given.grid), given.seeds, given.seed, only)
    started = time.perf_counter()
    with Display.standard("sweep") as display:
        if launcher is None:
            sweep.train(table, given.resume, display.say, display=display, memory=memory, devices=devices, engine=given.engine)
        else:
            if given.engine != "xla":
                raise ConfigError(f"engine: {given.engine!r} does not fit a sweep with --launcher; it must be xla")
            launch.train_sweep(table, given.grid, launcher, given.resume, memory, devices, display.say)
        finished, shown = table.finished(), []
        if finished:
            from mbrl_jax.report import sweep_figures

            made, runs = [table.made[place] for place in finished], list(finished.values())
            results.draw_or_say(lambda: sweep_figures.draw(made, runs, given.out / "sweep.png"), display.say)
            shown.append(sweep_figures.as_table(made, runs))
    ended = f"{len(finished)} of {len(table.places)} combinations in {time.perf_counter() - started:.0f} s"
    terminal.show(*shown, f"{ended}; written to {given.out}", *table.failures())
    if len(finished) < len(table.places):
        raise SystemExit(1)


def _data(words: list[str]) -> None:
    from mbrl_jax.runs import data_command

    data_command.main(words)


def _export(words: list[str]) -> None:
    from mbrl_jax.serving.export import command

    command.main(words)


def _serve(words: list[str]) -> None:
    from mbrl_jax.serving.server import command

    command.main(words)


def _tune(words: list[str]) -> None:
    from mbrl_jax.tuning import search, space
    from mbrl_jax.tuning.study import Asked, Measure, Sampler

    given = _parse(
        "tune",
        words,
        ("space", Path),
        ("trials", int),
        ("batch", int, 64),
        ("rungs", int, 2),
        ("factor", float, 3.0),
        ("measure", Measure, "final"),
        ("sampler", Sampler, "tpe"),
        ("storage", str | None, None),
        ("study", str, "tune"),
        ("resume", bool, False),
        ENGINE,
        *MACHINE[:2],
    )
    memory, devices = _memory_and_devices(given)
    execution.check_jax()
    found = space.read(given.space, given.config)
    asked = Asked(given.config, found, given.seeds, given.seed, given.rungs, given.factor, given.measure, given.sampler)
    started = time.perf_counter()
    with Display.standard("tune") as display:
        summary = search.search(
            asked,
            given.out,
            given.trials,
            batch=given.batch,
            storage=given.storage,
            name=given.study,
            resume=given.resume,
            display=display,
            devices=devices,
            memory=memory,
            engine=given.engine,
        )
    terminal.show(search.as_table(summary), f"{time.perf_counter() - started:.0f} s; written to {given.out}")
    if summary["best"] is None:
        raise SystemExit(1)
    other = shlex.join(["mbrl-jax", "train", str(given.out / search.BEST), "--seeds", "64", "--seed", str(given.seed + 1)])
    terminal.show(f"the best of many trials is partly luck; measure it on other seeds: {other} --out DIR")


def _reference(words: list[str]) -> None:
    options = (("compile", bool, False), ("processes", int, 1), ("device", str, "cpu"))
    given = _parse("reference", words, *options)
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


def _print(run: Run, summary: Mapping[str, Any], out: Path) -> None:
    """Print the figures of a run."""
    from mbrl_jax.report import printed

    terminal.show(*printed.of_run(run, summary), f"written to {out}")


def _compare(words: list[str]) -> None:
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
        compare(
            ours, theirs, seeds, expand(out), seed, Keeping(resume, engine=engine), shlex.join(["mbrl-jax", "compare", *words])
        )

    tyro.cli(flags, args=words, prog="mbrl-jax compare")


def compare(
    model_based: RunConfig,
    model_free: RunConfig,
    seeds: int,
    out: Path,
    seed: int,
    keeping: Keeping = Keeping(),  # noqa: B008, it does not change
    command: str = "mbrl-jax compare",
) -> None:
    """Train both arms, or what is left of them, and write a folder for each, the table and the figure.

    XLA trains the model-free arm, whichever engine trains the other.

    Raises ConfigError: the arms do not compare, cannot work, or the folder cannot be used.
    """
    from mbrl_jax.report import comparison, figures

    comparison.check_arms(model_based, model_free)
    for config in (model_based, model_free):
        settings.check(config)
    arms = {"model_based": (model_based, keeping), "model_free": (model_free, keeping._replace(engine="xla"))}
    runner.seed_numbers(seeds, seed)
    execution.use_all_cores()
    execution.check_jax()
    for config, own in arms.values():
        runner.check([config], engine=own.engine)
    runs: list[Run] = []
    with claimed(out, keeping.resume):
        for name, (config, own) in arms.items():
            with Display.standard(name) as display:
                run = _kept(Asked(config, seeds, seed, False), out / name, own, command, display)
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


def _evaluate(words: list[str]) -> None:
    def flags(
        directory: tyro.conf.Positional[Path],
        episodes: int = 50,
        env: Literal["gymnax", "gymnasium"] = "gymnax",
        seed: int = 0,
    ) -> None:
        """Play the policies that a run saved.

        Args:
            directory: the run's folder
            episodes: for each policy
            env: whose implementation of the task
            seed: of the initial states

        """
        from mbrl_jax.report import printed
        from mbrl_jax.serving import playing

        execution.find_devices()
        config, policies = playing.load_policies(directory)
        returns = {name: playing.play_policies(config, params, episodes, env, seed) for name, params in policies.items()}
        whose = " of gymnasium" if env == "gymnasium" else ""  # else the one that they were trained in
        title = f"{config.environment.name}{whose}, {episodes} episodes a policy"
        terminal.show(printed.of_episodes(returns, success_marks(config.environment.name), title))

    tyro.cli(flags, args=words, prog="mbrl-jax evaluate")


def _runs(words: list[str]) -> None:
    def flags(directory: tyro.conf.Positional[Path]) -> None:
        """List the runs below a folder.

        Args:
            directory: the folder

        """
        from mbrl_jax.report import listing

        terminal.show(listing.as_table(listing.find(directory)))

    tyro.cli(flags, args=words, prog="mbrl-jax runs")


def _write_report(words: list[str]) -> None:
    def flags(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path) -> None:
        """Write one page about finished runs.

        Args:
            runs: their folders
            out: a new HTML file

        """
        from mbrl_jax import report

        execution.find_devices()
        out = expand(out)
        report.write(runs, out)
        terminal.show(f"written to {out}")

    tyro.cli(flags, args=words, prog="mbrl-jax report")


if __name__ == "__main__":
    main()
