"""The losses of the dynamics ensemble, each for one member; the ensemble's loss is their sum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, ModelConfig
from mbrl_jax.model.ensemble import Bounds, Ensemble, split_outputs
from mbrl_jax.model.protocol import Prediction
from mbrl_jax.model.valuing import Valued
from mbrl_jax.networks import Params, laplacian

BOUNDS_PENALTY = 0.01
Loss = Callable[[Array, Array | None, Array], Array]
"""``(mean [B, D'], log-variance [B, D'] or none, target [B, D']) -> []``, of one member in normalised units."""
ValueLoss = Callable[[Array, Array | None, Array, Valued, ModelConfig], Array]
"""``(mean [B, D], log-variance [B, D] or none, target [B, D], value, settings) -> []``, of a member's normalised next states."""
EXACT_LAPLACIAN_UP_TO = 8  # observation axes


def squared_error(mean: Array, target: Array) -> Array:
    """[] mean over rows of the squared errors [B, D'] summed over axes."""
    return jnp.mean(jnp.sum(jnp.square(mean - target), axis=-1))


def gaussian_nll(mean: Array, log_variance: Array, target: Array) -> Array:
    """[] mean over rows of the negative log-likelihood [B, D'] summed over axes, without the constant ``log(2 pi) / 2``."""
    per_axis = 0.5 * (jnp.square(mean - target) * jnp.exp(-log_variance) + log_variance)
    return jnp.mean(jnp.sum(per_axis, axis=-1))


def likelihood(mean: Array, log_variance: Array | None, target: Array) -> Array:
    """[] the negative log-likelihood, or without variances the squared error."""
    return squared_error(mean, target) if log_variance is None else gaussian_nll(mean, log_variance, target)


def beta_likelihood(mean: Array, log_variance: Array | None, target: Array) -> Array:
    """[] the negative log-likelihood with each axis' term weighed by its own deviation, as a number (beta-NLL at beta = 1/2,
    Seitzer et al. 2022, arXiv:2203.09168).

    The likelihood itself learns least where errors are large, as a large predicted variance takes the error's gradient away.
    """
    if log_variance is None:
        return squared_error(mean, target)
    weight = jax.lax.stop_gradient(jnp.exp(0.5 * log_variance))
    per_axis = 0.5 * (jnp.square(mean - target) * jnp.exp(-log_variance) + log_variance)
    return jnp.mean(jnp.sum(weight * per_axis, axis=-1))


LOSSES: dict[str, Loss] = {}
"""Losses of a member by name; :func:`register` adds one."""
VALUE_LOSSES: dict[str, ValueLoss] = {}
"""Losses that know the agent's value, by name; :func:`register_value_aware` adds one."""


def _check_free(name: str) -> None:
    if name in LOSSES or name in VALUE_LOSSES:
        raise ConfigError(f"model.loss: {name!r} is registered already; name another")


def register(name: str, loss: Loss) -> None:
    """Let presets and commands name a loss, as ``model.loss``.

    Raises:
      ConfigError: the name is taken.

    """
    _check_free(name)
    LOSSES[name] = loss


register("likelihood", likelihood)
register("beta_likelihood", beta_likelihood)


def vagram(mean: Array, log_variance: Array | None, target: Array, valued: Valued, config: ModelConfig) -> Array:
    """[] the squared errors [B, D] weighed by the square of the value's gradient at the real next state, mean over rows (VaGraM,
    Voelcker et al. 2022, arXiv:2204.01464).

    The weights are over their mean in the data, so that the loss is as large as a squared error whatever the value's units. A
    predicted variance learns by the likelihood of the mean's errors, from which the mean does not learn.
    """
    loss = jnp.mean(jnp.sum(jnp.square(valued.rows.gradient * (mean - target)), axis=-1))
    return loss if log_variance is None else loss + gaussian_nll(jax.lax.stop_gradient(mean), log_variance, target)


def itervaml(mean: Array, log_variance: Array | None, target: Array, valued: Valued, config: ModelConfig) -> Array:
    """[] the squared difference between the expected value of the predicted next state and the value of the real one, mean over
    rows, over the variance of the values in the data (IterVAML, Farahmand 2018).

    The expectation is the mean over samples of a Gaussian member's prediction. Its square is too large by the variance of that
    mean, which a member makes smaller by predicting too small a variance; with ``value_correction`` that variance, as the samples
    estimate it, is taken off (Voelcker et al. 2025, arXiv:2505.22772).
    """
    errors = (mean - target)[None]
    if log_variance is not None:
        assert valued.noise is not None, "samples of a prediction need noise"
        errors = errors + jnp.exp(0.5 * log_variance)[None] * valued.noise
    sampled = valued.function(valued.rows.next_observation[None] + valued.scale[None, None] * errors)  # [S, B]
    loss = jnp.square(jnp.mean(sampled, axis=0) - valued.rows.value)
    if log_variance is not None and config.value_correction:
        loss = loss - jnp.var(sampled, axis=0, ddof=1) / sampled.shape[0]
    return jnp.mean(loss) / valued.variance


def register_value_aware(name: str, loss: ValueLoss) -> None:
    """Let presets and commands name a loss that knows the value, as ``model.loss``.

    Raises:
      ConfigError: the name is taken.

    """
    _check_free(name)
    VALUE_LOSSES[name] = loss


register_value_aware("vagram", vagram)
register_value_aware("itervaml", itervaml)


def check_loss(config: ModelConfig) -> None:
    """Refuse a loss that is not there.

    Raises:
      ConfigError: naming those that are, or a refit that stops early by an error which a value-aware loss does not lower.

    """
    if config.loss not in LOSSES and config.loss not in VALUE_LOSSES:
        known = ", ".join([*LOSSES, *VALUE_LOSSES])
        raise ConfigError(f"model.loss: {config.loss!r} is not known; it must be one of {known}")
    if config.loss in VALUE_LOSSES and config.refit_passes > 1:
        raise ConfigError(
            f"model.refit_passes: {config.refit_passes!r} does not fit model.loss {config.loss!r}, as a refit stops early by the "
            "squared error; it must be 1"
        )


def termination_cross_entropy(logit: Array, terminated: Array) -> Array:
    """[] mean over rows of the binary cross-entropy of logits [B] against flags [B] bool."""
    return jnp.mean(jax.nn.softplus(logit) - terminated.astype(logit.dtype) * logit)


def bounds_penalty(bounds: Bounds) -> Array:
    """[] what keeps learned log-variance bounds together (Chua et al. 2018): ``0.01 sum(maximum) - 0.01 sum(minimum)``."""
    return BOUNDS_PENALTY * (jnp.sum(bounds.maximum) - jnp.sum(bounds.minimum))


def weight_penalty(params: Params) -> Array:
    """[] half the sum of the squares of one member's kernels; biases are free."""
    return 0.5 * jnp.sum(jnp.stack([jnp.sum(jnp.square(layer["kernel"])) for layer in params["params"].values()]))


def laplacian_directions(ensemble: Ensemble, key: Array) -> Array:
    """Input directions [J, inputs] whose second derivatives sum to the Laplacian over the state, exactly or on average."""
    size = ensemble.spec.observation_size
    exact = ensemble.config.laplacian == "exact" or (ensemble.config.laplacian == "auto" and size <= EXACT_LAPLACIAN_UP_TO)
    if exact:
        return jnp.eye(size, ensemble.input_size)
    probes = ensemble.config.laplacian_probes
    signs = jax.random.rademacher(key, (probes, size), jnp.zeros(()).dtype) / jnp.sqrt(1.0 * probes)
    return jnp.pad(signs, ((0, 0), (0, ensemble.input_size - size)))


def laplacian_penalty(ensemble: Ensemble, params: Params, inputs: Array, directions: Array) -> Array:
    """[] mean over rows of the squared Laplacian of the predicted means, summed over the D' regression targets.

    Args:
      ensemble: the shape.
      params: one member's.
      inputs: [B, inputs].
      directions: [J, inputs] from :func:`laplacian_directions`.

    """
    curvature = laplacian(params, inputs, directions, ensemble.config.activation)[:, : ensemble.targets]
    return jnp.mean(jnp.sum(jnp.square(curvature), axis=-1))


def member_loss(
    ensemble: Ensemble,
    params: Params,
    bounds: Bounds,
    inputs: Array,
    target: Array,
    terminated: Array,
    directions: Array,
    valued: Valued | None = None,
) -> Array:
    """[] one member's whole loss.

    Args:
      ensemble: the shape.
      params: one member's.
      bounds: one member's, [D'] each.
      inputs: [B, inputs] encoded states and actions.
      target: [B, D'] normalised state changes, and rewards if they are learned.
      terminated: [B] bool.
      directions: [J, inputs] of the Laplacian, ignored where the penalty is off.
      valued: the value at the rows' next states, for a loss that knows it; none in the first fit, which is by the likelihood.

    """
    config = ensemble.config
    if not config.learn_bounds:
        bounds = jax.lax.stop_gradient(bounds)
    prediction = split_outputs(ensemble, ensemble.network.apply(params, inputs), bounds)  # type: ignore[arg-type]
    loss = LOSSES.get(config.loss, likelihood)(prediction.mean, prediction.log_variance, target)
    if valued is not None:
        loss = config.value_share * _value_loss(ensemble, prediction, target, valued) + (1 - config.value_share) * loss
    if prediction.termination_logit is not None:
        loss = loss + config.termination_weight * termination_cross_entropy(prediction.termination_logit, terminated)
    if config.learn_bounds:
        loss = loss + bounds_penalty(bounds)
    loss = loss + config.weight_decay * weight_penalty(params)
    if config.laplacian != "none":
        loss = loss + config.laplacian_weight * laplacian_penalty(ensemble, params, inputs[: config.laplacian_rows], directions)
    return loss


def _value_loss(ensemble: Ensemble, prediction: Prediction, target: Array, valued: Valued) -> Array:
    """[] of the next state by the loss that knows the value, and of a learned reward by the likelihood."""
    size, log_variance = ensemble.spec.observation_size, prediction.log_variance
    state, reward = (
        (prediction.mean[:, part], None if log_variance is None else log_variance[:, part], target[:, part])
        for part in (slice(size), slice(size, None))
    )
    loss = VALUE_LOSSES[ensemble.config.loss](*state, valued, ensemble.config)
    return loss + likelihood(*reward) if ensemble.learns_reward else loss
