from dataclasses import replace

import jax
import numpy as np
import pytest

from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import missing_as_nan, seed_keys
from mbrl_jax.config import ConfigError
from mbrl_jax.report.measures import chosen_so_far
from mbrl_jax.runs import execution, runner
from mbrl_jax.runs.run import diverged_model_seeds, frozen_seeds


@pytest.fixture(scope="module")
def run(tiny):
    return runner.run(tiny, 3, base_seed=4)


def test_the_runner_gives_each_seed_the_numbers_of_train(tiny, run):
    expected = jax.jit(jax.vmap(dyna_q.make_train(tiny).train))(seed_keys(4, 3))
    expected = expected._replace(collected=missing_as_nan(expected.collected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), run.result, jax.tree.map(np.asarray, expected)
    )


def test_compiling_and_running_are_timed_apart(run):
    assert run.seconds.compile > 0
    parts = (run.seconds.collect, run.seconds.fit, run.seconds.train, run.seconds.evaluate)
    assert run.seconds.run == pytest.approx(sum(parts))
    assert min(parts) > 0


def test_the_memory_of_a_seed_covers_its_replays(tiny, run):
    rows = tiny.real_transitions + tiny.imagination.capacity
    assert run.state_bytes_per_seed > 4 * rows * (2 * 4 + 5)


def test_the_curve_of_the_chosen_policy_follows_the_snapshot_that_was_chosen(run):
    curve = chosen_so_far(run)
    metrics = run.result.metrics
    for seed in range(3):
        since = 0
        for number in range(metrics.is_chosen.shape[1]):
            since = number if metrics.is_chosen[seed, number] else since
            assert curve[seed, number] == metrics.curve_return[seed, since]


@pytest.mark.parametrize(
    ("seeds", "base", "message"),
    [
        (0, 0, "seeds: 0"),
        (-2, 0, "seeds: -2"),
        (1, -1, "seed: -1"),
        (1.5, 0, "seeds: 1.5 does not fit; it must be a whole number"),
        ("4", 0, "seeds: '4' does not fit"),
        (True, 0, "seeds: True does not fit"),
        (1, 0.0, "seed: 0.0 does not fit; it must be a whole number"),
        (None, 0, "seeds: None does not fit"),
        (10**20, 0, r"seeds: 1.* is out of range; it must be from 1 to 2\^31"),
        (range(10**20), 0, r"seeds: 1.* is out of range; it must be from 1 to 2\^31"),
    ],
)
def test_impossible_seeds_are_refused(tiny, seeds, base, message):
    with pytest.raises(ConfigError, match=message):
        runner.run(tiny, seeds, base_seed=base)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": float("nan")}, "memory: nan bytes is out of range; it must be positive and finite"),
        ({"devices": "all"}, "devices: 'all' does not fit; it must be a whole number"),
        ({"data": 5}, "data: 5 does not fit; it must be a file or several"),
        ({"controller": "fixed"}, "controller: 'fixed' does not fit; it must be a mbrl_jax.HorizonController"),
        ({"callbacks": [3]}, "callbacks: 3 does not fit; each must be a mbrl_jax.runs.callbacks.Callback"),
    ],
)
def test_arguments_of_another_type_are_refused_before_anything_compiles(tiny, monkeypatch, given, message):
    monkeypatch.setattr(execution, "lower", lambda *_: pytest.fail("something is compiled"))
    with pytest.raises(ConfigError, match=message):
        runner.run(tiny, 2, **given)


@pytest.mark.parametrize("config", [None, {}, "configs/smoke.yaml"])
def test_what_is_no_config_is_refused(config):
    with pytest.raises(ConfigError, match=f"config: {type(config).__name__} does not fit; it must be one of mbrl_jax's"):
        runner.run(config, 1)


def test_nothing_is_compiled_ahead_of_time_where_jax_does_not_compile(tiny):
    with jax.disable_jit(), pytest.raises(ConfigError, match="JAX_DISABLE_JIT: 1 does not fit; a run is compiled ahead of time"):
        runner.run(tiny, 1)
    with jax.disable_jit(), pytest.raises(ConfigError, match="JAX_DISABLE_JIT"):
        list(runner.run_all([tiny], 1))


def test_a_seed_that_went_non_finite_is_named(tiny):
    exploding = replace(tiny, agent=replace(tiny.agent, learning_rate=1e38))
    outcome = runner.run(exploding, 2).result.outcome
    assert frozen_seeds(outcome) == [0, 1]
    assert (outcome.updates < tiny.steps).all()
    assert diverged_model_seeds(outcome) == []


def test_a_seed_whose_model_is_not_finite_is_named_by_what_is_not_finite_in_it(run):
    outcome = run.result.outcome
    assert diverged_model_seeds(outcome) == []
    for value in (np.nan, np.inf):
        for place in range(len(jax.tree.leaves(outcome.model))):
            leaves, structure = jax.tree.flatten(outcome.model)
            leaves[place] = leaves[place].copy()
            leaves[place][1].flat[-1] = value
            broken = outcome._replace(model=jax.tree.unflatten(structure, leaves))
            assert diverged_model_seeds(broken) == [1]
    assert diverged_model_seeds(outcome._replace(model=None)) == []
