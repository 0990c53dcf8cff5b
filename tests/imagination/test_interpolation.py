"""The model's share in the error of a value, by hand, and the horizon rule that follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagination.test_mismatch import BIASES, DISCOUNT, task_of, world_of
from mbrl_jax.imagination import interpolation
from mbrl_jax.imagination.horizon import make_controller
from mbrl_jax.replay import Rows


def rows_of(states, actions, end):
    task = task_of(end=end)
    s, a = jnp.asarray(states, jnp.float32)[:, None], jnp.asarray(actions, jnp.float32)
    after = task.dynamics(s, a)
    over = task.terminated(s, a, after)
    return Rows(s, after, a, task.reward(s, a, after), over, jnp.ones(len(a)), jnp.zeros(len(a), jnp.int32))


def share_of(rows, weight, biases=BIASES, end=10.0, measure="held_out"):
    def told(rows, weight):
        greedy, value = (lambda s: jnp.ones(s.shape[:-1])), (lambda s: 2 * s[..., 0] + 3)
        return interpolation.model_share(world_of(task_of(end=end), biases), None, greedy, value, DISCOUNT, rows, weight, measure)

    return float(jax.jit(told)(rows, jnp.asarray(weight, jnp.float32)))


def test_the_share_is_that_of_a_line_that_can_be_worked_out_by_hand():
    states, actions = np.array([1.0, -3.0, 50.0]), np.array([0.5, -1.0, 2.0])
    found = share_of(rows_of(states, actions, end=100.0), [1, 1, 0], end=100.0)
    of_model = DISCOUNT * 2 * 0.2 * states  # 0.2 is the members' mean bias, whatever the action
    of_value = 2 * states + 3 - (states + DISCOUNT * (2 * (states + 1 + 0.2 * states) + 3))
    model, value = np.abs(of_model)[:2].mean(), np.abs(of_value)[:2].mean()
    assert found == pytest.approx(model / (model + value), rel=1e-5)


def test_by_the_members_it_is_their_deviation_and_what_came_does_not_matter():
    states = np.array([1.0, -3.0, 50.0])
    rows = rows_of(states, [0.5, -1.0, 2.0], end=100.0)
    noisy = rows._replace(next_observation=rows.next_observation + 7.0, reward=rows.reward - 3.0)
    deviation = DISCOUNT * 2 * 0.1 * np.abs(states)  # of members that step too far by 0.1 and by 0.3 of the state
    of_value = 2 * states + 3 - (states + DISCOUNT * (2 * (states + 1 + 0.2 * states) + 3))
    model, value = deviation[:2].mean(), np.abs(of_value)[:2].mean()
    for told in (rows, noisy):
        assert share_of(told, [1, 1, 0], end=100.0, measure="members") == pytest.approx(model / (model + value), rel=1e-5)
    assert share_of(rows, [1, 1, 0], biases=(0.3, 0.3), end=100.0, measure="members") == pytest.approx(0, abs=1e-6)


def test_nothing_follows_where_a_real_or_an_imagined_episode_has_terminated():
    rows = rows_of([10.0], [1.0], end=10.5)
    assert bool(rows.terminated[0])
    # both members pass the end too, so that of the model there is no error at all
    assert share_of(rows, [1], end=10.5) == 0.0
    # a member that falls short of it goes on, and its value is the error
    short = share_of(rows, [1], biases=(-0.5, 0.1), end=10.5)
    imagined = 0.5 * DISCOUNT * (2 * (10 + 1 - 5) + 3)
    assert short == pytest.approx(imagined / (imagined + abs(2 * 10 + 3 - 10 - imagined)), rel=1e-5)


def test_a_right_model_has_no_share_and_a_value_that_solves_it_leaves_all_of_it():
    rows = rows_of([1.0, 2.0], [1.0, 1.0], end=100.0)
    assert share_of(rows, [1, 1], biases=(0.0, 0.0), end=100.0) == 0.0
    constant = lambda s: jnp.zeros(s.shape[:-1])  # noqa: E731

    def nothing_to_earn(rows):
        free = task_of(end=100.0)
        free.reward = lambda s, a, after: jnp.zeros(after.shape[:-1])
        world = world_of(free)
        wrong = rows._replace(reward=jnp.ones_like(rows.reward))
        weight = jnp.ones_like(rows.reward)
        return interpolation.model_share(world, None, constant, constant, DISCOUNT, wrong, weight)

    assert float(jax.jit(nothing_to_earn)(rows)) == 1.0


@pytest.mark.parametrize(("share", "depth"), [(0.0, 9), (1.0, 1), (0.5, 5), (0.3, 7)])
def test_the_depth_falls_from_the_longest_to_1_with_the_models_share(share, depth):
    rule = make_controller("model_share", {"longest": 9.0})
    assert float(rule.init(4, None)) == 1.0
    assert rule.follow is not None
    assert float(jax.jit(rule.follow)(jnp.ones(()), jnp.asarray(share))) == depth
