"""Fitting the ensemble: epochs over a fixed data set at the start, minibatches from a growing one afterwards.

Every ``stride``-th real row is held out, never trained on and not counted in the statistics; so the split of the rows
seen so far stays as it is while data come in.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import ConfigError
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model import losses, regularising, valuing
from mbrl_jax.model.ensemble import Bounds, Ensemble, Members, Normaliser
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.networks import ADAM, Params, adam_step
from mbrl_jax.replay import Rows, epoch_minibatches

HoldOut = Callable[[], np.ndarray]  # () -> [h] int32, ascending, numbers of the rows that are held out


class ModelState(NamedTuple):
    """The ensemble's parameters and what goes with them."""

    params: Params  # leaves [E, ...]
    bounds: Bounds  # leaves [E, D']
    optimizer: Any  # Adam's moments of (params, bounds)
    normaliser: Normaliser
    elites: Array  # [M] int32, the members with the lowest holdout error, best first


class FitData(NamedTuple):
    """Real rows, encoded once for a whole fit."""

    table: Array  # [N, inputs + D' + 1] network input, normalised target, terminated
    training_rows: Array  # [] uint32 n, how many training rows there are
    holdout: Array  # [N // stride] int32, row numbers of the holdout
    holdout_weight: Array  # [N // stride] 1 for rows that hold data, else 0
    stride: int
    valued: valuing.Valued | None = None  # for a loss that knows the value
    training: Array | None = None  # [n] int32 row numbers of the training rows, where they are not all but every ``stride``-th


def init(ensemble: Ensemble, key: Array) -> ModelState:
    """An unfitted ensemble."""
    params, bounds = ens.init_params(ensemble, key)
    elites = jnp.arange(ensemble.sampling_members, dtype=jnp.int32)
    return ModelState(params, bounds, ADAM.init((params, bounds)), ens.init_normaliser(ensemble), elites)


def members(ensemble: Ensemble, state: ModelState) -> Members:
    """The M members that imagination uses: the elites, best first, or all in their own order.

    They are silent about targets that do not vary in the data, as :func:`mbrl_jax.model.ensemble.silence` says.
    """
    learned = (state.params, state.bounds)
    if ensemble.config.elites is not None:
        learned = jax.tree.map(lambda leaf: leaf[state.elites], learned)
    return ens.silence(ensemble, Members(*learned, state.normaliser))


Pass = Callable[[Any, FitData, Array, Array, Array | None], tuple[Any, FitLog]]
"""``((params, bounds, optimizer), data, minibatches [n, E, B], Laplacian directions, members that rest [E] or none)`` to the same
after n steps of Adam, with the mean loss over the minibatches and the holdout errors after them, leaves [E]."""


def fit(
    ensemble: Ensemble,
    state: ModelState,
    real: Rows,
    key: Array,
    stride: int,
    pass_over: Pass | None = None,
    holdout: HoldOut | None = None,
) -> tuple[ModelState, FitLog]:
    """Fit from the present parameters by ``config.epochs`` passes over a fixed data set, as far as ``config.fits`` says.

    With ``config.patience`` each member ends at the parameters of its own best holdout epoch, and rests once that many epochs
    have brought nothing better.

    Args:
      ensemble: the shape.
      state: where to begin.
      real: [N] rows, all of them data.
      key: consumed.
      stride: every how manieth row is held out.
      pass_over: what descends over an epoch's minibatches, in place of the functions here.
      holdout: which rows are held out in place of those.

    """
    config = ensemble.config
    pass_over = partial(_pass_over, ensemble) if pass_over is None else pass_over
    rows = real.reward.shape[0]
    held = None if holdout is None else holdout()
    normaliser, data = _prepare(ensemble, real, rows, stride, held, _kept(ensemble, state))
    training_rows = rows - (rows // stride if held is None else len(held))
    if training_rows < config.batch_size:
        raise ConfigError(
            f"model.batch_size: {config.batch_size!r} does not fit; it must be at most {training_rows}, as of {rows} rows the "
            "others are held out"
        )
    if config.fits == "none":
        log = _at_rest(ensemble, state, data, key, pass_over)
        return state, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (config.epochs, *leaf.shape)), log)
    start = (state.params, state.bounds, state.optimizer)
    patience = config.patience
    key_rows, key_epochs = jax.random.split(key)
    own_rows = draws.integers(key_rows, (config.members, training_rows), training_rows) if config.bootstrap else None

    def epoch(carry: Any, key: Array) -> tuple[Any, FitLog]:
        key_batches, key_probes = jax.random.split(key)
        batches = epoch_minibatches(key_batches, config.members, training_rows, config.batch_size)
        if own_rows is not None:
            batches = own_rows[jnp.arange(config.members, dtype=jnp.int32)[None, :, None], batches]
        directions = losses.laplacian_directions(ensemble, key_probes)
        return _patiently(patience, lambda now, rest: pass_over(now, data, batches, directions, rest), carry)

    carry = (start, start, jnp.full(config.members, jnp.inf), jnp.zeros(config.members, jnp.int32))
    (now, best, best_error, _), log = jax.lax.scan(epoch, carry, jax.random.split(key_epochs, config.epochs))
    params, bounds, optimizer = now if patience is None else best
    error = log.holdout_mse[-1] if patience is None else best_error
    return ModelState(params, bounds, optimizer, normaliser, _elites(ensemble, error)), log


def refit(
    ensemble: Ensemble,
    state: ModelState,
    real: Rows,
    size: Array,
    key: Array,
    stride: int,
    pass_over: Pass | None = None,
    value: valuing.Value | None = None,
) -> tuple[ModelState, FitLog]:
    """Fit on from the present parameters by ``config.refit_batches`` minibatches, drawn with replacement from data that grow.

    With ``config.refit_passes`` above 1 and ``config.patience`` each member stops early, and never ends at a larger holdout error
    than it began with.

    Args and returns as :func:`fit`; the first ``size`` [] rows are data, and ``value`` is the agent's, for a loss that knows it.

    Raises:
      ValueError: the loss needs a value and there is none.

    """
    config = ensemble.config
    pass_over = partial(_pass_over, ensemble) if pass_over is None else pass_over
    normaliser, data = _prepare(ensemble, real, size, stride, kept=_kept(ensemble, state))
    if config.fits == "none":
        return state, _at_rest(ensemble, state, data, key, pass_over)
    if config.loss in losses.VALUE_LOSSES:
        if value is None:
            raise ValueError(f"the loss {config.loss!r} needs the agent's value")
        number, states = jnp.arange(real.reward.shape[0], dtype=jnp.int32), slice(ensemble.spec.observation_size)
        counted = (number < size) & (number % stride != stride - 1)
        key_samples = jax.random.fold_in(key, 2)
        valued = valuing.prepare(value, real.next_observation, normaliser.target_std[states], counted, key_samples)
        data = data._replace(valued=valued)
    key_batches, key_probes = jax.random.split(key)
    shape = (config.refit_batches, config.members, config.batch_size)
    batches = (draws.bits(key_batches, shape) % data.training_rows).astype(jnp.int32)
    directions = losses.laplacian_directions(ensemble, key_probes)
    start = (state.params, state.bounds, state.optimizer)
    if config.refit_passes == 1 or config.patience is None:
        now, log = pass_over(start, data, batches, directions, None)
    else:
        now, log = _refit_early_stopped(ensemble, start, data, batches, directions, pass_over)
    params, bounds, optimizer = now
    return ModelState(params, bounds, optimizer, normaliser, _elites(ensemble, log.holdout_mse)), log


def _kept(ensemble: Ensemble, state: ModelState) -> Normaliser | None:
    """The statistics that a fit keeps; none where it measures them anew."""
    return None if ensemble.config.fits == "all" else state.normaliser


def _at_rest(ensemble: Ensemble, state: ModelState, data: FitData, key: Array, pass_over: Pass) -> FitLog:
    """What a frozen model's loss over one minibatch and its holdout errors are."""
    key_batches, key_probes = jax.random.split(key)
    members = ensemble.config.members
    bits = draws.bits(key_batches, (1, members, ensemble.config.batch_size))
    batches = (bits % data.training_rows).astype(jnp.int32)
    directions = losses.laplacian_directions(ensemble, key_probes)
    start = (state.params, state.bounds, state.optimizer)
    return pass_over(start, data, batches, directions, jnp.ones(members, bool))[1]


def _refit_early_stopped(
    ensemble: Ensemble, start: Any, data: FitData, batches: Array, directions: Array, pass_over: Pass
) -> tuple[Any, FitLog]:
    """A refit by minibatches [n, E, B] in ``config.refit_passes`` parts, from which each member takes its best."""
    config = ensemble.config
    parts = batches.reshape(config.refit_passes, -1, *batches.shape[1:])

    def part(carry: Any, batches: Array) -> tuple[Any, FitLog]:
        return _patiently(config.patience, lambda now, rest: pass_over(now, data, batches, directions, rest), carry)

    error = _holdout_errors(ensemble, start[:2], data)[0]
    carry = (start, start, error, jnp.zeros(config.members, jnp.int32))
    (_, best, _, _), log = jax.lax.scan(part, carry, parts)
    return best, FitLog(jnp.mean(log.loss, axis=0), *_holdout_errors(ensemble, best[:2], data))


def _patiently(
    patience: int | None, pass_over: Callable[[Any, Array | None], tuple[Any, FitLog]], carry: Any
) -> tuple[Any, FitLog]:
    """One pass of the members that have not lost their patience.

    Args:
      patience: passes without a better holdout error after which a member rests; none lets none rest.
      pass_over: ``(start, members that rest [E] or none)`` to what a :data:`Pass` gives.
      carry: (parameters now, each member's best, their holdout errors [E], passes since then [E] int32).

    """
    now, best, best_error, stale = carry
    after, log = pass_over(now, None if patience is None else stale >= patience)
    if patience is not None:
        better = log.holdout_mse < best_error
        best = _per_member(~better, best, after)
        best_error = jnp.where(better, log.holdout_mse, best_error)
        stale = jnp.where(better, 0, stale + 1)
    return (after, best, best_error, stale), log


def holdout_rows(count: int, stride: int) -> Array:
    """[count // stride] int32, every ``stride``-th of ``count`` rows: those that are held out."""
    return jnp.arange(count // stride, dtype=jnp.int32) * stride + stride - 1


def _prepare(
    ensemble: Ensemble,
    rows: Rows,
    size: Array | int,
    stride: int,
    held: np.ndarray | None = None,
    kept: Normaliser | None = None,
) -> tuple[Normaliser, FitData]:
    """Statistics of the training rows among the first ``size``, or those that are ``kept``, and all rows encoded with them.

    Held out are the rows ``held`` [h], or where there are none every ``stride``-th.
    """
    count = rows.reward.shape[0]
    changes = ensemble.config.target == "change"
    targets = rows.next_observation - rows.observation if changes else rows.next_observation
    if ensemble.learns_reward:
        targets = jnp.concatenate([targets, rows.reward[:, None]], axis=-1)
    number = jnp.arange(count, dtype=jnp.int32)
    is_holdout = number % stride == stride - 1 if held is None else jnp.zeros(count, bool).at[held].set(True)
    if kept is None:
        normaliser = ens.measure(rows.observation, targets, (number < size) & ~is_holdout)
        if ensemble.config.input_scale == "task":
            scale = jnp.asarray(ensemble.spec.observation_scale, targets.dtype)
            normaliser = normaliser._replace(state_mean=jnp.zeros_like(scale), state_std=scale)
        if not ensemble.config.normalise_targets:
            normaliser = ens.unscaled(normaliser)
    else:
        normaliser = kept
    inputs = ens.encode(ensemble, normaliser, rows.observation, rows.action)
    targets = (targets - normaliser.target_mean[None]) / normaliser.target_scale[None]
    table = jnp.concatenate([inputs, targets, rows.terminated[:, None].astype(inputs.dtype)], axis=-1)
    if held is not None:
        others = jnp.asarray(np.setdiff1d(np.arange(count, dtype=np.int32), held))
        return normaliser, FitData(
            table=table,
            training_rows=jnp.asarray(len(others), jnp.uint32),
            holdout=jnp.asarray(held),
            holdout_weight=jnp.ones(len(held), inputs.dtype),
            stride=stride,
            training=others,
        )
    holdout = holdout_rows(count, stride)
    weight = (holdout < size).astype(inputs.dtype)
    training_rows = jnp.asarray(size - size // stride, jnp.uint32)
    return normaliser, FitData(table, training_rows, holdout, weight, stride)


def _columns(ensemble: Ensemble, table: Array) -> tuple[Array, Array, Array]:
    """Inputs, targets and termination flags of table rows."""
    split = (ensemble.input_size, ensemble.input_size + ensemble.targets)
    return table[..., : split[0]], table[..., split[0] : split[1]], table[..., -1] > 0.5


def _pass_over(
    ensemble: Ensemble, start: Any, data: FitData, batches: Array, directions: Array, resting: Array | None = None
) -> tuple[Any, FitLog]:
    """A :data:`Pass` as XLA compiles it."""
    after, loss = _descend(ensemble, start, data, batches, directions, resting)
    return after, FitLog(loss, *_holdout_errors(ensemble, after[:2], data))


def _descend(
    ensemble: Ensemble, start: Any, data: FitData, batches: Array, directions: Array, resting: Array | None = None
) -> tuple[Any, Array]:
    """Adam steps of the members that do not rest [E], over minibatches [n, E, B] of training-row numbers; the mean loss [E]."""
    config = ensemble.config

    def loss(learned: tuple[Params, Bounds], batch: Array, valued: tuple[Any, Array] | None) -> tuple[Array, Array]:
        def one(params: Params, bounds: Bounds, rows: Array, own: Any) -> Array:
            columns, known = _columns(ensemble, rows), None
            if valued is not None:
                assert data.valued is not None
                known = data.valued._replace(rows=own, noise=valued[1])
            return losses.member_loss(ensemble, params, bounds, *columns, directions, known)

        each = jax.vmap(one)(*learned, batch, None if valued is None else valued[0])
        if config.jacobian != "none":
            inputs = _columns(ensemble, batch[0, : config.jacobian_rows])[0]
            each = each + config.jacobian_weight * regularising.jacobian_penalty(ensemble, learned[0], inputs)
        return jnp.sum(each), each

    def step(carry: Any, drawn: tuple[Array, Array | None]) -> tuple[Any, Array]:
        batch, number = drawn
        # Skip the held-out rows.
        row = batch + batch // (data.stride - 1) if data.training is None else data.training[batch]
        table = data.table.at[row].get(mode="promise_in_bounds")
        learned, optimizer = carry[:2], carry[2]
        valued = None
        if data.valued is not None:
            assert number is not None
            valued = valuing.minibatch(data.valued, row, config.value_samples, number)
        gradients, each = jax.grad(loss, has_aux=True)(learned, table, valued)
        learned, optimizer = adam_step(learned, optimizer, gradients, config.learning_rate)
        if (bound := config.spectral_bound) is not None:
            learned = jax.vmap(lambda params: regularising.bounded(params, bound))(learned[0]), learned[1]
        after = (*learned, optimizer)
        return after if resting is None else _per_member(resting, carry, after), each

    numbers = None if data.valued is None else jnp.arange(batches.shape[0], dtype=jnp.int32)
    end, each = jax.lax.scan(step, start, (batches, numbers))
    return end, jnp.mean(each, axis=0)


def _holdout_errors(ensemble: Ensemble, learned: tuple[Params, Bounds], data: FitData) -> tuple[Array, Array]:
    """[E] squared error and [E] negative log-likelihood over the holdout rows that hold data."""
    inputs, targets, _ = _columns(ensemble, data.table[data.holdout])
    weight = data.holdout_weight / jnp.sum(data.holdout_weight)

    def one(params: Params, bounds: Bounds) -> tuple[Array, Array]:
        prediction = ens.split_outputs(ensemble, ensemble.network.apply(params, inputs), bounds)  # type: ignore[arg-type]
        square = jnp.square(prediction.mean - targets)
        if prediction.log_variance is None:
            nll = 0.5 * square
        else:
            nll = 0.5 * (square * jnp.exp(-prediction.log_variance) + prediction.log_variance)
        return jnp.sum(weight[:, None] * square), jnp.sum(weight[:, None] * nll)

    return jax.vmap(one)(*learned)


def _elites(ensemble: Ensemble, holdout_mse: Array) -> Array:
    """[M] int32 the members with the lowest holdout error, best first."""
    return jnp.argsort(holdout_mse)[: ensemble.sampling_members].astype(jnp.int32)


def _per_member(choose: Array, if_true: Any, if_false: Any) -> Any:
    """Leaf by leaf, member by member; a leaf without a member axis (Adam's step count) comes from ``if_false``."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(choose.reshape((-1,) + (1,) * (a.ndim - 1)), a, b) if a.ndim else b

    return jax.tree.map(pick, if_true, if_false)
