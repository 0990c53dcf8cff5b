from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.imagination.horizon import controller_settings, make_controller
from mbrl_jax.report.measures import mean_depth
from mbrl_jax.runs import execution, runner, sweep

LENGTH, RATE = "imagination.controller.length", "agent.learning_rate"


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled from here on, counted."""
    calls = []
    original = execution.Lowered.compile

    def counted(lowered):
        calls.append(lowered)
        return original(lowered)

    monkeypatch.setattr(execution.Lowered, "compile", counted)
    return calls


@pytest.fixture(scope="module")
def swept(tiny):
    return sweep.sweep(tiny, {LENGTH: [1, 3], "imagination.cap": [2, 3], RATE: [1e-3, 1e-2]}, 3, base_seed=4)


@pytest.mark.parametrize(("place", "length", "cap", "rate"), [(0, 1.0, 2, 1e-3), (1, 3.0, 3, 1e-2)])
def test_each_value_of_a_sweep_has_the_numbers_of_a_run_of_its_own(tiny, swept, place, length, cap, rate):
    imagination = replace(tiny.imagination, controller=controller_settings("fixed", length=length), cap=cap)
    config = replace(tiny, imagination=imagination, agent=replace(tiny.agent, learning_rate=rate))
    alone = runner.run(config, 3, base_seed=4)
    assert swept[place].config == config
    assert type(swept[place].config.imagination.controller.length) is float
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), swept[place].result, alone.result)


def test_the_arms_of_a_sweep_share_their_real_data_and_differ_in_what_they_learn(swept):
    first, second = (run.result for run in swept)
    np.testing.assert_array_equal(first.collected, second.collected)
    assert (first.metrics.lanes.depth != second.metrics.lanes.depth).any()
    assert mean_depth(swept[0]) == 1.0
    assert 1.2 < mean_depth(swept[1]) < 3.0


def test_seconds_and_bytes_are_shared_out_over_the_values(swept):
    first, second = swept
    assert first.seconds == second.seconds
    assert first.state_bytes_per_seed == second.state_bytes_per_seed > 0


def test_a_sweep_compiles_as_much_as_one_run(tiny, compiled):
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    runner.run(free, 1)
    of_a_run = len(compiled)
    runs = sweep.sweep(free, {RATE: [1e-3, 3e-3, 1e-2]}, 1)
    assert len(compiled) == 2 * of_a_run
    assert [run.config.agent.learning_rate for run in runs] == [1e-3, 3e-3, 1e-2]


def test_a_batch_of_agents_on_a_device_gives_the_same_numbers(tiny, swept, monkeypatch):
    layout = execution.choose_layout(6)._replace(batch=None)
    monkeypatch.setattr(execution, "choose_layout", lambda agents, most=None: layout)
    together = sweep.sweep(tiny, {LENGTH: [1, 3], "imagination.cap": [2, 3], RATE: [1e-3, 1e-2]}, 3, base_seed=4)
    for ours, theirs in zip(together, swept, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours.result, theirs.result)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "settings: there are none"),
        ({"imagination.length": [1]}, "imagination.length: there is no such setting; .*agent.learning_rate"),
        ({f"{LENGTH}.x": [1]}, "length.x: there is no such setting"),
        ({"imagination.lanes": [4, 8]}, "imagination.lanes: 4 is static, so it compiles anew and must be run apart"),
        ({"imagination": [1]}, "imagination: it is a group of settings; name one of imagination.lanes"),
        ({RATE: []}, r"agent.learning_rate: \[\] has no values"),
        ({RATE: [1e-3, 1e-2], LENGTH: [1]}, "agent.learning_rate has 2, imagination.controller.length has 1 values"),
        ({RATE: [1e-3, -1.0]}, "agent.learning_rate: -1.0 is out of range"),
        ({"imagination.cap": [2, 2.5]}, "imagination.cap: 2.5 must be of type int"),
        ({RATE: [1e-3, True]}, "agent.learning_rate: True must be a number"),
        ({LENGTH: [1, 0]}, "imagination.controller.length: 0.0 is out of range; it must be at least 1"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_compiles(tiny, compiled, values, message):
    with pytest.raises(ConfigError, match=message):
        sweep.sweep(tiny, values, 2)
    assert not compiled


def test_a_setting_that_acts_on_how_a_run_begins_is_swept_as_well(tiny):
    noisy = replace(tiny, environment=replace(tiny.environment, observation_noise=0.1))
    clean, noised = sweep.sweep(tiny, {"environment.observation_noise": [0.0, 0.1]}, 2)
    for swept, config in ((clean, tiny), (noised, noisy)):
        alone = runner.run(config, 2)
        np.testing.assert_allclose(swept.result.fit.holdout_nll, alone.result.fit.holdout_nll, rtol=1e-4)
    assert not np.allclose(noised.result.fit.holdout_nll, clean.result.fit.holdout_nll, rtol=1e-2)


def test_a_controller_object_takes_the_place_of_the_one_that_is_named(tiny):
    def init(lanes, spec):
        raise ConfigError("mine")

    controller = make_controller("fixed", {"length": 1})
    for train in (
        lambda: runner.run(tiny, 1, controller=controller._replace(init=init)),
        lambda: sweep.sweep(tiny, {RATE: [1e-3]}, 1, controller=controller._replace(init=init)),
    ):
        with pytest.raises(ConfigError, match="mine"):
            train()
    with pytest.raises(ConfigError, match=r"length: \[1, 2\] do not fit; a controller is given"):
        sweep.sweep(tiny, {LENGTH: [1, 2]}, 1, controller=controller)
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    with pytest.raises(ConfigError, match="controller: one does not fit; 'model_free_q' has no imagined lanes"):
        runner.run(free, 1, controller=controller)


def test_configs_that_differ_in_a_static_setting_do_not_run_together(tiny):
    with pytest.raises(ConfigError, match="configs: they differ in static settings"):
        list(runner.run_all([tiny, replace(tiny, steps=40)], 1))
