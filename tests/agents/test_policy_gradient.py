from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.policy_gradient import PolicyGradient, Segment, lambda_returns, segment_of
from mbrl_jax.config import PolicyGradientConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.replay import Rows

SPEC = EnvironmentSpec("a task", observation_size=2, action_count=3, time_limit=10, observation_scale=(2.0, 0.5))
CONFIG = PolicyGradientConfig(hidden=(8, 8))
LEARNER = PolicyGradient(CONFIG, SPEC)
T, K = 5, 4
UNUSED = jnp.zeros((), jnp.int32)


def column(*values):
    return jnp.array(values)[:, None]


def returns(reward, value, *, terminated=(), ended=(), discount=0.5, decay=0.5):
    flags = [column(*(t in which for t in range(len(reward)))) for which in (terminated, ended)]
    return np.asarray(lambda_returns(column(*reward), *flags, column(*value), discount, decay))[:, 0]


@pytest.fixture
def state():
    return LEARNER.init(jax.random.key(0))


def segment(seed=0, **changes):
    rng = np.random.default_rng(seed)
    rows = Rows(
        observation=jnp.asarray(rng.normal(size=(T, K, 2)), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(T, K, 2)), jnp.float32),
        action=jnp.asarray(rng.integers(0, 3, (T, K)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(T, K)), jnp.float32),
        terminated=jnp.asarray(rng.random((T, K)) < 0.2),
        weight=jnp.asarray(rng.random((T, K)) < 0.8, jnp.float32),
        depth=jnp.zeros((T, K), jnp.int32),
    )
    return Segment(rows._replace(**changes), rows.terminated)


def test_with_decay_0_a_return_is_the_reward_and_the_next_value():
    np.testing.assert_allclose(returns((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), decay=0.0), [6.0, 12.0, 18.0])


def test_with_decay_1_a_return_is_all_rewards_to_come_and_the_last_value():
    last = 3.0 + 0.5 * 30.0
    before = 2.0 + 0.5 * last
    np.testing.assert_allclose(returns((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), decay=1.0), [1.0 + 0.5 * before, before, last])


def test_between_them_a_return_mixes_the_value_and_the_later_return():
    last = 3.0 + 0.5 * 30.0
    before = 2.0 + 0.5 * (0.75 * 20.0 + 0.25 * last)
    first = 1.0 + 0.5 * (0.75 * 10.0 + 0.25 * before)
    np.testing.assert_allclose(returns((1.0, 2.0, 3.0), (10.0, 20.0, 30.0), decay=0.25), [first, before, last])


def test_nothing_follows_a_termination_and_a_value_follows_a_truncation():
    rewards, values = (1.0, 2.0, 3.0), (10.0, 20.0, 30.0)
    np.testing.assert_allclose(returns(rewards, values, terminated=(1,), ended=(1,), decay=1.0), [2.0, 2.0, 18.0])
    np.testing.assert_allclose(returns(rewards, values, ended=(1,), decay=1.0), [7.0, 12.0, 18.0])


def test_a_lane_ends_where_the_next_row_is_at_depth_0():
    rows = segment().rows._replace(depth=jnp.array([[0, 3], [1, 0], [2, 1], [0, 2]]), observation=jnp.zeros((4, 2, 2)))
    rows = Rows(*(leaf[:4, :2] for leaf in rows))
    found = segment_of(rows)
    assert found.ended.tolist() == [[False, True], [False, False], [True, False], [True, True]]
    np.testing.assert_array_equal(found.rows.action, rows.action)


def test_actions_are_drawn_with_the_policy_s_probabilities(state):
    grid = (jnp.arange(10_000, dtype=jnp.float32) + 0.5) / 10_000
    sharp = jax.tree.map(lambda x: 30 * x, state.online.actor)
    s = jnp.array([0.7, -0.3])
    drawn = LEARNER.act(sharp, jnp.broadcast_to(s[None], (10_000, 2)), grid, UNUSED)
    share = np.bincount(np.asarray(drawn), minlength=3) / 10_000
    np.testing.assert_allclose(share, jax.nn.softmax(LEARNER.outputs(sharp, s)), atol=2e-4)
    assert share.max() - share.min() > 0.05  # of a policy that prefers something
    assert int(LEARNER.greedy(sharp, s)) == int(share.argmax())


@pytest.mark.parametrize("uniform", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_the_ends_of_the_uniform_distribution_are_actions_too(state, uniform):
    assert 0 <= int(LEARNER.act(state.online.actor, jnp.zeros(2), jnp.asarray(uniform), UNUSED)) < 3


def test_a_fresh_policy_is_nearly_uniform(state):
    s = jax.random.normal(jax.random.key(1), (50, 2))
    np.testing.assert_allclose(jax.nn.softmax(LEARNER.outputs(state.online.actor, s), axis=-1), 1 / 3, atol=0.02)


def test_the_score_function_s_mean_over_actions_is_the_gradient_of_the_expected_reward(state):
    learner = PolicyGradient(replace(CONFIG, entropy_weight=0.0, baseline="none", normalise=False, discount=0.0), SPEC)
    s, rewards = jnp.array([0.4, 0.1]), jnp.array([1.0, -2.0, 0.5])
    actor = jax.tree.map(lambda x: 5 * x, state.online.actor)
    probabilities = jax.nn.softmax(learner.outputs(actor, s))

    def estimate(action):
        blank = segment().rows
        rows = Rows(*(leaf[:1, :1] for leaf in blank))._replace(
            observation=s[None, None],
            action=jnp.full((1, 1), action, jnp.int32),
            reward=rewards[action][None, None],
            weight=jnp.ones((1, 1)),
        )
        one = Segment(rows, jnp.ones((1, 1), bool))
        advantages = learner.advantages(state.online, one, learner.returns(state.target.critic, one))
        return jax.grad(lambda actor: learner.score_loss(actor, one, advantages)[0])(actor)

    mean = jax.tree.map(lambda *each: sum(p * x for p, x in zip(probabilities, each, strict=True)), *map(estimate, range(3)))
    exact = jax.grad(lambda actor: -jnp.sum(jax.nn.softmax(learner.outputs(actor, s)) * rewards))(actor)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mean, exact)


def test_the_entropy_bonus_alone_makes_a_policy_uniform():
    learner = PolicyGradient(replace(CONFIG, entropy_weight=1.0, learning_rate=0.01), SPEC)
    state, still = learner.init(jax.random.key(0)), segment(reward=jnp.zeros((T, K)))
    layers = dict(state.online.actor["params"])
    layers["Dense_2"] = {**layers["Dense_2"], "bias": jnp.array([2.0, 0.0, -1.0])}
    state = state._replace(online=state.online._replace(actor={"params": layers}))
    entropy, update = [], jax.jit(learner.update)
    for _ in range(300):
        state = state._replace(online=state.online._replace(critic=jax.tree.map(jnp.zeros_like, state.online.critic)))
        state = state._replace(target=state.target._replace(critic=jax.tree.map(jnp.zeros_like, state.target.critic)))
        state, log = update(state, still)
        entropy.append(float(log.entropy))
    assert entropy[0] < 0.6
    assert entropy[-1] == pytest.approx(np.log(3), abs=0.01)


def test_advantages_are_brought_to_mean_0_and_deviation_1_over_the_rows_that_count(state):
    one = segment()
    advantage = LEARNER.advantages(state.online, one, LEARNER.returns(state.target.critic, one))
    counted = np.asarray(advantage)[np.asarray(one.rows.weight) > 0]
    assert counted.mean() == pytest.approx(0, abs=1e-5)
    assert counted.std() == pytest.approx(1, abs=1e-4)


def test_rows_that_were_not_kept_do_not_count(state):
    one = segment()
    other = one.rows._replace(action=jnp.where(one.rows.weight > 0, one.rows.action, 0))
    after = [LEARNER.update(state, Segment(rows, one.ended))[0].online for rows in (one.rows, other)]
    jax.tree.map(np.testing.assert_array_equal, *after)


def test_a_segment_of_which_nothing_was_kept_changes_nothing_of_what_is_learned(state):
    learner = PolicyGradient(replace(CONFIG, entropy_weight=0.0), SPEC)
    after, log = learner.update(state, segment(weight=jnp.zeros((T, K))))
    jax.tree.map(np.testing.assert_array_equal, after.online, state.online)
    assert float(log.loss) == 0


def test_the_critic_learns_at_a_rate_that_does_not_depend_on_the_discount():
    after = []
    for discount in (0.5, 0.99):
        learner = PolicyGradient(replace(CONFIG, discount=discount), SPEC)
        ended = jnp.ones((T, K), bool)  # a return is the reward, which is a tenth of what a run of rewards of 1 is worth
        one = segment(terminated=ended, reward=jnp.full((T, K), 0.1 / (1 - discount)))._replace(ended=ended)
        after.append(learner.update(learner.init(jax.random.key(0)), one)[0].online.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *after)


def test_without_a_baseline_there_is_no_critic_to_learn(state):
    learner = PolicyGradient(replace(CONFIG, baseline="none"), SPEC)
    after, log = learner.update(state, segment())
    jax.tree.map(np.testing.assert_array_equal, after.online.critic, state.online.critic)
    assert float(log.loss) == 0
    assert any(
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (after.online.actor, state.online.actor)), strict=True)
    )


def test_a_learner_that_would_go_non_finite_is_frozen_at_its_last_finite_parameters(state):
    bad = segment(reward=jnp.full((T, K), jnp.nan))
    after, _ = LEARNER.update(state, bad)
    assert bool(after.frozen)
    jax.tree.map(np.testing.assert_array_equal, after.online, state.online)
    again, _ = LEARNER.update(after, segment())
    assert int(again.updates) == 0
    jax.tree.map(np.testing.assert_array_equal, again.online, state.online)


def test_the_target_networks_follow_by_their_rate(state):
    after, _ = LEARNER.update(state, segment())
    expected = jax.tree.map(lambda t, p: t + CONFIG.target_rate * (p - t), state.target, after.online)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.target, expected)


def test_the_learning_rates_decay_with_the_run():
    learner = PolicyGradient(replace(CONFIG, learning_rate_decay=1.0), SPEC)
    state = learner.init(jax.random.key(0))
    after, _ = learner.update(state, segment(), 1.0)
    jax.tree.map(np.testing.assert_array_equal, after.online, state.online)
