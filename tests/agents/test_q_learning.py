from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.outcomes import Outcomes
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.config import ConfigError, QLearningConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.replay import Rows

SPEC = EnvironmentSpec("probe", observation_size=3, action_count=2, time_limit=10, observation_scale=(2.0, 1.0, 0.5))
BATCH = 16


def learner(**changes):
    return make_q_learner(replace(QLearningConfig(hidden=(8, 8)), **changes), SPEC)


@pytest.fixture(scope="module")
def state():
    fresh = learner().init(jax.random.key(0))
    other = learner().init(jax.random.key(1))
    return fresh._replace(target=other.online)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(2), 4)
    return Rows(
        observation=jax.random.normal(keys[0], (BATCH, 3)),
        next_observation=jax.random.normal(keys[1], (BATCH, 3)),
        action=jnp.arange(BATCH, dtype=jnp.int32) % 2,
        reward=jax.random.normal(keys[2], (BATCH,)),
        terminated=jnp.arange(BATCH) % 4 == 0,
        weight=jnp.ones(BATCH),
        depth=jnp.zeros(BATCH, jnp.int32),
    )


def numpy_values(params, observation):
    x = np.asarray(observation, np.float64) / np.array(SPEC.observation_scale)
    layers = params["params"]
    for i in range(len(layers)):
        x = x @ np.asarray(layers[f"Dense_{i}"]["kernel"], np.float64) + np.asarray(layers[f"Dense_{i}"]["bias"], np.float64)
        if i + 1 < len(layers):
            x = np.maximum(x, 0)
    return x


def test_values_are_of_observations_divided_by_the_tasks_scale(state, batch):
    values = learner().values(state.online, batch.observation)
    np.testing.assert_allclose(values, numpy_values(state.online, batch.observation), rtol=1e-4, atol=1e-5)


def test_a_scale_of_ones_own_replaces_the_tasks(state, batch):
    own = learner(input_scale=(1.0, 1.0, 1.0)).values(state.online, batch.observation)
    tasks = learner().values(state.online, batch.observation * jnp.array([[2.0, 1.0, 0.5]]))
    np.testing.assert_allclose(own, tasks, rtol=1e-5)


def test_a_scale_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"agent.input_scale: \(1.0, 2.0\).*3 observation axes"):
        learner(input_scale=(1.0, 2.0))


def test_the_max_target_takes_the_target_networks_best(state, batch):
    best = numpy_values(state.target, batch.next_observation).max(axis=1)
    expected = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0.0, best)
    np.testing.assert_allclose(learner(target="max", discount=0.9).targets(state, batch), expected, rtol=1e-4, atol=1e-5)


def test_the_double_target_lets_the_online_network_choose_and_the_target_network_judge(state, batch):
    chosen = numpy_values(state.online, batch.next_observation).argmax(axis=1)
    judged = numpy_values(state.target, batch.next_observation)
    assert (chosen != judged.argmax(axis=1)).any()
    best = judged[np.arange(BATCH), chosen]
    expected = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0.0, best)
    np.testing.assert_allclose(learner(discount=0.9).targets(state, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def outcomes():
    keys = jax.random.split(jax.random.key(3), 2)
    return Outcomes(
        reward=jax.random.normal(keys[0], (4, BATCH)),
        next_observation=jax.random.normal(keys[1], (4, BATCH, 3)),
        terminated=jnp.arange(4 * BATCH).reshape(4, BATCH) % 5 == 0,
    )


def each_member(state, outcomes):
    best = np.stack([numpy_values(state.target, member).max(axis=1) for member in np.asarray(outcomes.next_observation)])
    return np.asarray(outcomes.reward) + 0.9 * np.where(outcomes.terminated, 0.0, best)


def test_the_quantile_target_is_the_quantile_over_members(state, batch, outcomes):
    targets = learner(target="quantile", target_quantile=0.3, discount=0.9).targets(state, batch, outcomes)
    np.testing.assert_allclose(targets, np.quantile(each_member(state, outcomes), 0.3, axis=0), rtol=1e-4, atol=1e-5)


def test_the_pessimistic_target_is_the_mean_less_beta_deviations(state, batch, outcomes):
    targets = learner(target="mean_std", target_beta=2.0, discount=0.9).targets(state, batch, outcomes)
    each = each_member(state, outcomes)
    np.testing.assert_allclose(targets, each.mean(axis=0) - 2 * each.std(axis=0), rtol=1e-4, atol=1e-5)


def test_ensemble_targets_without_outcomes_are_refused(state, batch):
    with pytest.raises(ValueError, match="outcomes"):
        learner(target="quantile").targets(state, batch)


def test_truncation_bootstraps_while_termination_does_not(state, batch):
    ended = batch._replace(terminated=jnp.ones(BATCH, bool))
    going = batch._replace(terminated=jnp.zeros(BATCH, bool))
    np.testing.assert_allclose(learner().targets(state, ended), batch.reward)
    difference = learner().targets(state, going) - batch.reward
    assert float(jnp.min(jnp.abs(difference))) > 1e-4  # what a time limit ends is stored as `going`


def test_the_loss_is_the_weighted_mean_and_rows_without_weight_do_not_count(state, batch):
    weight = jnp.where(jnp.arange(BATCH) < 5, 1.0, 0.0)
    targets = learner().targets(state, batch)
    loss, _ = learner().loss(state.online, batch._replace(weight=weight), targets)
    values = numpy_values(state.online, batch.observation)[np.arange(BATCH), np.asarray(batch.action)]
    expected = np.mean((values - np.asarray(targets))[:5] ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_huber_loss_is_quadratic_near_and_linear_far(state, batch):
    values = numpy_values(state.online, batch.observation)[np.arange(BATCH), np.asarray(batch.action)]
    error = np.where(np.arange(BATCH) < 8, 0.25, 3.0)
    targets = jnp.asarray(values - error, jnp.float32)
    loss, _ = learner(loss="huber", huber_delta=0.5).loss(state.online, batch, targets)
    expected = (8 * 0.5 * 0.25**2 + 8 * 0.5 * (3.0 - 0.25)) / 16
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_scaled_loss_does_not_change_with_the_scale_of_rewards(state, batch):
    zero = jax.tree.map(jnp.zeros_like, state.online)
    targets = jax.random.normal(jax.random.key(5), (BATCH,)) + 3.0
    _, once = learner().loss(zero, batch, targets)
    _, tenfold = learner().loss(zero, batch, 10 * targets)
    np.testing.assert_allclose(once, tenfold, rtol=1e-4)


def test_no_weight_at_all_gives_no_gradient_and_no_nan(state, batch):
    after, log = learner().update(state, batch._replace(weight=jnp.zeros(BATCH)))
    assert float(log.loss) == 0.0
    assert not bool(after.frozen)
    jax.tree.map(np.testing.assert_array_equal, after.online, state.online)


def test_the_target_network_moves_by_its_rate_towards_the_new_online_network(state, batch):
    after, _ = learner(target_rate=0.25).update(state, batch)
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.target, after.online)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target, expected)


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate(state, batch):
    after, _ = learner(learning_rate=1e-2).update(state, batch)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b), after.online, state.online)
    largest = max(float(jnp.max(leaf)) for leaf in jax.tree.leaves(moved))
    assert largest == pytest.approx(1e-2, rel=1e-3)


def test_updates_bring_the_values_to_their_targets(batch):
    agent = learner(hidden=(64, 64), learning_rate=1e-2, discount=0.0)
    state = agent.init(jax.random.key(4))
    state, log = jax.lax.scan(lambda state, _: agent.update(state, batch), state, None, length=500)
    assert float(log.loss[-1]) < 0.01 * float(log.loss[0])
    assert int(state.updates) == 500


def test_a_learner_that_would_turn_non_finite_rests_at_its_last_finite_parameters(state, batch):
    poisoned = batch._replace(reward=batch.reward.at[3].set(jnp.nan))
    once, _ = learner().update(state, batch)
    frozen, _ = learner().update(once, poisoned)
    assert bool(frozen.frozen)
    assert int(frozen.updates) == 1
    jax.tree.map(np.testing.assert_array_equal, frozen.online, once.online)
    later, _ = learner().update(frozen, batch)  # good data do not wake it
    assert bool(later.frozen)
    jax.tree.map(np.testing.assert_array_equal, later.online, once.online)
    jax.tree.map(np.testing.assert_array_equal, later.optimizer, once.optimizer)


def test_actions_are_greedy_but_for_the_draws_below_epsilon(state, batch):
    explore = jnp.linspace(0.0, 0.99, BATCH)
    random_action = 1 - learner().greedy(state.online, batch.observation)
    action = learner().act(state.online, batch.observation, 0.3, explore, random_action)
    greedy = learner().greedy(state.online, batch.observation)
    np.testing.assert_array_equal(action == greedy, explore >= 0.3)


@pytest.mark.parametrize(("decay", "progress", "share"), [(0.0, 1.0, 1.0), (0.5, 1.0, 0.5), (0.5, 0.5, 0.75), (1.0, 0.0, 1.0)])
def test_the_learning_rate_decays_linearly_with_the_runs_progress(state, batch, decay, progress, share):
    # Adam's very first step moves every parameter that has a gradient by the learning rate
    after, _ = learner(learning_rate=1e-3, learning_rate_decay=decay).update(state, batch, progress=progress)
    last = list(state.online["params"])[-1]
    moved = np.abs(np.asarray(after.online["params"][last]["bias"]) - np.asarray(state.online["params"][last]["bias"]))
    np.testing.assert_allclose(moved, share * 1e-3, rtol=1e-3)


def test_a_fully_decayed_learning_rate_leaves_the_network_as_it_is(state, batch):
    after, _ = learner(learning_rate_decay=1.0).update(state, batch, progress=1.0)
    jax.tree.map(np.testing.assert_array_equal, after.online, state.online)


def test_continuous_actions_are_refused():
    spec = SPEC._replace(action_count=0, action_size=1)
    with pytest.raises(ConfigError, match="environment.name: 'probe' does not fit; Q-learning needs discrete actions"):
        make_q_learner(QLearningConfig(), spec)
