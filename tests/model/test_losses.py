import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model import losses
from mbrl_jax.model.ensemble import Bounds


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROWS, INPUTS = 6, 5
INPUT, FLAGS = normal(ROWS, INPUTS, seed=7), np.array([True, False, False, True, False, False])
DIRECTIONS = np.eye(4, INPUTS, dtype=np.float32)


@pytest.fixture(scope="module")
def one_member(make_params):
    return lambda ensemble: jax.tree.map(lambda leaf: leaf[0], make_params(ensemble))


def loss(ensemble, params, bounds):
    target = jnp.asarray(normal(ROWS, ensemble.targets, seed=8))
    return losses.member_loss(ensemble, params, bounds, jnp.asarray(INPUT), target, jnp.asarray(FLAGS), jnp.asarray(DIRECTIONS))


def predicted(ensemble, params, bounds):
    return ens.split_outputs(ensemble, ensemble.network.apply(params, jnp.asarray(INPUT)), bounds)


def test_the_squared_error_is_summed_over_axes_and_averaged_over_rows():
    mean, target = normal(6, 4), normal(6, 4, seed=1)
    found = losses.squared_error(jnp.asarray(mean), jnp.asarray(target))
    assert float(found) == pytest.approx(((mean - target) ** 2).sum() / 6, rel=1e-5)


def test_the_negative_log_likelihood_leaves_out_the_constant():
    mean, log_variance, target = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)
    found = losses.gaussian_nll(*map(jnp.asarray, (mean, log_variance, target)))
    full = -scipy.stats.norm.logpdf(target, mean, np.exp(log_variance / 2)).sum(axis=1).mean()
    assert float(found) == pytest.approx(full - 4 * 0.5 * np.log(2 * np.pi), rel=1e-5)


def test_the_beta_likelihood_weighs_each_term_by_its_deviation_and_not_the_weight():
    mean, log_variance, target = (jnp.asarray(normal(6, 4, seed=seed)) for seed in range(3))
    variance = np.exp(np.asarray(log_variance, np.float64))
    error = np.asarray(mean - target, np.float64)
    value, gradients = jax.value_and_grad(losses.beta_likelihood, argnums=(0, 1))(mean, log_variance, target)
    assert float(value) == pytest.approx(
        (np.sqrt(variance) * (error**2 / variance + np.log(variance)) / 2).sum(1).mean(), rel=1e-5
    )
    np.testing.assert_allclose(gradients[0], np.sqrt(variance) * error / variance / 6, rtol=1e-4)
    np.testing.assert_allclose(gradients[1], np.sqrt(variance) * (1 - error**2 / variance) / 2 / 6, rtol=1e-4, atol=1e-6)
    assert float(losses.beta_likelihood(mean, None, target)) == float(losses.squared_error(mean, target))


def test_the_termination_loss_is_the_binary_cross_entropy():
    logit, flags = 3 * normal(8), np.arange(8) % 2 == 0
    chance = 1 / (1 + np.exp(-logit.astype(np.float64)))
    expected = -np.mean(np.where(flags, np.log(chance), np.log(1 - chance)))
    assert float(losses.termination_cross_entropy(jnp.asarray(logit), jnp.asarray(flags))) == pytest.approx(expected, rel=1e-5)


def test_the_termination_loss_of_a_certain_mistake_is_finite():
    found = losses.termination_cross_entropy(jnp.array([200.0, -200.0, 200.0]), jnp.array([False, True, True]))
    assert float(found) == pytest.approx(400 / 3)


def test_the_bounds_penalty_is_a_hundredth_of_their_distance():
    bounds = Bounds(jnp.array([-10.0, -3.0]), jnp.array([0.5, 2.0]))
    assert float(losses.bounds_penalty(bounds)) == pytest.approx(0.01 * (2.5 + 13))


def test_the_weight_penalty_is_half_the_sum_of_squared_kernels_without_biases(one_member, make_ensemble):
    params, bounds = one_member(make_ensemble())
    kernels = [np.asarray(layer["kernel"], np.float64) for layer in params["params"].values()]
    assert all(np.any(np.asarray(layer["bias"]) != 0) for layer in params["params"].values())
    expected = 0.5 * sum((kernel**2).sum() for kernel in kernels)
    assert float(losses.weight_penalty(params)) == pytest.approx(expected, rel=1e-5)
    added = loss(make_ensemble(weight_decay=0.3), params, bounds) - loss(make_ensemble(), params, bounds)
    assert float(added) == pytest.approx(0.3 * expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "deterministic"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_members_loss_is_the_sum_of_its_heads_losses(make_ensemble, kind, learned, one_member):
    heads = {"reward": "learned", "termination": "learned", "termination_weight": 2.0} if learned else {}
    ensemble = make_ensemble(prediction=kind, **heads)
    params, bounds = one_member(ensemble)
    prediction = predicted(ensemble, params, bounds)
    square = (np.asarray(prediction.mean) - normal(ROWS, ensemble.targets, seed=8)) ** 2
    expected = square.sum(axis=1).mean()
    if kind == "gaussian":
        log_variance = np.asarray(prediction.log_variance)
        expected = 0.5 * (square * np.exp(-log_variance) + log_variance).sum(axis=1).mean()
    if learned:
        chance = 1 / (1 + np.exp(-np.asarray(prediction.termination_logit)))
        expected -= 2.0 * np.mean(np.where(FLAGS, np.log(chance), np.log(1 - chance)))
    assert float(loss(ensemble, params, bounds)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("learn_bounds", [False, True])
def test_bounds_have_a_gradient_and_a_penalty_only_where_they_are_learned(make_ensemble, learn_bounds, one_member):
    ensemble = make_ensemble(learn_bounds=learn_bounds)
    params, bounds = one_member(ensemble)
    value, gradient = jax.jit(jax.value_and_grad(lambda bounds: loss(ensemble, params, bounds)))(bounds)
    moves = [bool(np.any(leaf)) for leaf in gradient]
    assert moves == [learn_bounds, learn_bounds]
    penalty = float(value - loss(make_ensemble(learn_bounds=not learn_bounds), params, bounds))
    assert penalty == pytest.approx((1 if learn_bounds else -1) * 0.01 * 4 * 10.5, abs=1e-5)


def explicit_laplacian(ensemble, params, axes):
    """[B, outputs] by nested differentiation."""
    hessian = jax.jit(jax.vmap(jax.hessian(lambda x: ensemble.network.apply(params, x))))(INPUT)
    return np.trace(np.asarray(hessian)[..., :axes, :axes], axis1=-2, axis2=-1)


@pytest.mark.parametrize(("reward", "targets"), [("learned", 5), ("known", 4)])
@pytest.mark.parametrize("termination", ["learned", "known"])
def test_the_laplacian_penalty_is_over_state_inputs_and_regression_targets(
    make_ensemble, one_member, reward, targets, termination
):
    ensemble = make_ensemble(reward=reward, termination=termination, laplacian="exact")
    params, _ = one_member(ensemble)
    directions = losses.laplacian_directions(ensemble, jax.random.key(0))
    found = losses.laplacian_penalty(ensemble, params, jnp.asarray(INPUT), directions)
    expected = (explicit_laplacian(ensemble, params, 4)[:, :targets] ** 2).sum(axis=1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("rows", "counted"), [(None, ROWS), (2, 2)])
def test_the_weighted_penalty_is_added_over_the_rows_asked_for(make_ensemble, rows, counted, one_member):
    ensemble = make_ensemble(laplacian="auto", laplacian_rows=rows, laplacian_weight=30.0)
    params, bounds = one_member(ensemble)
    squares = (explicit_laplacian(ensemble, params, 4)[:, :4] ** 2).sum(axis=1)
    added = loss(ensemble, params, bounds) - loss(make_ensemble(), params, bounds)
    assert float(added) == pytest.approx(30 * float(squares[:counted].mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("setting", "axes", "exact"), [("auto", 8, True), ("auto", 9, False), ("exact", 9, True), ("hutchinson", 4, False)]
)
def test_the_laplacian_is_exact_up_to_eight_axes_and_estimated_above(make_ensemble, setting, axes, exact):
    spec = EnvironmentSpec("wide", axes, 2, 10, (1.0,) * axes)
    ensemble = make_ensemble(laplacian=setting, laplacian_probes=16)._replace(spec=spec)
    directions = np.asarray(losses.laplacian_directions(ensemble, jax.random.key(3)))
    if exact:
        np.testing.assert_array_equal(directions, np.eye(axes, axes + 1))
    else:
        assert directions.shape == (16, axes + 1)
        np.testing.assert_allclose(np.abs(directions[:, :axes]), 0.25)  # signs over the root of 16
        assert 0.2 < (directions[:, :axes] > 0).mean() < 0.8
        np.testing.assert_array_equal(directions[:, axes], 0)  # no curvature over the action


def test_hutchinson_directions_sum_to_the_laplacian_on_average(make_ensemble):
    ensemble = make_ensemble(laplacian="hutchinson", laplacian_probes=3)
    keys = jax.random.split(jax.random.key(0), 2_000)
    directions = np.asarray(jax.jit(jax.vmap(lambda key: losses.laplacian_directions(ensemble, key)))(keys))
    outer = np.einsum("kji,kjl->kil", directions, directions).mean(axis=0)
    np.testing.assert_allclose(outer, np.diag([1, 1, 1, 1, 0]), atol=0.07)
