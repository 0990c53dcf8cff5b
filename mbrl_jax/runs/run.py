"""A finished run, and what can be read off it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.algorithms.training import Outcome, Result
from mbrl_jax.config import RunConfig
from mbrl_jax.engine import Engine
from mbrl_jax.imagination.diagnosis import Diagnosis


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
    engine: Engine | None = None  # its name and notes; none of PyTorch


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
    first_seed: int = 0  # number of the first seed: not 0 in a shard
    failures: Mapping[int, str] = MappingProxyType({})  # by a seed's place, how its simulator on the host failed


def cut(run: Run, first: int, end: int) -> Run:
    """The agents ``first`` to ``end - 1`` of a run, with their share of its seconds."""
    seconds = Seconds(*(each * (end - first) / len(run.result.outcome.frozen) for each in run.seconds))
    result, diagnosis = jax.tree.map(lambda leaf: leaf[first:end], (run.result, run.diagnosis))
    failures = {place - first: text for place, text in run.failures.items() if first <= place < end}
    return run._replace(result=result, diagnosis=diagnosis, seconds=seconds, failures=failures)


def joined(runs: Sequence[Run]) -> Run:
    """One run of the agents of several runs, in order; its seconds are the sums of theirs."""
    if len(runs) == 1:
        return runs[0]

    def join(*leaves: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf) for leaf in leaves])

    seconds = Seconds(*(sum(each) for each in zip(*(run.seconds for run in runs), strict=True)))
    result, diagnosis = jax.tree.map(join, *((run.result, run.diagnosis) for run in runs))
    begins = np.cumsum([0, *(len(run.result.outcome.frozen) for run in runs)])
    failures = {
        int(begin) + place: text for begin, run in zip(begins, runs, strict=False) for place, text in run.failures.items()
    }
    return runs[0]._replace(result=result, diagnosis=diagnosis, seconds=seconds, failures=failures)


def frozen_seeds(outcome: Outcome) -> list[int]:
    """Places of the seeds whose learner went non-finite."""
    return [int(number) for number in np.flatnonzero(np.asarray(outcome.frozen))]


def diverged_model_seeds(outcome: Outcome) -> list[int]:
    """Places of the seeds whose final model has numbers that are not finite; none without a model."""
    if outcome.model is None:
        return []
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.model)]
    finite = [np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in leaves]
    return [int(number) for number in np.flatnonzero(~np.logical_and.reduce(finite))]
