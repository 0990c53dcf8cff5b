"""What the studies of decoupled backpropagation compare, and how they measure it."""

import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import linear

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "rivals"))

import decoupled
import decoupled_gradients
import hopper_transfer as hopper
import rejax_ppo
import surrogate_transfer as transfer

from mbrl_jax import strict_json
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms.phases import world_of
from mbrl_jax.config import PhysicsConfig, check, to_dict
from mbrl_jax.environments import make_environment


@pytest.mark.parametrize("task", decoupled.MARKS)
def test_the_arms_are_one_preset_and_differ_by_what_their_name_says(task):
    arms = decoupled.arms(task)
    alone = {
        "pendulum": {"host", "pg", "sac", "adaptive"},
        "swingup": {"adaptive"},
        "hopper": {"wide", "imagined_wide"},
        "ant": set(),
    }
    everywhere = {*decoupled.GRADIENTS, "window_4", "window_8"}
    assert set(arms) == everywhere | alone[task] <= set(decoupled.COLOURS)
    for name, config in arms.items():
        check(config)
        if name in decoupled.OTHERS:
            assert config.environment == arms["decoupled"].environment
            continue
        same = dataclasses.replace(config, gradient="decoupled", controller=arms["decoupled"].controller)
        if name == "host":
            assert config.environment.name == "gymnasium/Pendulum-v1"
            same = dataclasses.replace(same, environment=arms["decoupled"].environment)
        if name.endswith("wide"):
            assert config.gradient == {"wide": "decoupled", "imagined_wide": "imagined"}[name]
            assert (config.model.hidden, config.model.refit_batches) == ((128, 128), 240)
            same = dataclasses.replace(same, model=arms["decoupled"].model)
        assert same == arms["decoupled"]
        assert (config.gradient == name) == (name in decoupled.GRADIENTS)
        assert config.window_steps == 16


def test_the_steps_to_a_mark_are_those_at_which_the_curve_of_all_seeds_is_first_there():
    told = {"steps": [10, 20, 30], "curves": [[0.0, 5.0, 9.0], [0.0, 7.0, 9.0]]}
    assert decoupled.first_at(told, 6.0) == 20
    assert decoupled.first_at(told, 9.0) == 30
    assert np.isnan(decoupled.first_at(told, 9.5))


def test_the_table_tells_every_arm_on_file_and_passes_over_the_other_files_there(tmp_path, capsys):
    for path in decoupled.OUT.glob("*.json"):
        shutil.copy(path, tmp_path)
    decoupled.stage_table(tmp_path)
    told = capsys.readouterr().out
    for path in decoupled.OUT.glob("swingup_*.json"):
        assert path.stem.removeprefix("swingup_") in told
    assert told.count("sac") >= 2  # of another study's files
    assert (tmp_path / "decoupled.png").stat().st_size > 10_000


def test_speeds_are_medians_of_rounds_in_turn_without_the_first_and_told_as_seconds_to_the_mark(tmp_path, capsys, monkeypatch):
    turns, now = [], iter(np.arange(0.0, 1e4, 0.5))

    def rounds_of(config, seeds):
        turns.append([])
        return partial(turns[-1].append, len(turns)), 1_000

    monkeypatch.setattr(decoupled.arm_by_arm, "rounds_of", rounds_of)
    monkeypatch.setattr(decoupled.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(decoupled.arm_by_arm.time, "perf_counter", lambda: next(now))
    told = {"task": "swingup", "arm": "true", "steps": [4_000, 8_000], "curves": [[10.0, 900.0]] * 4, "returns": [900.0] * 4}
    strict_json.write(tmp_path / "swingup_true.json", told)
    decoupled.stage_speed(tmp_path, 4)
    assert [len(each) for each in turns] == [4] * 5
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["steps_a_second"]["true"] == 2_000.0  # a round of 1,000 steps in half a second
    assert [len(each) for each in content["seconds_of_rounds"].values()] == [3] * 5
    row = next(line for line in capsys.readouterr().out.splitlines() if "true" in line)
    assert [cell.strip() for cell in row.strip("│ \n").split("│")] == ["true", "2,000", "8,000", "16"]


def test_rejax_is_given_the_steps_of_the_task_and_a_fresh_episode_after_the_end_of_one():
    task = make_environment(dataclasses.replace(decoupled.arms("pendulum")["decoupled"].environment, time_limit=2))
    wrapped = rejax_ppo.InRejax(task)
    key, action = jax.random.key(3), np.full(1, 0.5, np.float32)
    seen, state = wrapped.reset(jax.random.key(0), wrapped.default_params)
    np.testing.assert_array_equal(seen, state.observation)
    for ends in (False, True):
        after, row = task.step(state, action, task.draw_resets(key, ()))
        seen, state, reward, done, _ = wrapped.step(key, state, action, wrapped.default_params)
        np.testing.assert_array_equal(seen, after.observation)
        assert (reward == row.reward, done) == (True, ends)
    np.testing.assert_array_equal(seen, task.draw_resets(key, ()).observation)


def test_norm_variance_bias_and_cosine_of_made_up_gradients():
    rng = np.random.default_rng(0)
    true = np.array([3.0, 4.0, 0.0])
    estimates = true + np.array([0.0, 0.0, 2.0]) + rng.normal(size=(40_000, 3))  # a bias of 2 and a variance of 3
    found = decoupled_gradients.measures(estimates, np.stack([true, true]))
    assert found["norm"] == pytest.approx(29**0.5, rel=0.01)
    assert found["relative_variance"] == pytest.approx(3 / 29, rel=0.02)
    assert found["relative_bias2"] == pytest.approx(4 / 25, rel=0.05)
    assert found["cosine"] == pytest.approx(5 / 29**0.5, rel=0.01)


@pytest.mark.parametrize(("known", "panels"), [(True, 4), (False, 3)])
def test_gradients_are_drawn_with_the_growth_of_errors_where_the_dynamics_are_known(known, panels, tmp_path, monkeypatch):
    new_figure, asked = decoupled_gradients.figures.new_figure, []
    monkeypatch.setattr(decoupled_gradients.figures, "new_figure", lambda count: (asked.append(count), new_figure(count))[1])
    places = [
        {"share": share, "seed": 0, "horizon": horizon, "gradient": gradient}
        for share in decoupled_gradients.SHARES
        for horizon in decoupled_gradients.HORIZONS
        for gradient in decoupled_gradients.GRADIENTS
    ]
    points = [{**place, **dict.fromkeys(decoupled_gradients.NAMES, 0.5)} for place in places]
    growth = [{"share": share, "seed": 0, "error": [0.1] * 32} for share in decoupled_gradients.SHARES]
    told = {"preset": "some_dmo", "seeds": 1, "points": points, "growth": growth if known else []}
    decoupled_gradients.draw(told, tmp_path / "drawn.png")
    assert asked == [panels]
    assert (tmp_path / "drawn.png").stat().st_size > 1_000


# ---------------------------------------------------------------------------------------------------------------- transfer


def test_the_grid_has_every_task_regulariser_and_start_once_and_each_arm_by_its_name():
    arms = list(transfer.grid())
    assert len(arms) == len({arm.name for arm in arms}) == (1 + 3 * 5) * (5 * 3 + 1)
    assert all(transfer.arm_of(arm.name) == arm for arm in arms)
    with pytest.raises(ValueError, match="'length_3_ensemble_new' is no arm"):
        transfer.arm_of("length_3_ensemble_new")
    first = transfer.order()
    assert len(first) == len(set(first))
    assert set(first) <= set(arms)
    for arm in first:
        assert arm.start != "frozen" or first.index(arm.source) < first.index(arm)


def test_an_arm_differs_by_its_physics_its_regulariser_and_what_fits_change_alone():
    base = transfer.config_of(transfer.arm_of("task_1_ensemble_new"))
    for name in ("length_2_ensemble_frozen", "damping_0.5_none_tuned", "mass_1.25_jacobian_new", "length_2_none_true"):
        arm, config = transfer.arm_of(name), transfer.config_of(transfer.arm_of(name))
        check(config)
        factors = dataclasses.asdict(config.environment.physics)
        assert factors == {**dict.fromkeys(factors, 1.0), **({} if arm.physics == "task" else {arm.physics: arm.factor})}
        assert config.model.fits == {"new": "all", "tuned": "parameters", "frozen": "none", "true": "all"}[arm.start]
        assert config.gradient == ("true" if arm.start == "true" else "decoupled")
        same = dataclasses.replace(config, environment=base.environment, model=base.model, gradient=base.gradient)
        assert same == base
        if arm.source is not None:  # the surrogate that it begins with is of the same settings
            theirs = transfer.config_of(arm.source).model
            assert dataclasses.replace(config.model, fits="all") == theirs


def test_the_table_of_transfers_pairs_an_arm_with_its_new_surrogate_and_ranks_errors_against_returns(tmp_path, capsys):
    for number, name in enumerate(
        ("task_1_ensemble_new", "task_1_ensemble_frozen", "length_2_none_frozen", "mass_2_none_frozen")
    ):
        told = {
            **transfer.arm_of(name)._asdict(),
            "returns": [800.0 - 100 * number] * 4,
            "curves": np.full((4, 2), 400 - 50 * number).tolist(),
            "depths": list(transfer.DEPTHS),
            "accumulated": np.full((4, 5), 0.1 * (1 + number)).tolist(),
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    bodies = [{"physics": "task", "factor": 1.0}, {"physics": "length", "factor": 2.0}]
    errors = np.broadcast_to(np.array([0.1, 0.7])[:, None, None], (2, 4, 5)).tolist()
    surrogate = {"regulariser": "none", "bodies": bodies, "depths": list(transfer.DEPTHS), "errors": errors}
    (tmp_path / "errors_none.json").write_text(json.dumps(surrogate))
    transfer.stage_table(tmp_path)
    told = capsys.readouterr().out
    assert "70.0 [70.0, 70.0]" in told
    assert "-100.0 [-100.0, -100.0]" in told
    assert "-50.0 [-50.0, -50.0]" in told
    assert "3 arms with a frozen surrogate: -1.00" in told
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_one_program_measures_the_errors_on_all_bodies_as_one_for_each_body_does():
    config = transfer.config_of(transfer.arm_of("length_2_none_frozen"))
    environment = dataclasses.replace(config.environment, action_repeat=1, time_limit=34)
    model, agent = (dataclasses.replace(each, hidden=(4,)) for each in (config.model, config.agent))
    config = dataclasses.replace(config, environment=environment, model=model, agent=agent)
    task = make_environment(environment)
    learner, world = make_agent(agent, task.spec), world_of(config, task)
    keys = jax.random.split(jax.random.key(0), 2)
    actors, models = jax.jit(jax.vmap(lambda key: (learner.judged(learner.init(key)), world.acting(world.init(key)))))(keys)
    bodies = [PhysicsConfig(), environment.physics]
    found = np.asarray(transfer.accumulated(config, bodies, actors, models, keys))
    assert found.shape == (2, 2, len(transfer.DEPTHS))
    actor, params = jax.tree.map(lambda leaf: leaf[1], (actors, models))

    @jax.jit
    def alone(key):
        key_visit, key_paths = jax.random.split(key)
        visited = decoupled_gradients.visited(config, task, actor, key_visit)
        return decoupled_gradients.growth(config, task, decoupled_gradients.Subject(actor, None, params, visited), key_paths)

    expected = np.asarray(alone(keys[1]))[np.array(transfer.DEPTHS) - 1]
    np.testing.assert_allclose(found[1, 1], expected, rtol=2e-3)
    assert not np.allclose(found[0, 1], found[1, 1], rtol=2e-2)


def test_the_true_model_s_gradients_have_no_error_and_those_of_another_body_have(monkeypatch):
    config = transfer.config_of(transfer.arm_of("length_2_none_frozen"))
    agent = dataclasses.replace(config.agent, hidden=(4,))
    environment = dataclasses.replace(config.environment, action_repeat=1, time_limit=34)
    config = dataclasses.replace(config, environment=environment, agent=agent)
    learner = make_agent(agent, make_environment(environment).spec)
    key, found = jax.random.key(0), {}
    actor = learner.judged(learner.init(key))
    for factor in (2.0, 1.0):
        body = make_environment(dataclasses.replace(environment, physics=PhysicsConfig(length=factor)))
        monkeypatch.setattr(transfer, "world_of", lambda config, task, body=body: linear.true_world(body))
        measure = jax.jit(lambda actor, key: transfer.gradient_errors(config, actor, None, key))
        found[factor] = [float(each) for each in measure(actor, key)]
    np.testing.assert_allclose(found[2.0], 0, atol=1e-4)
    assert min(found[1.0]) > 2e-3


# ------------------------------------------------------------------------------------------------------------------- hopper


def test_arms_of_the_hopper_differ_by_their_body_and_what_fits_change_alone():
    own = to_dict(hopper.config_of(hopper.SOURCE))
    for arm in hopper.ARMS:
        body, _, start = arm.rpartition("_")
        physics = {**own["environment"]["physics"], **hopper.BODIES[body]}
        fits = {"new": "all", "frozen": "none"}[start]
        expected = {**own, "environment": {**own["environment"], "physics": physics}, "model": {**own["model"], "fits": fits}}
        assert to_dict(hopper.config_of(arm)) == expected
    with pytest.raises(SystemExit, match="train own_new first"):
        hopper.stage_errors(Path("nowhere"), Path("nowhere"))


def test_a_jacobian_twice_as_large_is_off_by_its_own_size_and_points_the_same_way():
    true = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2)), jnp.float32)
    assert [float(each) for each in hopper.alike(2 * true, true)] == pytest.approx([1.0, 1.0], rel=1e-5)
    assert [float(each) for each in hopper.alike(-true, true)] == pytest.approx([2.0, -1.0], rel=1e-5)


def test_the_true_model_s_jacobians_along_actions_are_the_simulators(monkeypatch):
    config = transfer.config_of(transfer.arm_of("task_1_none_new"))
    agent = dataclasses.replace(config.agent, hidden=(4,))
    environment = dataclasses.replace(config.environment, action_repeat=1, time_limit=34)
    config, task = dataclasses.replace(config, environment=environment, agent=agent), make_environment(environment)
    monkeypatch.setattr(hopper, "ROWS", 8)
    monkeypatch.setattr(hopper, "world_of", lambda config, task: linear.true_world(task))
    learner, key = make_agent(agent, task.spec), jax.random.key(0)
    actor = learner.judged(learner.init(key))
    found, true = jax.jit(lambda key: hopper.action_jacobians(config, task, actor, None, key))(key)
    assert found.shape == (8, 5, 1)
    np.testing.assert_allclose(found, true, atol=1e-6)
    assert np.abs(true).max() > 1e-3


def test_the_table_of_the_hopper_tells_frozen_less_new_and_errors(tmp_path, capsys, monkeypatch):
    for arm, more in (("mass_2_new", 0.0), ("mass_2_frozen", 30.0)):
        returns = [100.0 + more + i for i in range(8)]
        strict_json.write(tmp_path / f"{arm}.json", {"returns": returns, "curves": [[each, each] for each in returns]})
    strict_json.write(tmp_path / "errors.json", {"errors": {"mass_2": [[1.0, 0.9]] * 4}})
    monkeypatch.setattr(sys, "argv", ["hopper_transfer.py", "table", "--out", str(tmp_path)])
    hopper.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "30.0 [30.0, 30.0] │ 30.0 [30.0, 30.0]" in printed
    assert "100.0 [100.0, 100.0] │ 90.0 [90.0, 90.0]" in printed
    monkeypatch.setattr(sys, "argv", ["hopper_transfer.py", "train", "mass_3_new"])
    with pytest.raises(SystemExit):
        hopper.main()
    assert "arm: 'mass_3_new' is not known; it must be one of own_new" in capsys.readouterr().err


def test_a_frozen_surrogate_is_that_of_the_hopper_itself_which_is_learned_before_it(tmp_path, monkeypatch):
    asked, trained = [], SimpleNamespace(result=SimpleNamespace(outcome=SimpleNamespace(returns_last=np.zeros((2, 3)))))

    def kept_in(folder, config, seeds, start, script):
        asked.append((folder.name, start))
        return trained

    monkeypatch.setattr(hopper.arm_by_arm, "kept_in", kept_in)
    monkeypatch.setattr(hopper.arm_by_arm, "kept_of", lambda run, task, arm, more: {"arm": arm})
    monkeypatch.setattr(hopper, "is_finished", lambda folder: folder.name in dict(asked))
    hopper.stage_train(["mass_2_frozen", "mass_2_new"], 2, tmp_path / "out", tmp_path)
    assert asked == [(hopper.SOURCE, None), ("mass_2_frozen", tmp_path / hopper.SOURCE), ("mass_2_new", None)]
