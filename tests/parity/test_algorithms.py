"""Whole runs in lockstep: from the same random numbers, the same actions, returns, members and networks."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from mbrl_jax.algorithms.training import missing_as_nan
from mbrl_jax.config import (
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    ModelFreeQConfig,
    QLearningConfig,
    SelectionConfig,
)
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.model.ensemble import Bounds
from mbrl_jax.reference import weights
from mbrl_jax.replay import make_replay

from .agreement import Agreement
from .lockstep import both

# An upright pole multiplies rounding by ten in thirty steps: even in float64 two correct simulators part within an episode of 500
# steps. Episodes are truncated before that shows, which has truncation take part in every run.
CONFIG = DynaQConfig(
    environment=EnvironmentConfig(time_limit=60),
    random_transitions=500,
    steps=500,
    round_steps=125,
    metric_steps=25,
    model=ModelConfig(members=5, hidden=(32, 32), batch_size=64, epochs=5, refit_batches=20),
    imagination=ImaginationConfig(lanes=10, steps=2, capacity=5_000),
    agent=QLearningConfig(hidden=(32, 32), batch_size=64, learning_rate=1e-3),
    selection=SelectionConfig(episodes=10, steps=100),
    evaluation=EvaluationConfig(episodes=10, curve_episodes=5),
)


def change(config: Any, **groups: Any) -> Any:
    """``config`` with other settings, given by group or by name."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in groups.items()
    }
    return dataclasses.replace(config, **changed)


EVERYTHING = {
    "protocol": "interactive",
    "model": {
        "elites": 2,
        "patience": 2,
        "bootstrap": True,
        "learn_bounds": True,
        "reward": "learned",
        "termination": "learned",
        "laplacian": "hutchinson",
        "laplacian_rows": 16,
        "weight_decay": 0.01,
    },
    "imagination": {
        "restart": "per_step",
        "steps": 4,
        "capacity": 4_000,
        "controller": controller_settings("schedule", **{"start": 0, "end": 400, "first": 1, "last": 4}),
        "cap": 4,
    },
    "agent": {
        "target": "quantile",
        "target_quantile": 0.2,
        "loss": "huber",
        "real_ratio": 0.25,
        "updates_per_step": 2,
        "learning_rate_decay": 0.5,
    },
}

ADAPTIVE = {
    "steps": 300,
    "round_steps": 100,
    "metric_steps": 50,
    "model": {"elites": 4},
    "selection": {"episodes": 8},
    "imagination": {"lanes": 12, "steps": 3, "capacity": 3_600, "cap": 12},
}
MACURA = {
    **ADAPTIVE,
    "protocol": "interactive",
    "imagination": {
        **ADAPTIVE["imagination"],
        "controller": controller_settings("macura", **{"scale": 1.5, "percentile": 90, "memory": 40}),
        "penalty": "mopo",
        "penalty_weight": 0.1,
    },
}
INFOPROP = {
    **ADAPTIVE,
    "protocol": "interactive",
    "imagination": {
        **ADAPTIVE["imagination"],
        "sampling": "infoprop",
        "controller": controller_settings("infoprop", **{"high": 0.9, "low": 0.8, "length": 6, "resolution": 0.01}),
        "penalty": "halt",
        "penalty_weight": 1.0,
    },
    "agent": {"target": "quantile", "target_quantile": 0.3},
}
STEVE = {
    **ADAPTIVE,
    "environment": {"observation_noise": 0.02},
    "imagination": {
        **ADAPTIVE["imagination"],
        "controller": controller_settings("threshold_quantile", **{"quantile": 0.8}),
        "measure": "gjs",
    },
    "agent": {"target": "steve", "target_steps": 2, "members": 2},
}

RUNS = {
    "batch": {"protocol": "batch"},
    "interactive": {"protocol": "interactive"},
    "interactive, every option": EVERYTHING,
    "macura, penalised": MACURA,
    "infoprop with its sampler, halting, conservative targets": INFOPROP,
    "steve, thresholds on noisy data": STEVE,
}


def fields(config: Any) -> dict[str, Any]:
    """The settings that a model-free run shares."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelFreeQConfig)}


def compare_runs(agree: Agreement, name: str, config: Any, ours: Any, theirs: Any) -> None:
    """All that a run leaves, field by field."""
    state, collected, fit, metrics, outcome = ours
    agree(f"whole run, {name}: returns of random episodes", missing_as_nan(collected), theirs.collected, 0)
    spec = make_environment(config.environment).spec
    rows, _ = make_replay(spec, config.real_transitions).contents(state.real)
    whole = ("action", "terminated", "weight", "depth")
    agree(f"whole run, {name}: every real action", {n: getattr(rows, n) for n in whole}, {n: theirs.real[n] for n in whole}, 0)
    agree(f"whole run, {name}: every episode's return", outcome.returns_last, theirs.returns_last, 0)
    curve = metrics.curve_return
    agree(f"whole run, {name}: every episode's return", curve, theirs.metrics["curve_return"], 1e-12)
    assert int(outcome.updates) == theirs.updates == config.steps * config.agent.updates_per_step
    assert not theirs.frozen
    for network, params in (("online", state.agent.online), ("target", state.agent.target)):
        agree(f"whole run, {name}: final action values", params, weights.q_to_flax(theirs.networks[network]), 1e-7)
    losses = (metrics.update.loss, metrics.update.scaled_loss)
    agree(f"whole run, {name}: losses", losses, (theirs.metrics["loss"], theirs.metrics["scaled_loss"]), 1e-7)
    if not isinstance(config, DynaQConfig):
        return
    agree(f"whole run, {name}: every episode's return", outcome.returns_chosen, theirs.returns_chosen, 0)
    agree(f"whole run, {name}: snapshots chosen", metrics.is_chosen, theirs.metrics["is_chosen"], 0)
    agree(f"whole run, {name}: final action values", outcome.chosen, weights.q_to_flax(theirs.networks["chosen"]), 1e-7)
    imagined, _ = make_replay(spec, config.imagination.capacity).contents(state.imagined)
    kept = {n: getattr(imagined, n) for n in whole}
    agree(f"whole run, {name}: every imagined action", kept, {n: theirs.imagined[n] for n in whole}, 0)
    exact = ("observation", "next_observation", "reward")
    agree(
        f"whole run, {name}: imagined rows",
        {n: getattr(imagined, n) for n in exact},
        {n: theirs.imagined[n] for n in exact},
        1e-7,
    )
    agree(f"whole run, {name}: fit of the model", fit._asdict(), theirs.fit, 1e-7)
    params, low, high = weights.ensemble_to_flax(theirs.networks["ensemble"])
    agree(f"whole run, {name}: final members", (state.model.params, state.model.bounds), (params, Bounds(low, high)), 1e-7)
    scores = (metrics.score, metrics.chosen_score)
    agree(f"whole run, {name}: imagined scores", scores, (theirs.metrics["score"], theirs.metrics["chosen_score"]), 1e-7)
    lanes = {f"lane_{n}": getattr(metrics.lanes, n) for n in metrics.lanes._fields}
    agree(f"whole run, {name}: lanes", lanes, {n: theirs.metrics[n] for n in lanes}, 1e-7)
    if metrics.refit is not None:
        refits = {f"refit_{n}": getattr(metrics.refit, n) for n in metrics.refit._fields}
        agree(f"whole run, {name}: refits", refits, {n: theirs.metrics[n] for n in refits}, 1e-7)


@pytest.mark.parametrize("name", RUNS)
def test_a_model_based_run_is_the_references_step_for_step(rng: np.random.Generator, agree: Agreement, name: str) -> None:
    config = change(CONFIG, **RUNS[name])
    compare_runs(agree, name, config, *both(config, jax.random.key(int(rng.integers(2**31)))))


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_a_model_free_run_is_the_references_step_for_step(rng: np.random.Generator, agree: Agreement, protocol: str) -> None:
    config = ModelFreeQConfig(**fields(change(CONFIG, protocol=protocol)))
    compare_runs(agree, f"model-free, {protocol}", config, *both(config, jax.random.key(int(rng.integers(2**31)))))
