"""The Jacobians of the ensemble, made to agree or bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import planted

from mbrl_jax.model import ensemble as ens
from mbrl_jax.model import fitting, regularising
from mbrl_jax.networks import ADAM

ROWS = np.random.default_rng(7).normal(size=(6, 5)).astype(np.float32)
STRIDE = 5


def members(make_ensemble, make_params, **settings):
    ensemble = make_ensemble(members=3, **settings)
    return ensemble, make_params(ensemble)[0]


def found_and_expected(make_ensemble, make_params):
    """[E] the penalty, and the same from every member's Jacobian at one row after another."""
    ensemble, params = members(make_ensemble, make_params, reward="learned", prediction="gaussian")

    @jax.jit
    def both(params, rows):
        def of_row(member, row):
            return jax.jacrev(lambda x: ensemble.network.apply(member, x[None])[0])(row)

        one = jax.vmap(jax.vmap(of_row, (None, 0)), (0, None))
        return regularising.jacobian_penalty(ensemble, params, rows), one(params, rows)

    found, each = jax.device_get(both(params, jnp.asarray(ROWS)))
    each = each[:, :, :5]  # of a state of 4 numbers and of the reward, but not of their variances
    apart = each - each.mean(axis=0)
    return found, np.square(apart).sum((2, 3)).mean(axis=1)


def test_the_penalty_is_every_member_s_squared_distance_to_the_members_mean_jacobian(make_ensemble, make_params):
    found, expected = found_and_expected(make_ensemble, make_params)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(set(np.round(found, 4))) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jnp.mean(each, axis=0, keepdims=True)", "jnp.mean(each, axis=1, keepdims=True)"),
        ("[:, : ensemble.targets]", ""),
        ("axis=(-2, -1)), axis=1", "axis=(-2, -1)), axis=0"),
    ],
)
def test_a_fault_in_the_penalty_is_caught(make_ensemble, make_params, old, new):
    with planted("model.regularising:jacobian_penalty", old, new):
        found, expected = found_and_expected(make_ensemble, make_params)
    assert found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-2)


def test_the_penalty_s_gradient_agrees_with_finite_differences_and_equal_members_have_none(make_ensemble, make_params):
    with jax.enable_x64(True):
        ensemble, params = members(make_ensemble, make_params)
        params, rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params), jnp.asarray(ROWS, jnp.float64)
        rng = np.random.default_rng(1)
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)

        @jax.jit
        def along(step):
            moved = jax.tree.map(lambda leaf, way: leaf + step * way, params, way)
            return jnp.sum(regularising.jacobian_penalty(ensemble, moved, rows))

        slope = float(jax.jit(jax.grad(along))(0.0))
        assert slope == pytest.approx(float(along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-6)
        alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params)
        np.testing.assert_allclose(regularising.jacobian_penalty(ensemble, alike, rows), 0, atol=1e-20)


@pytest.mark.parametrize("shape", [(6, 64), (64, 64), (64, 5), (1, 3)])
def test_the_largest_singular_value_is_numpy_s_and_never_more(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with jax.enable_x64(False):
        found = float(jax.jit(regularising.largest_singular_value)(kernel))
    true = np.linalg.norm(kernel.astype(np.float64), 2)
    assert 0.99 * true < found < 1.00001 * true


def test_singular_values_of_extreme_kernels():
    find = jax.jit(regularising.largest_singular_value)
    for scale in (1e-12, 1.0, 1e12):
        assert float(find(np.float32(scale) * np.eye(8, dtype=np.float32))) == pytest.approx(scale, rel=1e-5)
    assert float(find(np.zeros((8, 8), np.float32))) == 0


def test_kernels_above_the_bound_are_brought_to_it_and_all_else_stays(make_ensemble, make_params):
    _, params = members(make_ensemble, make_params)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    sizes = {name: np.linalg.norm(layer["kernel"], 2) for name, layer in one["params"].items()}
    bound = float(np.median(list(sizes.values())))  # one is below it, and one above
    after = jax.jit(lambda params: regularising.bounded(params, bound))(one)["params"]
    for name, layer in one["params"].items():
        factor = min(1.0, bound / sizes[name])
        np.testing.assert_allclose(after[name]["kernel"], factor * layer["kernel"], rtol=1e-2)
        np.testing.assert_array_equal(after[name]["bias"], layer["bias"])
    assert min(sizes.values()) < bound < max(sizes.values())


# ------------------------------------------------------------------------------------------------------------- within a fit


@pytest.fixture(scope="module")
def fitted(make_params, real_rows):
    """``(ensemble, normaliser=None) -> (before, after a fit, its log, after a refit, its log)``."""
    rows = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:200]), real_rows)

    def run(ensemble, normaliser=None):
        params, bounds = make_params(ensemble)
        elites = jnp.arange(ensemble.sampling_members, dtype=jnp.int32)
        normaliser = ens.init_normaliser(ensemble) if normaliser is None else normaliser
        state = fitting.ModelState(params, bounds, ADAM.init((params, bounds)), normaliser, elites)

        @jax.jit
        def both(state, key):
            after, log = fitting.fit(ensemble, state, rows, key, STRIDE)
            return after, log, *fitting.refit(ensemble, after, rows, jnp.int32(200), key, STRIDE)

        return state, *jax.device_get(both(state, jax.random.key(0)))

    return run


def norms(state):
    return [np.linalg.norm(layer["kernel"], 2, axis=(1, 2)).max() for layer in state.params["params"].values()]


def disagreement(ensemble, state):
    params = jax.tree.map(jnp.asarray, state.params)
    return float(jnp.mean(jax.jit(lambda params: regularising.jacobian_penalty(ensemble, params, jnp.asarray(ROWS)))(params)))


def test_a_fit_with_a_bound_keeps_every_layer_within_it(make_ensemble, fitted):
    free, bound = make_ensemble(learning_rate=0.03), 0.7
    assert max(norms(fitted(free)[1])) > 1
    _, after, _, later, _ = fitted(make_ensemble(learning_rate=0.03, spectral_bound=bound))
    for state in (after, later):
        assert max(norms(state)) < 1.01 * bound
    assert max(norms(later)) > 0.95 * bound


def test_a_penalised_fit_makes_members_agree_and_without_a_weight_trains_as_none(make_ensemble, fitted):
    settings = {"learning_rate": 0.01, "prediction": "deterministic"}
    plain, none, heavy = (
        make_ensemble(**settings, **more)
        for more in ({}, {"jacobian": "agreement", "jacobian_weight": 0.0}, {"jacobian": "agreement", "jacobian_weight": 10.0})
    )
    states = {name: fitted(ensemble)[3] for name, ensemble in (("plain", plain), ("none", none), ("heavy", heavy))}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), states["plain"].params, states["none"].params
    )
    assert disagreement(heavy, states["heavy"]) < 0.5 * disagreement(plain, states["plain"])


def moved(one, other):
    return any(np.any(a != b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_frozen_model_stays_as_it_began_and_its_errors_are_told(make_ensemble, fitted):
    normaliser = ens.Normaliser(np.zeros(4), np.ones(4), np.zeros(4), 2 * np.ones(4))
    normaliser = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), normaliser)
    start, after, log, later, refit_log = fitted(make_ensemble(fits="none"), normaliser)
    for state in (after, later):
        assert not moved(state, start)
    assert log.loss.shape == (2, 2)
    assert refit_log.holdout_mse.shape == (2,)
    np.testing.assert_array_equal(log.holdout_mse[0], log.holdout_mse[1])
    np.testing.assert_allclose(log.holdout_mse[0], refit_log.holdout_mse, rtol=1e-5)
    assert np.isfinite([*log.loss.flat, *refit_log.loss.flat]).all()
    start, after, log, later, _ = fitted(make_ensemble(fits="parameters"), normaliser)
    assert moved(after.params, start.params)
    assert moved(later.params, after.params)
    for state in (after, later):
        assert not moved(state.normaliser, normaliser)
    assert moved(fitted(make_ensemble())[1].normaliser, normaliser)
