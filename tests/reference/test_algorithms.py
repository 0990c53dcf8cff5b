"""Runs of the reference by themselves; that they are the JAX side's runs is the parity suite's matter."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from mbrl_jax.config import ControllerConfig, DynaQConfig, ModelFreeQConfig
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.reference.algorithms import dyna_q, model_free_q
from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.environment import Simulator, make_task

from .conftest import change


def test_the_same_seed_gives_the_same_run(tiny: DynaQConfig) -> None:
    runs = [dyna_q.train(tiny, Draws(tiny, seed)) for seed in (1, 1, 2)]
    for name, leaf in runs[0].networks["target"].items():
        assert torch.equal(leaf, runs[1].networks["target"][name])
    assert any(not torch.equal(leaf, runs[2].networks["target"][name]) for name, leaf in runs[0].networks["target"].items())


def test_a_run_makes_its_transitions_and_updates(tiny: DynaQConfig, baseline: ModelFreeQConfig) -> None:
    for config in (tiny, change(tiny, "agent", updates_per_step=2)):
        run = dyna_q.train(config, Draws(config, 0))
        assert run.updates == config.steps * config.agent.updates_per_step
        assert len(run.real["reward"]) == config.real_transitions
        assert len(run.imagined["reward"]) == config.imagination.capacity
        assert run.metrics["loss"].shape == (2, 2)
    alone = model_free_q.train(baseline, Draws(baseline, 0))
    assert alone.returns_chosen is None
    assert alone.updates == baseline.steps


def test_a_learner_that_goes_non_finite_is_frozen_at_finite_parameters(tiny: DynaQConfig) -> None:
    exploding = change(tiny, "agent", learning_rate=1e38)
    run = dyna_q.train(exploding, Draws(exploding, 0))
    assert run.frozen
    assert run.updates < exploding.steps
    assert all(torch.isfinite(leaf).all() for leaf in run.networks["online"].values())


def test_the_seconds_are_told_by_phase(tiny: DynaQConfig) -> None:
    assert set(dyna_q.train(tiny, Draws(tiny, 0)).seconds) == {"collect", "fit", "train", "select", "curve", "evaluate"}


RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "steve": {"agent": {"target": "steve", "members": 2, "target_steps": 2}},
    "infoprop": {
        "imagination": {
            "sampling": "infoprop",
            "controller": controller_settings("infoprop", **{"high": 0.99, "low": 0.5, "length": 5, "resolution": 0.01}),
        },
        "model": {"reward": "learned", "termination": "learned"},
    },
    "fused, halted": {
        "imagination": {
            "sampling": "fused",
            "controller": controller_settings("threshold_quantile", **{"quantile": 0.5}),
            "measure": "gjs",
            "penalty": "halt",
            "penalty_weight": 3.0,
        }
    },
    "macura, penalised": {
        "imagination": {
            "controller": controller_settings("macura", **{"scale": 1.0, "percentile": 95, "memory": 10}),
            "measure": "one_vs_rest",
            "penalty": "disagreement",
            "penalty_weight": 0.1,
        }
    },
    "oracle": {"imagination": {"controller": controller_settings("oracle", **{"mark": 0.5}), "restart": "per_step"}},
    "three_model": {
        "imagination": {
            "lanes": 3,
            "capacity": 81,
            "controller": controller_settings("three_model", **{"low": 0.1, "high": 0.5, "first": 1, "limit": 3}),
        },
        "model": {"members": 3},
        "selection": {"episodes": 3},
    },
}


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_an_adaptive_horizon_ends_with_finite_numbers(tiny: DynaQConfig, name: str, protocol: str) -> None:
    config = dataclasses.replace(tiny, protocol=protocol)
    for group, settings in RUNS[name].items():
        config = change(config, group, **settings)
    run = dyna_q.train(config, Draws(config, 0))
    assert not run.frozen
    assert run.updates == config.steps
    assert run.metrics["lane_depth"].shape == (2, 2)
    assert run.metrics["lane_histogram"].shape == (2, 2, 10)
    np.testing.assert_allclose(run.metrics["lane_histogram"].sum(-1), run.metrics["lane_kept"], rtol=1e-6)
    halted = run.imagined["reward"] == -config.imagination.penalty_weight
    assert halted.any() == (name == "fused, halted")
    assert run.imagined["terminated"][halted].all()


def test_noise_is_on_what_is_seen_and_an_episode_is_seen_once(tiny: DynaQConfig, baseline: ModelFreeQConfig) -> None:
    noisy = change(baseline, "environment", observation_noise=0.1)
    clean, seen = model_free_q.train(baseline, Draws(baseline, 3)).real, model_free_q.train(noisy, Draws(noisy, 3)).real
    for name in ("action", "reward", "terminated", "depth"):
        np.testing.assert_array_equal(seen[name], clean[name])
    error = (seen["next_observation"] - clean["next_observation"]) / np.array(make_task("CartPole-v1").input_scale)
    assert error.std() == pytest.approx(0.1, rel=0.2)
    on = np.flatnonzero(seen["depth"] > 0)
    np.testing.assert_array_equal(seen["observation"][on], seen["next_observation"][on - 1])
    first = seen["depth"] == 0
    assert (seen["observation"][first] != clean["observation"][first]).all()
    interactive = dataclasses.replace(change(tiny, "environment", observation_noise=0.1), protocol="interactive")
    with pytest.raises(ValueError, match="environment.observation_noise: 0.1 does not fit protocol 'interactive'"):
        dyna_q.train(interactive, Draws(interactive, 0))


def test_an_episode_is_truncated_at_its_limit_and_goes_on_from_the_reset() -> None:
    simulator = Simulator(make_task("CartPole-v1", 3))
    simulator.reset(np.zeros(4))
    flags = [simulator.step(i % 2)[2:] for i in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


class Omniscient(ControllerConfig):
    """Settings of a controller that the reference does not have."""

    kind = "omniscient"


@pytest.mark.parametrize(
    ("group", "settings", "message"),
    [
        ("imagination", {"controller": Omniscient()}, "imagination.controller: 'omniscient'"),
        ("agent", {"input_scale": (1.0,)}, "agent.input_scale"),
    ],
)
def test_settings_that_the_reference_does_not_have_are_named(
    tiny: DynaQConfig, group: str, settings: dict[str, object], message: str
) -> None:
    config = change(tiny, group, **settings)
    with pytest.raises(ValueError, match=message):
        dyna_q.train(config, Draws(config, 0))


def test_the_jax_side_never_imports_torch() -> None:
    rooms = "mbrl_jax, mbrl_jax.command_line, mbrl_jax.reference_run, mbrl_jax.report.figures"
    program = f"import sys, {rooms}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
