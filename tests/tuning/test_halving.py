import math
from dataclasses import fields, replace

import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.engine import Engine
from mbrl_jax.runs import execution, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.tuning import halving


@pytest.fixture(scope="module")
def free(tiny):
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


def with_agent(config, **changes):
    return replace(config, agent=replace(config.agent, **changes))


@pytest.mark.parametrize(
    ("rounds", "count", "factor", "expected"),
    [(20, 0, 3, (20,)), (20, 2, 3, (2, 7, 20)), (50, 2, 3, (6, 17, 50)), (2, 1, 2, (1, 2)), (45, 3, 1.5, (13, 20, 30, 45))],
)
def test_each_rung_is_factor_times_as_late_as_the_one_before(rounds, count, factor, expected):
    assert halving.rungs(rounds, count, factor) == expected


@pytest.mark.parametrize(("rounds", "count", "factor"), [(2, 2, 3), (2, 1, 1.2), (1, 1, 2), (20, 8, 1.5), (3, 2, 1.01)])
def test_rungs_that_would_fall_together_or_before_the_first_round_are_refused(rounds, count, factor):
    with pytest.raises(ConfigError, match=f"rungs: {count} do not fit into {rounds} rounds"):
        halving.rungs(rounds, count, factor)


@pytest.mark.parametrize(
    ("values", "others", "factor", "going"),
    [
        ({3: 1.0, 4: 5.0, 5: 3.0, 6: 4.0}, [], 2, [4, 6]),
        ({3: 1.0, 4: 5.0, 5: 3.0}, [], 2, [4, 5]),  # two of three are at least a half
        ({3: 1.0, 4: 5.0, 5: 3.0}, [], 3, [4]),
        ({3: 2.0, 4: 2.0, 5: 2.0, 6: 2.0}, [], 2, [3, 4]),  # of equal trials the first ones
        ({3: 1.0, 4: 5.0}, [9.0, 8.0], 2, [4]),  # the two best have gone on before, but a batch has one at least
        ({3: 7.0, 4: 8.0}, [9.0, 6.0], 2, [4]),
        ({3: 8.0, 4: 7.0}, [6.0, 5.0], 2, [3, 4]),
        ({3: 8.0, 4: 8.0}, [8.0, 1.0], 2, [3]),  # an equal earlier one counts as better
        ({3: math.nan, 4: 1.0}, [math.nan, math.nan], 2, [4]),
        ({3: math.nan, 4: math.nan}, [], 2, [3]),
        ({3: -math.inf, 4: -5.0, 5: -6.0, 6: -7.0}, [], 2, [4, 5]),
    ],
)
def test_the_best_share_of_all_that_reached_a_rung_goes_on(values, others, factor, going):
    assert halving.survivors(values, others, factor) == going


@pytest.fixture(scope="module")
def trained(free):
    """Three trials in two groups, of which two come to the end, and what was compiled for it."""
    configs = {
        5: with_agent(free, learning_rate=1e-3),
        6: with_agent(free, learning_rate=0.3),
        7: with_agent(free, learning_rate=0.1, discount=0.0),
    }
    machine = halving.Machine(range(2, 5), 4, ("agent.learning_rate", "agent.discount"), Display.silent(), devices=2)
    compiled, original = [], execution.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution.Lowered, "compile", lambda lowered: compiled.append(lowered) or original(lowered))
        (group,) = halving.groups(machine, configs)
        assert group.advance(1, 1)
        before = group.curve
        group.keep([5, 7])
        resumed = halving.Group(machine, {number: configs[number] for number in (5, 7)}, group.arrays())
        assert not resumed.advance(1, 1, stop=lambda: True)  # nothing of it is kept
        assert resumed.advance(1, 1)
        return configs, before, resumed.finish(), len(compiled)


@pytest.mark.parametrize("number", [5, 7])
def test_a_trial_among_others_has_the_numbers_of_a_run_of_its_own(trained, number):
    configs, before, ended, _ = trained
    alone = runner.run(configs[number], range(2, 5), base_seed=4).result
    np.testing.assert_allclose(ended[number].curve, alone.metrics.curve_return, rtol=1e-5)
    np.testing.assert_allclose(before[number], alone.metrics.curve_return[:, :1], rtol=1e-5)
    np.testing.assert_allclose(ended[number].returns, alone.outcome.returns_last.mean(axis=1), rtol=1e-5)
    assert ended[number].frozen == 0
    assert (ended[5].curve != ended[7].curve).any(axis=1).sum() > 1, "any of them would do for the other"


def test_trials_that_are_pruned_compile_nothing_anew(trained):
    *_, ended, compiled = trained
    assert list(ended) == [5, 7]
    assert compiled == 4  # init, fit, advance, finish


def test_trials_with_other_static_settings_have_a_program_of_their_own(free):
    machine = halving.Machine(range(1), 0, (), Display.silent())
    configs = {0: free, 1: with_agent(free, hidden=(4,)), 2: with_agent(free, discount=0.5)}
    assert [list(group.configs) for group in halving.groups(machine, configs)] == [[0, 2], [1]]


def test_trials_are_trained_by_the_engine_that_was_asked_for_which_is_told(tiny):
    told, display = [], Display.silent()
    display.say = told.append
    machine = halving.Machine(range(1), 0, (), display, devices=1, engine=lambda config, task: Engine("mine"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halving.Places, "compile", lambda *_: [execution.Compiled(None, 0.0, 0, 0, None)])
        assert machine.program(tiny, 1, 1).algorithm.engine.name == "mine"
    assert told == ["engine mine"]


def test_the_state_of_another_program_is_refused(free):
    machine = halving.Machine(range(1), 0, (), Display.silent(), devices=1)
    group = halving.Group(machine, {0: free}, {"own/0000": np.zeros((1, 3)), "own/curve": np.zeros((1, 1))})
    places = halving.Places(free, (), 0, Display.silent(), 1, 1)
    with pytest.raises(ConfigError, match=r"state: .* does not fit; it must be"):
        places.take(group.arrays(), [0])


def test_memory_that_holds_no_agent_and_a_batch_that_the_host_cannot_hold_are_refused(free, monkeypatch):
    machine = halving.Machine(range(1), 0, (), Display.silent(), devices=1, memory=10)
    monkeypatch.setattr(halving.Places, "compile", lambda *_: [execution.Compiled(None, 0.0, 0, 1_000, None)])
    with pytest.raises(ConfigError, match="do not hold one seed"):
        machine.program(free, 4, 1)
    monkeypatch.setattr(execution, "host_memory", lambda: 40)
    group = halving.Group(machine, {0: free, 1: free})
    with pytest.raises(ConfigError, match="batch: 2 agents .* at most 1 do"):
        group._check_host_memory(
            {"own/x": np.zeros((1, 4), np.float32), "own/curve": np.zeros((1, 1), np.float32), "shared/y": np.zeros(9)}
        )


def test_a_program_has_fewer_places_where_memory_holds_no_more(free, monkeypatch):
    machine = halving.Machine(range(1), 0, (), Display.silent(), devices=1, memory=1_000)
    monkeypatch.setattr(halving, "PLACES_PER_CORE", 8)
    monkeypatch.setattr(halving.Places, "compile", lambda self, *_: [execution.Compiled(None, 0.0, 0, 400 * self.at_once, None)])
    assert machine.program(free, 4, 1).at_once == 2
    assert machine.program(free, 4, 1) is machine.program(free, 1, 1)
