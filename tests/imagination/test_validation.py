import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.config import ConfigError
from mbrl_jax.imagination import validation
from mbrl_jax.model.protocol import Imagined, ModelSpec, Prediction, WorldModel
from mbrl_jax.replay import Rows

SCALE = (2.0, 4.0)
DRIFT = (0.0, 1.0)  # that the two members add to each axis in each step


def a_world(has_variance=True, deviation=1.0):
    """Two members: s' = s + a, and s' = s + a + 1; the reward is a, or a + 1; member 1 says that all terminates where a > 0."""

    def expect(params, belief, action):
        drift = jnp.asarray(DRIFT).reshape((2,) + (1,) * (action.ndim - 1))
        after = belief + (action + drift)[..., None]
        log_variance = 2 * jnp.log(jnp.full(belief.shape, deviation) / jnp.asarray(SCALE)[None, None]) if has_variance else None
        everyone = Prediction(jnp.zeros_like(after), log_variance, None)
        member = jnp.arange(2, dtype=jnp.int32)[:, None]
        return Imagined(after, action + drift, (action > 0) & (member == 1), jnp.broadcast_to(member, action.shape), everyone)

    spec = ModelSpec("a line", feature_size=2, members=2, targets=2, has_variance=has_variance, reward_known=False)
    blank = dict.fromkeys(WorldModel._fields, None)
    functions = {
        "expect": expect,
        "features": lambda belief: belief,
        "belief": lambda s: s,
        "scale": lambda params: jnp.asarray(SCALE),
    }
    return WorldModel(**{**blank, "spec": spec, **functions})


def walked(lengths, terminated):
    """Rows of episodes in which every step adds the action to both axes."""
    generator, columns = np.random.default_rng(0), []
    for length in lengths:
        action = generator.choice([-1.0, 1.0], length)
        path = np.cumsum(np.append(0.0, action))[:, None] * np.ones(2)
        columns.append((path[:-1], path[1:], action, action, np.arange(length)))
    s, s2, a, r, depth = (jnp.asarray(np.concatenate(part), jnp.float32) for part in zip(*columns, strict=True))
    over = jnp.zeros(len(a), bool).at[jnp.asarray(terminated)].set(True)
    return Rows(s, s2, a, r, over, jnp.ones(len(a)), depth.astype(jnp.int32)), np.asarray(depth, np.int32)


@pytest.fixture(scope="module")
def measured():
    """Of 40 held-out rows in episodes of 30, 7 and 3, after 25 that are not."""
    rows, elapsed = walked((25, 30, 7, 3), [54, 61])
    holdout = np.arange(25, 65, dtype=np.int32)
    return jax.jit(lambda rows: validation.validate(a_world(), (), rows, elapsed, holdout))(rows), rows


def test_a_members_rollout_is_compared_with_the_same_steps_of_the_episode(measured):
    told, _ = measured
    steps = np.arange(1, validation.STEPS + 1)
    np.testing.assert_allclose(told.error[0], 0, atol=1e-5)
    np.testing.assert_allclose(told.error[1], steps * np.sqrt((1 / 4 + 1 / 16) / 2), rtol=1e-5)


def test_rollouts_end_with_their_episode(measured):
    told, _ = measured
    longest = sorted([*range(1, 31), *range(1, 8), *range(1, 4)])
    np.testing.assert_array_equal(told.windows, [sum(length >= step for length in longest) for step in range(1, 21)])


def test_the_prediction_that_nothing_changes_is_measured_beside_them(measured):
    told, rows = measured
    action, ends = np.asarray(rows.action), np.array([55, 62, 65])
    two = [action[i] + action[i + 1] for i in range(25, 65) if i + 1 < ends[np.searchsorted(ends, i, side="right")]]
    one = np.sqrt((1 / 4 + 1 / 16) / 2)
    np.testing.assert_allclose(told.still[:2], [one, one * np.sqrt(np.mean(np.square(two)))], rtol=1e-5)


def test_rewards_and_terminations_are_judged_member_by_member(measured):
    told, rows = measured
    np.testing.assert_allclose(told.reward_error, DRIFT, atol=1e-6)
    action, over = np.asarray(rows.action)[25:], np.asarray(rows.terminated)[25:]
    np.testing.assert_allclose(told.missed, [1, np.mean(action[over] <= 0)])
    np.testing.assert_allclose(told.false_alarms, [0, np.mean(action[~over] > 0)], rtol=1e-6)


def test_without_a_termination_in_the_held_out_episodes_none_is_missed():
    rows, elapsed = walked((25, 10), [24])
    told = validation.validate(a_world(has_variance=False), (), rows, elapsed, np.arange(25, 35, dtype=np.int32))
    assert np.isneginf(np.asarray(told.missed)).all()
    assert np.isneginf(np.asarray(told.error)[:, 10:]).all()
    assert told.coverage is told.transform is None


def test_what_is_drawn_from_the_mixture_is_covered_as_it_says_and_what_is_wider_is_not():
    generator = np.random.default_rng(0)
    mean = np.stack([np.zeros((4_000, 2)), np.full((4_000, 2), 3.0)])
    member = generator.integers(0, 2, (4_000, 2))
    true = np.where(member == 1, 3.0, 0.0) + generator.normal(size=(4_000, 2))
    arrays = [jnp.asarray(each, jnp.float32) for each in (mean, np.ones_like(mean), true, np.ones(2))]
    coverage, transform = validation.calibration(*arrays)
    np.testing.assert_allclose(coverage, validation.LEVELS, atol=0.02)
    np.testing.assert_allclose(transform, 0.1, atol=0.01)
    narrow, edges = validation.calibration(arrays[0], 0.1 * arrays[1], *arrays[2:])
    assert np.all(np.asarray(narrow)[1:] < np.asarray(coverage)[1:])
    assert float(edges[0] + edges[-1]) > 0.3


def test_an_axis_that_never_changes_does_not_count_towards_calibration():
    mean, deviation = jnp.zeros((1, 100, 2)), jnp.ones((1, 100, 2))
    true = jnp.asarray(np.random.default_rng(0).normal(size=(100, 2)), jnp.float32).at[:, 1].set(0.0)
    both = validation.calibration(mean, deviation, true, jnp.asarray([1.0, 0.0]))
    one = validation.calibration(mean[..., :1], deviation[..., :1], true[:, :1], jnp.ones(1))
    np.testing.assert_allclose(both[1], one[1], atol=1e-6)


def test_a_world_whose_features_do_not_tell_where_it_stands_is_refused():
    rows, elapsed = walked((5, 5), [4])
    with pytest.raises(ConfigError, match="model.kind: it does not fit held-out episodes"):
        validation.validate(a_world()._replace(belief=None), (), rows, elapsed, np.arange(5, 10, dtype=np.int32))
