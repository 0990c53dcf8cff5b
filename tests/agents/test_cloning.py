import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.cloning import CloningConfig, cloning_agent
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import EnvironmentSpec, make_environment
from mbrl_jax.replay import Rows

SPECS = {
    "discrete": EnvironmentSpec("a task", 2, action_count=3, time_limit=10, observation_scale=(1.0, 2.0)),
    "continuous": EnvironmentSpec("a task", 2, action_count=0, time_limit=10, observation_scale=(1.0, 2.0), action_size=2),
}


def rows_of(kind, count=64, seed=0):
    """States whose first number says the action."""
    generator = np.random.default_rng(seed)
    observation = generator.uniform(-1, 1, (count, 2)).astype(np.float32)
    if kind == "discrete":
        action = np.digitize(observation[:, 0], [-0.3, 0.3]).astype(np.int32)
    else:
        action = np.stack([0.8 * observation[:, 0], np.full(count, 0.2)], axis=1).astype(np.float32)
    blank = np.zeros(count, np.float32)
    return jax.tree.map(
        jnp.asarray, Rows(observation, observation, action, blank, blank > 0, blank + 1, np.zeros(count, np.int32))
    )


@pytest.fixture(scope="module", params=SPECS)
def learned(request):
    """An agent, its states before and after 400 updates on the same rows, and the log of each update."""
    spec, rows = SPECS[request.param], rows_of(request.param)
    agent = cloning_agent(CloningConfig(hidden=(16,), learning_rate=1e-2), spec)
    before = agent.init(jax.random.key(0))
    step = jax.jit(lambda state: jax.lax.scan(lambda state, _: agent.update(state, rows, None, 0.0, None), state, length=400))
    after, log = step(before)
    return request.param, agent, before, after, log


def test_the_policy_comes_to_do_what_was_done(learned):
    kind, agent, before, after, log = learned
    rows = rows_of(kind, seed=1)
    wrong = [
        np.mean(np.abs(np.asarray(agent.mode(agent.judged(state), rows.observation) - rows.action))) for state in (before, after)
    ]
    assert wrong[1] < 0.1 < wrong[0]
    assert log.negative_log_likelihood[-1] < log.negative_log_likelihood[0]
    assert int(after.updates) == 400
    assert not bool(after.frozen)


def test_the_loss_of_discrete_actions_is_the_cross_entropy():
    spec, rows = SPECS["discrete"], rows_of("discrete")
    agent = cloning_agent(CloningConfig(hidden=(4,)), spec)
    state = agent.init(jax.random.key(0))
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 2, 64), jnp.float32)
    _, log = agent.update(state, rows._replace(weight=weight), None, 0.0, None)
    layers = jax.tree.map(np.asarray, state.params["params"])
    hidden = np.tanh(np.asarray(rows.observation) / [1.0, 2.0] @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    logits = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    each = -log_p[np.arange(64), np.asarray(rows.action)]
    np.testing.assert_allclose(log.negative_log_likelihood, each[np.asarray(weight) == 1].mean(), rtol=1e-5)
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    np.testing.assert_allclose(log.entropy, entropy[np.asarray(weight) == 1].mean(), rtol=1e-5)


def test_weight_decay_pulls_at_kernels_alone():
    spec, rows = SPECS["discrete"], rows_of("discrete")._replace(weight=jnp.zeros(64))
    agent = cloning_agent(CloningConfig(hidden=(4,), weight_decay=1.0, learning_rate=1e-3), spec)
    state = agent.init(jax.random.key(0))
    after, _ = agent.update(state, rows, None, 0.0, None)
    for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True):
        if ours.ndim == 2:
            np.testing.assert_allclose(ours - theirs, -1e-3 * np.sign(theirs), rtol=1e-2)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_a_learner_that_would_go_non_finite_rests_at_its_last_finite_parameters(learned):
    kind, agent, _, after, _ = learned
    broken = rows_of(kind)._replace(weight=jnp.full(64, jnp.nan))
    frozen, _ = agent.update(after, broken, None, 0.0, None)
    assert bool(frozen.frozen)
    jax.tree.map(np.testing.assert_array_equal, frozen.params, after.params)
    still, _ = agent.update(frozen, rows_of(kind), None, 0.0, None)
    jax.tree.map(np.testing.assert_array_equal, still.params, after.params)
    assert int(still.updates) == 400


def test_seeds_learn_side_by_side_as_they_do_alone(learned):
    kind, agent, *_ = learned
    rows, states = rows_of(kind), jax.vmap(agent.init)(jax.random.split(jax.random.key(3), 2))
    update = jax.jit(lambda state: agent.update(state, rows, None, 0.0, None)[0])
    together, alone = jax.jit(jax.vmap(update))(states), update(jax.tree.map(lambda leaf: leaf[1], states))
    for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[1], theirs, rtol=1e-4, atol=1e-6)


def test_a_task_with_actions_of_its_own_is_cloned_in_its_terms():
    task = make_environment(EnvironmentConfig(name="Pendulum-v1"))
    agent = cloning_agent(CloningConfig(hidden=(4,)), task.spec)
    action = agent.mode(agent.judged(agent.init(jax.random.key(0))), jnp.zeros((5, 3)))
    assert action.shape == (5, 1)
    assert np.all(np.abs(np.asarray(action)) <= 1)
