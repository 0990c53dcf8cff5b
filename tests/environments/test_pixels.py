import jax
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import pixels

POINTS = (np.arange(8) + 0.5) / 8  # of a pixel, along each axis


def by_hand(inside):
    """[32, 32] the share of points in each pixel that are ``inside(x, y)``, x to the right and y down."""
    x = (np.arange(32)[None, :, None, None] + POINTS[None, None, None, :]) * np.ones((32, 1, 8, 1))
    y = (np.arange(32)[:, None, None, None] + POINTS[None, None, :, None]) * np.ones((1, 32, 1, 8))
    return inside(x, y).mean((2, 3))


def rod(x, y, from_x, from_y, to_x, to_y):
    """Whether points are within a pixel of a line from one point to another."""
    along = np.array([to_x - from_x, to_y - from_y])
    share = np.clip(((x - from_x) * along[0] + (y - from_y) * along[1]) / (along @ along), 0, 1)
    return np.hypot(x - from_x - share * along[0], y - from_y - share * along[1]) <= 1


def close(drawn, expected):
    """Smooth edges are drawn by the distance to the edge, and by hand by points: they differ by some of a pixel on the edge."""
    assert np.abs(drawn - expected).max() < 0.25
    assert np.abs(drawn - expected).mean() < 0.002
    assert expected.sum() > 5


@pytest.mark.parametrize(("x", "angle"), [(0.0, 0.0), (1.2, 0.2), (-2.0, -0.15), (2.39, 0.6)])
def test_a_cart_and_its_pole_are_where_the_state_says(x, angle):
    drawn = np.asarray(pixels.draw_cartpole(np.array([x, 9.0, angle, -9.0], np.float32)))[..., 0]
    middle = 16 + x * 32 / 4.8

    def inside(px, py):
        cart = (np.abs(px - middle) <= 3) & (np.abs(py - 25) <= 1.5)
        return cart | rod(px, py, middle, 25, middle + 20 * np.sin(angle), 25 - 20 * np.cos(angle))

    close(drawn, by_hand(inside))


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0, np.pi, -1.3])
def test_a_pendulum_points_up_at_zero_and_to_the_left_at_a_positive_angle(angle):
    seen = np.array([np.cos(angle), np.sin(angle), 3.0], np.float32)
    drawn = np.asarray(pixels.draw_pendulum(seen))[..., 0]
    close(drawn, by_hand(lambda x, y: rod(x, y, 16, 16, 16 - 12 * np.sin(angle), 16 - 12 * np.cos(angle))))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_task_behind_the_pictures_is_the_same(name):
    whole, seen = (env.make_environment(EnvironmentConfig(name=prefix + name, time_limit=12)) for prefix in ("", "pixels/"))
    draw = pixels.draw_cartpole if name == "CartPole-v1" else pixels.draw_pendulum

    @jax.jit
    def both(key):
        one, two = (env.collect(task, env.draw_collection(task, key, 40))[1] for task in (whole, seen))
        return one, two, jax.vmap(draw)(one.observation), jax.vmap(draw)(one.next_observation)

    one, two, before, after = jax.tree.map(np.asarray, both(jax.random.key(0)))
    np.testing.assert_allclose(two.observation, before.reshape(40, -1), atol=1e-5)
    np.testing.assert_allclose(two.next_observation, after.reshape(40, -1), atol=1e-5)
    for field in ("action", "reward", "terminated", "truncated", "elapsed"):
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-5, err_msg=field)
    assert (one.terminated | one.truncated).sum() >= 3
    assert seen.spec.observation_shape == (32, 32, 1)
    assert env.success_marks(seen.spec.name) == env.success_marks(name)
