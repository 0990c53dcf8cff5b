"""The loop over chunks: trains one batch of agents, tells callbacks of it, and returns their run."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import Result, missing_as_nan
from mbrl_jax.engine import Engine
from mbrl_jax.runs import execution, metrics, warm_start
from mbrl_jax.runs.callbacks import Callback, SoFar
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.interruption import Interrupted, Interruption, at_once
from mbrl_jax.runs.program import Batch, Program
from mbrl_jax.runs.run import Backend, Run, Seconds
from mbrl_jax.runs.warm_start import Start

CHUNKS = 10  # that a run has at least
CHUNK_UPDATES = 10_000  # that a device makes in a chunk, about: a second or two on a CPU


def chunk_of(rounds: int, most: int, done: int) -> int:
    """The largest number of rounds, ``most`` at the most, that divides a run evenly.

    A run that goes on has the chunks that it began with, so that it is the same program; where it began with others, as on a
    different number of devices, it has such as divide what is left.
    """
    whole = max((size for size in range(1, most + 1) if rounds % size == 0), default=1)
    return math.gcd(whole, rounds - done)


def rounds_of_a_chunk(program: Program, done: int = 0) -> int:
    """How many rounds one call of the devices runs.

    Between two calls all devices wait for the slowest, so a call should take a second or more; but a run has at least
    ``CHUNKS`` of them, and a person who asks it to stop waits for the end of one.
    """
    rounds, agents = program.algorithm.rounds, len(program.number) / program.layout.mesh.size
    updates = agents * program.configs[0].updates / rounds
    return chunk_of(rounds, min(rounds // CHUNKS, int(CHUNK_UPDATES / max(updates, 1))), done)


def train(
    program: Program,
    batch: Batch,
    *,
    callbacks: Sequence[Callback] = (),
    found: Checkpoint | None = None,
    interruption: Interruption | None = None,
    diagnose: bool = False,
    start: Start | None = None,
) -> Run:
    """Train the agents of one batch.

    Args:
      program: for as many agents as the batch has or more.
      batch: which agents; the run's config is the program's first one.
      callbacks: follow the run, after the program's own display.
      found: where the run goes on; none begins it.
      interruption: asks the run to stop before its end; none never does.
      diagnose: ask the real dynamics at the end how wrong the final model is.
      start: where the models of a run that begins stand before they are fitted; none makes them anew.

    Raises:
      ConfigError: the checkpoint is not of this run's shapes, or the model is to stay as it begins and begins untrained.
      Interrupted: the run was asked to stop, and its callbacks had the chance to save it.

    """
    for config in program.configs if found is None else ():
        warm_start.check(config, start is not None)
    program.turn_to(batch)
    so_far, rounds = SoFar(program.configs[0], batch.agents, program.algorithm.rounds), program.algorithm.rounds
    if found is None:
        _begin(program, so_far, batch, start)
        chunk = rounds_of_a_chunk(program)
    else:
        so_far.done, so_far.seconds = found.round, dict(found.about["seconds"])
        chunk = rounds_of_a_chunk(program, so_far.done)
        with at_once():  # all that there is has been saved
            program.restore(found)
            so_far.collected = program.refill(program.out("init")[1], found, "collected")
            so_far.fit = program.refill(program.out("fit")[1], found, "fit")
            if so_far.done:
                so_far.chunks = [program.refill(program.out("advance", chunk)[1], found, "metrics")]
            if so_far.done < rounds:
                program.compile(("advance",), chunk)
    if so_far.done < rounds:
        program.compile(("advance",), chunk)
    _note_compiling(program, so_far)
    everyone = [program.show, *callbacks]
    for callback in everyone:
        callback.begin(so_far)
    _advance(program, so_far, chunk, everyone, interruption)
    engine = Engine(program.algorithm.engine.name, notes=program.algorithm.engine.notes)
    outcome = program.to_host(_timed(program, so_far, "evaluating", "evaluate", "finish"))
    diagnosis = missing_as_nan(program.to_host(_timed(program, so_far, "diagnosing", None, "diagnose"))) if diagnose else None
    _note_compiling(program, so_far)
    for callback in everyone:
        callback.end()
    return Run(
        config=so_far.config,
        base_seed=program.base_seed,
        result=Result(outcome, so_far.collected, so_far.fit, so_far.metrics()),
        seconds=Seconds(**so_far.seconds),
        backend=Backend(
            "jax", execution.device(), f"float32, matrix products {so_far.config.precision}", execution.PACKAGES, engine
        ),
        state_bytes_per_seed=execution.bytes_per_seed(program.algorithm.axes, program.out("init")[0], len(program.number)),
        temporary_bytes_per_seed=program.temporary_bytes,
        diagnosis=diagnosis,
        first_seed=program.seeds.start + batch.first % len(program.seeds),
        failures=dict(program.failures),
    )


# ------------------------------------------------------------------------------------------------------------------ pieces


def _begin(program: Program, so_far: SoFar, batch: Batch, start: Start | None) -> None:
    """Collect the real data and fit the model."""
    with at_once():
        program.compile(("init", "fit"))
    so_far.collected = missing_as_nan(program.to_host(_timed(program, so_far, "collecting", "collect", "init")))
    if start is not None:
        warm_start.begin(program, batch, start)
    phase = "fitting" if algorithm_of(so_far.config).has_model else "starting"
    so_far.fit = program.to_host(_timed(program, so_far, phase, "fit", "fit"))


def _timed(program: Program, so_far: SoFar, phase: str, seconds: str | None, name: str) -> Any:
    program.compile((name,))
    program.show.phase(phase)
    start = time.perf_counter()
    result = jax.block_until_ready(program.call(name))
    jax.block_until_ready(program.state)
    if seconds is not None:
        so_far.seconds[seconds] += time.perf_counter() - start
    return result


def _note_compiling(program: Program, so_far: SoFar) -> None:
    so_far.seconds["compile"] += program.compiling
    program.compiling = 0.0


def _advance(
    program: Program, so_far: SoFar, chunk: int, callbacks: Sequence[Callback], interruption: Interruption | None
) -> None:
    """Train all rounds that are left. While the devices compute a chunk, the host works on the metrics of the one before."""
    start, before, failed = time.perf_counter(), so_far.seconds["train"], set[Callback]()
    waiting: Any = None

    def tell(entry: metrics.Entry) -> None:
        for callback in callbacks:
            try:
                callback.round(entry)
            except OSError as error:
                if callback not in failed:
                    failed.add(callback)
                    program.show.say(f"the figures of round {entry.round} could not be noted ({error}); the run goes on")

    def settle() -> None:
        nonlocal waiting
        if waiting is None:
            return
        measured, waiting = program.to_host(waiting), None
        so_far.chunks.append(measured)
        spent = so_far.seconds["train"]
        so_far.seconds["train"] = before + time.perf_counter() - start
        for number in range(chunk):
            so_far.done += 1
            seconds = spent + (so_far.seconds["train"] - spent) * (number + 1) / chunk
            one = jax.tree.map(lambda leaf, number=number: leaf[:, number], measured)
            tell(metrics.entry(so_far.config, so_far.done, one, seconds))

    def snapshot() -> Checkpoint:
        settle()
        measured = so_far.metrics() if so_far.chunks else ()
        kept = {**program.arrays(), "collected": so_far.collected, "fit": so_far.fit, "metrics": measured}
        leaves, _ = jax.tree_util.tree_flatten_with_path(kept)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        about = {"seconds": dict(so_far.seconds), "keys": "threefry2x32", "device": execution.device()}
        if program.failures:
            about["failures"] = {str(place): text for place, text in program.failures.items()}
        return Checkpoint(so_far.done, arrays, about)

    for begin in range(so_far.done, so_far.rounds, chunk):
        measured = program.call("advance", chunk)
        settle()
        waiting = measured
        is_last = begin + chunk >= so_far.rounds
        stop = interruption is not None and interruption.requested and not is_last
        for callback in callbacks:
            callback.chunk(snapshot, stop or is_last)
        if stop:
            settle()
            raise Interrupted(so_far.done)
    settle()
