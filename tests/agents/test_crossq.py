"""CrossQ's critics against PyTorch's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from faults import planted

from mbrl_jax import renormalisation
from mbrl_jax.agents.crossq import CrossQ, CrossQConfig
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.agents.sac import Acting
from mbrl_jax.config import ConfigError
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.replay import Rows

D, A, B, C = 3, 2, 8, 2
SPEC = EnvironmentSpec("wide", D, 0, 100, (1.0, 2.0, 0.5), action_size=A)
CONFIG = CrossQConfig(hidden=(7, 6), batch_size=B, critics=C, activation="silu", temperature=0.3)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


BATCH = Rows(
    observation=numbers(0, B, D),
    next_observation=numbers(1, B, D),
    action=jnp.tanh(numbers(2, B, A)),
    reward=numbers(3, B),
    terminated=jnp.asarray(np.arange(B) % 3 == 0),
    weight=jnp.asarray((np.arange(B) % 4 != 1).astype(np.float32)),
    depth=jnp.zeros(B, jnp.int32),
)


def learner_of():
    """A learner with running statistics unlike those of the batch, its state, and an update's draws."""
    learner = CrossQ(CONFIG, SPEC)
    state = learner.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(state.critics["params"])
    params = jax.tree.unflatten(tree, [leaf + 0.5 * numbers(10 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    return learner, state._replace(critics={**state.critics, "params": params}), learner.draw(jax.random.key(2), ())


def in_torch(learner, state, draws):
    """The targets, the critics' gradients, and the mean of the last hidden layer's inputs, by PyTorch in float64."""
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64), requires_grad=True), state.critics["params"])
    rows = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), BATCH)
    acting = Acting(state.actor, state.statistics)
    action, log_probability = (
        torch.tensor(np.asarray(x, np.float64)) for x in jax.jit(learner.sample)(acting, BATCH.next_observation, draws.following)
    )
    scale = torch.tensor(SPEC.observation_scale, dtype=torch.float64)
    seen = torch.cat([torch.cat([rows.observation, rows.next_observation]) / scale, torch.cat([rows.action, action])], -1)
    kept = torch.cat([rows.weight, rows.weight]) > 0
    means = []

    def normalise(x, layer):
        mean, variance = x[kept].mean(0), x[kept].var(0, unbiased=False)
        means.append(mean.detach().numpy())
        return (x - mean) / (variance + renormalisation.EPSILON).sqrt() * layer["scale"] + layer["bias"]

    values = []
    for c in range(C):
        one = jax.tree.map(lambda leaf, c=c: leaf[c], params)
        x = normalise(seen, one["BatchRenorm_0"])
        for i in range(2):
            x = x @ one[f"Dense_{i}"]["kernel"] + one[f"Dense_{i}"]["bias"]
            x = torch.nn.functional.silu(normalise(x, one[f"BatchRenorm_{i + 1}"]))
        values.append((x @ one["Dense_2"]["kernel"] + one["Dense_2"]["bias"])[:, 0])
    values = torch.stack(values)
    soft = values[:, B:].min(0).values.detach() - float(np.exp(state.log_temperature)) * log_probability
    targets = rows.reward + CONFIG.discount * (1 - rows.terminated) * soft
    errors = (rows.weight * (values[:, :B] - targets) ** 2).sum() / rows.weight.sum()
    return targets.numpy(), [g.numpy() for g in torch.autograd.grad(errors, jax.tree.leaves(params))], means


def agree():
    learner, state, draws = learner_of()
    targets, gradients, means = in_torch(learner, state, draws)
    after, log = jax.jit(learner.learn_critics)(state, BATCH, draws, 1e-3, None)
    np.testing.assert_allclose(log.targets, targets, rtol=1e-4, atol=1e-5)
    moments = jax.tree.leaves(after.critic_optimizer.mu)
    for found, right in zip(moments, gradients, strict=True):
        np.testing.assert_allclose(found, 0.1 * right, rtol=1e-3, atol=1e-5)
    statistics = after.critics["batch_stats"]
    for layer in range(3):
        found = statistics[f"BatchRenorm_{layer}"]["mean"]
        right = 0.01 * np.stack([means[layer], means[layer + 3]])
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-6)
        assert statistics[f"BatchRenorm_{layer}"]["batches"].tolist() == [1, 1]


def test_targets_gradients_and_statistics_of_a_step_are_those_of_pytorch():
    agree()


FAULTS = {
    "next states by other statistics": (
        "crossq:CrossQ.cross_values",
        "[batch.weight, batch.weight]",
        "[batch.weight, 0 * batch.weight]",
    ),
    "the two halves exchanged": ("crossq:CrossQ.cross_values", "now, following = jnp", "following, now = jnp"),
    "a target that is differentiated": ("crossq:CrossQ.learn_critics", "jax.lax.stop_gradient", "jnp.asarray"),
    "a termination that bootstraps": ("crossq:CrossQ.learn_critics", "going_on * soft", "soft"),
    "the mean critic": ("crossq:CrossQ.learn_critics", "jnp.min(following", "jnp.mean(following"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name):
    where, old, new = FAULTS[name]
    with planted(f"agents.{where}", old, new), pytest.raises(AssertionError):
        agree()


def test_the_actor_is_improved_by_the_running_statistics_which_it_leaves_as_they_are():
    learner, state, draws = learner_of()
    agent = make_agent(CONFIG, SPEC)
    after, log = jax.jit(agent.update)(state, BATCH, draws, 0.0, None)
    right = learner.learn_critics(state, BATCH, draws, CONFIG.critic_learning_rate, None)[0]
    found, expected = (each.critics["batch_stats"] for each in (after, right))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    assert after.targets is None
    assert np.isfinite(jax.tree.leaves(log)).all()
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after.actor), jax.tree.leaves(state.actor), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm": True}, "agent.layer_norm: True does not fit; 'crossq' has batch renormalised critics"),
        ({"target": "steve"}, "agent.target: 'steve' does not fit; 'crossq' values the minibatch's next states"),
        ({"critics_asked": 3}, "agent.critics_asked: 3 does not fit; it must be at most agent.critics"),
    ],
)
def test_what_crossq_does_not_have_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_agent(CrossQConfig(**settings), SPEC)
