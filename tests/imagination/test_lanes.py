import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from dreams import LIMIT, NOISE, SPEED, dream
from ensembles import stored, world_of

from mbrl_jax import environments, replay
from mbrl_jax.algorithms import training
from mbrl_jax.config import EnvironmentConfig, ImaginationConfig, ModelConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import horizon, lanes
from mbrl_jax.imagination.horizon import Decision, HorizonController, controller_settings
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.replay import Rows

LANES, MEMBERS, CAPACITY = 12, 3, 40
TASK = make_environment(EnvironmentConfig())


def config(**changes):
    made = ImaginationConfig(
        lanes=LANES, steps=4, cap=1_000, epsilon=0.5, controller=controller_settings("fixed", length=1_000.0)
    )
    return replace(made, **changes)


def world(terminated=lambda s, a, s2: jnp.zeros(s2.shape[:-1], bool), **changes):
    """An unfitted ensemble, in a world that does not terminate unless told to."""
    return Ensemble(ModelConfig(members=MEMBERS, hidden=(8, 8), **changes), TASK.spec, TASK.reward, terminated)


class Real(NamedTuple):
    """Real states, in numpy and as a replay."""

    rows: Rows
    stored: replay.ReplayState


@pytest.fixture(scope="module")
def real():
    observation = np.random.default_rng(1).uniform(-0.04, 0.04, (CAPACITY, 4)).astype(np.float32)
    ones, zeros = np.ones(CAPACITY, np.float32), np.zeros(CAPACITY, np.int32)
    rows = Rows(
        observation=observation,
        next_observation=observation,
        action=zeros,
        reward=ones,
        terminated=ones < 0,
        weight=ones,
        depth=zeros,
    )
    return Real(rows, stored(replay.make_replay(TASK.spec, CAPACITY), rows))


@functools.cache
def unfitted_and_drawn(sampling, prediction, steps, real_steps, key):
    """An ensemble's members before any fit, and in numpy the draws of consecutive real steps."""
    learned, settings = world_of(world(prediction=prediction), CAPACITY, by=sampling)[0], config(sampling=sampling, steps=steps)
    members = jax.jit(lambda key: learned.acting(learned.init(key)))(jax.random.key(7))
    draws = jax.jit(lambda key: lanes.draw(settings, TASK.spec, learned, key, (real_steps,)))(jax.random.key(key))
    return members, jax.tree.map(np.asarray, draws)


def imagine(settings, ensemble, real, controller=None, real_steps=6, key=0):
    """Rows [real_steps, H, K], logs [real_steps] and the draws of consecutive real steps, and the members."""
    controller = horizon.fixed(length=settings.controller.length) if controller is None else controller
    world, _ = world_of(ensemble, CAPACITY, by=settings.sampling)
    members, draws = unfitted_and_drawn(settings.sampling, ensemble.config.prediction, settings.steps, real_steps, key)

    def policy(observation, explore, random_action):
        greedy = (observation[..., 2] > 0).astype(jnp.int32)
        return jnp.where(explore < settings.epsilon, random_action, greedy)

    def step(state, inputs):
        time, draw = inputs
        state, rows, log = lanes.advance(settings, world, controller, state, members, policy, real.stored, time, draw)
        return state, (rows, log)

    @jax.jit
    def run(draws):
        state = lanes.init(settings, controller, world, members, real.stored)
        return jax.lax.scan(step, state, (jnp.arange(real_steps, dtype=jnp.int32), draws))[1]

    rows, log = jax.tree.map(np.asarray, run(draws))
    return rows, log, draws, members


def in_time_order(rows):
    """Leaves [real_steps * H, K, ...]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), rows)


@pytest.mark.parametrize("restart", ["streaming", "per_step"])
@pytest.mark.parametrize("length", [1, 3])
def test_every_real_step_yields_lanes_times_steps_rows_under_any_controller(real, restart, length):
    settings = config(restart=restart, controller=controller_settings("fixed", length=float(length)))
    rows, _, _, _ = imagine(settings, world(), real)
    assert rows.reward.shape == (6, 4, LANES)
    assert np.isfinite(np.asarray(rows.next_observation)).all()


def test_streaming_keeps_every_row_and_per_step_idles_after_an_end(real):
    streaming = imagine(config(controller=controller_settings("fixed", length=3.0)), world(), real)[0]
    assert bool(jnp.all(streaming.weight == 1))
    idling = imagine(config(restart="per_step", controller=controller_settings("fixed", length=3.0)), world(), real)[0]
    assert bool(jnp.all(idling.weight[:, :3] == 1))
    assert bool(jnp.all(idling.weight[:, 3] == 0))


def test_a_lane_goes_on_from_where_it_stood_and_a_new_root_is_a_real_state(real):
    rows = in_time_order(imagine(config(controller=controller_settings("fixed", length=3.0)), world(), real)[0])
    roots = real.rows.observation
    for step in range(1, len(rows.depth)):
        going = rows.depth[step] > 0
        np.testing.assert_array_equal(rows.observation[step][going], rows.next_observation[step - 1][going])
        for root in rows.observation[step][~going]:
            assert (roots == root).all(axis=1).any()
    assert set(rows.depth.ravel()) == {0, 1, 2}


def test_the_root_is_the_row_that_the_draw_names(real):
    settings = config(controller=controller_settings("fixed", length=1.0))
    rows, _, draws, _ = imagine(settings, world(), real)
    named = real.rows.observation[draws.root % CAPACITY]
    np.testing.assert_array_equal(rows.observation, named)


def test_fixed_with_a_cap_of_the_same_length_is_plain_rollouts(real):
    by_controller = imagine(config(controller=controller_settings("fixed", length=2.0)), world(), real)[0]
    by_cap = imagine(config(cap=2), world(), real)[0]
    jax.tree.map(np.testing.assert_array_equal, by_controller, by_cap)


def test_fixed_with_its_own_cap_makes_plain_rollouts_of_that_length(real):
    settings = config(cap=4, controller=controller_settings("fixed", length=4.0), epsilon=1.0)  # four steps for every real one
    ensemble = world()
    rows, _, draws, members = imagine(settings, ensemble, real)
    roots = real.rows.observation

    @jax.jit
    def step(state, action, member, noise):  # one lane by its member alone
        own = members._replace(
            **{name: jax.tree.map(lambda leaf: leaf[member][None], getattr(members, name)) for name in ("params", "bounds")}
        )
        one = ens.predict(ensemble, own, state[None, None], action[None, None])
        one = jax.tree.map(lambda leaf: leaf[0, 0], one)
        return ens.decode(ensemble, members.normaliser, one, state, action, noise).next_observation

    for time in range(2):
        for lane in range(0, LANES, 5):
            state = roots[int(draws.root[time, 0, lane]) % CAPACITY]
            for h in range(4):
                member = int(np.flatnonzero(np.asarray(draws.model.deal[time, h]) == lane)[0]) // (LANES // MEMBERS)
                action = draws.action[time, h, lane]
                np.testing.assert_allclose(rows.observation[time, h, lane], state, atol=1e-5)
                state = step(state, action, np.int32(member), draws.model.noise[time, h, lane])
                np.testing.assert_allclose(rows.next_observation[time, h, lane], state, atol=1e-5)


def test_a_stop_or_the_cap_is_never_stored_as_a_termination(real):
    rows = imagine(config(cap=2), world(TASK.terminated), real)[0]
    assert 0 < np.asarray(rows.terminated).mean() < 1
    known = jax.jit(TASK.terminated)(rows.observation, rows.action, rows.next_observation)
    np.testing.assert_array_equal(rows.terminated, known)


def test_a_lane_that_terminates_takes_a_new_root(real):
    rows = in_time_order(imagine(config(), world(lambda s, a, s2: s2[..., 2] > 0), real)[0])
    assert 0 < rows.terminated.mean() < 1
    np.testing.assert_array_equal(rows.depth[1:] == 0, rows.terminated[:-1])


def test_keep_stop_cap_and_penalty_are_four_separate_knobs(real):
    def step(state, view):
        odd = view.depth % 2 == 1
        return state, Decision(keep=~odd, stop=jnp.zeros_like(odd), penalty=jnp.where(odd, 0.25, 0.0))

    controller = HorizonController(lambda lanes, spec: (), lambda state, *_: state, step)
    rows = imagine(config(cap=4), world(), real, controller)[0]
    assert rows.depth[0].tolist() == [[step] * LANES for step in range(4)]  # neither keep nor penalty ends a lane
    odd = np.asarray(rows.depth) % 2 == 1
    np.testing.assert_array_equal(rows.weight, 1.0 - odd)
    np.testing.assert_allclose(rows.reward, np.where(odd, 0.75, 1.0))


def test_a_controller_carries_its_state_and_sees_the_real_time(real):
    def step(state, view):
        steps, _ = state
        return (steps + 1, view.time), Decision(view.active, steps >= 5, 0.0 * view.reward)

    def init(lanes, spec):
        return jnp.zeros(lanes, jnp.int32), jnp.zeros((), jnp.int32)

    controller = HorizonController(init, lambda state, *_: state, step)
    rows = in_time_order(imagine(config(), world(), real, controller)[0])
    assert (rows.depth[:6, 0] == np.arange(6)).all()
    assert (rows.depth[6:] == 0).all()


@pytest.mark.parametrize("sampling", ["ts1", "ts_infinity"])
def test_asking_for_all_members_changes_nothing_that_is_imagined(real, sampling):
    def keep_all(needs_members):
        def step(state, view):
            assert (view.everyone is not None) is needs_members
            if needs_members:
                assert view.everyone.mean.shape == (MEMBERS, LANES, 4)
                assert view.everyone.log_variance.shape == (MEMBERS, LANES, 4)
            return state, Decision(view.active, view.depth >= 2, 0.0 * view.reward)

        return HorizonController(lambda lanes, spec: (), lambda state, *_: state, step, needs_members)

    settings = config(sampling=sampling)
    without = imagine(settings, world(), real, keep_all(False))[0]
    with_all = imagine(settings, world(), real, keep_all(True))[0]
    np.testing.assert_allclose(without.next_observation, with_all.next_observation, atol=1e-5)
    np.testing.assert_array_equal(without.action, with_all.action)


def member_that_explains(rows, members, ensemble):
    """[...] int, which deterministic member maps each row's s, a to its s'."""
    ask = (MEMBERS, *rows.action.shape)
    flat = jax.tree.map(lambda x: np.broadcast_to(x[None], ask + x.shape[rows.action.ndim :]), rows)
    observation, action = flat.observation.reshape(MEMBERS, -1, 4), flat.action.reshape(MEMBERS, -1)

    @jax.jit
    def imagined(observation, action):
        prediction = ens.predict(ensemble, members, observation, action)
        return ens.decode(ensemble, members.normaliser, prediction, observation, action, None).next_observation

    error = np.abs(np.asarray(imagined(observation, action)).reshape(*ask, 4) - rows.next_observation[None])
    error = np.max(error / (1 + np.abs(rows.next_observation[None])), axis=-1)
    assert error.min(axis=0).max() < 1e-5
    return error.argmin(axis=0)


def test_ts1_deals_lanes_evenly_and_anew_at_every_step(real):
    ensemble = world(prediction="deterministic")
    rows, _, _, members = imagine(config(), ensemble, real)
    member = member_that_explains(rows, members, ensemble).reshape(-1, LANES)
    for step in member:
        assert np.bincount(step, minlength=MEMBERS).tolist() == [LANES // MEMBERS] * MEMBERS
    assert len({tuple(step) for step in member}) > len(member) // 2


def test_ts_infinity_stays_with_one_member_and_uses_all_of_them_evenly(real):
    ensemble = world(prediction="deterministic")
    rows, _, _, members = imagine(config(sampling="ts_infinity"), ensemble, real)
    member = member_that_explains(rows, members, ensemble).reshape(-1, LANES)
    assert (member == member[0]).all()
    assert np.bincount(member[0]).tolist() == [LANES // MEMBERS] * MEMBERS


def test_the_view_names_the_member_that_predicted(real):
    def step(state, view):
        return state, Decision(view.active, view.active, view.member.astype(view.reward.dtype))

    ensemble = world(prediction="deterministic")
    controller = HorizonController(lambda lanes, spec: (), lambda state, *_: state, step)
    rows, _, _, members = imagine(config(), ensemble, real, controller)
    np.testing.assert_array_equal(1.0 - np.asarray(rows.reward), member_that_explains(rows, members, ensemble))


def test_the_ensemble_mean_moves_every_lane_by_the_mean_of_all_members(real):
    ensemble = world(prediction="deterministic")
    rows, _, _, members = imagine(config(sampling="mean"), ensemble, real)
    observation = rows.observation.reshape(-1, 4)
    action = rows.action.reshape(-1)
    each = jax.jit(lambda observation, action: ens.predict(ensemble, members, observation, action))(
        np.broadcast_to(observation[None], (MEMBERS, *observation.shape)), np.broadcast_to(action[None], (MEMBERS, *action.shape))
    )
    expected = observation + np.asarray(each.mean).mean(axis=0)  # an unfitted model's statistics are the identity
    np.testing.assert_allclose(rows.next_observation.reshape(-1, 4), expected, atol=1e-6)


def test_lanes_of_one_step_have_noise_of_their_own(real):
    draws = imagine(config(), world(), real)[2]
    noise = np.asarray(draws.model.noise).reshape(-1, 4)
    assert len(np.unique(noise.round(6), axis=0)) == len(noise)
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


def test_the_imagination_policy_explores_at_its_rate(real):
    rows, _, draws, _ = imagine(config(epsilon=0.25), world(), real, real_steps=50)
    explored = np.asarray(draws.explore) < 0.25
    assert abs(explored.mean() - 0.25) < 0.03
    np.testing.assert_array_equal(np.asarray(rows.action)[explored], np.asarray(draws.action)[explored])
    greedy = (np.asarray(rows.observation)[..., 2] > 0).astype(int)
    np.testing.assert_array_equal(np.asarray(rows.action)[~explored], greedy[~explored])


def test_the_log_counts_what_happened(real):
    rows, log, _, _ = imagine(config(restart="per_step", controller=controller_settings("fixed", length=3.0)), world(), real)
    np.testing.assert_allclose(log.kept, 0.75)
    np.testing.assert_allclose(log.depth, 2.0)
    np.testing.assert_allclose(log.stopped, 0.25)
    np.testing.assert_allclose(log.terminated, np.asarray(rows.terminated).mean(axis=(1, 2)))


def one_real_step(task, settings):
    """Transitions [CAPACITY] of a task, the draws of one real step, and the rows [H, K] that random actions imagine in it."""
    collect = jax.jit(lambda key: environments.collect(task, environments.draw_collection(task, key, CAPACITY)))
    _, transitions, _ = collect(jax.random.key(3))
    ensemble = Ensemble(ModelConfig(members=MEMBERS, hidden=(8, 8)), task.spec, task.reward, task.terminated)
    world, replay = world_of(ensemble, CAPACITY)
    params = jax.jit(lambda key: world.acting(world.init(key)))(jax.random.key(7))
    real = stored(replay, training.real_rows(transitions))
    draws = jax.jit(lambda key: lanes.draw(settings, task.spec, world, key, (1,)))(jax.random.key(0))
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[0], draws)
    fixed = horizon.fixed(length=settings.controller.length)

    def policy(observation, explore, random_action):
        return random_action

    @jax.jit
    def advance(draws):
        state = lanes.init(settings, fixed, world, params, real)
        return lanes.advance(settings, world, fixed, state, params, policy, real, jnp.int32(0), draws)[1]

    return transitions, draws, advance(draws)


@pytest.mark.parametrize("numbers", [1, 2, 3, 6])
def test_lanes_begin_in_real_states_whatever_the_numbers_of_an_action(numbers):
    transitions, draws, rows = one_real_step(worlds.points(numbers), config(controller=controller_settings("fixed", length=1.0)))
    np.testing.assert_array_equal(rows.observation, np.asarray(transitions.observation)[np.asarray(draws.root) % CAPACITY])
    np.testing.assert_array_equal(rows.action, draws.action)


def test_no_imagined_state_exceeds_the_limits_of_a_task_that_has_some_and_lanes_go_on_from_them():
    task = make_environment(EnvironmentConfig(name="Pendulum-v1"))
    _, _, rows = one_real_step(task, config())
    reached = np.abs(np.asarray(rows.next_observation))
    assert (reached <= np.array(task.spec.observation_limits)).all()
    assert (reached[..., :2] == 1).any()  # the unfitted members' noise leads far
    np.testing.assert_array_equal(rows.observation[1:], rows.next_observation[:-1])
    np.testing.assert_allclose(rows.reward, task.reward(rows.observation, rows.action, rows.next_observation), rtol=1e-5)


# ------------------------------------------------------------------------------------------ rollouts that stand elsewhere


class Dreamt(NamedTuple):
    """What lanes made of a world whose beliefs are dictionaries: leaves [T, K, ...] in the order of time."""

    rows: Rows
    draws: Any
    places: np.ndarray  # [CAPACITY, 2] the real ones
    before: lanes.Lanes
    after: lanes.Lanes


PLACES = replay.make_replay(worlds.points(2, discrete=True).spec, CAPACITY)


def dream_of(settings, controller, real_steps=5):
    world = dream(PLACES)
    places = jax.random.uniform(jax.random.key(1), (CAPACITY, 2), minval=-1.0, maxval=1.0)
    ones = jnp.ones(CAPACITY)
    rows = Rows(places, places, jnp.zeros(CAPACITY, jnp.int32), ones, ones < 0, ones, jnp.zeros(CAPACITY, jnp.int32))
    real, params = stored(PLACES, rows), world.acting(world.init(jax.random.key(0)))
    draws = lanes.draw(settings, worlds.points(2, discrete=True).spec, world, jax.random.key(2), (real_steps,))

    def policy(features, explore, random_action):
        assert features.shape == (LANES, 3)
        return jnp.where(explore < settings.epsilon, random_action, (features[..., 2] > 1).astype(jnp.int32))

    def step(state, inputs):
        time, drawn = inputs
        state, rows, _ = lanes.advance(settings, world, controller, state, params, policy, real, time, drawn)
        return state, rows

    before = lanes.init(settings, controller, world, params, real)
    times = jnp.arange(real_steps, dtype=jnp.int32)
    after, rows = jax.jit(lambda state: jax.lax.scan(step, state, (times, draws)))(before)
    return Dreamt(in_time_order(rows), in_time_order(draws), np.asarray(places), before, after)


def by_the_root(length):
    """Stops at a length, and takes the root's first and third feature from the reward."""

    def step(state, view):
        assert view.root.shape == view.observation.shape == view.next_observation.shape == (LANES, 3)
        assert view.everyone.mean.shape == (2, LANES, 2)
        return state, Decision(view.active, view.depth + 1 >= length, view.root[:, 0] + view.root[:, 2])

    return HorizonController(lambda lanes, spec: (), lambda state, *_: state, step, needs_members=True)


@pytest.mark.parametrize(("restart", "cap", "length"), [("streaming", 100, 3), ("streaming", 2, 100), ("per_step", 100, 100)])
def test_lanes_carry_whatever_a_rollout_stands_on_and_a_new_root_replaces_all_of_it(restart, cap, length):
    settings = config(restart=restart, cap=cap)
    found = dream_of(settings, by_the_root(length))
    rows, draws = found.rows, found.draws
    begins = rows.depth == 0
    real_step = np.arange(len(rows.depth)) // settings.steps
    root = np.zeros((LANES, 2))
    for t in range(len(rows.depth)):
        named = found.places[draws.root[t] % CAPACITY]
        root = np.where(begins[t][:, None], named, root)
        stood = np.concatenate([named, np.zeros((LANES, 1))], axis=1)
        if t > 0:
            assert restart == "streaming" or begins[t].all() == (real_step[t] != real_step[t - 1])
            stood = np.where(begins[t][:, None], stood, rows.next_observation[t - 1])
        np.testing.assert_array_equal(rows.observation[t], stood.astype(np.float32))
        speed = np.repeat(SPEED, LANES // 2) * (2 * rows.action[t] - 1)
        place = rows.observation[t, :, :2] + speed[:, None] + NOISE * draws.model["push"][t]
        np.testing.assert_allclose(rows.next_observation[t, :, :2], place, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows.reward[t], place[:, 0] - root[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rows.observation[..., 2], rows.depth)  # the clock is that of the rollout
    np.testing.assert_array_equal(rows.next_observation[..., 2], rows.depth + 1)
    np.testing.assert_array_equal(rows.terminated, rows.depth + 1 >= LIMIT)
    longest = {"streaming": min(cap, length, LIMIT), "per_step": settings.steps}[restart]
    assert set(rows.depth.ravel()) == set(range(longest))


def test_lanes_begin_and_end_with_the_arrays_that_the_world_gave_them():
    found = dream_of(config(), by_the_root(3))
    for state in (found.before, found.after):
        for belief in (state.belief, state.root):
            assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), belief) == {
                "place": ((LANES, 2), "float32"),
                "clock": ((LANES,), "int32"),
            }
    np.testing.assert_array_equal(found.after.belief["place"], found.rows.next_observation[-1, :, :2])
    assert (np.asarray(found.before.belief["place"]) == 0).all()


def test_lanes_are_made_from_shapes_alone():
    world = dream(PLACES)
    params, real = jax.eval_shape(lambda key: (world.acting(world.init(key)), PLACES.init()), jax.random.key(0))
    fresh = lanes.init(config(), by_the_root(3), world, params, real)
    assert fresh.belief["clock"].shape == (LANES,)
