from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import config as settings
from mbrl_jax.algorithms import training


def test_noise_belongs_to_the_batch_protocol(tiny):
    noisy = replace(tiny, environment=replace(tiny.environment, observation_noise=0.1))
    settings.check(noisy)
    with pytest.raises(settings.ConfigError, match="environment.observation_noise: 0.1 does not fit; .*it must be 0"):
        settings.check(replace(noisy, protocol="interactive"))
    with pytest.raises(settings.ConfigError, match="environment.observation_noise: -0.1 is out of range"):
        settings.check(replace(tiny, environment=replace(tiny.environment, observation_noise=-0.1)))


@pytest.mark.parametrize(
    ("base", "seeds", "message"),
    [
        (0, 2.5, "seeds: 2.5 does not fit; it must be a whole number"),
        (0, 0, r"seeds: 0 is out of range; it must be from 1 to 2\^31"),
        ("0", 1, "seed: '0' does not fit"),
        (0.0, 1, "seed: 0.0 does not fit"),
    ],
)
def test_keys_of_what_are_no_seeds_are_refused(base, seeds, message):
    with pytest.raises(settings.ConfigError, match=message):
        training.seed_keys(base, seeds)


def test_what_compiled_code_marks_as_missing_is_nan_on_the_host():
    found = training.missing_as_nan((np.array([1.0, -np.inf, np.inf], np.float32), None, jnp.array([-jnp.inf])))
    assert found[0].dtype == np.float32
    np.testing.assert_array_equal(found[0], [1.0, np.nan, np.inf])
    np.testing.assert_array_equal(found[2], [np.nan])


@pytest.mark.parametrize("steps", [1, 2, 5, 1_000])
def test_progress_is_0_at_the_first_step_and_1_at_the_last_and_even_in_between(steps):
    found = [float(training.progress(jnp.asarray(time, jnp.int32), steps)) for time in (0, steps // 2, steps - 1)]
    expected = [0.0, 0.0, 0.0] if steps == 1 else [0.0, (steps // 2) / (steps - 1), 1.0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
