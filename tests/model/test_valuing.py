"""Losses that know the agent's value: their gradients, what the correction corrects, and a refit by them."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mbrl_jax
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.agents.sac import SACConfig
from mbrl_jax.algorithms import phases
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, EnvironmentConfig, ModelConfig, PolicyGradientConfig, QLearningConfig, from_dict, to_dict
from mbrl_jax.environments import make_environment
from mbrl_jax.model import fitting, losses, valuing
from mbrl_jax.model.worlds import make_world
from mbrl_jax.replay import Rows, make_replay

B, D, S = 12, 4, 4
GENERATOR = np.random.default_rng(0)


def drawn(*shape):
    return GENERATOR.normal(size=shape).astype(np.float32)


MEAN, LOG_VARIANCE, TARGET, AFTER, NOISE = drawn(B, D), drawn(B, D), drawn(B, D), drawn(B, D), drawn(S, B, D)
SCALE, FIRST, LAST = np.float32([0.5, 2.0, 0.0, 1.0]), drawn(D, 6), drawn(6)
COUNTED = np.arange(B) % 5 != 4


def value(seen):
    """Of a small network."""
    return jnp.tanh(seen @ FIRST) @ LAST


def valued_by(function, after=AFTER, scale=SCALE, counted=COUNTED):
    made = valuing.prepare(function, jnp.asarray(after), jnp.asarray(scale), jnp.asarray(counted), jax.random.key(0))
    return made._replace(noise=jnp.asarray(NOISE))


def in_torch():
    """Leaves that are differentiated, and the value's function, gradient and variance by PyTorch alone."""
    mean, log_variance = (torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (MEAN, LOG_VARIANCE))
    target, after, scale, noise = (torch.tensor(each, dtype=torch.float64) for each in (TARGET, AFTER, SCALE, NOISE))
    first, last = torch.tensor(FIRST, dtype=torch.float64), torch.tensor(LAST, dtype=torch.float64)

    def function(seen):
        return torch.tanh(seen @ first) @ last

    seen = after.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(seen).sum(), seen)
    return mean, log_variance, target, after, scale, noise, function, gradient * scale


@pytest.mark.parametrize("gaussian", [False, True])
def test_vagram_has_the_value_and_the_gradients_of_pytorch(gaussian):
    mean, log_variance, target, _, _, _, _, gradient = in_torch()
    weight = gradient / gradient[COUNTED].square().mean().sqrt()
    expected = (weight * (mean - target)).square().sum(dim=1).mean()
    if gaussian:
        expected = expected + (0.5 * ((mean.detach() - target).square() / log_variance.exp() + log_variance)).sum(dim=1).mean()
    expected.backward()
    config, known = ModelConfig(loss="vagram"), valued_by(value)
    variance = jnp.asarray(LOG_VARIANCE) if gaussian else None
    found, gradients = jax.value_and_grad(lambda m, v: losses.vagram(m, v, jnp.asarray(TARGET), known, config), (0, 1))(
        jnp.asarray(MEAN), variance
    )
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(gradients[0], mean.grad, rtol=1e-4, atol=1e-6)
    if gaussian:
        np.testing.assert_allclose(gradients[1], log_variance.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradients[0])[:, 2], 0)  # a target that does not vary


@pytest.mark.parametrize(("gaussian", "correction"), [(False, True), (True, False), (True, True)])
def test_itervaml_has_the_value_and_the_gradients_of_pytorch(gaussian, correction):
    mean, log_variance, target, after, scale, noise, function, _ = in_torch()
    error = (mean - target)[None]
    if gaussian:
        error = error + (0.5 * log_variance).exp()[None] * noise
    sampled, true = function(after[None] + scale * error), function(after)
    each = (sampled.mean(dim=0) - true).square()
    if gaussian and correction:
        each = each - sampled.var(dim=0) / S
    expected = each.mean() / true[COUNTED].var(correction=0)
    expected.backward()
    config, known = ModelConfig(loss="itervaml", value_correction=correction), valued_by(value)
    variance = jnp.asarray(LOG_VARIANCE) if gaussian else None
    found, gradients = jax.value_and_grad(lambda m, v: losses.itervaml(m, v, jnp.asarray(TARGET), known, config), (0, 1))(
        jnp.asarray(MEAN), variance
    )
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-4)
    np.testing.assert_allclose(gradients[0], mean.grad, rtol=1e-3, atol=1e-5)
    if gaussian:
        np.testing.assert_allclose(gradients[1], log_variance.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("correction", "best"), [(True, 1.0), (False, 1 / (1 + 2 / S))])
def test_without_the_correction_the_best_variance_is_too_small_as_the_closed_form_says(correction, best):
    """The value is ``s'^2`` and the next state standard normal, whatever the state.

    A model of mean 0 and variance v has the expected value v. The mean of S samples of it has the variance 2 v^2 / S, so that the
    loss is ``(v - 1)^2 + 2 v^2 / S`` up to a constant without the correction, whose minimum is at ``v = 1 / (1 + 2 / S)``.
    """
    rows = 400_000
    generator = np.random.default_rng(1)
    after = generator.normal(size=(rows, 1)).astype(np.float32)
    noise = generator.normal(size=(S, rows, 1)).astype(np.float32)
    known = valuing.prepare(
        lambda seen: jnp.sum(jnp.square(seen), axis=-1), jnp.asarray(after), jnp.ones(1), jnp.ones(rows, bool), jax.random.key(0)
    )
    known, config = known._replace(noise=jnp.asarray(noise)), ModelConfig(loss="itervaml", value_correction=correction)

    @jax.jit
    def slope(variance):
        def loss(log_variance):
            wide = jnp.broadcast_to(log_variance.reshape(1, 1), after.shape)
            return losses.itervaml(jnp.zeros_like(after), wide, jnp.asarray(after), known, config)

        return jax.grad(loss)(jnp.log(variance))

    low, high = float(slope(jnp.asarray(best * 0.9))), float(slope(jnp.asarray(best * 1.1)))
    assert low < 0 < high
    assert best * (0.9 + 0.2 * low / (low - high)) == pytest.approx(best, rel=0.02)


def rows_of(count, seed=2):
    generator = np.random.default_rng(seed)
    observation, after = generator.normal(size=(2, count, D)).astype(np.float32)
    ones = np.ones(count, np.float32)
    return Rows(
        observation,
        after,
        generator.integers(0, 2, count).astype(np.int32),
        ones,
        ones < 0,
        ones,
        np.arange(count, dtype=np.int32),
    )


@pytest.fixture(scope="module")
def refitted(make_ensemble):
    """``(settings, value) -> (state before, state after a refit)`` of two members on 60 rows."""
    real = jax.tree.map(jnp.asarray, rows_of(60))

    def run(function, **settings):
        ensemble = make_ensemble(**{"refit_batches": 3, "batch_size": 16} | settings)
        start = fitting.init(ensemble, jax.random.key(0))
        refit = jax.jit(lambda state, key: fitting.refit(ensemble, state, real, jnp.asarray(60), key, 5, value=function))
        return start, refit(start, jax.random.key(1))[0]

    return run


def changed(before, after):
    """[outputs] whether a column of the last layer has changed."""
    last = max(before.params["params"])
    return np.asarray(jnp.any(before.params["params"][last]["kernel"] != after.params["params"][last]["kernel"], axis=(0, 1)))


def test_a_refit_by_vagram_leaves_alone_the_axes_on_which_the_value_does_not_depend(refitted):
    assert changed(*refitted(lambda seen: 3 * seen[..., 1], loss="vagram", prediction="deterministic")).tolist() == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("loss", ["vagram", "itervaml"])
def test_a_value_that_is_the_same_everywhere_teaches_nothing(refitted, loss):
    before, after = refitted(lambda seen: 0 * seen[..., 1] + 7, loss=loss, prediction="deterministic")
    assert not changed(before, after).any()


def test_at_a_share_of_nothing_a_refit_is_that_of_the_likelihood(refitted):
    _, expected = refitted(None)
    _, found = refitted(value, loss="itervaml", value_share=0.0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found.params, expected.params)
    _, other = refitted(value, loss="itervaml", value_share=0.5)
    assert changed(found, other).all()


def test_a_refit_without_a_value_is_refused(refitted):
    with pytest.raises(ValueError, match="the loss 'vagram' needs the agent's value"):
        refitted(None, loss="vagram")


class State(NamedTuple):
    """What of a loop's state a refit asks for."""

    model: Any
    real: Any
    key: jax.Array
    time: jax.Array
    agent: Any


@pytest.mark.parametrize("kind", ["q_learning", "sac", "policy_gradient"])
def test_the_model_is_handed_the_value_of_the_agents_target(kind):
    task = make_environment(EnvironmentConfig(name="Pendulum-v1" if kind == "sac" else "CartPole-v1"))
    settings = {
        "q_learning": QLearningConfig(hidden=(8,)),
        "sac": SACConfig(hidden=(8,)),
        "policy_gradient": PolicyGradientConfig(hidden=(8,)),
    }[kind]
    agent = make_agent(settings, task.spec)
    seen = jnp.asarray(drawn(5, task.spec.observation_size))
    world = SimpleNamespace(
        spec=SimpleNamespace(wants_value=True),
        refit=lambda model, real, key, value: (jax.grad(lambda s: value(s).sum())(seen), None),
    )
    learner = agent.init(jax.random.key(0))
    targets = "targets" if kind == "sac" else "target"
    learner = learner._replace(**{targets: jax.tree.map(lambda leaf: leaf + 0.1, getattr(learner, targets))})
    state = State(None, None, jax.random.key(1), jnp.zeros((), jnp.int32), learner)
    found = phases.refit(world, state, agent=agent)[0].model
    nudge = 1e-2 * jnp.asarray(drawn(5, task.spec.observation_size))
    valued = {
        "q_learning": lambda: learner.target,
        "sac": lambda: agent.valuing(learner)._replace(critics=learner.targets),
        "policy_gradient": lambda: learner.target.critic,
    }[kind]()
    expected = agent.value(valued, seen + nudge / 2) - agent.value(valued, seen - nudge / 2)
    np.testing.assert_allclose(jnp.sum(found * nudge, axis=-1), expected, atol=2e-3)


def preset(tiny, **changes):
    """The smallest run, of which groups have other settings."""
    content = to_dict(dataclasses.replace(tiny, protocol="interactive"))
    for name, settings in changes.items():
        content[name] = {**content[name], **settings} if isinstance(settings, dict) else settings
    return from_dict(content)


def test_a_whole_run_fits_by_the_likelihood_first_and_by_the_value_from_then_on(tiny):
    def trained(config):
        train = algorithm_of(config).make_train(config).train
        return jax.jit(jax.vmap(train))(mbrl_jax.seed_keys(0, 2))

    found, plain = (trained(preset(tiny, model={"loss": name})) for name in ("itervaml", "likelihood"))
    jax.tree.map(np.testing.assert_array_equal, found.fit, plain.fit)
    assert not np.allclose(found.metrics.refit.loss, plain.metrics.refit.loss)
    assert all(np.isfinite(leaf).all() for leaf in found.metrics.refit)
    assert not np.asarray(found.outcome.frozen).any()


def test_what_a_value_aware_loss_cannot_do_is_refused_before_anything_compiles(tiny, cartpole):
    for changes, message in (
        ({"protocol": "batch", "model": {"loss": "vagram"}}, "'vagram' knows the agent's value, and in the 'batch' protocol"),
        ({"model": {"loss": "itervaml", "patience": 1, "refit_passes": 2}}, "refit_passes: 2 does not fit model.loss 'itervaml'"),
        ({"model": {"loss": "value"}}, "'value' is not known; it must be one of likelihood, .*, vagram, itervaml"),
    ):
        config = preset(tiny, **changes)
        with pytest.raises(ConfigError, match=message):
            algorithm_of(config).make_train(config)
    world = make_world(ModelConfig(loss="vagram"), cartpole, make_replay(cartpole.spec, 50), first_rows=50, stride=5)
    agent = make_agent(PolicyGradientConfig(baseline="none"), cartpole.spec)
    for valueless in (None, agent):
        with pytest.raises(ConfigError, match="'vagram' needs an agent with a value: q_learning, sac, or policy_gradient"):
            phases.check_value(preset(tiny, model={"loss": "vagram"}), world, valueless)
    with pytest.raises(ConfigError, match="'vagram' is registered already"):
        losses.register_value_aware("vagram", losses.vagram)
    with pytest.raises(ConfigError, match="'vagram' is registered already"):
        losses.register("vagram", losses.likelihood)
