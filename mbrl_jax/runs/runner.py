"""Runs an algorithm for many seeds, round by round, and times it with compilation apart."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import Outcome, Result, Train
from mbrl_jax.config import ConfigError, ImaginingConfig, RunConfig, algorithm_name, check_kind, check_seeds
from mbrl_jax.imagination.diagnosis import Diagnosis
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.runs import execution, parts
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.interruption import Interruption
from mbrl_jax.runs.parts import Part
from mbrl_jax.runs.program import Keeper, Program, Seconds


class Backend(NamedTuple):
    """What computed a run."""

    name: str  # jax or pytorch
    device: str
    precision: str
    packages: tuple[str, ...]  # whose versions the figures depend on


class Run(NamedTuple):
    """A finished run of many seeds: numpy arrays with a leading axis of seeds."""

    config: RunConfig
    base_seed: int
    result: Result  # leaves [seeds, ...]; metrics [seeds, rounds, ...]
    seconds: Seconds
    backend: Backend
    state_bytes_per_seed: int | None  # what a seed holds between two rounds, none if it is not known
    temporary_bytes_per_seed: int | None  # what the largest compiled function needs besides, shared out over its seeds
    diagnosis: Diagnosis | None = None  # leaves [seeds, ...], of the final model under the last policy, if it was asked for


def make_train(config: RunConfig, controller: HorizonController | None = None) -> Train:
    """The algorithm that ``config`` configures, with ``controller`` in place of the horizon controller that it names.

    Raises:
      ConfigError: ``config`` is none, the settings cannot work, or there is a controller and nothing is imagined.

    """
    check_kind(config, RunConfig)
    make = algorithm_of(config).make_train
    if isinstance(config, ImaginingConfig):
        return make(config, controller=controller)
    if controller is not None:
        raise ConfigError(f"controller: one does not fit; {algorithm_name(config)!r} has no imagined lanes, so it must be none")
    return make(config)


def make_train_together(configs: Sequence[RunConfig], controller: HorizonController | None = None) -> Train:
    """The first config's algorithm, whose ``hyper`` may be any of ``configs``.

    Raises:
      ConfigError: as :func:`make_train`, or the configs differ in a static setting.

    """
    algorithms = [make_train(config, controller) for config in configs]
    if any(jax.tree.structure(config) != jax.tree.structure(configs[0]) for config in configs):  # type: ignore[operator]
        raise ConfigError("configs: they differ in static settings; such configs compile apart and must be run apart")
    return algorithms[0]


def check_diagnosis(diagnose: bool, algorithm: Train, config: RunConfig) -> None:
    """Refuse to diagnose what cannot be.

    Raises:
      ConfigError: there is no model.

    """
    if diagnose and algorithm.diagnose is None:
        raise ConfigError(f"diagnose: {diagnose!r} does not fit; {algorithm_name(config)!r} has no model that could be wrong")


def run(
    config: RunConfig,
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
    keeper: Keeper | None = None,
    interruption: Interruption | None = None,
    memory: int | None = None,
    devices: int | None = None,
) -> Run:
    """Train ``seeds`` agents in one compiled program, all at once or, where memory does not hold them, in equal batches.

    Args:
      config: what to train.
      seeds: at least 1.
      base_seed: seed i's random numbers follow from this and i alone.
      display: shows progress; none is silent.
      controller: a horizon controller in place of the one that ``config`` names.
      diagnose: ask the real dynamics at the end how wrong the final model is.
      keeper: keeps what the run has come to, and where it goes on from; none keeps nothing. With one, all seeds run at once.
      interruption: asks the run to stop before its end; none never does.
      memory: bytes that may be used, in place of what the devices have.
      devices: how many of the local devices to use, on a CPU its cores; none uses all.

    Raises:
      ConfigError: the settings cannot work, or there are no seeds, or not one fits into memory, or the results of all do not fit
        into the host's, or there are fewer devices, or nothing that can be diagnosed, or there is a keeper and more seeds than
        fit at once.
      Interrupted: the run was asked to stop, and has been kept.

    """
    program = prepare(
        config,
        seeds,
        base_seed=base_seed,
        display=display,
        controller=controller,
        diagnose=diagnose,
        memory=memory,
        devices=devices,
    )
    batches = parts.split(seeds, program.at_once)
    if len(batches) > 1 and (keeper is not None or interruption is not None):
        raise ConfigError(f"seeds: {seeds} do not fit into memory; of a run that is kept it must be at most {program.at_once}")
    runs = [run_part(program, part, diagnose=diagnose, keeper=keeper, interruption=interruption) for part in batches]
    return parts.joined(runs)


def prepare(
    config: RunConfig,
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
    memory: int | None = None,
    devices: int | None = None,
    most: int | None = None,
) -> Program:
    """The program of :func:`run`, compiled for as many of the seeds as fit into memory at once, or for ``most`` of them.

    Other arguments and errors as there.
    """
    check_seeds(seeds, base_seed)
    execution.check_jax()
    if memory is not None and memory < 1:
        raise ConfigError(f"memory: {memory!r} bytes is out of range; it must be positive")
    show = Display.silent() if display is None else display
    algorithm = make_train(config, controller)
    check_diagnosis(diagnose, algorithm, config)
    return parts.program_that_fits(algorithm, [config], seeds, base_seed, show, memory, devices, most)


def run_part(
    program: Program,
    part: Part,
    *,
    diagnose: bool = False,
    keeper: Keeper | None = None,
    interruption: Interruption | None = None,
) -> Run:
    """Train the agents of one part.

    Args:
      program: for as many agents as the part has or more.
      part: which agents; the run's config is the program's first one.
      diagnose: as in :func:`run`.
      keeper: keeps what the run has come to, and where it goes on from; none keeps nothing.
      interruption: asks the run to stop before its end; none never does.

    Raises:
      Interrupted: the run was asked to stop, and has been kept.

    """
    program.turn_to(*part)
    so_far = program.train(keeper, interruption)
    outcome, diagnosis = program.finish(so_far, diagnose)
    program.show.phase("done")
    return Run(
        config=program.config,
        base_seed=program.base_seed,
        result=Result(outcome, so_far.collected, so_far.fit, so_far.metrics()),
        seconds=Seconds(**so_far.seconds),
        backend=Backend("jax", execution.device(), f"float32, matrix products {program.config.precision}", execution.PACKAGES),
        state_bytes_per_seed=program.state_bytes,
        temporary_bytes_per_seed=program.temporary_bytes,
        diagnosis=diagnosis,
    )


def run_together(
    configs: Sequence[RunConfig],
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
    memory: int | None = None,
    devices: int | None = None,
) -> list[Run]:
    """Train ``seeds`` agents for each of ``configs``, all in one compiled program; seed i has the same key for each.

    Where memory does not hold all of them at once they are trained in equal batches. Each run has its share of the whole
    program's seconds.

    Args:
      configs: at least one; they may differ in traced settings only.
      seeds: at least 1, of each config.
      base_seed: as in :func:`run`.
      display: as in :func:`run`.
      controller: as in :func:`run`.
      diagnose: as in :func:`run`.
      memory: as in :func:`run`.
      devices: as in :func:`run`.

    Raises:
      ConfigError: as :func:`run`, or the configs differ in a static setting.

    """
    return list(
        train_together(
            configs,
            seeds,
            base_seed=base_seed,
            display=display,
            controller=controller,
            diagnose=diagnose,
            memory=memory,
            devices=devices,
        )
    )


def train_together(
    configs: Sequence[RunConfig],
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
    memory: int | None = None,
    devices: int | None = None,
) -> Iterator[Run]:
    """Yield the runs of :func:`run_together` in order, each as soon as the last of its seeds is trained.

    Arguments and errors as there.
    """
    check_seeds(seeds, base_seed)
    execution.check_jax()
    show = Display.silent() if display is None else display
    algorithm = make_train_together(configs, controller)
    check_diagnosis(diagnose, algorithm, configs[0])
    program = parts.program_that_fits(algorithm, configs, seeds, base_seed, show, memory, devices)
    pieces: list[Run] = []  # of the config that is not whole yet
    compiling, place = 0.0, 0
    for part in parts.split(len(configs) * seeds, program.at_once):
        whole = run_part(program, part, diagnose=diagnose)
        compiling, first = compiling + whole.seconds.compile, 0
        while first < part.agents:
            end = min(part.agents, (place + 1) * seeds - part.first)
            pieces.append(parts.cut(whole, first, end))
            first = end
            if part.first + end == (place + 1) * seeds:
                one = parts.joined(pieces)
                yield one._replace(config=configs[place], seconds=one.seconds._replace(compile=compiling / len(configs)))
                pieces, place = [], place + 1


def traced_settings(config: RunConfig) -> dict[str, float]:
    """The traced settings by their dotted paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(config)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def frozen_seeds(outcome: Outcome) -> list[int]:
    """Numbers of the seeds whose learner went non-finite."""
    return [int(number) for number in np.flatnonzero(np.asarray(outcome.frozen))]


def diverged_model_seeds(outcome: Outcome) -> list[int]:
    """Numbers of the seeds whose final model has numbers that are not finite; none without a model."""
    if outcome.model is None:
        return []
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.model)]
    finite = [np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in leaves]
    return [int(number) for number in np.flatnonzero(~np.logical_and.reduce(finite))]


def chosen_so_far(run: Run) -> np.ndarray | None:
    """[seeds, rounds] the curve return of the snapshot that was the chosen one at the end of each round; none where
    none is chosen.
    """
    metrics = run.result.metrics
    if not isinstance(run.config, ImaginingConfig):
        return None
    rounds = np.arange(metrics.is_chosen.shape[1])
    since = np.maximum.accumulate(np.where(metrics.is_chosen, rounds[None], 0), axis=1)
    return np.take_along_axis(metrics.curve_return, since, axis=1)
