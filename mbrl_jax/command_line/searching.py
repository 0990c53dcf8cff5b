"""The commands that train many settings: ``sweep`` and ``tune``."""

import itertools
import math
import shlex
import time
from pathlib import Path

from mbrl_jax.command_line.flags import ENGINE, MACHINE, MANY, machine, memory_and_devices, parse
from mbrl_jax.config import ConfigError, grid
from mbrl_jax.runs import execution, launch, results, shards, terminal
from mbrl_jax.runs import sweep as sweeps
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.launch import Work


def sweep(words: list[str], work: Work) -> None:
    """``mbrl-jax sweep``: train every combination of values of some settings."""
    options = (("grid", MANY, ()), ("resume", bool, False), ("combinations", str | None, None))
    given = parse("sweep", words, *options, ENGINE, *MACHINE)
    memory, devices, launcher = machine(given, work)
    only, values = None, grid.parse(given.grid)
    if given.combinations is not None:
        count = math.prod(map(len, values.values()))
        ranges = map(shards.parse_numbers, given.combinations.split(","))
        only = [number for numbers in ranges for number in itertools.islice(numbers, count + 1)]  # of more one is not there
    execution.check_jax()
    table = sweeps.Table(given.out, given.config, values, given.seeds, given.seed, only)
    started = time.perf_counter()
    with Display.standard("sweep") as display:
        if launcher is None:
            sweeps.train(table, given.resume, display.say, display=display, memory=memory, devices=devices, engine=given.engine)
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


def tune(words: list[str]) -> None:
    """``mbrl-jax tune``: search for the best settings."""
    from mbrl_jax.tuning import search, space
    from mbrl_jax.tuning.study import Asked, Measure, Sampler

    given = parse(
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
    memory, devices = memory_and_devices(given)
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
