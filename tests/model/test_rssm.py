import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model import rssm_fitting
from mbrl_jax.model.rssm import GRU, RSSM, Belief, RSSMConfig
from mbrl_jax.model.rssm_fitting import SequenceDraws
from mbrl_jax.replay import Rows

T, B = 6, 4
SPEC = EnvironmentSpec("a task", observation_size=2, action_count=3, time_limit=50, observation_scale=(1.0, 2.0))
SMALL = {"deterministic": 6, "hidden": (8,), "variables": 3, "classes": 4, "sequence": T, "batch_size": B, "fit_batches": 10}
CATEGORICAL, GAUSSIAN = (RSSM(RSSMConfig(latent=latent, **SMALL), SPEC) for latent in ("categorical", "gaussian"))
BEGINS = (3, 1)  # transition 3 of sequence 1 is an episode's first


def transitions(seed=0):
    """Transitions [T, B], of which those of a sequence follow on each other unless an episode begins."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(T + 1, B, 2)).astype(np.float32)
    first = np.zeros((T, B), bool)
    first[0] = first[BEGINS] = True
    after = states[1:].copy()
    after[BEGINS[0] - 1, BEGINS[1]] = 7.0  # the true end of the episode before, not the first state of the next one
    terminated = np.zeros((T, B), bool)
    terminated[BEGINS[0] - 1, BEGINS[1]] = True
    action, reward = rng.integers(0, 3, (T, B)).astype(np.int32), rng.normal(size=(T, B)).astype(np.float32)
    rows = Rows(states[:-1], after, action, reward, terminated, np.ones((T, B), np.float32), np.zeros((T, B), np.int32))
    return jax.device_put((rows, first))


ROWS, FIRST = transitions()


def fresh(rssm, seed=0):
    """Parameters with every number drawn, biases too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(rssm.init, jax.random.key(0))
    return jax.device_put(jax.tree.map(lambda leaf: rng.normal(0, 0.8, leaf.shape).astype(np.float32), shapes))


def drawn(rssm, seed=0):
    """Random numbers for T x B transitions."""
    rng = np.random.default_rng(seed)
    draw = rng.random if rssm.config.latent == "categorical" else rng.standard_normal
    return SequenceDraws(*(draw((T, B, 3), np.float32) for _ in range(2)))


@pytest.fixture(scope="module")
def unrolled():
    """``(rssm, rows, first, draws) -> Sequences``, compiled once for each of the two models."""
    made = {rssm.config.latent: jax.jit(partial(rssm_fitting.unroll, rssm)) for rssm in (CATEGORICAL, GAUSSIAN)}
    return lambda rssm, rows, first, draws: jax.tree.map(np.asarray, made[rssm.config.latent](fresh(rssm), rows, first, draws))


def test_the_recurrence_is_a_gated_unit_with_layer_norm():
    rng = np.random.default_rng(2)
    h, x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (5, 3), (7, 12)))
    bias, scale, shift = (rng.normal(size=12).astype(np.float32) for _ in range(3))
    params = {"Dense_0": {"kernel": kernel, "bias": bias}, "LayerNorm_0": {"scale": scale, "bias": shift}}
    gates = np.concatenate([h, x], 1) @ kernel + bias
    gates = (gates - gates.mean(1, keepdims=True)) / np.sqrt(gates.var(1, keepdims=True) + 1e-6) * scale + shift
    reset, candidate, update = np.split(gates, 3, axis=1)
    share = 1 / (1 + np.exp(1 - update))
    expected = share * np.tanh(candidate / (1 + np.exp(-reset))) + (1 - share) * h
    np.testing.assert_allclose(GRU(4).apply({"params": params}, h, x), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rssm", [CATEGORICAL, GAUSSIAN], ids=lambda rssm: rssm.config.latent)
def test_nothing_leaks_across_an_episodes_end(unrolled, rssm):
    told = unrolled(rssm, ROWS, FIRST, drawn(rssm))
    step, lane = BEGINS
    other = transitions(seed=5)[0]
    past = jax.tree.map(lambda new, old: old.at[:step, lane].set(new[:step, lane]), other, ROWS)
    changed = unrolled(rssm, past, FIRST, drawn(rssm))
    for one, two in zip(jax.tree.leaves(told), jax.tree.leaves(changed), strict=True):
        np.testing.assert_array_equal(one[step:, lane], two[step:, lane])  # the next episode is as it was
        np.testing.assert_array_equal(np.delete(one, lane, 1), np.delete(two, lane, 1))
    assert (told.posterior[:step, lane] != changed.posterior[:step, lane]).any()
    through = unrolled(rssm, past, FIRST.at[BEGINS].set(False), drawn(rssm))
    assert (through.after.deterministic[step:, lane] != told.after.deterministic[step:, lane]).any()


def test_a_transition_is_judged_by_the_observation_that_it_led_to(unrolled):
    told = unrolled(CATEGORICAL, ROWS, FIRST, drawn(CATEGORICAL))
    step, lane = BEGINS[0] - 1, BEGINS[1]
    moved = ROWS._replace(next_observation=ROWS.next_observation.at[step, lane].set(-7.0))
    changed = unrolled(CATEGORICAL, moved, FIRST, drawn(CATEGORICAL))
    assert (told.posterior[step, lane] != changed.posterior[step, lane]).any()
    np.testing.assert_array_equal(told.prior[step, lane], changed.prior[step, lane])  # expected before it was seen
    np.testing.assert_array_equal(told.posterior[step + 1 :, lane], changed.posterior[step + 1 :, lane])


@pytest.mark.parametrize("rssm", [CATEGORICAL, GAUSSIAN], ids=lambda rssm: rssm.config.latent)
def test_a_policys_filter_has_the_beliefs_that_the_model_learned_from(unrolled, rssm):
    draws = drawn(rssm)
    told, params = unrolled(rssm, ROWS, FIRST, draws), fresh(rssm)
    observe = jax.jit(rssm.observe)
    belief, action = rssm.blank((B,)), jnp.zeros(B, jnp.int32)
    for step in range(T):  # where an episode goes on, the state of a row is that which the row before led to
        latent = np.where(np.asarray(FIRST)[step][:, None], draws.begin[step], draws.after[max(step - 1, 0)])
        belief = observe(params, belief, action, ROWS.observation[step], FIRST[step], latent)
        for found, expected in zip(belief, told.before, strict=True):
            np.testing.assert_allclose(found, expected[step], rtol=1e-4, atol=1e-5)
        action = ROWS.action[step]


def test_a_policys_surprise_is_that_of_the_transition_that_led_to_what_it_sees(unrolled):
    rssm = GAUSSIAN
    told, params = unrolled(rssm, ROWS, FIRST, drawn(rssm)), fresh(GAUSSIAN)
    expected = np.concatenate([np.zeros((1, B)), np.asarray(rssm.latents.divergence(told.posterior, told.prior))[:-1]])
    found = jax.jit(rssm.surprise)(params, told.before, ROWS.observation, FIRST)
    np.testing.assert_allclose(found, np.where(FIRST, 0, expected), rtol=1e-3, atol=1e-4)
    assert (expected[~np.asarray(FIRST)] > 0.01).all()


def losses_of(rssm, **weights):
    config = dataclasses.replace(rssm.config, **weights)
    return lambda params: rssm_fitting.loss(RSSM(config, SPEC), params, ROWS, FIRST, drawn(rssm))[0]


@pytest.fixture(scope="module")
def gradients():
    """Gradients of single terms of the Gaussian model's loss, and the loss at points along a direction."""
    silent = {"reward_weight": 0.0, "continue_weight": 0.0, "dynamics_weight": 0.0, "representation_weight": 0.0}
    terms = {
        "all": {"free_nats": 0.0},
        "dynamics": {**silent, "dynamics_weight": 1.0, "free_nats": 0.0, "decoder_deviation": 1e6},
        "representation": {**silent, "representation_weight": 1.0, "free_nats": 0.0, "decoder_deviation": 1e6},
        "free": {**silent, "dynamics_weight": 1.0, "representation_weight": 1.0, "free_nats": 1e3, "decoder_deviation": 1e6},
    }
    params = fresh(GAUSSIAN)
    names = ("free_nats", "decoder_deviation", *silent)
    table = {
        name: jnp.asarray([float(term.get(name, getattr(GAUSSIAN.config, name))) for term in terms.values()]) for name in names
    }

    @jax.jit
    def every(params):
        return jax.vmap(lambda weights: jax.value_and_grad(losses_of(GAUSSIAN, **weights))(params))(table)

    values, slopes = jax.tree.map(np.asarray, every(params))
    return {
        name: (values[i], jax.tree.map(lambda leaf, i=i: leaf[i], slopes)) for i, name in enumerate(terms)
    }, lambda params: np.asarray(every(params)[0])[0]


def size(tree):
    return sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def test_the_gradient_is_that_of_finite_differences_where_nothing_is_held_fixed(gradients):
    terms, value = gradients
    slope = terms["all"][1]
    params, rng = fresh(GAUSSIAN), np.random.default_rng(3)
    for part in ("decoder", "reward", "termination"):  # what no stopped gradient is between
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), getattr(params, part))
        expected = sum(
            float((d * g).sum()) for d, g in zip(*map(jax.tree.leaves, (direction, getattr(slope, part))), strict=True)
        )
        moved = [
            value(params._replace(**{part: jax.tree.map(lambda p, d, h=h: p + h * d, getattr(params, part), direction)}))
            for h in (1e-2, -1e-2)
        ]
        assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(expected, rel=2e-2), part


def test_dynamics_teach_the_prior_and_representation_the_posterior(gradients):
    terms, _ = gradients
    dynamics, representation = terms["dynamics"][1], terms["representation"][1]
    assert size(dynamics.prior) > 1e-3
    assert size(representation.posterior) > 1e-3
    assert size(representation.prior) == 0
    # the posterior of a transition is held fixed; but it is the next one's past, by which the prior expects
    assert size(dynamics.posterior) < size(representation.posterior)
    assert terms["dynamics"][0] == pytest.approx(terms["representation"][0], rel=1e-5)


def test_free_nats_teach_nothing(gradients):
    terms, _ = gradients
    assert size(terms["free"][1]) < 1e-6
    assert terms["free"][0] == pytest.approx(2e3, rel=1e-4)


def logarithm(observation):
    scaled = np.asarray(observation) / np.array([1.0, 2.0], np.float32)
    return np.sign(scaled) * np.log1p(np.abs(scaled))


def test_the_loss_is_the_sum_of_its_terms_by_hand(unrolled):
    rssm, params = CATEGORICAL, fresh(CATEGORICAL)
    told = unrolled(rssm, ROWS, FIRST, drawn(rssm))
    total, (_, log) = jax.jit(lambda params: rssm_fitting.loss(rssm, params, ROWS, FIRST, drawn(rssm)))(params)
    features = np.concatenate(told.after, -1)
    decoded, reward, logit = (np.asarray(f(params, features)) for f in (rssm.decode, rssm.reward, rssm.termination))
    error = np.square(decoded - logarithm(ROWS.next_observation)).sum(-1)
    begun = np.asarray(rssm.decode(params, np.concatenate(told.before, -1)))
    begun = np.where(FIRST, np.square(begun - logarithm(ROWS.observation)).sum(-1), 0)
    value = np.asarray(ROWS.reward)
    squared = np.square(reward - np.sign(value) * np.log1p(np.abs(value)))
    sign = np.where(np.asarray(ROWS.terminated), -1, 1)
    crossed = np.log1p(np.exp(sign * logit))
    divergence = np.asarray(rssm.latents.divergence(told.posterior, told.prior))
    free = np.maximum(divergence, 1.0)
    np.testing.assert_allclose(total, (0.5 * error + 0.5 * begun + 0.5 * squared + crossed + 1.1 * free).mean(), rtol=1e-5)
    np.testing.assert_allclose(log[1:], [error.mean(), squared.mean(), crossed.mean(), divergence.mean()], rtol=1e-4)
    assert np.asarray(divergence > 1).any()


def test_an_imagined_step_tells_the_reward_and_the_end_of_the_belief_that_it_leads_to():
    rssm, params = CATEGORICAL, fresh(CATEGORICAL)
    belief = Belief(
        *(jnp.asarray(np.random.default_rng(i).normal(size=(200, n)).astype(np.float32)) for i, n in ((0, 6), (1, 12)))
    )
    action = jax.device_put(np.arange(200, dtype=np.int32) % 3)
    draws = rssm.draw(jax.random.key(0), (200,))
    told = jax.jit(rssm.step)(params, belief, action, draws)
    features = rssm.features(told.belief)
    logarithm = np.asarray(rssm.reward(params, features))
    np.testing.assert_allclose(told.reward, np.sign(logarithm) * np.expm1(np.abs(logarithm)), rtol=1e-4, atol=1e-6)
    share = 1 / (1 + np.exp(-np.asarray(rssm.termination(params, features))))
    np.testing.assert_array_equal(told.terminated, np.asarray(draws.terminated) < share)
    assert 0 < np.asarray(told.terminated).mean() < 1
    weighed = jax.jit(rssm.step)(params, belief, jax.nn.one_hot(action, 3), draws)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), told, weighed)


def test_a_model_that_would_go_non_finite_rests():
    state = jax.jit(partial(rssm_fitting.init, GAUSSIAN))(jax.random.key(0))
    descend = jax.jit(partial(rssm_fitting.descend, GAUSSIAN))
    after, _, _ = descend(state, ROWS, FIRST, drawn(GAUSSIAN))
    assert not after.frozen
    broken, _, _ = descend(after, ROWS._replace(reward=ROWS.reward.at[0, 0].set(jnp.nan)), FIRST, drawn(GAUSSIAN))
    assert broken.frozen
    jax.tree.map(np.testing.assert_array_equal, broken.params, after.params)
    still, _, _ = descend(broken, ROWS, FIRST, drawn(GAUSSIAN))
    jax.tree.map(np.testing.assert_array_equal, still.params, after.params)


# ---------------------------------------------------------------------------------- a linear system with Gaussian noise

MEMORY, DRIFT, NOISE, LENGTH = 0.98, 0.1, 0.5, 24  # s' = 0.98 s + 0.1 w, and o = s + 0.5 v


def walks(count, seed):
    """Observations [LENGTH + 1, count] of a system whose state is stationary, and the Kalman filter's predictions of the next."""
    rng = np.random.default_rng(seed)
    variance = DRIFT**2 / (1 - MEMORY**2)
    state, seen, told = rng.normal(0, variance**0.5, count), [], []
    mean, spread = np.zeros(count), variance
    for _ in range(LENGTH + 1):
        told.append(mean)
        seen.append(state + NOISE * rng.normal(size=count))
        gain = spread / (spread + NOISE**2)
        mean, spread = MEMORY * (mean + gain * (seen[-1] - mean)), MEMORY**2 * (1 - gain) * spread + DRIFT**2
        state = MEMORY * state + DRIFT * rng.normal(size=count)
    return np.stack(seen).astype(np.float32), np.stack(told)


def test_the_filter_predicts_a_linear_gaussian_system_about_as_well_as_a_kalman_filter():
    spec = EnvironmentSpec("walk", observation_size=1, action_count=2, time_limit=LENGTH, observation_scale=(1.0,))
    sizes = {"deterministic": 16, "hidden": (16,), "variables": 2, "sequence": LENGTH, "batch_size": 16}
    numbers = {"symlog": False, "decoder_deviation": 0.5, "free_nats": 0.0, "learning_rate": 5e-3}
    rssm = RSSM(RSSMConfig(latent="gaussian", **sizes, **numbers), spec)

    def rows_of(seen):
        lead = seen[1:].shape
        zeros = np.zeros(lead, np.float32)
        rows = Rows(
            seen[:-1, :, None], seen[1:, :, None], zeros.astype(np.int32), zeros, zeros > 0, zeros + 1, zeros.astype(np.int32)
        )
        first = np.zeros(lead, bool)
        first[0] = True
        return jax.device_put((rows, first))

    many, _ = walks(16 * 600, seed=0)
    batches = jax.tree.map(lambda leaf: leaf.reshape(LENGTH, 600, 16, *leaf.shape[2:]).swapaxes(0, 1), rows_of(many))
    test, told = walks(400, seed=1)

    @jax.jit
    def learn(key, batches, held_out):
        def step(state, inputs):
            (rows, first), draws = inputs
            return rssm_fitting.descend(rssm, state, rows, first, draws)[0], None

        state = jax.lax.scan(step, rssm_fitting.init(rssm, key), (batches, rssm_fitting.draw(rssm, key, (600,))))[0]
        return rssm_fitting.errors(rssm, state.params, *held_out)[0]

    late = slice(LENGTH // 2, None)  # where both filters have seen enough
    found = np.asarray(learn(jax.random.key(0), batches, rows_of(test)))[late].mean()
    kalman = np.square(test[1:] - told[1:])[late].mean()
    variance = DRIFT**2 / (1 - MEMORY**2)
    memoryless = np.square(test[1:] - MEMORY * variance / (variance + NOISE**2) * test[:-1])[late].mean()
    assert memoryless > 1.2 * kalman
    assert found < 1.05 * kalman, (found, kalman, memoryless)
