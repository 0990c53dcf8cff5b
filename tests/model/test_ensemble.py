import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Bounds, Members, Normaliser
from mbrl_jax.model.protocol import Prediction

D = 4  # CartPole's axes


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softplus(x):
    return np.logaddexp(0, x)


def bent(log_variance, low=-10.0, high=0.5):
    """SPEC section 3, in float64."""
    log_variance = high - softplus(high - log_variance.astype(np.float64))
    return low + softplus(log_variance - low)


def normaliser(targets=D):
    scale = np.linspace(0.5, 2, targets).astype(np.float32)
    return Normaliser(
        *map(jnp.asarray, (normal(D, seed=1), 1 + normal(D, seed=2) ** 2, normal(targets, seed=3), scale)),
    )


def column_normaliser(values, counted=None):
    counted = np.ones(len(values), bool) if counted is None else counted
    return ens.measure(jnp.asarray(values), jnp.asarray(values[:, :1]), jnp.asarray(counted))


def test_statistics_are_means_and_population_deviations():
    states, targets = 3 + 2 * normal(50, D), 1e-2 * normal(50, 5, seed=1)
    found = ens.measure(jnp.asarray(states), jnp.asarray(targets), jnp.ones(50, bool))
    expected = states.mean(0), states.std(0, ddof=0), targets.mean(0), targets.std(0, ddof=0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_statistics_leave_out_rows_that_do_not_count():
    states, counted = normal(40, D), np.arange(40) % 5 != 4
    wild = np.where(counted[:, None], states, np.float32(1e6))
    found = column_normaliser(wild, counted)
    np.testing.assert_allclose(found.state_mean, states[counted].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.state_std, states[counted].std(0), rtol=1e-5)


def test_an_axis_that_hardly_varies_is_left_unscaled():
    varied = normal(30)
    states = np.stack([np.full(30, 0.25, np.float32), 1e-7 * varied, 1e-5 * varied, varied], axis=1)
    found = column_normaliser(states).state_std
    np.testing.assert_allclose(found, [1, 1, 1e-5 * varied.std(), varied.std()], rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.001, -0.1, 1.0, 1234.5])
def test_a_target_that_does_not_vary_has_its_value_for_mean_and_no_deviation(value):
    rows = 20_000  # so many that the rounded sum is not the value times their number
    targets = np.full((rows, 2), value, np.float32)
    targets[:, 1] += normal(rows)
    targets[::7] = 9.0  # of rows that do not count
    counted = np.arange(rows) % 7 != 0
    found = ens.measure(jnp.asarray(normal(rows, D)), jnp.asarray(targets), jnp.asarray(counted))
    assert float(found.target_mean[0]) == np.float32(value)
    assert float(found.target_std[0]) == 0.0
    np.testing.assert_allclose(found.target_std[1], targets[counted, 1].std(), rtol=1e-3)
    assert found.target_scale.tolist() == [1.0, float(found.target_std[1])]


def test_a_target_counts_as_constant_by_how_much_it_varies_beside_its_mean():
    varied = normal(300)
    columns = [1e-5 * varied, 1e-7 * varied, 100 + 1e-3 * varied, 1e5 + 1e-2 * varied]
    found = ens.measure(
        jnp.asarray(normal(300, D)), jnp.asarray(np.stack(columns, axis=1).astype(np.float32)), jnp.ones(300, bool)
    )
    assert (np.asarray(found.target_std) > 0).tolist() == [True, False, True, False]


def test_before_any_data_normalising_changes_nothing(make_ensemble):
    ensemble = make_ensemble(reward="learned")
    found = ens.init_normaliser(ensemble)
    assert [leaf.tolist() for leaf in found] == [[0.0] * 4, [1.0] * 4, [0.0] * 5, [1.0] * 5]


def test_inputs_are_normalised_states_and_two_actions_as_minus_and_plus_one(make_ensemble):
    observation, action = normal(3, 5, D), np.array([[0, 1, 1, 0, 1]] * 3, np.int32)
    found = ens.encode(make_ensemble(), normaliser(), jnp.asarray(observation), jnp.asarray(action))
    mean, std, _, _ = map(np.asarray, normaliser())
    state = (observation - mean) / std
    np.testing.assert_allclose(found, np.concatenate([state, 2 * action[..., None] - 1], axis=-1), rtol=1e-6, atol=1e-6)


def test_three_actions_are_encoded_one_hot(make_ensemble):
    spec = EnvironmentSpec("three", D, 3, 10, (1.0,) * D)
    ensemble = make_ensemble()._replace(spec=spec)
    observation = normal(3, D)
    found = ens.encode(ensemble, ens.init_normaliser(ensemble), jnp.asarray(observation), jnp.array([2, 0, 1], jnp.int32))
    np.testing.assert_array_equal(found[:, D:], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found[:, :D], observation)
    assert ensemble.input_size == D + 3


def test_the_numbers_of_a_continuous_action_are_inputs_as_they_are(make_ensemble):
    spec = EnvironmentSpec("two numbers", D, 0, 10, (1.0,) * D, action_size=2)
    ensemble = make_ensemble()._replace(spec=spec)
    observation, action = normal(3, D), jnp.asarray(normal(3, 2, seed=1))
    found = ens.encode(ensemble, ens.init_normaliser(ensemble), jnp.asarray(observation), action)
    np.testing.assert_array_equal(found, np.concatenate([observation, action], axis=-1))
    assert ensemble.input_size == D + 2


@pytest.mark.parametrize("actions", [2, 3])
def test_weights_of_discrete_actions_are_encoded_as_the_actions_that_they_weigh(make_ensemble, actions):
    ensemble = make_ensemble()._replace(spec=EnvironmentSpec("weighed", D, actions, 10, (1.0,) * D))
    same = ens.init_normaliser(ensemble)
    observation, action = jnp.asarray(normal(5, D)), jnp.array([0, 1, 1, 0, actions - 1], jnp.int32)
    weights = jax.nn.one_hot(action, actions)
    np.testing.assert_array_equal(*(ens.encode(ensemble, same, observation, each) for each in (weights, action)))
    half = ens.encode(ensemble, same, observation[0], jnp.full(actions, 1 / actions))
    np.testing.assert_allclose(half[D:], 0.0 if actions == 2 else 1 / 3, atol=1e-7)


def test_where_no_state_exceeds_a_limit_no_imagined_one_does(make_ensemble):
    limits = (1.0, 0.5, 2.0, 8.0)
    ensemble = make_ensemble()
    ensemble = ensemble._replace(spec=ensemble.spec._replace(observation_limits=limits))
    prediction = Prediction(jnp.asarray(20 * normal(50, D)), None, None)
    observation, action = jnp.zeros((50, D)), jnp.zeros(50, jnp.int32)
    free = ens.decode(make_ensemble(), normaliser(), prediction, observation, action, None).next_observation
    found = ens.decode(ensemble, normaliser(), prediction, observation, action, None).next_observation
    np.testing.assert_array_equal(found, np.clip(free, -np.array(limits, np.float32), np.array(limits, np.float32)))
    assert (np.abs(free) > np.array(limits)).any(axis=0).all()


def test_log_variances_are_bent_into_their_bounds():
    raw = np.linspace(-60, 60, 241).astype(np.float32)[:, None]
    bounds = Bounds(jnp.full((1, 1), -10.0), jnp.full((1, 1), 0.5))
    found = np.asarray(ens.bound_log_variance(jnp.asarray(raw), bounds))
    np.testing.assert_allclose(found, bent(raw), rtol=0, atol=2e-6)
    assert found.min() >= -10
    assert found.max() < 0.5001
    middle = np.abs(raw + 5) < 1
    np.testing.assert_allclose(found[middle], raw[middle], atol=0.05)


def test_each_axis_has_bounds_of_its_own():
    bounds = Bounds(jnp.array([[-10.0, -2.0]]), jnp.array([[0.5, -1.0]]))
    found = np.asarray(ens.bound_log_variance(jnp.array([[3.0, 3.0], [-30.0, -30.0]]), bounds))
    expected = np.stack([bent(np.array([3.0, -30.0])), bent(np.array([3.0, -30.0]), -2.0, -1.0)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "outputs", "inputs"),
    [
        ({}, 8, 5),
        ({"reward": "learned"}, 10, 5),
        ({"termination": "learned"}, 9, 5),
        ({"reward": "learned", "termination": "learned"}, 11, 5),
        ({"prediction": "deterministic"}, 4, 5),
        ({"prediction": "deterministic", "reward": "learned", "termination": "learned"}, 6, 5),
    ],
)
def test_heads_exist_only_where_they_are_learned(make_ensemble, settings, outputs, inputs):
    ensemble = make_ensemble(**settings)
    params, bounds = jax.eval_shape(lambda key: ens.init_params(ensemble, key), jax.random.key(0))
    assert params["params"]["Dense_0"]["kernel"].shape == (2, inputs, 8)
    assert params["params"]["Dense_2"]["kernel"].shape == (2, 8, outputs)
    assert bounds.minimum.shape == bounds.maximum.shape == (2, ensemble.targets)


def test_outputs_come_in_the_order_change_reward_termination_log_variance(make_ensemble):
    ensemble = make_ensemble(reward="learned", termination="learned")
    outputs = normal(7, 11)
    bounds = Bounds(jnp.full(5, -10.0), jnp.full(5, 0.5))
    found = ens.split_outputs(ensemble, jnp.asarray(outputs), bounds)
    np.testing.assert_array_equal(found.mean, outputs[:, :5])
    np.testing.assert_array_equal(found.termination_logit, outputs[:, 5])
    np.testing.assert_allclose(found.log_variance, bent(outputs[:, 6:]), atol=1e-5)


def test_deterministic_members_have_no_log_variance_and_known_termination_no_logit(make_ensemble):
    ensemble = make_ensemble(prediction="deterministic")
    outputs = jnp.asarray(normal(7, 4))
    found = ens.split_outputs(ensemble, outputs, Bounds(jnp.zeros(4), jnp.zeros(4)))
    assert found.log_variance is None
    assert found.termination_logit is None
    np.testing.assert_array_equal(found.mean, outputs)


@pytest.fixture(scope="module")
def asked(make_ensemble, make_params):
    """Three members asked about rows of their own."""
    ensemble = make_ensemble(members=3, termination="learned")
    members = Members(*make_params(ensemble), normaliser())
    observation, action = normal(3, 6, D, seed=4), np.random.default_rng(5).integers(0, 2, (3, 6)).astype(np.int32)
    return ensemble, members, observation, action, jax.jit(lambda *columns: ens.predict(ensemble, *columns))


def test_every_member_predicts_its_own_rows_with_its_own_network(asked):
    ensemble, members, observation, action, predict = asked
    found = predict(members, observation, action)
    for member in range(3):
        x = np.asarray(ens.encode(ensemble, members.normaliser, jnp.asarray(observation), jnp.asarray(action)))[member]
        for i in range(3):
            layer = jax.tree.map(lambda leaf, member=member: np.asarray(leaf[member]), members.params["params"][f"Dense_{i}"])
            x = x @ layer["kernel"] + layer["bias"]
            x = x / (1 + np.exp(-x)) if i < 2 else x
        np.testing.assert_allclose(found.mean[member], x[:, :4], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.termination_logit[member], x[:, 4], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.log_variance[member], bent(x[:, 5:]), rtol=1e-4, atol=1e-5)


def test_members_begin_differently_within_the_default_bounds(make_ensemble):
    ensemble = make_ensemble(members=3)
    params, bounds = jax.jit(lambda key: ens.init_params(ensemble, key))(jax.random.key(0))
    kernels = np.asarray(params["params"]["Dense_1"]["kernel"])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(kernels[one] - kernels[other]).min() > 0
    assert np.unique(bounds.minimum).tolist() == [-10]
    assert np.unique(bounds.maximum).tolist() == [0.5]


def test_the_mixture_has_the_mean_of_means_of_variances_and_of_logits():
    mean, log_variance, logit = normal(3, 6, 4), normal(3, 6, 4, seed=1), normal(3, 6, seed=2)
    found = ens.mixture_mean(Prediction(*map(jnp.asarray, (mean, log_variance, logit))))
    np.testing.assert_allclose(found.mean, mean.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_variance), np.exp(log_variance).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.termination_logit, logit.mean(0), rtol=1e-5, atol=1e-6)
    assert ens.mixture_mean(Prediction(jnp.asarray(mean), None, None))[1:] == (None, None)


def decoded(ensemble, prediction, observation, noise, scales=None):
    action = jnp.zeros(observation.shape[:-1], jnp.int32)
    noise = None if noise is None else jnp.asarray(noise)
    return ens.decode(ensemble, normaliser() if scales is None else scales, prediction, jnp.asarray(observation), action, noise)


def test_the_next_state_is_the_state_and_the_change_in_real_units(make_ensemble):
    observation, mean, log_variance, noise = (normal(6, D, seed=seed) for seed in range(4))
    prediction = Prediction(jnp.asarray(mean), jnp.asarray(log_variance), None)
    _, _, shift, scale = map(np.asarray, normaliser())
    found = decoded(make_ensemble(), prediction, observation, noise).next_observation
    np.testing.assert_allclose(
        found, observation + shift + scale * (mean + np.exp(log_variance / 2) * noise), rtol=1e-5, atol=1e-5
    )
    without = decoded(make_ensemble(), prediction, observation, None).next_observation
    np.testing.assert_allclose(without, observation + shift + scale * mean, rtol=1e-5, atol=1e-5)


def test_deterministic_members_ignore_the_noise(make_ensemble):
    ensemble, prediction = make_ensemble(prediction="deterministic"), Prediction(jnp.asarray(normal(6, D)), None, None)
    with_noise = decoded(ensemble, prediction, normal(6, D), 1e3 * normal(6, D))
    np.testing.assert_array_equal(with_noise.next_observation, decoded(ensemble, prediction, normal(6, D), None).next_observation)


def test_known_reward_and_termination_are_judged_on_the_state_that_was_drawn(make_ensemble):
    ensemble = make_ensemble()._replace(reward=lambda s, a, s2: s2[..., 1])
    still = Prediction(jnp.zeros((2, D)), jnp.zeros((2, D)), None)
    noise = np.zeros((2, D), np.float32)
    noise[1, 0] = 50  # thrown far off the track
    found = decoded(ensemble, still, np.zeros((2, D), np.float32), noise, ens.init_normaliser(ensemble))
    assert found.terminated.tolist() == [False, True]
    np.testing.assert_array_equal(found.reward, found.next_observation[:, 1])


def test_a_learned_reward_is_its_mean_in_real_units(make_ensemble):
    mean, log_variance = normal(6, 5), normal(6, 5, seed=1)
    prediction = Prediction(jnp.asarray(mean), jnp.asarray(log_variance), None)
    found = decoded(make_ensemble(reward="learned"), prediction, normal(6, D), normal(6, D, seed=2), normaliser(5))
    _, _, shift, scale = map(np.asarray, normaliser(5))
    np.testing.assert_allclose(found.reward, shift[4] + scale[4] * mean[:, 4], rtol=1e-5, atol=1e-6)
    change = mean[:, :4] + np.exp(log_variance[:, :4] / 2) * normal(6, D, seed=2)
    np.testing.assert_allclose(found.next_observation, normal(6, D) + shift[:4] + scale[:4] * change, rtol=1e-5, atol=1e-5)


def test_a_learned_termination_happens_above_even_odds_whatever_the_known_one_says(make_ensemble):
    observation = np.zeros((3, D), np.float32)
    observation[2, 0] = 50
    prediction = Prediction(jnp.zeros((3, D)), jnp.zeros((3, D)), jnp.array([0.1, -0.1, -5.0]))
    assert decoded(make_ensemble(termination="learned"), prediction, observation, None).terminated.tolist() == [
        True,
        False,
        False,
    ]
    assert decoded(make_ensemble(), prediction._replace(termination_logit=None), observation, None).terminated.tolist()[2]
