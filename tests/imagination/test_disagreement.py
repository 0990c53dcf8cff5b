import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_jax.config import ConfigError
from mbrl_jax.imagination import disagreement
from mbrl_jax.imagination.disagreement import MEASURES
from mbrl_jax.model.fusion import fuse
from mbrl_jax.model.protocol import Prediction

from .scripted import predictions

MEMBER = jnp.array([0, 1, 2, 3, 0, 1], jnp.int32)
SEEDS = st.integers(0, 2**31 - 1)
jitted = {name: jax.jit(measure) for name, measure in MEASURES.items()}
information = jax.jit(disagreement.information_loss)


def step_of(prediction):
    """The first step of made-up predictions, leaves [M, K, D]."""
    return jax.tree.map(lambda leaf: leaf[0], prediction)


def agreeing(prediction):
    """The same with every member saying what the first one does."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), prediction)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_members_that_agree_have_no_disagreement_at_all(seed, scale):
    same = agreeing(step_of(predictions(np.random.default_rng(seed))))
    same = same._replace(mean=same.mean * scale)
    for name in ("std", "max_pairwise", "gjs", "one_vs_rest"):
        assert np.asarray(jitted[name](same, MEMBER)).tolist() == [0.0] * 6, name
    assert float(jnp.max(information(same, 1e-6))) == 0.0


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_no_measure_is_negative(seed):
    prediction = step_of(predictions(np.random.default_rng(seed)))
    for name, measure in jitted.items():
        assert float(jnp.min(measure(prediction, MEMBER))) >= 0.0, name
    assert float(jnp.min(information(prediction, 0.1))) >= 0.0


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, wider=st.floats(1.0, 20.0))
def test_means_further_apart_never_lower_a_measure(seed, wider):
    near = step_of(predictions(np.random.default_rng(seed)))
    far = near._replace(mean=near.mean[:1] + wider * (near.mean - near.mean[:1]))
    for name in ("std", "max_pairwise", "max_aleatoric", "gjs"):
        assert bool(jnp.all(jitted[name](far, MEMBER) >= jitted[name](near, MEMBER) * (1 - 1e-5))), name
    spread = jax.jit(fuse)
    assert bool(jnp.all(spread(far).gain <= spread(near).gain + 1e-5))


def test_the_geometric_divergence_keeps_its_digits_where_members_nearly_agree():
    mean = np.array([[[1.0]], [[1.0 + 2.0**-12]]], np.float32)
    log_variance = np.array([[[-3.0]], [[-3.0 + 2.0**-12]]], np.float32)
    got = disagreement.gjs(Prediction(jnp.asarray(mean), jnp.asarray(log_variance), None))
    v, w = np.exp(log_variance.astype(np.float64)).ravel()
    expected = 2.0**-24 / (4 * (v + w)) + 0.5 * np.log((v + w) / (2 * np.sqrt(v * w)))
    np.testing.assert_allclose(got, [expected], rtol=1e-5)


def test_the_fusion_of_members_weighs_them_by_precision_and_gains_nothing_from_agreement():
    mean, variance = np.array([0.0, 1.0]), np.array([1.0, 0.25])
    prediction = Prediction(*(jnp.asarray(x, jnp.float32).reshape(2, 1, 1) for x in (mean, np.log(variance))), None)
    fusion = fuse(prediction)
    together = 1 / np.mean(1 / variance)
    middle = together * np.mean(mean / variance)
    apart = np.mean((mean - middle) ** 2)
    np.testing.assert_allclose(fusion.mean, [[middle]], rtol=1e-6)
    np.testing.assert_allclose(fusion.variance, [[together]], rtol=1e-6)
    np.testing.assert_allclose(fusion.gain, [[together / (together + apart)]], rtol=1e-6)
    np.testing.assert_allclose(fusion.remaining, (1 - fusion.gain) * fusion.variance, rtol=1e-6)


def test_the_drawn_member_is_held_against_the_others_only():
    prediction = step_of(predictions(np.random.default_rng(0)))
    moved = prediction._replace(mean=prediction.mean.at[2].add(100.0))
    lanes = np.asarray(MEMBER)
    far = np.asarray(disagreement.one_vs_rest(moved, MEMBER))
    near = np.asarray(disagreement.one_vs_rest(prediction, MEMBER))
    assert (far[lanes == 2] > 100 * near[lanes == 2]).all()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.95, 1.0])
def test_a_quantile_of_the_valid_values_is_numpys(quantile):
    values = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    for valid in (np.arange(11) < 4, np.arange(11) == 7, np.ones(11, bool)):
        got = disagreement.quantile_of_valid(jnp.asarray(values), jnp.asarray(valid), quantile)
        np.testing.assert_allclose(got, np.quantile(values[valid], quantile, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", disagreement.GAUSSIAN_MEASURES)
def test_deterministic_members_are_refused_where_variances_are_needed(name):
    prediction = step_of(predictions(np.random.default_rng(0)))._replace(log_variance=None)
    with pytest.raises(ConfigError, match=r"model.prediction: 'deterministic' does not fit.*'gaussian'"):
        MEASURES[name](prediction, MEMBER)


def test_pairs_are_all_counted_once():
    prediction = step_of(predictions(np.random.default_rng(5)))
    pairs = list(itertools.combinations(range(4), 2))
    each = [disagreement.gjs(jax.tree.map(lambda leaf, p=pair: leaf[jnp.array(p)], prediction)) for pair in pairs]
    np.testing.assert_allclose(disagreement.gjs(prediction), np.mean(each, axis=0), rtol=1e-5)
    each = [disagreement.max_pairwise(jax.tree.map(lambda leaf, p=pair: leaf[jnp.array(p)], prediction)) for pair in pairs]
    np.testing.assert_allclose(disagreement.max_pairwise(prediction), np.max(each, axis=0), rtol=1e-5)
