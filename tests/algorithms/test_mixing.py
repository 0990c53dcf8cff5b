"""Minibatches whose real share follows the model's part in the value's error."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.algorithms import dyna_q, imagined_pg, mixing, value_errors
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, ImaginedPGConfig, MixingConfig, check
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.replay import Rows


@pytest.fixture(scope="module")
def config(tiny):
    lanes = replace(
        tiny.imagination, controller=controller_settings("model_share", longest=4.0), penalty="bonus", penalty_weight=0.0
    )
    return replace(
        tiny, protocol="interactive", imagination=lanes, mixing=MixingConfig(rule="adaptive", least=0.0, most=1.0, memory=0.25)
    )


@pytest.fixture(scope="module")
def train(config):
    return jax.jit(dyna_q.make_train(config).train)


def rows(of, count=8):
    fill = jnp.full((count,), float(of))
    return Rows(fill[:, None], fill[:, None], fill, fill, fill > 0, fill, jnp.full((count,), of, jnp.int32))


@pytest.mark.parametrize(("share", "real"), [(0.0, 0), (0.24, 2), (0.5, 4), (1.0, 8)])
def test_a_mixture_has_its_share_of_real_rows_to_the_nearest_one(share, real):
    mixed = jax.jit(mixing.mixture)(rows(1), rows(0), jnp.asarray(share))
    for leaf in jax.tree.leaves(mixed):
        np.testing.assert_array_equal(np.asarray(leaf).reshape(-1), [1] * real + [0] * (8 - real))


def test_the_real_share_goes_from_the_least_to_the_most_with_the_models(config):
    hyper = replace(config, mixing=replace(config.mixing, least=0.1, most=0.7))
    assert [float(mixing.real_share(hyper, jnp.asarray(share))) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.4, 0.7])


def test_where_all_rows_are_real_nothing_imagined_is_learned_from(config, train):
    def last(share, weight):
        mixed, lanes = (
            replace(config.mixing, least=share, most=share),
            replace(config.imagination, penalty_weight=weight),
        )
        return jax.tree.leaves(train(seed_keys(0, 1)[0], replace(config, mixing=mixed, imagination=lanes)).outcome.last)

    def same(share):
        return all(np.array_equal(a, b) for a, b in zip(last(share, 0.0), last(share, 50.0), strict=True))

    assert same(1.0)
    assert not same(0.0)


def test_the_share_is_measured_after_every_fit_and_keeps_some_of_the_one_before(config):
    algorithm, task = dyna_q.make_train(config), make_environment(config.environment)
    key = seed_keys(0, 1)[0]
    fitted = jax.jit(lambda key: algorithm.fit(algorithm.init(key)[0], config)[0])(key)
    after, metrics = jax.jit(algorithm.advance)(fitted, config)
    replay, agent = dyna_q.make_replay(task.spec, config.real_transitions), dyna_q.make_agent(config.agent, task.spec)
    imagination = dyna_q.phases.imagination_of(config, task, replay, None, measures_share=True)
    now = jax.jit(lambda state: value_errors.model_share_of(config, replay, imagination.world, agent, state))
    assert float(fitted.model_share) == pytest.approx(float(now(fitted)), rel=1e-5)
    assert 0 < float(fitted.model_share) < 1
    expected = 0.25 * float(fitted.model_share) + 0.75 * float(now(after))
    assert float(after.model_share) == pytest.approx(expected, rel=1e-5)
    assert float(metrics.model_share) == float(after.model_share)
    assert float(after.lanes.controller) == round(1 + 3 * (1 - expected))


def test_a_round_mixes_by_the_share_that_was_measured_before_it(config):
    algorithm = dyna_q.make_train(config)
    fitted = jax.jit(lambda key: algorithm.fit(algorithm.init(key)[0], config)[0])(seed_keys(0, 1)[0])
    advance = jax.jit(algorithm.advance)

    def learned(measured, hyper=config):
        after, _ = advance(fitted._replace(model_share=jnp.asarray(measured)), hyper)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(after.agent.online)])

    fixed = replace(config, mixing=replace(config.mixing, least=0.25, most=0.25))
    np.testing.assert_array_equal(learned(0.25), learned(0.9, fixed))
    assert np.abs(learned(0.25) - learned(0.9)).max() > 1e-6


@pytest.mark.parametrize("follows", ["mixing", "controller"])
def test_what_cannot_be_measured_is_refused(config, follows):
    if follows == "mixing":
        config = replace(config, imagination=replace(config.imagination, controller=controller_settings("fixed", length=1.0)))
    else:
        config = replace(config, mixing=MixingConfig())
    agent = dyna_q.make_agent(config.agent, make_environment(config.environment).spec)
    controller = dyna_q.phases.controller_of(config.imagination)
    assert mixing.check(config, controller, agent)
    with pytest.raises(ConfigError, match=r"(mixing.rule|controller.kind): .* needs an agent with a value"):
        mixing.check(config, controller, agent._replace(value=None))
    with pytest.raises(ConfigError, match=r"(mixing.rule|controller.kind): .* does not fit data"):
        mixing.check(replace(config, data=("rows.npz",)), controller, agent)


def test_settings_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=r"mixing.most: 0.1 does not fit; it must be at least mixing.least \(0.2\)"):
        check(replace(config, mixing=replace(config.mixing, least=0.2, most=0.1)))
    one = replace(config, model=replace(config.model, members=1), mixing=replace(config.mixing, measure="members"))
    with pytest.raises(ConfigError, match="mixing.measure: 'members' does not fit; it compares members"):
        check(one)
    lanes = replace(ImaginedPGConfig().imagination, controller=controller_settings("model_share", longest=4.0))
    with pytest.raises(ConfigError, match="controller.kind: 'model_share' does not fit; .* 'dyna_q' alone measures"):
        imagined_pg.make_train(replace(ImaginedPGConfig(), imagination=lanes))
