"""Runs an algorithm for many seeds, round by round, and times it with compilation apart."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import Outcome, Result, Train, seed_keys
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig
from mbrl_jax.runs import execution
from mbrl_jax.runs.display import Display
from mbrl_jax.statistics import interquartile_mean

PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # whose versions figures depend on


class Seconds(NamedTuple):
    """Wall-clock time of a run."""

    compile: float
    collect: float
    fit: float
    train: float
    evaluate: float

    @property
    def run(self) -> float:
        """All but compilation."""
        return self.collect + self.fit + self.train + self.evaluate


class Backend(NamedTuple):
    """What computed a run."""

    name: str  # jax or pytorch
    device: str
    precision: str
    packages: tuple[str, ...]  # whose versions the figures depend on


class Run(NamedTuple):
    """A finished run of many seeds: numpy arrays with a leading axis of seeds."""

    config: ModelFreeQConfig
    base_seed: int
    result: Result  # leaves [seeds, ...]; metrics [seeds, rounds, ...]
    seconds: Seconds
    backend: Backend
    state_bytes_per_seed: int | None  # what a seed holds between two rounds, none if it is not known
    temporary_bytes_per_seed: int | None  # what the largest compiled function needs besides, shared out over its seeds


def make_train(config: ModelFreeQConfig) -> Train:
    """The algorithm that ``config`` configures."""
    return dyna_q.make_train(config) if isinstance(config, DynaQConfig) else model_free_q.make_train(config)


def check_seeds(seeds: int, base_seed: int) -> None:
    """Refuse seeds that cannot be.

    Raises:
      ConfigError: there are none, or the base is out of range.

    """
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds!r} is out of range; it must be at least 1")
    if not 0 <= base_seed < 2**32:
        raise ConfigError(f"seed: {base_seed!r} is out of range; it must be from 0 to 2^32 - 1")


def run(config: ModelFreeQConfig, seeds: int, *, base_seed: int = 0, display: Display | None = None) -> Run:
    """Train ``seeds`` agents in one compiled program.

    Args:
      config: what to train.
      seeds: at least 1.
      base_seed: seed i's numbers follow from this and i alone.
      display: shows progress; none is silent.

    Raises:
      ConfigError: the settings cannot work, or there are no seeds.

    """
    check_seeds(seeds, base_seed)
    show = Display.silent() if display is None else display
    algorithm = make_train(config)
    layout = execution.choose_layout(seeds)
    keys = layout.place(seed_keys(base_seed, layout.padded(seeds)))
    compiled: list[execution.Compiled] = []

    def prepare(function: Callable[..., Any], in_axes: Any, out_axes: Any, *arguments: Any, donate: Any = ()) -> Any:
        show.phase("compiling")
        made = execution.compile_(execution.spread(function, in_axes, out_axes, layout), *arguments, donate=donate)
        compiled.append(made)
        return made.call

    def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        return result, time.perf_counter() - start

    axes = algorithm.axes
    init = prepare(algorithm.init, (0,), (axes, 0), keys)
    show.phase("collecting")
    (state, collected), seconds_collect = timed(init, keys)
    state_bytes = execution.bytes_per_seed(axes, state, layout.padded(seeds))

    fit = prepare(algorithm.fit, (axes, None), (axes, 0), state, config, donate=(0,))
    show.phase("fitting" if isinstance(config, DynaQConfig) else "starting")
    (state, fit_log), seconds_fit = timed(fit, state, config)

    advance = prepare(algorithm.advance, (axes, None), (axes, 0), state, config, donate=(0,))
    finish = prepare(algorithm.finish, (axes, None), 0, state, config)
    show.phase("training", total=algorithm.rounds)
    start = time.perf_counter()
    rounds: list[Any] = []
    for _ in range(algorithm.rounds):
        state, metrics = advance(state, config)
        rounds.append(jax.tree.map(np.asarray, metrics))
        show.round(float(interquartile_mean(np.asarray(rounds[-1].curve_return[:seeds], np.float64))))
    seconds_train = time.perf_counter() - start

    show.phase("evaluating")
    outcome, seconds_evaluate = timed(finish, state, config)
    show.phase("done")
    result = Result(outcome, collected, fit_log, jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rounds))
    result = jax.tree.map(lambda leaf: np.asarray(leaf)[:seeds], result)
    seconds = Seconds(sum(made.seconds for made in compiled), seconds_collect, seconds_fit, seconds_train, seconds_evaluate)
    temporary = max(made.temporary_bytes for made in compiled) * layout.mesh.size // layout.padded(seeds)
    backend = Backend("jax", execution.device(), f"float32, matrix products {config.precision}", PACKAGES)
    return Run(config, base_seed, result, seconds, backend, state_bytes, temporary)


def frozen_seeds(outcome: Outcome) -> list[int]:
    """Numbers of the seeds whose learner went non-finite."""
    return [int(number) for number in np.flatnonzero(np.asarray(outcome.frozen))]


def chosen_so_far(run: Run) -> np.ndarray | None:
    """[seeds, rounds] the curve return of the snapshot that was the chosen one at the end of each round; none without a model."""
    metrics = run.result.metrics
    if not isinstance(run.config, DynaQConfig):
        return None
    rounds = np.arange(metrics.is_chosen.shape[1])
    since = np.maximum.accumulate(np.where(metrics.is_chosen, rounds[None], 0), axis=1)
    return np.take_along_axis(metrics.curve_return, since, axis=1)
