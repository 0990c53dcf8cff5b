"""Trains one config or several for many seeds, all at once or in batches, with compilation timed apart."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import jax

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import ConfigError, RunConfig, algorithm_name, check_kind, check_seeds
from mbrl_jax.environments import Environment, environment_of
from mbrl_jax.environments import data as data_
from mbrl_jax.imagination import diagnosis
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.runs import engines, execution
from mbrl_jax.runs.callbacks import Callback
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.hosted import HostedProgram
from mbrl_jax.runs.program import Program, split
from mbrl_jax.runs.run import Run, cut, joined
from mbrl_jax.runs.training import rounds_of_a_chunk, train

__all__ = ["Run", "make_train", "prepare", "run", "run_all"]


def make_train(
    config: RunConfig,
    controller: HorizonController | None = None,
    environment: Environment | None = None,
    engine: engines.Asked = "xla",
) -> Train:
    """The algorithm that ``config`` configures, with a controller and an environment in place of those that it names.

    Raises ConfigError: ``config`` is none, the settings cannot work, there is a controller and nothing is imagined, or the engine
    does not cover the settings.
    """
    check_kind(config, RunConfig)
    make = partial(algorithm_of(config).make_train, config, environment=environment)
    if algorithm_of(config).imagines:
        make = partial(make, controller=controller)
    elif controller is not None:
        raise ConfigError(f"controller: one does not fit; {algorithm_name(config)!r} has no imagined lanes, so it must be none")
    return engines.make_with(engine, config, make)


def check(
    configs: Sequence[RunConfig],
    diagnose: bool = False,
    controller: HorizonController | None = None,
    environment: Environment | None = None,
    engine: engines.Asked = "xla",
) -> Train:
    """The algorithm of configs that compile to one program, its ``hyper`` any of them.

    Raises ConfigError: as :func:`make_train`, the configs differ in a static setting, or there is no model to diagnose.
    """
    algorithms = [make_train(config, controller, environment, engine) for config in configs]
    if any(jax.tree.structure(config) != jax.tree.structure(configs[0]) for config in configs):  # type: ignore[operator]
        raise ConfigError("configs: they differ in static settings; such configs compile apart and must be run apart")
    if diagnose and algorithms[0].diagnose is None:
        name = algorithm_name(configs[0])
        raise ConfigError(f"diagnose: {diagnose!r} does not fit; {name!r} has no model that could be wrong")
    if diagnose:
        diagnosis.check_task(environment_of(configs[0].environment, environment))
    return algorithms[0]


class Options(TypedDict, total=False):
    """What else may be said of training: the keyword arguments of :func:`run`."""

    base_seed: int
    display: Display | None
    controller: HorizonController | None
    environment: Environment | None
    data: str | Path | Sequence[str | Path] | None
    diagnose: bool
    memory: int | None
    devices: int | None
    engine: engines.Asked


def run(
    config: RunConfig,
    seeds: int | range,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    environment: Environment | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    diagnose: bool = False,
    memory: int | None = None,
    devices: int | None = None,
    engine: engines.Asked = "xla",
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train ``seeds`` agents in one compiled program, all at once or, where memory does not hold them, in equal batches.

    Args:
      config: what to train.
      seeds: how many, or a range of their numbers.
      base_seed: seed i's random numbers follow from this and i alone.
      display: shows progress; none is silent.
      controller: a horizon controller in place of the one that ``config`` names.
      environment: an environment in place of the one that ``config`` names; the run's config has its name.
      data: files of logged transitions in place of those that ``config`` names.
      diagnose: ask the real dynamics at the end how wrong the final model is.
      memory: bytes that may be used, in place of what the devices have.
      devices: how many of the local devices to use, on a CPU its cores; none uses all.
      engine: ``xla``; ``cuda``, kernels that do a round in one launch; ``auto``, these where they fit; or one of one's own.
      callbacks: follow the training, batch by batch.

    Raises:
      ConfigError: the settings cannot work, the engine does not cover them, there are no seeds, not one fits into memory, the
        results of all do not fit into the host's, there are fewer devices, or there is nothing that can be diagnosed.

    """
    options: Options = {"base_seed": base_seed, "display": display, "controller": controller, "diagnose": diagnose}
    options |= {"environment": environment, "data": data, "memory": memory, "devices": devices, "engine": engine}
    (one,) = run_all([config], seeds, callbacks=callbacks, **options)
    return one


def run_all(
    configs: Sequence[RunConfig], seeds: int | range, *, callbacks: Sequence[Callback] = (), **options: Unpack[Options]
) -> Iterator[Run]:
    """Train ``seeds`` agents for each of ``configs`` in one compiled program; yield each run as soon as it is whole.

    The configs may differ in traced settings only. Seed i has the same key for each of them, and each run has its share of the
    program's seconds. Other arguments and errors as of :func:`run`.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks: {callback!r} does not fit; each must be a mbrl_jax.runs.callbacks.Callback")
    program = prepare(configs, seeds, **options)
    each, pieces, compiling = len(program.seeds), list[Run](), 0.0
    for batch in split(program.total, program.at_once):
        whole = train(program, batch, callbacks=callbacks, diagnose=options.get("diagnose", False))
        compiling += whole.seconds.compile
        first = batch.first
        while first < batch.first + batch.agents:  # a batch may end one config and begin the next
            place = first // each
            end = min(batch.first + batch.agents, (place + 1) * each)
            pieces.append(cut(whole, first - batch.first, end - batch.first))
            first = end
            if first == (place + 1) * each:
                one, pieces = joined(pieces), []
                seconds = one.seconds._replace(compile=compiling / len(configs))
                yield one._replace(config=program.configs[place], seconds=seconds, first_seed=program.seeds.start)


def _named(config: RunConfig, environment: Environment) -> RunConfig:
    """The config with the name of an environment of one's own, so that what a run leaves names it."""
    check_kind(config, RunConfig)
    return dataclasses.replace(config, environment=dataclasses.replace(config.environment, name=environment.spec.name))


def seed_numbers(seeds: int | range, base_seed: int) -> range:
    """The numbers of the seeds, from 0 on if only their count is given.

    Raises ConfigError: there are none, or one is out of range.
    """
    if isinstance(seeds, range) and seeds.step == 1:
        check_seeds(max(0, seeds.stop - seeds.start), base_seed, seeds.start)
        return seeds
    check_seeds(seeds, base_seed)  # type: ignore[arg-type]
    return range(int(seeds))  # type: ignore[arg-type]


def prepare(
    configs: Sequence[RunConfig],
    seeds: int | range,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    environment: Environment | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    diagnose: bool = False,
    memory: int | None = None,
    devices: int | None = None,
    engine: engines.Asked = "xla",
    at_once: int | None = None,
) -> Program:
    """Compile the program of :func:`run_all`, for as many agents as memory holds at once.

    The number that fits follows from the shapes of an agent's state, then from what the compiler says that the program needs;
    for fewer it is compiled once more. With ``at_once`` agents, which are known to fit, nothing is compiled yet. Other arguments
    and errors as there.
    """
    for config in configs:
        check_kind(config, RunConfig)
    numbers = seed_numbers(seeds, base_seed)
    execution.check_jax()
    if memory is not None and not 1 <= memory < math.inf:
        raise ConfigError(f"memory: {memory!r} bytes is out of range; it must be positive and finite")
    if data is not None and not isinstance(data, str | Path | Sequence):
        raise ConfigError(f"data: {data!r} does not fit; it must be a file or several")
    if environment is not None:
        environment = environment_of(configs[0].environment, environment)
        configs = [_named(config, environment) for config in configs]
    if data is not None:
        files = tuple(map(str, [data] if isinstance(data, str | Path) else data))
        configs = [dataclasses.replace(config, data=files) for config in configs]
    configs = [data_.settle(config, environment) for config in configs]
    algorithm = check(configs, diagnose, controller, environment, engine)
    show = Display.silent() if display is None else display
    if engine != "xla":
        show.say(engines.describe(algorithm.engine))
    program_of: Callable[..., Program] = Program
    task = environment_of(configs[0].environment, environment)
    if task.host is not None:
        program_of = partial(HostedProgram, task=task, make=partial(make_train, configs[0], controller))
    if at_once is not None:
        return program_of(algorithm, configs, numbers, base_seed, show, devices, at_once)
    agents = len(configs) * len(numbers)
    available = execution.memory(execution.choose_layout(agents, devices)) if memory is None else memory
    state, _ = jax.eval_shape(algorithm.init, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    held = execution.bytes_per_seed(algorithm.axes, state, 1)
    fitting = min(agents, available // held)
    while fitting:
        size = split(agents, fitting)[0].agents
        program = program_of(algorithm, configs, numbers, base_seed, show, devices, size)
        needed = program.prepare(rounds_of_a_chunk(program))
        if needed <= available:
            if size < agents:
                each, count = f"{needed / size / 1e6:,.2f} MB each of {available / 1e9:,.2f} GB", len(split(agents, size))
                show.say(f"{size} of {agents} seeds fit into memory at once, {each}: they are trained in {count} batches")
            return program
        fitting = min(size - 1, len(program.number) * available // needed)
    raise ConfigError(
        f"memory: {available / 1e9:,.3f} GB do not hold one seed, which takes {held / 1e6:,.2f} MB between rounds, and more "
        "while it computes; try a smaller imagination.capacity or random_transitions"
    )
