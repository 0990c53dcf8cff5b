"""What every controller must do, and what each of them is about."""

import contextlib
import functools
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_jax.algorithms import dyna_q
from mbrl_jax.config import ConfigError, ImaginationConfig, check, modelled
from mbrl_jax.imagination import lanes
from mbrl_jax.imagination.disagreement import gjs, information_loss, one_vs_rest
from mbrl_jax.imagination.horizon import CONTROLLERS, controller_settings, make_controller, penalised
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.protocol import Prediction

from .scripted import (
    AXES,
    EVERY,
    JUDGES,
    LANES,
    MEMBERS,
    STEPS,
    TASK,
    calibrated,
    decide,
    ensemble_of,
    first_stop,
    learned_world,
    made,
    predictions,
    real_rows,
    spec_of,
    unfitted,
    views,
)

SEEDS = st.integers(0, 2**31 - 1)
LOCKSTEP = np.broadcast_to(np.arange(STEPS)[:, None], (STEPS, LANES))  # every lane began at the first step


@functools.cache
def judged(name):
    """``(predictions [T, M, K, D]) -> decisions [T, K]`` of a controller on lanes that began together, one real step each."""
    controller = made(name)
    state = calibrated(controller, learned_world()[0])
    if name == "threshold_quantile":
        state = jnp.full_like(state, 0.8)  # an unfitted model's members differ less than those that are made up here
    if name == "infoprop":
        state = state._replace(step_limit=jnp.full(AXES, 7.5), rollout_limit=jnp.full(AXES, 24.0))
    return jax.jit(lambda everyone: decide(controller, state, views(everyone, LOCKSTEP, time=np.arange(STEPS)))[1])


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_members_that_agree_never_stop_a_lane(seed):
    same = predictions(np.random.default_rng(seed), spread=0.0)
    log_variance = np.asarray(same.log_variance)
    same = same._replace(log_variance=np.broadcast_to(log_variance[:, :1], log_variance.shape))
    for name in JUDGES:
        decision = judged(name)(same)
        if name == "three_model":  # it stops by a length that agreement can only lengthen
            assert first_stop(decision).min() >= 5
            continue
        assert not np.asarray(decision.stop).any(), name
        assert np.asarray(decision.keep).all(), name


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, wider=st.floats(1.0, 10.0))
def test_more_disagreement_along_the_way_never_lengthens_a_lane(seed, wider):
    near = predictions(np.random.default_rng(seed))
    mean = np.asarray(near.mean)
    middle = mean[:, :1]
    factor = np.where(np.arange(STEPS) > 0, wider, 1.0).astype(np.float32)[:, None, None, None]  # roots stay as they are
    far = near._replace(mean=middle + factor * (mean - middle))
    for name in JUDGES:
        assert (first_stop(judged(name)(far)) <= first_stop(judged(name)(near))).all(), name


def test_made_up_members_stop_some_lanes_of_every_judge_and_not_all():
    seen = predictions(np.random.default_rng(0))
    for name in JUDGES:
        assert 0 < np.asarray(judged(name)(seen).stop).mean() < 1, name


# ------------------------------------------------------------------------------------------------------ in imagined rollouts

IMAGINATION = ImaginationConfig(lanes=12, steps=4, cap=6, epsilon=0.5, capacity=480)
CONTROLLED = {name: {"controller": controller_settings(name, **EVERY[name])} for name in EVERY} | {
    "threshold by the largest pair": {
        "controller": controller_settings("threshold", **EVERY["threshold"]),
        "measure": "max_pairwise",
    },
    "macura, penalised": {
        "controller": controller_settings("macura", **EVERY["macura"]),
        "penalty": "mopo",
        "penalty_weight": 0.1,
    },
    "infoprop's sampler": {"controller": controller_settings("infoprop", **EVERY["infoprop"]), "sampling": "infoprop"},
    "fused members": {"controller": controller_settings("infoprop", **EVERY["infoprop"]), "sampling": "fused"},
}


def imagine(config, controller, real_steps=10, key=0):
    """Rows [T, K] and logs [real steps] of an unfitted model."""
    world, replay = learned_world(config.sampling)
    params, real = unfitted(world), stored(replay, real_rows(40))
    draws = lanes.draw(config, TASK.spec, world, jax.random.key(key), (real_steps,))

    def policy(observation, explore, random_action):
        return jnp.where(explore < config.epsilon, random_action, (observation[..., 2] > 0).astype(jnp.int32))

    def step(state, x):
        time, draw = x
        state, rows, log = lanes.advance(config, world, controller, state, params, policy, real, time, draw, TASK.dynamics)
        return state, (rows, log)

    state = lanes.calibrated(lanes.init(config, controller, world, params, real), controller, world, params, replay, real)
    _, (rows, log) = jax.lax.scan(step, state, (jnp.arange(real_steps, dtype=jnp.int32), draws))
    return jax.tree.map(lambda leaf: leaf.reshape(real_steps * config.steps, *leaf.shape[2:]), rows), log


def controller_of(config, **numbers):
    controller = make_controller(config.controller.kind, {**EVERY[config.controller.kind], **numbers}, config.measure)
    return penalised(controller, penalty=config.penalty, weight=config.penalty_weight, measure=config.measure)


@pytest.mark.parametrize("name", CONTROLLED)
def test_every_controller_costs_the_same_model_steps_and_its_stops_are_truncations(name, monkeypatch):
    asked = []
    predict = ens.predict

    def counting(ensemble, members, observation, action):
        asked.append(action.shape)
        return predict(ensemble, members, observation, action)

    monkeypatch.setattr(ens, "predict", counting)
    config = replace(IMAGINATION, **CONTROLLED[name])
    controller = controller_of(config)
    rows, log = jax.jit(lambda: imagine(config, controller))()
    everyone = controller.needs_members or config.sampling in ("fused", "infoprop")
    per_step = (MEMBERS, 12) if everyone else (MEMBERS, 12 // MEMBERS)  # the members' forward pass is made once, whoever asks
    assert [shape for shape in asked if shape != (MEMBERS, 40)] == [per_step]  # besides it only the real rows of the calibration
    assert rows.reward.shape == (10 * 4, 12)  # K H rows for each real step, of which some may have no weight
    assert set(np.unique(rows.weight)) <= {0.0, 1.0}
    assert not np.asarray(rows.terminated).any()  # this world does not terminate, so nothing else may
    assert int(jnp.max(rows.depth)) < 6
    np.testing.assert_allclose(jnp.sum(log.histogram, axis=-1), log.kept, rtol=1e-5)
    ended = np.asarray(rows.depth)[1:] == 0  # where the next row is a root's
    assert abs(np.asarray(log.ended).mean() - ended.mean()) < 0.05
    assert (np.asarray(log.stopped) <= np.asarray(log.ended) + 1e-6).all()


FIRST = {name: next(iter(numbers)) for name, numbers in EVERY.items()}


@pytest.mark.parametrize("name", EVERY)
def test_a_grid_of_a_controllers_numbers_times_seeds_is_one_compiled_call(name):
    config = replace(IMAGINATION, controller=controller_settings(name, **EVERY[name]))
    value = EVERY[name][FIRST[name]]
    grid = jnp.asarray([0.5 * value + 0.5, value], jnp.float32)

    def depth(number, key):
        controller = controller_of(config, **{FIRST[name]: number})
        return imagine(config, controller, real_steps=3, key=key)[0].depth

    keys = jnp.arange(2, dtype=jnp.uint32)
    mapped = jax.jit(jax.vmap(jax.vmap(depth, in_axes=(None, 0)), in_axes=(0, None)))(grid, keys)
    assert mapped.shape == (2, 2, 12, 12)
    np.testing.assert_array_equal(mapped[1, 1], jax.jit(depth)(value, 1))


# ------------------------------------------------------------------------------------------------------------ one by one


def test_a_threshold_at_a_quantile_of_the_data_is_passed_by_that_share_of_them():
    world, _ = learned_world()
    params, rows = unfitted(world), real_rows(200)
    controller = made("threshold_quantile", quantile=0.9)
    mark = controller.calibrate(controller.init(LANES, world.spec), world, params, rows, jnp.arange(200) < 100)
    everyone = ens.predict_all(ensemble_of(), params, rows.observation, rows.action)
    spread = np.sqrt(np.asarray(everyone.mean).var(0).mean(-1))
    np.testing.assert_allclose((spread[:100] > float(mark)).mean(), 0.1)


@pytest.mark.parametrize("name", ["threshold_quantile", "infoprop"])
def test_where_features_do_not_tell_where_a_rollout_stands_a_rule_by_real_rows_is_refused(name):
    world = learned_world()[0]._replace(belief=None)
    with pytest.raises(ConfigError, match=r"imagination.controller: it goes by predictions at real states.*name another"):
        calibrated(made(name), world)


def test_an_accumulated_budget_is_whole_again_at_a_new_root():
    even = predictions(np.random.default_rng(0), spread=0.0)
    mean = even.mean.at[:, 0].add(1.0)  # every step costs sqrt(3)/4
    depth = np.broadcast_to((np.arange(STEPS) % 4)[:, None], (STEPS, LANES))
    controller = made("accumulated", budget=2.5 * np.sqrt(3) / 4)
    state = calibrated(controller, learned_world()[0])
    stop = np.asarray(decide(controller, state, views(even._replace(mean=mean), depth))[1].stop)
    assert stop[:, 0].tolist() == [False, False, True, True] * 2


def test_macura_goes_by_the_running_mean_of_a_percentile_at_the_latest_roots():
    seen = predictions(np.random.default_rng(2))
    controller = made("macura", scale=2.0, percentile=50.0, memory=3.0)
    depth = np.zeros((STEPS, LANES), int)
    depth[3] = 1  # no lane is at a root: the mark stays
    _, decision = decide(controller, calibrated(controller, learned_world()[0]), views(seen, depth))
    divergence = np.asarray(jax.vmap(gjs)(seen))
    mark, updates, roots = 0.0, 0, []
    for t in range(STEPS):
        if t != 3:
            roots = (roots + divergence[t].tolist())[-4 * LANES :]
            updates += 1
            mark += (2.0 * np.percentile(roots, 50) - mark) / min(updates, 3)
        np.testing.assert_array_equal(np.asarray(decision.stop)[t], divergence[t] >= mark)
    np.testing.assert_array_equal(decision.keep, ~np.asarray(decision.stop))


def test_the_lane_that_is_exactly_at_macuras_mark_stops():
    seen = predictions(np.random.default_rng(2), shape=(1, MEMBERS, LANES, AXES))
    controller = made("macura", scale=1.0, percentile=100.0, memory=1.0)  # the mark is the largest divergence there is
    state, decision = decide(controller, calibrated(controller, learned_world()[0]), views(seen, np.zeros((1, LANES))))
    divergence = np.asarray(gjs(jax.tree.map(lambda leaf: leaf[0], seen)))
    assert float(state.mark) == divergence.max()
    expected = np.arange(LANES) == divergence.argmax()
    np.testing.assert_array_equal(decision.stop[0], expected)
    np.testing.assert_array_equal(decision.keep[0], ~expected)


def test_m2ac_keeps_the_least_uncertain_share_of_the_lanes_at_each_depth():
    lanes_ = 12
    seen = predictions(np.random.default_rng(4), shape=(1, MEMBERS, lanes_, AXES))
    depth = np.array([[0] * 6 + [2] * 5 + [1]])
    controller = make_controller("m2ac", {"length": 4.0, "penalty": 0.5})
    _, decision = decide(controller, (), views(seen, depth))
    member = jnp.arange(lanes_, dtype=jnp.int32) % MEMBERS
    divergence = np.asarray(one_vs_rest(jax.tree.map(lambda leaf: leaf[0], seen), member))
    for places, kept in ((range(6), 3), (range(6, 11), 1), (range(11, 12), 1)):  # of 4/10, 2/10 and 3/10, rounded up
        best = sorted(places, key=lambda k: divergence[k])[:kept]
        assert sorted(np.flatnonzero(np.asarray(decision.keep)[0][list(places)]) + places[0]) == sorted(best)
    np.testing.assert_allclose(decision.penalty[0], 0.5 * divergence, rtol=1e-6)
    assert not np.asarray(decision.stop).any()


@pytest.mark.parametrize(("lanes_", "kept"), [(8, 4), (7, 4), (1, 1)])
@pytest.mark.parametrize("length", [1.0, jnp.float32(1.0)])
def test_m2ac_of_length_one_keeps_the_least_uncertain_half_rounded_up_and_stops_every_lane(lanes_, kept, length):
    seen = predictions(np.random.default_rng(4), shape=(1, MEMBERS, lanes_, AXES))
    controller = make_controller("m2ac", {"length": length, "penalty": 0.5})
    _, decision = decide(controller, (), views(seen, np.zeros((1, lanes_))))
    member = jnp.arange(lanes_, dtype=jnp.int32) % MEMBERS
    divergence = np.asarray(one_vs_rest(jax.tree.map(lambda leaf: leaf[0], seen), member))
    assert set(np.flatnonzero(decision.keep[0])) == set(np.argsort(divergence)[:kept])
    assert np.asarray(decision.stop).all()
    np.testing.assert_allclose(decision.penalty[0], 0.5 * divergence, rtol=1e-6)


def test_a_halt_takes_its_weight_in_place_of_the_controllers_own_penalty_and_leaves_that_where_nothing_stops():
    seen = predictions(np.random.default_rng(4), shape=(1, MEMBERS, LANES, AXES))
    depth = np.array([[0, 1, 0, 1, 0, 1]])
    for length, stopped in ((1.0, [True] * 6), (2.0, [False, True] * 3)):
        own = make_controller("m2ac", {"length": length, "penalty": 0.5})
        _, before = decide(own, (), views(seen, depth))
        _, decision = decide(penalised(own, penalty="halt", weight=2.0), (), views(seen, depth))
        assert (np.asarray(before.penalty) > 0).all()
        assert decision.halt[0].tolist() == stopped
        np.testing.assert_array_equal(decision.penalty, np.where(stopped, 2.0, before.penalty))
        np.testing.assert_array_equal(decision.keep, before.keep | decision.halt)


def test_infoprop_stops_for_what_one_step_loses_and_for_what_the_rollout_has_lost():
    even = predictions(np.random.default_rng(0), spread=0.0)
    even = even._replace(log_variance=jnp.full_like(even.log_variance, -2.0), mean=even.mean.at[:, 0].add(0.3))
    loss = np.asarray(information_loss(jax.tree.map(lambda leaf: leaf[0], even), 0.01))  # the same at every step
    controller = made("infoprop")
    for step_limit, rollout_limit, expected in ((0.99, 100, 0), (1.01, 2.5, 2), (1.01, 100, STEPS)):
        state = controller.init(LANES, spec_of())
        limit = jnp.asarray(loss[0])
        state = state._replace(step_limit=step_limit * limit, rollout_limit=rollout_limit * limit)
        _, decision = decide(controller, state, views(even, LOCKSTEP))
        assert first_stop(decision).tolist() == [expected] * LANES


def test_three_models_move_one_horizon_by_one_after_each_real_step():
    spread = np.array([0.1, 0.1, 0.1, 5.0, 5.0, 1.0, 1.0, 0.1])  # real step by real step
    mean = np.zeros((STEPS, MEMBERS, LANES, AXES), np.float32)
    mean[:, 0] += np.sqrt(9 / 2) * spread[:, None, None]  # the deviation of (x, 0, 0) is x sqrt(2/9)
    mean[:, 3] = 1e6  # the fourth is not asked
    everyone = Prediction(jnp.asarray(mean), jnp.zeros_like(mean), None)
    controller = make_controller("three_model", {"low": 0.5, "high": 2.0, "first": 2.0, "limit": 4.0})
    depth = np.broadcast_to(np.arange(LANES)[None], (STEPS, LANES))
    _, decision = decide(controller, controller.init(LANES, spec_of()), views(everyone, depth, time=np.arange(STEPS)))
    lengths = [int(stop.argmax()) + 1 for stop in np.asarray(decision.stop)]
    assert lengths == [2, 3, 4, 4, 3, 2, 2, 2]


def test_three_models_are_three():
    with pytest.raises(ConfigError, match=r"model.members: 2 imagine.*three_model.*first 3"):
        made("three_model").init(LANES, spec_of(members=2))


def test_the_oracle_stops_where_the_imagined_state_is_far_from_the_true_one():
    config = replace(IMAGINATION, controller=controller_settings("oracle", **EVERY["oracle"]), cap=1_000)
    marks = [0.0, 1.2, 1e6]
    depths = []
    for mark in marks:
        rows, _ = jax.jit(lambda mark=mark: imagine(config, controller_of(config, mark=mark)))()
        depths.append(int(jnp.max(rows.depth)))
    assert depths[0] == 0  # nothing that is imagined is quite true
    assert 0 < depths[1] < depths[2] == 39


@pytest.mark.parametrize("measure", ["max_pairwise", "std"])
def test_penalties_are_taken_from_the_reward_and_change_nothing_else(measure):
    base = replace(IMAGINATION, controller=controller_settings("threshold", **EVERY["threshold"]), measure=measure)
    plain = jax.jit(lambda: imagine(base, controller_of(base)))()[0]
    for penalty in ("mopo", "disagreement"):
        config = replace(base, penalty=penalty, penalty_weight=0.5)
        rows = jax.jit(lambda config=config: imagine(config, controller_of(config)))()[0]
        np.testing.assert_array_equal(rows.next_observation, plain.next_observation)
        np.testing.assert_array_equal(rows.depth, plain.depth)
        assert (np.asarray(rows.reward) < np.asarray(plain.reward)).all()
    config = replace(base, penalty="bonus", penalty_weight=0.5)
    added = jax.jit(lambda config=config: imagine(config, controller_of(config)))()[0]
    np.testing.assert_allclose(added.reward - plain.reward, plain.reward - rows.reward, rtol=1e-3, atol=1e-6)


def test_a_halt_is_a_terminal_with_the_weight_as_its_loss_and_is_kept():
    config = replace(
        IMAGINATION, controller=controller_settings("macura", **EVERY["macura"]), penalty="halt", penalty_weight=7.0, cap=1_000
    )
    rows, log = jax.jit(lambda: imagine(config, controller_of(config)))()
    halted = np.asarray(rows.terminated)
    assert 0 < halted.mean() < 1
    np.testing.assert_allclose(np.asarray(rows.reward)[halted], -7.0, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(rows.reward)[~halted], 1.0)
    assert (np.asarray(rows.weight) == 1).all()  # macura alone would drop the rows at which it stops
    np.testing.assert_array_equal(np.asarray(rows.depth)[1:] == 0, halted[:-1])
    assert float(jnp.max(log.terminated)) == 0.0  # the imagined task itself did not end
    np.testing.assert_allclose(np.mean(log.stopped), halted.mean(), rtol=1e-6)


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ConfigError, match=r"imagination.penalty: 'mobo' is not known.*none, mopo, disagreement, bonus, halt"):
        penalised(made("fixed"), penalty="mobo", weight=1.0)


BAD = [
    ("fixed", {"length": 0.0}, r"controller.length: 0.0 is out of range for 'fixed'; it must be at least 1"),
    ("threshold", {"mark": -1.0}, r"controller.mark: -1.0"),
    ("threshold_quantile", {"quantile": 1.5}, r"controller.quantile: 1.5.*at most 1"),
    ("macura", {"percentile": 101.0}, r"controller.percentile: 101.0.*at most 100"),
    ("macura", {"memory": 0.0}, r"controller.memory: 0.0"),
    ("infoprop", {"resolution": 0.0}, r"controller.resolution: 0.0.*above 0"),
    ("oracle", {"mark": float("nan")}, r"controller.mark: nan"),
]


@pytest.mark.parametrize(("name", "numbers", "message"), BAD)
def test_numbers_out_of_range_are_refused_by_name(name, numbers, message):
    with pytest.raises(ConfigError, match=message):
        made(name, **numbers)


def test_a_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match=r"controller.end: 6.0 does not fit; it must be above start \(6.0\)"):
        made("schedule", start=6.0)


CANNOT = [
    (
        {"controller": controller_settings("threshold", **EVERY["threshold"])},
        {"members": 1},
        "model.members: 1 imagine.*'threshold' goes by how members differ",
    ),
    (
        {"controller": controller_settings("macura", **EVERY["macura"])},
        {"prediction": "deterministic"},
        "model.prediction: 'deterministic' does not fit; 'macura'.*'gaussian'",
    ),
    (
        {"controller": controller_settings("threshold", **EVERY["threshold"]), "measure": "gjs"},
        {"prediction": "deterministic"},
        "model.prediction: 'deterministic' does not fit",
    ),
    ({"penalty": "mopo"}, {"prediction": "deterministic"}, "model.prediction: 'deterministic' does not fit"),
    (
        {"controller": controller_settings("m2ac", **EVERY["m2ac"]), "sampling": "mean"},
        {},
        "imagination.sampling: 'mean' does not fit; 'm2ac' needs one member",
    ),
    (
        {"controller": controller_settings("three_model", **EVERY["three_model"])},
        {"elites": 2},
        "model.members: 2 imagine.*'three_model' asks the first 3",
    ),
    ({"sampling": "fused"}, {"prediction": "deterministic"}, "imagination.sampling: 'fused' does not fit.*'gaussian'"),
    ({"sampling": "infoprop"}, {"prediction": "deterministic"}, "imagination.sampling: 'infoprop' does not fit.*'gaussian'"),
    *(
        (
            {"penalty": "halt", "controller": controller_settings(name, **EVERY[name])},
            {},
            f"imagination.penalty: 'halt' does not fit; .*'{name}' stops by depth alone",
        )
        for name in ("fixed", "schedule", "m2ac", "three_model")
    ),
]


@pytest.mark.parametrize(("imagination", "model", "message"), CANNOT)
def test_what_a_controller_cannot_go_with_is_refused_before_anything_compiles(tiny, imagination, model, message):
    config = replace(
        tiny,
        imagination=replace(tiny.imagination, **imagination),
        model=replace(tiny.model, **{"members": 4, **model}),
    )
    with pytest.raises(ConfigError, match=message):
        dyna_q.make_train(config)


@pytest.mark.parametrize("name", EVERY)
def test_the_halt_goes_with_every_controller_that_stops_by_what_it_sees_of_the_model(tiny, name):
    by_depth = name in modelled.STOPS_BY_DEPTH
    imagination = replace(tiny.imagination, controller=controller_settings(name, **EVERY[name]), penalty="halt")
    with pytest.raises(ConfigError, match="halt") if by_depth else contextlib.nullcontext():
        check(replace(tiny, imagination=imagination))
    even, uneven = (
        predictions(np.random.default_rng(0), spread=spread, shape=(1, MEMBERS, LANES, AXES)) for spread in (0.0, 9.0)
    )
    controller, depth = made(name), np.array([[0, 1, 2, 3, 4, 5]])
    state = calibrated(controller, learned_world()[0])

    def stops(seen, truth):
        view = views(seen, depth)._replace(truth=jnp.full((1, LANES, AXES), truth))
        if name == "drift":  # which goes by the state that was reached, not by what members say of it
            view = view._replace(next_observation=view.truth)
        return np.asarray(decide(controller, state, view)[1].stop).tolist()

    assert (stops(even, 0.0) == stops(uneven, 9.0)) == by_depth


def test_a_task_whose_dynamics_are_not_known_is_refused_by_the_oracle(tiny):
    config = replace(tiny, imagination=replace(tiny.imagination, controller=controller_settings("oracle", **{"mark": 1.0})))
    with pytest.raises(ConfigError, match="environment.name: 'CartPole-v1' does not fit; 'oracle' needs known real dynamics"):
        dyna_q.make_train(config, environment=TASK._replace(dynamics=None))


def test_steve_with_one_network_is_refused(tiny):
    with pytest.raises(ConfigError, match="agent.members: 1 does not fit; the target 'steve'.*at least 2"):
        dyna_q.make_train(replace(tiny, agent=replace(tiny.agent, target="steve")))


def test_settings_of_a_controller_go_to_another_process():
    settings = controller_settings("schedule", start=0, end=10, first=1, last=4)
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert type(again) is type(settings)


def test_every_registered_controller_is_tested_here():
    ours = {name for name, function in CONTROLLERS.items() if function.__module__.startswith("mbrl_jax.")}
    elsewhere = {
        "gradient_error",
        "model_share",
    }  # which go by what lanes do not see: test_gradient_error.py, test_interpolation.py
    assert {*EVERY, *elsewhere} == ours
