"""Fitting: what is held out, who is trained on what, when a member rests, who is an elite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms.training import Stream, stream
from mbrl_jax.config import DynaQConfig
from mbrl_jax.model import fitting
from mbrl_jax.model.ensemble import Bounds
from mbrl_jax.reference import weights
from mbrl_jax.reference.model import fitting as reference
from mbrl_jax.reference.model.ensemble import Normaliser
from mbrl_jax.reference.model.losses import member_losses
from mbrl_jax.replay import Rows

from .agreement import Agreement, tensor
from .lockstep import PrescribedDraws
from .twins import ModelTwins, random_rows

FITS: dict[str, dict[str, Any]] = {
    "all members": {},
    "on the task's scale": {"input_scale": "task", "prediction": "deterministic"},
    "early stopping, elites, resamples": {"patience": 1, "elites": 3, "bootstrap": True, "learning_rate": 0.03, "epochs": 8},
    "elites without early stopping": {"elites": 2, "termination": "learned", "epochs": 4},
    "Hutchinson's Laplacian": {"laplacian": "hutchinson", "laplacian_probes": 2, "laplacian_rows": 8, "learn_bounds": True},
}
STRIDE, REAL, SEEN_AT_REFIT, TIME = 5, 150, 131, 10


@pytest.mark.parametrize("name", FITS)
def test_a_fit_and_the_refit_after_it_are_the_references(rng: np.random.Generator, agree: Agreement, name: str) -> None:
    twins = ModelTwins(rng, **{"hidden": (16, 16), "batch_size": 16, "refit_batches": 12, **FITS[name]})
    world, config = twins.ensemble, twins.config
    mine, other = random_rows(rng, REAL)
    key = jax.random.key(int(rng.integers(2**31)))
    first = 100

    @jax.jit
    def ours(rows: Rows) -> Any:
        begun, seen = fitting.init(world, stream(key, Stream.MODEL)), jnp.asarray(SEEN_AT_REFIT, jnp.int32)
        fitted = fitting.fit(world, begun, jax.tree.map(lambda x: x[:first], rows), stream(key, Stream.FIT), STRIDE)
        return fitted, fitting.refit(world, fitted[0], rows, seen, stream(key, Stream.REFIT, TIME), STRIDE)

    draws = PrescribedDraws(DynaQConfig(model=config, random_transitions=first), key)
    draws.initialise_ensemble(twins.reference)
    optimiser = reference.make_optimiser(twins.reference, config)

    def upto(size: int) -> Any:
        return type(other)(*(field[:size] for field in other))

    def now(fit: reference.Fit) -> Any:
        params, low, high = weights.ensemble_to_flax(twins.reference.state_dict())
        best = reference.elites(fit.error, world.sampling_members)
        return (params, Bounds(low, high)), tuple(fit.normaliser), best, tuple(fit.log)

    theirs = [now(reference.fit(twins.reference, optimiser, upto(first), STRIDE, config, draws, member_losses))]
    again = reference.refit(twins.reference, optimiser, upto(SEEN_AT_REFIT), STRIDE, config, draws, TIME, member_losses)
    theirs.append(now(again._replace(log=reference.FitLog(*(column[0] for column in again.log)))))
    for what, (state, log), (learned, normaliser, best, their_log) in zip(("fit", "refit"), ours(mine), theirs, strict=True):
        agree(f"{what}, {name}: members", (state.params, state.bounds), learned, 1e-8)
        agree(f"{what}, {name}: statistics", tuple(state.normaliser), normaliser, 1e-12)
        if config.elites is not None:
            agree(f"{what}, {name}: elites", state.elites, best, 0)
        agree(f"{what}, {name}: losses and holdout errors", tuple(log), their_log, 1e-8)


def test_inputs_on_the_tasks_scale_are_not_standardised(rng: np.random.Generator, agree: Agreement) -> None:
    twins = ModelTwins(rng, input_scale="task")
    mine, other = random_rows(rng, 60)
    size, stride = 43, 5
    normaliser, data = fitting._prepare(twins.ensemble, mine, jnp.asarray(size, jnp.int32), stride)
    expected = reference.prepare(twins.reference, type(other)(*(field[:size] for field in other)), stride)
    assert isinstance(expected[0], Normaliser)
    agree("inputs on the task's scale", normaliser.state_std, np.array(twins.task.input_scale), 0, "the task")
    agree("inputs on the task's scale", tuple(normaliser), tuple(expected[0]), 1e-12)
    held_out = data.table[data.holdout[np.asarray(data.holdout_weight) > 0]]
    raw = tensor(mine.observation)[np.arange(4, size, stride)] / tensor(np.array(twins.task.input_scale))
    agree("inputs on the task's scale", held_out[:, :4], raw, 1e-12, "every fifth row")
