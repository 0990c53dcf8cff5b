"""Runs the PyTorch reference for several seeds, one after another, and brings its results into the form of every other run.

So a reference run writes the same files, the same commands play its policies, and the same code draws its figures. PyTorch is
imported only here, and only when a run begins.
"""

import dataclasses
import platform
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np

from mbrl_jax.agents.q_learning import UpdateLog
from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import Outcome, Result
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, RunConfig, algorithm_name, check, check_seeds
from mbrl_jax.imagination.lanes import LaneLog
from mbrl_jax.model.ensemble import Bounds, Members, Normaliser
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Backend, Run, Seconds
from mbrl_jax.statistics import interquartile_mean

PACKAGES = ("torch", "gymnasium", "numpy")


def run(
    config: RunConfig,
    seeds: int,
    *,
    base_seed: int = 0,
    compiled: bool = False,
    processes: int = 1,
    device: str = "cpu",
    display: Display | None = None,
) -> Run:
    """Train ``seeds`` agents by the reference.

    Args:
      config: what to train; ``precision`` says nothing here, PyTorch multiplies float32 in full.
      seeds: at least 1.
      base_seed: seed i's random numbers follow from this and i alone; they are not the numbers of the JAX side's seeds.
      compiled: whether hot functions go through ``torch.compile`` (on a GPU as CUDA graphs). One round is run beforehand, and its
        time is reported as compilation.
      processes: seeds that run side by side, each on one thread. The seconds of the run are sums over seeds all the same, and its
        rates are therefore those of one process.
      device: as PyTorch names it.
      display: shows progress; none is silent.

    Raises:
      ConfigError: the settings cannot work, there are no seeds or no processes, the reference does not have that algorithm or
        setting, or PyTorch is not installed.

    """
    check(config)
    if not isinstance(config, ModelFreeQConfig):
        raise ConfigError(
            f"algorithm: {algorithm_name(config)!r} does not fit; the reference has whole runs of 'dyna_q' and 'model_free_q'"
        )
    _check_known(config)
    check_seeds(seeds, base_seed)
    if processes < 1:
        raise ConfigError(f"processes: {processes!r} is out of range; it must be at least 1")
    try:
        import mbrl_jax.reference  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"reference: {error}") from error
    show = Display.silent() if display is None else display
    show.phase("training", total=seeds)
    jobs = [(config, base_seed, number, compiled, device) for number in range(seeds)]
    done: list[tuple[Result, Seconds]] = []
    returns: list[float] = []

    def finished(one: tuple[Result, Seconds]) -> None:
        done.append(one)
        returns.append(float(np.mean(one[0].outcome.returns_last)))
        show.advance(f"IQM {interquartile_mean(np.array(returns)):.0f}")

    if processes == 1:
        for job in jobs:
            finished(train(*job))
    else:
        # A process that is stopped by a signal leaves semaphores behind. Python removes them, and need not say so.
        sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
        with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for one in pool.map(train, *zip(*jobs, strict=True)):
                finished(one)
    show.phase("done")
    result = jax.tree.map(lambda *leaves: np.stack(leaves), *(one[0] for one in done))
    seconds = Seconds(*(float(sum(column)) for column in zip(*(one[1] for one in done), strict=True)))
    name = f"{processes} x {platform.machine()} thread" if device == "cpu" else device
    return Run(config, base_seed, result, seconds, Backend("pytorch", name, "float32", PACKAGES), None, None)


def _check_known(config: ModelFreeQConfig) -> None:
    """Refuse what the reference was not written for, and would do without.

    Raises ConfigError: naming it.
    """
    allowed: dict[str, tuple[Any, Any]] = {"agent.kind": (config.agent.kind, "q_learning")}
    if config.agent.kind == "q_learning":
        allowed["agent.gradient_clip"] = (config.agent.gradient_clip, None)
    if isinstance(config, DynaQConfig):
        allowed["model.kind"] = (config.model.kind, "ensemble")
        if config.model.kind == "ensemble":
            allowed["model.loss"] = (config.model.loss, "likelihood")
        allowed["mixing.rule"] = (config.mixing.rule, "fixed")
        allowed["selection.choose"] = (config.selection.choose, True)
    for name, (value, right) in allowed.items():
        if value != right:
            raise ConfigError(f"{name}: {value!r} does not fit; the reference has {right!r} only")


def train(config: ModelFreeQConfig, base_seed: int, number: int, compiled: bool, device: str) -> tuple[Result, Seconds]:
    """One seed's run on one thread: its result, as the JAX side has it, and its seconds by phase."""
    import torch

    from mbrl_jax.reference.algorithms import dyna_q as reference_dyna_q
    from mbrl_jax.reference.algorithms import model_free_q as reference_model_free_q
    from mbrl_jax.reference.draws import Draws

    torch.set_num_threads(1)
    loop: Any = reference_dyna_q.train if isinstance(config, DynaQConfig) else reference_model_free_q.train
    seed = int(np.random.SeedSequence([base_seed, number]).generate_state(1, np.uint64)[0] >> 1)
    warm_up = 0.0
    if compiled:
        short = dataclasses.replace(config, steps=config.round_steps)
        before = time.perf_counter()
        loop(short, Draws(short, seed, device=device), device=device, compile_=True)
        warm_up = time.perf_counter() - before
    finished = loop(config, Draws(config, seed, device=device), device=device, compile_=compiled)
    spent = finished.seconds
    training = sum(spent.get(phase, 0.0) for phase in ("train", "refit", "select", "curve"))
    seconds = Seconds(warm_up, spent["collect"], spent.get("fit", 0.0), training, spent["evaluate"])
    return as_result(config, finished), seconds


def as_result(config: ModelFreeQConfig, finished: Any) -> Result:
    """A :class:`mbrl_jax.reference.algorithms.result.Result` as a :class:`mbrl_jax.algorithms.training.Result`."""
    from mbrl_jax.reference.weights import ensemble_to_flax, q_to_flax

    chosen, model = None, None
    if isinstance(config, DynaQConfig):
        chosen = q_to_flax(finished.networks["chosen"])
        params, *limits = ensemble_to_flax(finished.networks["imagining"])
        bounds: Any = Bounds(*limits)  # type: ignore[arg-type]
        model = Members(params, bounds, Normaliser(*finished.normaliser.values()))
    outcome = Outcome(
        last=q_to_flax(finished.networks["target"]),
        chosen=chosen,
        returns_last=finished.returns_last,
        returns_chosen=finished.returns_chosen,
        frozen=finished.frozen,
        updates=finished.updates,
        model=model,
    )
    told = finished.metrics
    update = UpdateLog(told["loss"], told["scaled_loss"])
    if not isinstance(config, DynaQConfig):
        return Result(outcome, finished.collected, (), model_free_q.Metrics(update, told["curve_return"], told["frozen"]))
    refit = FitLog(*(told[f"refit_{name}"] for name in FitLog._fields)) if config.protocol == "interactive" else None
    metrics = dyna_q.Metrics(
        update=update,
        lanes=LaneLog(*(told[f"lane_{name}"] for name in LaneLog._fields)),
        curve_return=told["curve_return"],
        score=told["score"],
        chosen_score=told["chosen_score"],
        is_chosen=told["is_chosen"],
        refit=refit,
        frozen=told["frozen"],
    )
    return Result(outcome, finished.collected, FitLog(**finished.fit), metrics)
