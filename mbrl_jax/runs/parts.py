"""More agents than fit into memory at once: parts of them, one after another.

An agent's random numbers follow from the base seed and its seed's own number alone, so the agents may be cut anywhere; in a
part of another size an agent differs by rounding. All parts are of one size but the last, which is filled up with agents that
are there already, so that one compiled program serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import ConfigError, RunConfig
from mbrl_jax.runs import execution
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.program import Program, Seconds

if TYPE_CHECKING:
    from mbrl_jax.runs.runner import Run


class Part(NamedTuple):
    """Successive agents that are trained together."""

    first: int
    agents: int

    def __str__(self) -> str:
        return f"seeds {self.first} to {self.first + self.agents - 1}"


def split(agents: int, most: int) -> list[Part]:
    """All agents in as few parts as can be, of ``most`` at the most, and as equal as can be."""
    count = -(-agents // most)
    size = -(-agents // count)
    return [Part(first, min(size, agents - first)) for first in range(0, agents, size)]


def program_that_fits(
    algorithm: Train,
    configs: Sequence[RunConfig],
    seeds: int,
    base_seed: int,
    show: Display,
    memory: int | None = None,
    devices: int | None = None,
    most: int | None = None,
) -> Program:
    """The compiled program for as many of the agents at once as memory holds.

    How many is first taken from the shapes of what an agent holds, and then from what the compiler says that the program needs;
    for fewer than that it is compiled once more.

    Args:
      algorithm: what ``configs`` configure.
      configs: their settings, that may differ in traced ones only.
      seeds: of each config.
      base_seed: of all seeds.
      show: is told how many fit, if not all do.
      memory: bytes, in place of what the devices have.
      devices: how many to use; none uses all.
      most: agents at once at the most, as where several hosts share them; none is all.

    Raises:
      ConfigError: not even one agent fits.

    """
    agents = len(configs) * seeds
    wanted = agents if most is None else min(most, agents)
    layout = execution.choose_layout(wanted, devices)
    available = execution.memory(layout) if memory is None else memory
    state, _ = jax.eval_shape(algorithm.init, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    held = execution.bytes_per_seed(algorithm.axes, state, 1)
    fitting = min(wanted, available // held)
    while fitting:
        size = split(agents, fitting)[0].agents
        program = Program(algorithm, configs, seeds, base_seed, show, devices, size)
        needed = program.prepare()
        if needed <= available:
            if fitting < wanted:
                each, count = f"{needed / size / 1e6:,.2f} MB each of {available / 1e9:,.2f} GB", len(split(agents, size))
                show.say(f"{size} of {agents} seeds fit into memory at once, {each}: they are trained in {count} batches")
            return program
        fitting = min(size - 1, len(program.number) * available // needed)
    raise ConfigError(
        f"memory: {available / 1e9:,.3f} GB do not hold one seed, which takes {held / 1e6:,.2f} MB between rounds, and more "
        "while it computes; try a smaller imagination.capacity or random_transitions"
    )


def cut(run: Run, first: int, end: int) -> Run:
    """The agents ``first`` to ``end - 1`` of a run, with their share of its seconds."""
    seconds = Seconds(*(each * (end - first) / len(run.result.outcome.frozen) for each in run.seconds))
    result, diagnosis = (jax.tree.map(lambda leaf: leaf[first:end], each) for each in (run.result, run.diagnosis))
    return run._replace(result=result, diagnosis=diagnosis, seconds=seconds)


def joined(runs: Sequence[Run]) -> Run:
    """One run of all the agents of several, which were its parts in order; seconds are the sums of theirs."""
    if len(runs) == 1:
        return runs[0]

    def join(*leaves: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf) for leaf in leaves])

    seconds = Seconds(*(sum(each) for each in zip(*(run.seconds for run in runs), strict=True)))
    result, diagnosis = (jax.tree.map(join, *(getattr(run, name) for run in runs)) for name in ("result", "diagnosis"))
    return runs[0]._replace(result=result, diagnosis=diagnosis, seconds=seconds)
