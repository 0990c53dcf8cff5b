"""Batch renormalisation by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import renormalisation
from mbrl_jax.renormalisation import BatchRenorm


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_after_the_warm_up_a_batch_is_corrected_towards_the_running_statistics_within_limits():
    layer, x, weight = BatchRenorm(), 4 * numbers(5, 6, 3) + 2, jnp.ones(6)
    variables = layer.init(jax.random.key(0), x)
    running = {"mean": jnp.asarray([1.0, 90.0, 2.0]), "variance": jnp.asarray([16.0, 16.0, 1e-4])}
    mean, deviation = np.asarray(x).mean(0), np.sqrt(np.asarray(x).var(0) + renormalisation.EPSILON)
    old = np.sqrt(np.asarray(running["variance"]) + renormalisation.EPSILON)
    for batches, warm in ((renormalisation.WARM_UP - 1, 0), (renormalisation.WARM_UP, 1)):
        stats = {**running, "batches": jnp.asarray(batches, jnp.int32)}
        found, _ = layer.apply({"params": variables["params"], "batch_stats": stats}, x, weight, mutable="batch_stats")
        ratio = np.clip(deviation / old, 1 / 3, 3) if warm else 1.0
        shift = np.clip((mean - np.asarray(running["mean"])) / old, -5, 5) if warm else 0.0
        np.testing.assert_allclose(found, (np.asarray(x) - mean) / deviation * ratio + shift, rtol=1e-4, atol=1e-5)
    used = layer.apply({"params": variables["params"], "batch_stats": stats}, x)
    np.testing.assert_allclose(used, (np.asarray(x) - np.asarray(running["mean"])) / old, rtol=1e-4)


def test_columns_are_normalised_as_rows_are():
    x, weight = numbers(6, 5, 4), jnp.asarray([1.0, 0, 1, 1, 1])
    rows, columns = BatchRenorm(), BatchRenorm(columns=True)
    variables = rows.init(jax.random.key(0), x)
    one, two = (layer.apply(variables, each, weight, mutable="batch_stats") for layer, each in ((rows, x), (columns, x.T)))
    np.testing.assert_allclose(one[0], two[0].T, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one[1], two[1])
