"""The recurrent actor and critics: what they remember, their targets and losses by hand, and how they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax.agents.recurrent import LOG_STD_BOUNDS, Recurrent
from mbrl_jax.config import RecurrentConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.replay import Rows

T, B = 5, 3
DISCRETE = EnvironmentSpec("a task", observation_size=2, action_count=3, time_limit=50, observation_scale=(1.0, 2.0))
CONTINUOUS = EnvironmentSpec("wide", 2, 0, 50, (1.0, 2.0), action_size=2)
CONFIG = RecurrentConfig(units=4, hidden=(5,), sequence=T, batch_size=B, temperature=0.3, discount=0.9)
BEGINS = (3, 1)  # transition 3 of sequence 1 is an episode's first
LEARNERS = [Recurrent(CONFIG, spec) for spec in (DISCRETE, CONTINUOUS)]
OF = pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.spec.name)


def sequences(spec, seed=0):
    """Transitions [T, B], of which those of a sequence follow on each other unless an episode begins."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(T + 1, B, 2)).astype(np.float32)
    first, after, terminated = np.zeros((T, B), bool), states[1:].copy(), np.zeros((T, B), bool)
    first[0] = first[BEGINS] = True
    after[BEGINS[0] - 1, BEGINS[1]] = 7.0  # the true end of the episode before
    terminated[BEGINS[0] - 1, BEGINS[1]] = True
    action = np.tanh(rng.normal(size=(T, B, 2))) if spec.continuous else rng.integers(0, 3, (T, B))
    action = action.astype(np.float32 if spec.continuous else np.int32)
    reward = rng.normal(size=(T, B)).astype(np.float32)
    rows = Rows(states[:-1], after, action, reward, terminated, np.ones((T, B), np.float32), np.zeros((T, B), np.int32))
    return jax.device_put((rows, first))


def state_of(learner, seed=0):
    """A learner whose networks are all unlike one another."""
    rng = np.random.default_rng(seed)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32), state[:3])
    actor, critics = (jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), each) for each in state[3:5])
    return jax.device_put(
        state._replace(**dict(zip(state._fields, (*drawn, actor, critics, False, 0), strict=True)))._replace(
            frozen=np.zeros((), bool), updates=np.zeros((), np.int32)
        )
    )


@pytest.fixture(scope="module")
def parts():
    """Of each task: the learner's state, its sequences and draws, and a compiled function of all that is asked of them."""

    def of(learner):
        def every(state, rows, first, draws):
            memory = learner.unroll(state.actor.trunk, rows, first)
            judged = [learner.unroll(trunk, rows, first) for trunk in (state.critics.trunk, state.targets.trunk)]
            outputs = [learner.outputs(state.actor, each) for each in memory]
            slope = jax.grad(
                lambda actor: learner.actor_loss(actor, state.critics.heads, judged[0][0], rows, first, draws.actor)[0]
            )(state.actor)
            return {
                "memory": memory,
                "critics": judged,
                "outputs": outputs,
                "targets": learner.targets(state, rows, first, draws.following),
                "values": learner.values(state.critics.heads, judged[0][0], rows.action),
                "slope": slope,
                "update": learner.update(state, rows, first, draws),
            }

        state, draws = state_of(learner), jax.jit(lambda key: learner.draw(key, ()))(jax.random.key(3))
        return state, *sequences(learner.spec), draws, jax.jit(every)

    return {learner.spec.name: of(learner) for learner in LEARNERS}


def tables(learner, heads, memory):
    """[C, ..., A] the values of all discrete actions by the critics' heads."""
    return np.stack([learner.values(heads, memory, jnp.full(memory.shape[:-1], a, jnp.int32)) for a in range(3)], axis=-1)


@OF
def test_nothing_leaks_across_an_episodes_end(parts, learner):
    state, rows, first, draws, every = parts[learner.spec.name]
    step, lane = BEGINS
    other = sequences(learner.spec, seed=5)[0]
    past = jax.tree.map(lambda new, old: old.at[:step, lane].set(new[:step, lane]), other, rows)
    told, changed = (every(state, each, first, draws)["memory"] for each in (rows, past))
    for one, two in zip(told, changed, strict=True):
        np.testing.assert_array_equal(one[step:, lane], two[step:, lane])
        assert (one[:step, lane] != two[:step, lane]).any()
    through = every(state, past, first.at[BEGINS].set(False), draws)["memory"]
    assert (through[0][step:, lane] != told[0][step:, lane]).any()


@OF
def test_a_policy_remembers_what_it_learned_from(parts, learner):
    state, rows, first, draws, every = parts[learner.spec.name]
    told = every(state, rows, first, draws)["memory"][0]
    recall = jax.jit(
        lambda memory, action, seen, first: learner.recall(
            state.actor.trunk, memory, action, learner.code(state.actor.trunk, seen), first
        )
    )
    memory, action = jnp.ones((B, 4)), rows.action[0]
    for step in range(T):  # where an episode goes on, the observation of a row is that which the row before led to
        memory = recall(memory, action, rows.observation[step], first[step])
        np.testing.assert_allclose(memory, told[step], rtol=1e-4, atol=1e-5)
        action = rows.action[step]


def test_discrete_targets_are_exact_expectations_by_the_least_critic(parts):
    learner = LEARNERS[0]
    state, rows, first, draws, every = parts["a task"]
    told = every(state, rows, first, draws)
    policy = torch.distributions.Categorical(logits=torch.from_numpy(np.array(told["outputs"][1])))
    least = torch.from_numpy(tables(learner, state.targets.heads, told["critics"][1][1]).min(0))
    value = ((policy.probs * least).sum(-1) + 0.3 * policy.entropy()).numpy()
    expected = np.asarray(rows.reward) + 0.9 * np.where(rows.terminated, 0, value)
    np.testing.assert_allclose(told["targets"], expected, rtol=1e-4, atol=1e-5)
    assert (
        tables(learner, state.targets.heads, told["critics"][1][1]).argmin(0) == 1
    ).any()  # neither critic is always the least
    taken = np.take_along_axis(
        tables(learner, state.critics.heads, told["critics"][0][0]), np.asarray(rows.action)[None, ..., None], -1
    )[..., 0]
    np.testing.assert_allclose(told["values"], taken, rtol=1e-5, atol=1e-5)
    log = told["update"][1]
    error = np.square(taken - expected[None]).mean()
    np.testing.assert_allclose([log.loss, log.scaled_loss, log.value], [error, error / expected.var(), taken.mean()], rtol=1e-3)


def test_continuous_targets_are_of_a_drawn_action_and_its_density(parts):
    learner = LEARNERS[1]
    state, rows, first, draws, every = parts["wide"]
    told = every(state, rows, first, draws)
    mean, free = np.split(np.asarray(told["outputs"][1], np.float64), 2, axis=-1)
    low, high = LOG_STD_BOUNDS
    normal = torch.distributions.Normal(*(torch.from_numpy(x) for x in (mean, np.exp(low + (high - low) / (1 + np.exp(-free))))))
    raw = normal.mean + normal.stddev * torch.from_numpy(np.array(draws.following, np.float64))
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    action = torch.tanh(raw)
    density = (normal.log_prob(raw) - torch.log1p(-action.square() + 1e-12)).sum(-1).numpy()
    assert squashed.event_shape == ()
    value = np.asarray(learner.values(state.targets.heads, told["critics"][1][1], jnp.asarray(action.numpy().astype(np.float32))))
    expected = np.asarray(rows.reward) + 0.9 * np.where(rows.terminated, 0, value.min(0) - 0.3 * density)
    np.testing.assert_allclose(told["targets"], expected, rtol=2e-3, atol=2e-3)


@OF
def test_the_actors_gradient_is_that_of_finite_differences(parts, learner):
    state, rows, first, draws, every = parts[learner.spec.name]
    told = every(state, rows, first, draws)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), state.actor)
    expected = sum(float((d * g).sum()) for d, g in zip(*map(jax.tree.leaves, (direction, told["slope"])), strict=True))

    @jax.jit
    def loss(scale):
        actor = jax.tree.map(lambda p, d: p + scale * d, state.actor, direction)
        return learner.actor_loss(actor, state.critics.heads, told["critics"][0][0], rows, first, draws.actor)[0]

    h = np.float32(2e-3)
    assert abs(expected) > 1e-3
    assert (float(loss(h)) - float(loss(-h))) / (2 * float(h)) == pytest.approx(expected, rel=3e-2, abs=1e-4)


@OF
def test_an_update_follows_each_loss_and_rests_where_it_goes_non_finite(parts, learner):
    state, rows, first, draws, every = parts[learner.spec.name]
    after, log = every(state, rows, first, draws)["update"]
    for new, old in zip(
        jax.tree.leaves((after.actor, after.critics)), jax.tree.leaves((state.actor, state.critics)), strict=True
    ):
        assert 0 < np.abs(np.asarray(new) - old).max() < 1.1e-3  # Adam's first step is of the size of the learning rate
    jax.tree.map(
        lambda slow, old, new: np.testing.assert_allclose(slow, old + 0.02 * (new - old), rtol=1e-5, atol=1e-6),
        *(after.targets, state.targets, after.critics),
    )
    assert after.updates == 1
    assert log.entropy != 0
    broken, _ = every(after, rows._replace(reward=rows.reward.at[0, 0].set(jnp.nan)), first, draws)["update"]
    assert broken.frozen
    jax.tree.map(np.testing.assert_array_equal, broken[:6:4], after[:6:4])
    jax.tree.map(np.testing.assert_array_equal, every(broken, rows, first, draws)["update"][0].actor, after.actor)
