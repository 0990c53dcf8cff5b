import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax.agents.policies import LOG_STD_BOUNDS, policy_of
from mbrl_jax.environments import EnvironmentSpec, draw_actions

DISCRETE = EnvironmentSpec("three actions", 2, 3, 10, (1.0, 1.0))
CONTINUOUS = EnvironmentSpec("two numbers", 2, 0, 10, (1.0, 1.0), action_size=2)
NO_UNIFORM, NO_ACTION = jnp.zeros(()), jnp.zeros((), jnp.int32)


def deviations(outputs):
    low, high = LOG_STD_BOUNDS
    return np.exp(low + (high - low) / (1 + np.exp(-np.asarray(outputs)[2:])))


def test_a_squashed_gaussian_is_drawn_with_its_own_density():
    policy, outputs = policy_of(CONTINUOUS), jnp.array([0.4, -0.8, 1.0, -0.5])
    random = draw_actions(CONTINUOUS, jax.random.key(0), (20_000,))
    drawn = np.asarray(policy.sample(jnp.broadcast_to(outputs[None], (20_000, 4)), jnp.zeros(20_000), random))
    assert np.abs(drawn).max() <= 1
    for axis in range(2):
        before = scipy.stats.norm(np.asarray(outputs)[axis], deviations(outputs)[axis])
        assert scipy.stats.kstest(np.arctanh(drawn[:, axis]), before.cdf).pvalue > 1e-3
    # and the density is what it says: its integral over the square of actions is 1
    edge = np.tanh(np.linspace(-6, 6, 401))
    middle, width = (edge[1:] + edge[:-1]) / 2, np.diff(edge)
    grid = jnp.asarray(np.stack(np.meshgrid(middle, middle, indexing="ij"), -1), jnp.float32)
    density = np.exp(policy.log_probability(jnp.broadcast_to(outputs, (400, 400, 4)), grid))
    assert np.sum(density * width[:, None] * width[None]) == pytest.approx(1, abs=1e-3)


def test_the_entropy_and_the_mode_of_a_squashed_gaussian_are_those_before_it_is_squashed():
    policy, outputs = policy_of(CONTINUOUS), jnp.array([0.4, -0.8, 1.0, -0.5])
    expected = sum(float(scipy.stats.norm(0, std).entropy()) for std in deviations(outputs))
    assert float(policy.entropy(outputs)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(policy.mode(outputs), np.tanh([0.4, -0.8]), rtol=1e-6)


def test_an_action_squashed_to_the_edge_has_a_finite_density_and_gradient():
    policy = policy_of(CONTINUOUS)
    for action in (jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0])):
        value, slope = jax.value_and_grad(policy.log_probability)(jnp.zeros(4), action)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_the_random_policys_continuous_actions_fill_the_open_interval():
    drawn = np.asarray(draw_actions(CONTINUOUS, jax.random.key(1), (50, 100)))
    assert drawn.shape == (50, 100, 2)
    assert scipy.stats.kstest(drawn.ravel(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert np.abs(drawn).max() < 1


def test_weights_of_discrete_actions_are_those_drawn_and_have_the_probabilities_slopes():
    policy, outputs = policy_of(DISCRETE), jnp.array([[0.3, -1.0, 2.0]] * 50)
    uniform = jnp.linspace(0, 0.999, 50)
    actions = policy.sample(outputs, uniform, NO_ACTION)
    np.testing.assert_array_equal(policy.relaxed(outputs, uniform, NO_ACTION), jax.nn.one_hot(actions, 3))
    assert set(np.asarray(actions).tolist()) == {0, 1, 2}
    slope = jax.jacobian(lambda x: policy.relaxed(x, NO_UNIFORM, NO_ACTION))(outputs[0])
    np.testing.assert_allclose(slope, jax.jacobian(jax.nn.softmax)(outputs[0]), atol=1e-6)


def test_a_categorical_policys_log_probability_entropy_and_mode_are_known():
    policy, outputs = policy_of(DISCRETE), jnp.array([0.3, -1.0, 2.0])
    probability = np.exp(outputs) / np.exp(outputs).sum()
    found = [float(policy.log_probability(outputs, jnp.int32(action))) for action in range(3)]
    np.testing.assert_allclose(found, np.log(probability), rtol=1e-5)
    assert float(policy.entropy(outputs)) == pytest.approx(scipy.stats.entropy(probability), rel=1e-5)
    assert int(policy.mode(outputs)) == 2
