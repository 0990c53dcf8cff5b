from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import config as settings
from mbrl_jax import draws, replay
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import Stream, stream

N = 200


@pytest.fixture(scope="module")
def collected(cartpole):
    """``(noise) -> the replay's rows, the episode in progress, the returns``, on the same key."""

    @jax.jit
    def collect(noise):
        empty = replay.create(N, cartpole.spec.observation_size)
        state, filled, returns = training.collect_into(empty, cartpole, jax.random.key(3), N, noise=noise)
        return replay.unpack(filled.rows), state, returns

    return lambda noise: jax.device_get(collect(jnp.float32(noise)))


@pytest.fixture(scope="module")
def true(cartpole):
    empty = replay.create(N, cartpole.spec.observation_size)
    state, filled, returns = training.collect_into(empty, cartpole, jax.random.key(3), N)
    return jax.device_get((replay.unpack(filled.rows), state, returns))


def test_measurements_without_noise_are_the_true_rows(collected, true):
    jax.tree.map(np.testing.assert_array_equal, collected(0.0), true)


def test_every_state_is_measured_once_with_the_noise_that_was_drawn_for_it(collected, true, cartpole):
    rows, exact = collected(0.1)[0], true[0]
    key1, key2 = jax.random.split(stream(jax.random.key(3), Stream.OBSERVATION_NOISE))
    before, after = (np.asarray(draws.normal(key, (N, 4))) for key in (key1, key2))
    deviation = 0.1 * np.array(cartpole.spec.observation_scale)
    begins = exact.depth == 0
    assert 1 < begins.sum() < N
    np.testing.assert_allclose(rows.next_observation, exact.next_observation + deviation * after, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.observation[begins], (exact.observation + deviation * before)[begins], rtol=1e-5, atol=1e-6)
    goes_on = np.flatnonzero(~begins)
    np.testing.assert_array_equal(rows.observation[goes_on], rows.next_observation[goes_on - 1])


def test_noise_leaves_the_simulator_the_rewards_the_ends_and_the_returns_as_they_are(collected, true):
    (rows, state, returns), (exact, state_true, returns_true) = collected(0.5), true
    for field in ("action", "reward", "terminated", "weight", "depth"):
        np.testing.assert_array_equal(getattr(rows, field), getattr(exact, field))
    jax.tree.map(np.testing.assert_array_equal, (state, returns), (state_true, returns_true))


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
        (0, 0, "seeds: 0 is out of range; it must be at least 1"),
        ("0", 1, "base: '0' does not fit"),
        (0.0, 1, "base: 0.0 does not fit"),
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
