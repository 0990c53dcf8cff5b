"""MuJoCo's tasks of Gymnasium, for a few hundred steps."""

import numpy as np
import pytest

import mbrl_jax
from mbrl_jax.algorithms.registry import world_of
from mbrl_jax.config import (
    EnvironmentConfig,
    EvaluationConfig,
    ImaginedPGConfig,
    LanesConfig,
    ModelConfig,
    ModelFreePGConfig,
    MPCConfig,
    PlanningConfig,
    PolicyGradientConfig,
    SelectionConfig,
)
from mbrl_jax.environments import make_environment

pytest.importorskip("mujoco")
MODEL = ModelConfig(members=2, hidden=(16,), batch_size=16, epochs=10, refit_batches=10, termination_weight=1.0)
PENDULUM = ImaginedPGConfig(
    protocol="interactive",
    environment=EnvironmentConfig(name="gymnasium/InvertedPendulum-v5"),
    random_transitions=100,
    steps=200,
    round_steps=100,
    metric_steps=50,
    model=MODEL,
    imagination=LanesConfig(lanes=4, steps=4),
    agent=PolicyGradientConfig(hidden=(8,), estimator="pathwise"),
    selection=SelectionConfig(episodes=2, steps=20),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=1),
)
HOPPER = MPCConfig(
    environment=EnvironmentConfig(name="gymnasium/Hopper-v5", time_limit=100),
    random_transitions=100,
    steps=200,
    round_steps=100,
    metric_steps=50,
    model=MODEL,
    planning=PlanningConfig(candidates=8, horizon=4, particles=2, iterations=2, elites=2),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=1),
)
REAL = ModelFreePGConfig(
    environment=EnvironmentConfig(name="gymnasium/InvertedPendulum-v5"),
    steps=200,
    round_steps=100,
    segment_steps=20,
    metric_steps=20,
    agent=PolicyGradientConfig(hidden=(8,)),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=1),
)


@pytest.mark.parametrize(("config", "updates"), [(PENDULUM, 200), (HOPPER, 0), (REAL, 10)], ids=["pendulum", "hopper", "real"])
def test_a_task_of_mujoco_is_trained_in(config, updates):
    run = mbrl_jax.run(config, 2)
    outcome, measured = run.result.outcome, run.result.metrics
    assert run.failures == {}
    assert not outcome.frozen.any()
    assert outcome.updates.tolist() == [updates] * 2
    assert measured.curve_return.shape == (2, 2)
    assert np.isfinite(measured.curve_return).all()
    assert len(np.unique(outcome.returns_last)) > 1
    if config is REAL:
        return
    error = run.result.fit.holdout_mse.mean(axis=-1)  # [seeds, epochs]
    assert (error[:, -1] < error[:, 0]).all()
    assert not world_of(config, make_environment(config.environment)).spec.reward_known
