"""Jacobians of steps, and how they are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import linear

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.model import jacobians

RNG = np.random.default_rng(0)


def test_the_jacobian_of_a_linear_step_is_its_matrices():
    task = linear.make()
    x = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    found = jax.jit(lambda x: jacobians.jacobian(lambda x: task.dynamics(x[..., :2], x[..., 2:]), x))(x)
    expected = np.broadcast_to(np.concatenate([linear.A, linear.B], axis=1), (4, 5, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    members = jacobians.members_jacobians(linear.true_world(task), None, *jax.device_put((x[..., :2], x[..., 2:])))
    np.testing.assert_allclose(members, np.broadcast_to(expected[None], (2, 4, 5, 2, 3)), rtol=1e-6)


def test_central_differences_of_a_black_box_are_its_jacobian():
    with jax.enable_x64(True):
        x = RNG.normal(size=(3, 2))

        def function(x):
            return jnp.stack([jnp.sin(x[..., 0]) * x[..., 1], x[..., 0] ** 3, jnp.exp(x[..., 1])], axis=-1)

        exact, found = jacobians.jacobian(function, jnp.asarray(x)), jacobians.finite_differences(function, jnp.asarray(x), 1e-4)
        np.testing.assert_allclose(found, exact, atol=1e-6)
        a, b = x[:, 0], x[:, 1]
        np.testing.assert_allclose(exact[:, 0], np.stack([np.cos(a) * b, np.sin(a)], -1))
        np.testing.assert_allclose(exact[:, 1], np.stack([3 * a**2, 0 * b], -1))


def test_what_a_jacobian_says_of_an_angle_s_radius_does_not_count_and_axes_are_over_their_scale():
    spec = make_environment(EnvironmentConfig(name="Pendulum-v1")).spec  # cos, sin, velocity of scale 8
    angle = 0.7
    s = np.array([np.cos(angle), np.sin(angle), 2.0], np.float32)
    radius = np.array([np.cos(angle), np.sin(angle), 0, 0])
    along = np.array([-np.sin(angle), np.cos(angle), 0, 0])
    sound = np.stack([along, 2 * along, np.array([0, 0, 1.0, 0.5])]).astype(np.float32)
    other = sound + np.outer([3.0, -1.0, 5.0], radius).astype(np.float32)
    a, b = (np.asarray(jacobians.in_task_units(spec, *jax.device_put((each, s)))) for each in (sound, other))
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(a[2], [0, 0, 1.0, 0.5 / 8], atol=1e-6)
    np.testing.assert_allclose(a[0], along, atol=1e-6)


def test_relative_error_and_cosine_by_hand():
    true = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert float(jacobians.relative_error(*jax.device_put((2 * true, true)))) == pytest.approx(1.0)
    assert float(jacobians.cosine(*jax.device_put((2 * true, true)))) == pytest.approx(1.0)
    turned = np.array([[0.0, 4.0], [3.0, 0.0]], np.float32)
    assert float(jacobians.cosine(*jax.device_put((turned, true)))) == pytest.approx(0.0)
    assert float(jacobians.relative_error(*jax.device_put((turned, true)))) == pytest.approx(np.sqrt(2))


def test_members_that_agree_have_no_spread_and_others_that_of_their_distances_to_the_mean():
    mean = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    error, cosine = jacobians.spread(jax.device_put(np.stack([mean, mean])))
    assert (float(error), float(cosine)) == pytest.approx((0.0, 1.0))
    move = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    error, cosine = jacobians.spread(jax.device_put(np.stack([mean + move, mean - move])))
    assert float(error) == pytest.approx(1 / 5)
    assert float(cosine) == pytest.approx(5 / np.sqrt(26))
