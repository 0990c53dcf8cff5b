"""The model's fits: a launch for each pass over minibatches, in which a block descends for one member."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import DynaQConfig, ModelConfig, holdout_stride
from mbrl_jax.cuda.kernels import COUNTERS, fit_kernel
from mbrl_jax.cuda.parameters import flat, tree
from mbrl_jax.cuda.setup import Setup, adam_schedule, flat_bounds, largest_that_fits
from mbrl_jax.cuda.sizes import FitSizes, check_fit
from mbrl_jax.model import fitting
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.replay import ReplayState, make_replay

Fit = Callable[[DynaQConfig, Any, ReplayState, Array], tuple[Any, FitLog]]


def sizes_of(setup: Setup, rows: int) -> FitSizes:
    """The sizes of the kernel for a table of so many real rows. Raises ConfigError: it does not have them, or they do not fit."""
    model = setup.config.model
    penalised = 0 if model.laplacian == "none" else min(model.laplacian_rows or model.batch_size, model.batch_size)
    stride = holdout_stride(setup.config)
    sizes = FitSizes(**setup.networks, batch=model.batch_size, rows=rows, stride=stride, laplacian=penalised)
    check_fit(sizes)
    return largest_that_fits(setup.gpu, (sizes,), "model.hidden, model.batch_size and model.laplacian_rows")


def fit_of(setup: Setup) -> Fit:
    """:attr:`mbrl_jax.engine.Engine.fit`: a launch for each epoch. Raises ConfigError: as :func:`sizes_of`."""
    rows = setup.config.random_transitions
    sizes, stride, contents = sizes_of(setup, rows), holdout_stride(setup.config), _replay(setup).contents

    def fit(hyper: DynaQConfig, state: fitting.ModelState, real: ReplayState, key: Array) -> tuple[fitting.ModelState, FitLog]:
        data = jax.tree.map(lambda leaf: leaf[:rows], contents(real)[0])
        return fitting.fit(_ensemble(setup, hyper), state, data, key, stride, partial(_pass_over, setup, sizes, hyper.model))

    return fit


def refit_of(setup: Setup) -> Fit:
    """:attr:`mbrl_jax.engine.Engine.refit`: one launch. Raises ConfigError: as :func:`sizes_of`."""
    sizes, stride, replay = sizes_of(setup, setup.config.real_transitions), holdout_stride(setup.config), _replay(setup)

    def refit(hyper: DynaQConfig, state: fitting.ModelState, real: ReplayState, key: Array) -> tuple[fitting.ModelState, FitLog]:
        rows, size = replay.contents(real)[0], replay.size(real)
        pass_over = partial(_pass_over, setup, sizes, hyper.model)
        return fitting.refit(_ensemble(setup, hyper), state, rows, size, key, stride, pass_over)

    return refit


def _replay(setup: Setup) -> Any:
    return make_replay(setup.task.spec, setup.config.real_transitions)


def _ensemble(setup: Setup, hyper: DynaQConfig) -> Ensemble:
    return Ensemble(hyper.model, setup.task.spec, setup.task.reward, setup.task.terminated)


def _pass_over(
    setup: Setup,
    sizes: FitSizes,
    model: ModelConfig,
    start: Any,
    data: fitting.FitData,
    batches: Array,
    directions: Array,
    resting: Array | None,
) -> tuple[Any, FitLog]:
    """A :data:`mbrl_jax.model.fitting.Pass` by one launch; the Laplacian is exact, whatever ``directions`` say."""
    params, bounds, adam = start
    minibatches, members = batches.shape[:2]
    held_out = jnp.sum(data.holdout_weight).astype(jnp.int32)
    counts = jnp.stack([jnp.int32(minibatches), data.training_rows.astype(jnp.int32) + held_out])
    operands = [
        *map(flat, (params, adam.mu[0], adam.nu[0])),
        flat_bounds(bounds),
        data.table,
        batches,
        adam_schedule(adam.count, jnp.arange(minibatches, dtype=jnp.int32), model.learning_rate),
        jnp.pad(counts, (0, COUNTERS - 2)),
        jnp.zeros(members, jnp.int32) if resting is None else resting.astype(jnp.int32),
        jnp.stack([jnp.asarray(each, jnp.float32) for each in (model.weight_decay, model.laplacian_weight)]),
    ]
    params, first, second, told = setup.launch(fit_kernel(sizes, minibatches))(*operands)
    params, first, second = (tree(each, setup.member_sizes) for each in (params, first, second))
    # the bounds are not learned: their gradients are 0, and so are their moments
    adam = adam._replace(count=adam.count + minibatches, mu=(first, adam.mu[1]), nu=(second, adam.nu[1]))
    return (params, bounds, adam), FitLog(told[:, 0], told[:, 1], told[:, 2])
