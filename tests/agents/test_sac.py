"""Soft actor-critic against torch.distributions and PyTorch's own gradients, by closed forms, and with planted faults."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from faults import planted
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from mbrl_jax.agents import running, sac
from mbrl_jax.agents.outcomes import Outcomes
from mbrl_jax.agents.policies import sample_with_log_probability, squashed_mean
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.agents.sac import LOG_STD_BOUNDS, SAC, SACConfig
from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    ConfigError,
    DynaQConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    ModelFreeQConfig,
    SelectionConfig,
)
from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart
from mbrl_jax.replay import Rows

D, A, B = 3, 2, 8
SPEC = EnvironmentSpec("wide", D, 0, 100, (1.0, 2.0, 0.5), action_size=A)
CONFIG = SACConfig(hidden=(7, 6), batch_size=B, critics=3, activation="silu", temperature=0.3, layer_norm=True)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def minibatch(seed=0):
    terminated = jnp.asarray(np.arange(B) % 3 == 0)
    weight = jnp.asarray((np.arange(B) % 4 != 1).astype(np.float32))
    return Rows(
        observation=numbers(seed, B, D),
        next_observation=numbers(seed + 1, B, D),
        action=jnp.tanh(numbers(seed + 2, B, A)),
        reward=numbers(seed + 3, B),
        terminated=terminated,
        weight=weight,
        depth=jnp.zeros(B, jnp.int32),
    )


def learner_of(**settings):
    """A learner whose networks are all unlike one another, its state, and the draws of an update."""
    learner = SAC(dataclasses.replace(CONFIG, **settings), SPEC)
    state = learner.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten((state.actor, state.critics, state.targets))
    leaves = [leaf + 0.5 * numbers(10 + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    actor, critics, targets = jax.tree.unflatten(tree, leaves)
    if state.statistics is not None:
        state = state._replace(statistics=running.take_in(state.statistics, 2 * numbers(50, 40, D) + 1, jnp.ones(40)))
    draws = learner.draw(jax.random.key(2), ())
    return learner, state._replace(actor=actor, critics=critics, targets=targets), draws


# ------------------------------------------------------------------------------------------------- the same in PyTorch


def to_torch(tree):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=True), tree)


def perceptron(params, x):
    layers = params["params"]
    count = sum(name.startswith("Dense") for name in layers)
    for i in range(count):
        dense = layers[f"Dense_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        if i + 1 < count:
            if f"LayerNorm_{i}" in layers:
                norm = layers[f"LayerNorm_{i}"]
                x = torch.nn.functional.layer_norm(x, x.shape[-1:], norm["scale"], norm["bias"], eps=1e-6)
            x = torch.nn.functional.silu(x)
    return x


def each_value(critics, seen, count):
    return torch.stack([perceptron(jax.tree.map(lambda leaf, i=i: leaf[i], critics), seen)[:, 0] for i in range(count)])


def in_torch(learner, state, batch, draws):
    """Losses, and their gradients with respect to actor, critics and log-temperature, by PyTorch in float64."""
    config = learner.config
    actor, critics, targets = (to_torch(each) for each in (state.actor, state.critics, state.targets))
    log_temperature = to_torch(state.log_temperature)
    rows = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), batch)
    noise = [torch.tensor(np.asarray(each, np.float64)) for each in (draws.following, draws.actor)]
    weight = rows.weight / rows.weight.sum()

    def scaled(x):
        if state.statistics is not None:
            mean, variance = (torch.tensor(np.asarray(each, np.float64)) for each in state.statistics[1:])
            return (x - mean) / variance.sqrt()
        return x / torch.tensor(SPEC.observation_scale, dtype=torch.float64)

    def sample(x, normal):
        mean, free = perceptron(actor, scaled(x)).chunk(2, -1)
        low, high = LOG_STD_BOUNDS
        base = Independent(Normal(mean, (low + (high - low) * torch.sigmoid(free)).exp()), 1)
        policy = TransformedDistribution(base, [TanhTransform(cache_size=1)])
        action = torch.tanh(base.base_dist.loc + base.base_dist.scale * normal)
        raw = torch.atanh(action.detach()) * 0 + base.base_dist.loc + base.base_dist.scale * normal
        slope = 2 * (np.log(2.0) - raw - torch.nn.functional.softplus(-2 * raw))
        by_formula = base.log_prob(raw) - slope.sum(-1)
        assert torch.allclose(by_formula, policy.log_prob(action), atol=1e-6)
        return action, by_formula

    def values(params, x, action):
        return each_value(params, torch.cat([scaled(x), action], -1), config.critics)

    with torch.no_grad():
        action, log_probability = sample(rows.next_observation, noise[0])
        following = values(targets, rows.next_observation, action)
        if draws.asked is not None:
            following = following[np.array(draws.asked)[: config.critics_asked]]
        soft = following.min(0).values - log_temperature.exp() * log_probability
        aim = rows.reward + config.discount * (1 - rows.terminated) * soft
    errors = (weight * (values(critics, rows.observation, rows.action) - aim) ** 2).sum(-1)
    critic_gradient = torch.autograd.grad(errors.sum(), jax.tree.leaves(critics))

    action, log_probability = sample(rows.observation, noise[1])
    each = values(critics, rows.observation, action)
    best = each.min(0).values if config.critics_asked is None else each.mean(0)
    actor_loss = (weight * (log_temperature.exp().detach() * log_probability - best)).sum()
    actor_gradient = torch.autograd.grad(actor_loss, jax.tree.leaves(actor))

    entropy = -(weight * log_probability).sum().detach()
    temperature_loss = log_temperature * (entropy - (-A))
    (temperature_gradient,) = torch.autograd.grad(temperature_loss, log_temperature)
    gradients = ([*critic_gradient], [*actor_gradient], temperature_gradient)
    return aim.numpy(), errors.mean().item(), actor_loss.item(), entropy.item(), jax.tree.map(lambda x: x.numpy(), gradients)


@functools.cache
def case(**settings):
    """A learner's state, its draws, and what PyTorch says of it."""
    learner, state, draws = learner_of(**settings)
    names = ("targets", "loss", "actor", "entropy", "gradients")
    right = dict(zip(names, in_torch(learner, state, minibatch(), draws), strict=True))
    critic, actor, temperature = right["gradients"]
    return (
        learner,
        state,
        draws,
        {
            "targets": right["targets"],
            "critics": (critic, right["loss"]),
            "actor": (actor, right["actor"]),
            "temperature": (temperature, right["entropy"]),
        },
    )


def agree(*parts, **settings):
    """Hold a learner's targets, and the losses and gradients of its parts, against PyTorch's."""
    learner, state, draws, right = case(**settings)
    batch = minibatch()

    def critics(state):
        targets = jnp.asarray(right["targets"].astype(np.float32))
        gradient, (loss, _) = jax.grad(learner.critic_loss, has_aux=True)(state.critics, state.statistics, batch, targets)
        return jax.tree.leaves(gradient), loss

    def actor(state):
        (loss, _), gradient = jax.value_and_grad(learner.actor_loss, has_aux=True)(state.actor, state, batch, draws.actor)
        return jax.tree.leaves(gradient), loss

    def temperature(state):
        log_probability = jnp.asarray(-right["temperature"][1])
        return jax.grad(learner.temperature_loss)(state.log_temperature, log_probability), -log_probability

    ours = {
        "targets": lambda state: learner.targets(state, batch, draws, None),
        "critics": critics,
        "actor": actor,
        "temperature": temperature,
    }
    for part in parts:
        found = jax.device_get(jax.jit(ours[part])(state))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), found, right[part])


@pytest.mark.parametrize(
    "settings",
    [{}, {"critics_asked": 2}, {"observations": "running", "layer_norm": False, "critics": 1}],
    ids=["plain", "few of the critics", "running statistics"],
)
def test_targets_losses_and_gradients_are_those_of_pytorch_leaf_by_leaf(settings):
    agree("targets", "critics", "actor", "temperature", **settings)


FAULTS = {  # where it is, what is changed to what, and the part that differs by it
    "no correction for the squashing": ("policies:sample_with_log_probability", "density - 2 * (", "density - 0 * (", "targets"),
    "the correction's sign": ("policies:sample_with_log_probability", "density - 2 * (", "density + 2 * (", "targets"),
    "a deviation for its logarithm": ("policies:sample_with_log_probability", "- log_std -", "- jnp.exp(log_std) -", "targets"),
    "a termination that bootstraps": (
        "sac:SAC.targets",
        "(1 - batch.terminated.astype(value.dtype)) * value",
        "value",
        "targets",
    ),
    "the least over the rows": (
        "sac:SAC.targets",
        "draws), axis=0)\n        return",
        "draws), axis=1)[:1]\n        return",
        "targets",
    ),
    "no entropy in the target": ("sac:SAC.following", "each - jnp.exp", "each - 0 * jnp.exp", "targets"),
    "targets from the critics": ("sac:SAC.following", "state.targets, state.stat", "state.critics, state.stat", "targets"),
    "the mean critic for the actor": ("sac:SAC.actor_loss", "jnp.min(each, axis=0) if", "jnp.mean(each, axis=0) if", "actor"),
    "an actor by the target critics": ("sac:SAC.actor_loss", "self.values(state.critics", "self.values(state.targets", "actor"),
    "an actor that flees values": ("sac:SAC.actor_loss", "log_probability - value", "log_probability + value", "actor"),
    "the temperature's sign": ("sac:SAC.temperature_loss", "return -log_temperature", "return log_temperature", "temperature"),
    "the target entropy's sign": ("sac:SAC.temperature_loss", "+ self.target_entropy", "- self.target_entropy", "temperature"),
    "rows of weight 0 that count": (
        "sac:SAC.critic_errors",
        "targets), batch.weight",
        "targets), 0 * batch.weight + 1",
        "critics",
    ),
    "unscaled observations": ("sac:SAC.scaled", "return observation / scale", "return observation * scale", "critics"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name):
    where, old, new, part = FAULTS[name]
    case()
    with planted(f"agents.{where}", old, new), pytest.raises(AssertionError):
        agree(part)


def test_asking_the_first_critics_always_is_noticed():
    with planted("agents.sac:SAC.following", "each[draws.asked[: ", "each[: self.config.critics_asked][jnp.arange(9)[: "):
        learner, state, draws = learner_of(critics_asked=2)
        draws = draws._replace(asked=jnp.asarray([2, 0, 1]))
        found = jax.jit(learner.targets)(state, minibatch(), draws, None)
        assert not np.allclose(found, in_torch(learner, state, minibatch(), draws)[0], rtol=1e-3)


# --------------------------------------------------------------------------------------------------------- distribution


def test_log_probabilities_keep_their_digits_where_actions_are_squashed_to_one():
    mean, log_std = np.array([[0.3, 9.0], [-12.0, 0.0]]), np.array([[-1.0, 0.5], [0.1, -2.0]])
    low, high = LOG_STD_BOUNDS
    share = (log_std - low) / (high - low)
    outputs = jnp.asarray(np.concatenate([mean, np.log(share / (1 - share))], 1).astype(np.float32))
    normal = np.array([[0.5, 1.0], [-1.5, 0.2]], np.float32)
    action, found = sample_with_log_probability(outputs, jnp.asarray(normal), LOG_STD_BOUNDS)
    raw = mean + np.exp(log_std) * normal
    base = Normal(torch.tensor(mean), torch.tensor(np.exp(log_std)))
    slope = TanhTransform().log_abs_det_jacobian(torch.tensor(raw), torch.tanh(torch.tensor(raw)))
    np.testing.assert_allclose(found, (base.log_prob(torch.tensor(raw)) - slope).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(action, np.tanh(raw), atol=1e-6)
    np.testing.assert_allclose(squashed_mean(outputs), np.tanh(mean), atol=1e-6)
    assert np.isfinite(found).all()


def test_the_density_of_a_squashed_gaussian_integrates_to_one():
    outputs = jnp.broadcast_to(jnp.asarray([0.7, 0.4]), (4_001, 2))
    normal = jnp.linspace(-8, 8, 4_001)[:, None]
    action, log_probability = sample_with_log_probability(outputs, normal, (-1.0, 0.5))
    assert np.trapezoid(np.exp(log_probability), action[:, 0]) == pytest.approx(1, abs=1e-3)


def test_the_entropy_of_what_is_told_is_that_of_the_policys_actions():
    learner, state, draws = learner_of()
    batch = minibatch()
    _, log = jax.jit(learner.update)(state, batch, draws)
    _, log_probability = jax.jit(learner.sample)(sac.Acting(state.actor, None), batch.observation, draws.actor)
    right = -np.average(np.asarray(log_probability), weights=np.asarray(batch.weight))
    assert float(log.entropy) == pytest.approx(right, rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- update


def test_an_update_moves_critics_then_the_actor_by_them_then_the_temperature_and_the_targets_last():
    learner, state, draws = learner_of(target_rate=0.25, learning_rate_decay=0.5)
    batch = minibatch()
    after, _ = jax.jit(learner.update)(state, batch, draws, 1.0)
    step = {"actor": 0.5 * 3e-4, "critics": 0.5 * 3e-4, "log_temperature": 0.5 * 3e-4}  # Adam's first step is its size
    for name, size in step.items():
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), getattr(after, name), getattr(state, name))
        assert max(jax.tree.leaves(moved)) == pytest.approx(size, rel=0.02), name
    jax.tree.map(
        lambda new, old, critic: np.testing.assert_allclose(new, 0.75 * old + 0.25 * critic, atol=1e-6),
        after.targets,
        state.targets,
        after.critics,
    )
    gradient = jax.grad(learner.actor_loss, has_aux=True)(state.actor, state._replace(critics=after.critics), batch, draws.actor)[
        0
    ]
    moments = after.actor_optimizer.mu
    jax.tree.map(lambda mu, g: np.testing.assert_allclose(mu, 0.1 * g, rtol=1e-4, atol=1e-7), moments, gradient)


def test_the_temperature_rises_below_the_target_entropy_falls_above_it_and_rests_where_it_is_not_tuned():
    batch = minibatch()
    moved = []
    for settings in ({"target_entropy": 50.0}, {"target_entropy": -50.0}, {"tune_temperature": False}):
        learner, state, draws = learner_of(**settings)
        after, log = jax.jit(learner.update)(state, batch, draws)
        moved.append(float(after.log_temperature - state.log_temperature))
        assert float(log.temperature) == pytest.approx(float(jnp.exp(after.log_temperature)))
    assert moved[0] > 0
    assert moved[1] < 0
    assert moved[2] == 0


def test_an_update_that_would_go_non_finite_freezes_the_learner_and_leaves_its_neighbour():
    learner, state, draws = learner_of(observations="running")
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    good = minibatch()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), good)
    batch = batch._replace(reward=batch.reward.at[1, 0].set(jnp.inf))
    after, _ = jax.jit(jax.vmap(learner.update, in_axes=(0, 0, None)))(states, batch, draws)
    assert after.frozen.tolist() == [False, True]
    assert after.updates.tolist() == [1, 0]
    frozen = jax.tree.map(lambda leaf: leaf[1], after)
    jax.tree.map(np.testing.assert_array_equal, frozen._replace(frozen=state.frozen), state)
    alone, _ = jax.jit(learner.update)(state, good, draws)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6), after, alone)


def test_running_statistics_are_those_of_all_rows_that_have_weight():
    seen, statistics = [], running.init(D)
    for seed in range(3):
        rows, weight = 3 * numbers(seed, 20, D) - 1, (np.arange(20) % 3 != seed).astype(np.float32)
        statistics = running.take_in(statistics, rows, jnp.asarray(weight))
        seen.append(np.asarray(rows)[weight > 0])
    seen = np.concatenate(seen)
    assert float(statistics.rows) == len(seen)
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(statistics.variance, seen.var(0), rtol=1e-4)
    np.testing.assert_allclose(running.standardise(statistics, jnp.asarray(seen)).std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("target", ["quantile", "mean_std", "steve"])
def test_targets_of_members_are_formed_of_each_members_outcome(target):
    learner, state, draws = learner_of(target=target, target_quantile=0.0, target_beta=0.7, temperature=1e-9, critics=2)
    state = state._replace(log_temperature=jnp.asarray(-30.0))
    batch, members = minibatch(), 3
    lead = (2, members, B) if target == "steve" else (members, B)
    outcomes = Outcomes(numbers(4, *lead), numbers(5, *lead, D), numbers(6, *lead) > 1)
    found = jax.jit(learner.targets)(state, batch, draws, outcomes)
    following = jax.jit(learner.following)

    def value(seen):
        flat = seen.reshape(-1, B, D)
        each = jnp.stack([following(state, rows, draws) for rows in flat], 1)  # [C, n, B]
        return np.asarray(each)

    if target == "steve":
        ahead, alive = learner.config.discount, np.tile(1 - np.asarray(batch.terminated, float), (members, 1))
        rewards = np.tile(np.asarray(batch.reward), (members, 1))
        each = rewards[None] + ahead * alive * value(jnp.broadcast_to(batch.next_observation, (members, B, D)))
        means, variances = [each.reshape(-1, B).mean(0)], [each.reshape(-1, B).var(0)]
        for h in range(2):
            rewards = rewards + ahead * alive * np.asarray(outcomes.reward[h])
            alive, ahead = alive * (1 - np.asarray(outcomes.terminated[h], float)), ahead * learner.config.discount
            each = rewards[None] + ahead * alive * value(outcomes.next_observation[h])
            means.append(each.reshape(-1, B).mean(0))
            variances.append(each.reshape(-1, B).var(0))
        weights = 1 / (np.array(variances) + 1e-8)
        right = (weights * means).sum(0) / weights.sum(0)
    else:
        alive = 1 - np.asarray(outcomes.terminated, float)
        each = np.asarray(outcomes.reward) + learner.config.discount * alive * value(outcomes.next_observation).min(0)
        right = each.min(0) if target == "quantile" else each.mean(0) - 0.7 * each.std(0)
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- probe task


def two_steps():
    """Two steps; the second one's reward is highest, 0, at half of the sign that the observation shows."""
    spec = EnvironmentSpec("two steps", 2, 0, 20, (1.0, 1.0), action_size=1)

    def reward(s, a, s2):
        return jnp.where(s[..., 1] > 0.5, -4 * jnp.square(a[..., 0] - 0.5 * s[..., 0]), 0.0)

    def terminated(s, a, s2):
        return s2[..., 1] > 1.5

    def draw_resets(key, shape):
        sign = jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0)
        return EnvironmentState(jnp.zeros(shape, jnp.int32), jnp.stack([sign, jnp.zeros(shape)], axis=-1))

    def step(state, action, fresh):
        after = state.observation + jnp.asarray([0.0, 1.0])
        ended = terminated(state.observation, action, after)
        row = Transition(
            state.observation,
            action,
            reward(state.observation, action, after),
            after,
            ended,
            jnp.zeros((), bool),
            state.inner,
        )
        return restart(EnvironmentState(state.inner + 1, after), fresh, ended), row

    return Environment(spec, draw_resets, step, reward, terminated)


PROBE = SACConfig(
    hidden=(32, 32),
    batch_size=64,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    target_rate=0.05,
    discount=0.8,
    temperature=0.02,
    tune_temperature=False,
    real_ratio=0.25,
)
COMMON = {
    "random_transitions": 400,
    "steps": 1_000,
    "round_steps": 1_000,
    "agent": PROBE,
    "evaluation": EvaluationConfig(episodes=2, curve_episodes=2),
}


@pytest.mark.parametrize("algorithm", [model_free_q, dyna_q], ids=["from real transitions", "from imagined ones"])
def test_it_finds_the_best_actions_of_two_steps_and_what_they_are_worth(algorithm):
    task = two_steps()
    if algorithm is dyna_q:
        config = DynaQConfig(
            **COMMON,
            model=ModelConfig(
                members=2, hidden=(16, 16), batch_size=64, epochs=40, prediction="deterministic", learning_rate=3e-3
            ),
            imagination=ImaginationConfig(lanes=8, steps=2, capacity=1_600),
            selection=SelectionConfig(episodes=2, steps=20),
        )
    else:
        config = ModelFreeQConfig(**COMMON)
    train = algorithm.make_train(config, environment=task)

    @jax.jit
    def run(key):
        state, _ = train.init(key)
        state, _ = train.fit(state, config)
        state, metrics = train.advance(state, config)
        return state, metrics

    state, metrics = run(seed_keys(0, 1)[0])
    learner = SAC(PROBE, task.spec)
    seen = jnp.asarray([[1.0, 1.0], [-1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    acting = sac.Acting(state.agent.actor, None)
    best = np.asarray(learner.greedy(acting, seen))[:, 0]
    np.testing.assert_allclose(best[:2], [0.5, -0.5], atol=0.1)
    at = jnp.asarray([[0.5], [0.5], [0.0], [0.0]])
    value = np.asarray(learner.values(state.agent.critics, None, seen, at)).mean(0)
    np.testing.assert_allclose(value[:2], [0.0, -4.0], atol=0.25)
    # the soft value of the best distribution at the second step: temperature times log of the integral of e^(r / temperature)
    grid = np.linspace(-1, 1, 20_001)
    soft = 0.02 * np.log(np.trapezoid(np.exp(-4 * (grid - 0.5) ** 2 / 0.02), grid))
    np.testing.assert_allclose(value[2:], 0.8 * soft, atol=0.1)
    assert metrics.update.entropy.shape == (100,)


@pytest.mark.parametrize(
    ("settings", "spec", "words"),
    [
        ({}, SPEC._replace(action_count=2, action_size=0), "continuous actions"),
        ({"critics_asked": 4}, SPEC, r"agent.critics_asked: 4 .* at most agent.critics \(3\)"),
    ],
)
def test_what_does_not_fit_is_refused(settings, spec, words):
    with pytest.raises(ConfigError, match=words):
        make_agent(dataclasses.replace(CONFIG, **settings), spec)


def test_a_target_that_asks_the_model_is_refused_without_one():
    config = ModelFreeQConfig(**{**COMMON, "agent": dataclasses.replace(PROBE, target="quantile")})
    train = model_free_q.make_train(config, environment=two_steps())
    with pytest.raises(ConfigError, match="agent.target: 'quantile'"):
        jax.eval_shape(train.train, seed_keys(0, 1)[0])
