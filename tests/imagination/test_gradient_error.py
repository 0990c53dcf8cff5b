"""Windows whose length follows the error of the model's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagination import scripted
from mbrl_jax.config import ConfigError, LanesConfig
from mbrl_jax.imagination.horizon import View, check_controller, controller_settings, make_controller

LANES, STEPS = 3, 4
NUMBERS = {"low": 0.2, "high": 0.5, "first": 2.0, "limit": 3.0}


def view(time, depth, error):
    zeros, no = jnp.zeros((LANES, 2)), jnp.zeros(LANES, bool)
    lane = jnp.full(LANES, depth, jnp.int32)
    one = jnp.ones(LANES)
    return View(time, lane, zeros, zeros, zeros, zeros, one, no, ~no, lane, None, None, error * one)


@jax.jit
def lengths(errors, numbers):
    """[windows] the first depth at which lanes stop in windows of four steps, by the error [windows] before each."""
    controller = make_controller("gradient_error", numbers)

    def window(state, inputs):
        time, error = inputs

        def step(state, depth):
            state, decision = controller.step(state, view(time, depth, error))
            return state, decision.stop.all()

        state, stops = jax.lax.scan(step, state, jnp.arange(STEPS, dtype=jnp.int32))
        return state, jnp.argmax(stops) + 1

    times = 10 * jnp.arange(len(errors), dtype=jnp.int32)
    return jax.lax.scan(window, controller.init(LANES, scripted.spec_of()), (times, errors))[1]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([-np.inf, 0.1, 0.1, 0.1], [2, 3, 3, 3]),  # nothing known, then it grows to its limit
        ([-np.inf, 0.6, 0.6, 0.6], [2, 1, 1, 1]),  # and never below one step
        ([0.2, 0.5, 0.3, 0.6], [2, 2, 2, 1]),  # at the marks it stays
        ([np.nan, np.inf, 0.6, 0.1], [2, 2, 1, 2]),  # what is not finite says nothing
    ],
)
def test_the_length_grows_below_the_low_mark_and_shrinks_above_the_high_one_once_a_window(errors, expected):
    assert lengths(np.array(errors, np.float32), NUMBERS).tolist() == expected


def test_lanes_refuse_it_as_they_do_not_measure_the_error():
    settings = controller_settings("gradient_error", **NUMBERS)
    config = LanesConfig(controller=settings)
    with pytest.raises(ConfigError, match=r"controller.kind: 'gradient_error' does not fit; lanes do not measure .* 'dmo' do"):
        check_controller(make_controller("gradient_error", NUMBERS), config, scripted.spec_of(), None)
