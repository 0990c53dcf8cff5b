"""What training loops share, phase by phase."""

import types
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from dreams import MEMBERS, SPEED, dream
from ensembles import rows_of, stored

from mbrl_jax import draws
from mbrl_jax.agents.protocol import Agent, Policy, without_memory
from mbrl_jax.algorithms import phases
from mbrl_jax.algorithms.phases import Imagination
from mbrl_jax.algorithms.selection import Snapshot
from mbrl_jax.algorithms.training import Stream, draw_behaviour, stream
from mbrl_jax.config import ConfigError, EvaluationConfig, SelectionConfig
from mbrl_jax.evaluation import play, play_imagined
from mbrl_jax.imagination import lanes
from mbrl_jax.imagination.horizon import Decision, HorizonController, fixed
from mbrl_jax.replay import Rows, make_replay

TASK = worlds.points(2, discrete=True)
KEY = jax.random.key(8, impl="threefry2x32")


# ------------------------------------------------------------------------------------------------ what is collected at random

N = 200


def test_noise_is_drawn_in_the_batch_protocol_alone(tiny, cartpole):
    for protocol, drawn in (("batch", True), ("interactive", False)):
        config = replace(tiny, protocol=protocol)
        replay = make_replay(cartpole.spec, config.real_transitions)
        begin = jax.make_jaxpr(
            lambda key, hyper, config=config, replay=replay: phases.begin(config, cartpole, replay, key, hyper)
        )
        assert ("erf_inv" in str(begin(KEY, config))) == drawn


@pytest.fixture(scope="module")
def collected(cartpole):
    """``(noise) -> the replay's rows, the episode in progress, the returns``, on the same key."""

    @jax.jit
    def collect(noise):
        replay = make_replay(cartpole.spec, N)
        state, filled, returns = phases.collect(cartpole, replay, jax.random.key(3), N, noise)
        return replay.contents(filled)[0], state, returns

    return lambda noise: jax.device_get(collect(jnp.float32(noise)))


@pytest.fixture(scope="module")
def true(cartpole):
    replay = make_replay(cartpole.spec, N)
    state, filled, returns = phases.collect(cartpole, replay, jax.random.key(3), N)
    return jax.device_get((replay.contents(filled)[0], state, returns))


def test_measurements_without_noise_are_the_true_rows(collected, true):
    jax.tree.map(np.testing.assert_array_equal, collected(0.0), true)


def test_every_state_is_measured_once_with_the_noise_that_was_drawn_for_it(collected, true, cartpole):
    rows, exact = collected(0.1)[0], true[0]
    key1, key2 = jax.random.split(stream(jax.random.key(3), Stream.OBSERVATION_NOISE))
    before, after = (np.asarray(draws.normal(key, (N, 4))) for key in (key1, key2))
    deviation = 0.1 * np.array(cartpole.spec.observation_scale)
    begins = exact.depth == 0
    assert 1 < begins.sum() < N
    np.testing.assert_allclose(rows.next_observation, exact.next_observation + deviation * after, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.observation[begins], (exact.observation + deviation * before)[begins], rtol=1e-5, atol=1e-6)
    goes_on = np.flatnonzero(~begins)
    np.testing.assert_array_equal(rows.observation[goes_on], rows.next_observation[goes_on - 1])


def test_noise_leaves_the_simulator_the_rewards_the_ends_and_the_returns_as_they_are(collected, true):
    (rows, state, returns), (exact, state_true, returns_true) = collected(0.5), true
    for field in ("action", "reward", "terminated", "weight", "depth"):
        np.testing.assert_array_equal(getattr(rows, field), getattr(exact, field))
    jax.tree.map(np.testing.assert_array_equal, (state, returns), (state_true, returns_true))


# ------------------------------------------------------------------------------------------------ in the real environment


class Learner(NamedTuple):
    """An agent that is a number: it goes to the right of the middle where a place is below it."""

    online: Any
    target: Any
    frozen: Any
    updates: Any


def mode(params, features):
    return (features[..., 0] < params).astype(jnp.int32)


def act(params, features, exploration, explore, random):
    return jnp.where(explore < exploration, random, mode(params, features))


AGENT = Agent(
    init=lambda key: Learner(jnp.float32(0.3), jnp.float32(-0.3), jnp.zeros((), bool), jnp.int32(0)),
    acting=lambda state: state.online,
    judged=lambda state: state.target,
    act=act,
    mode=mode,
    update=lambda state, batch, drawn, progress, model: (state, ()),
    draw=lambda key, shape: None,
    minibatches=None,
)


class State(NamedTuple):
    """As a loop's."""

    time: Any
    key: Any
    episode: Any
    real: Any
    model: Any
    lanes: Any
    agent: Any
    chosen: Any


@pytest.fixture
def config(tiny):
    return replace(
        tiny,
        evaluation=EvaluationConfig(episodes=5, curve_episodes=4),
        selection=SelectionConfig(episodes=6, steps=4),
        imagination=replace(tiny.imagination, lanes=4, steps=2),
    )


@pytest.mark.parametrize("exploration", [0.0, 0.5, 1.0])
def test_a_real_step_is_by_the_agents_policy_and_is_stored(exploration):
    replay, (drawn, pool) = make_replay(TASK.spec, 30), draw_behaviour(TASK, jax.random.key(1), 30)
    begin = TASK.draw_resets(jax.random.key(2), ())

    @jax.jit
    def live(episode, real):
        def step(carry, now):
            return phases.act(TASK, AGENT, replay, *carry, jnp.float32(0.3), exploration, now, pool), carry[0].observation

        return jax.lax.scan(step, (episode, real), drawn)

    (episode, real), seen = live(begin, replay.init())
    rows = rows_of(replay, real)
    np.testing.assert_array_equal(rows.observation, seen)
    np.testing.assert_array_equal(rows.action, act(0.3, seen, exploration, drawn.explore, drawn.action))
    assert len(set(np.asarray(rows.action).tolist())) == 2
    np.testing.assert_allclose(rows.next_observation, TASK.dynamics(rows.observation, rows.action), rtol=1e-6)
    np.testing.assert_array_equal(rows.depth, np.arange(30) % worlds.TIME_LIMIT)
    fresh = np.asarray(pool.observation)
    fresh = fresh[np.arange(30) % len(fresh)]
    np.testing.assert_array_equal(np.asarray(rows.observation)[10::10], fresh[9:29:10])  # where an episode was cut
    np.testing.assert_array_equal(episode.observation, fresh[29])


def test_the_learning_curve_is_the_mean_of_greedy_episodes_from_starts_of_its_own(config):
    def curve(time):
        return float(jax.jit(lambda time: phases.curve_return(config, TASK, mode, jnp.float32(0.2), KEY, time))(jnp.int32(time)))

    starts = TASK.draw_resets(stream(KEY, Stream.CURVE, 7), (4,))
    expected = np.mean(jax.jit(lambda starts: play(TASK, lambda s: mode(0.2, s), starts))(starts))
    assert curve(7) == pytest.approx(float(expected), rel=1e-6)
    assert curve(7) != curve(8)


@pytest.mark.parametrize("chosen", [None, 0.6])
def test_a_run_ends_with_the_last_policy_and_the_chosen_one_played_from_the_same_starts(config, chosen):
    learner = AGENT.init(KEY)._replace(updates=jnp.int32(12))
    state = State(jnp.int32(20), KEY, None, None, jnp.int32(3), None, learner, None)
    judge = types.SimpleNamespace(acting=lambda model: model)
    picked = None if chosen is None else Snapshot(jnp.float32(chosen), jnp.float32(1.0))
    outcome = jax.jit(lambda state: phases.finish(config, TASK, AGENT, state, chosen=picked, judge=judge))(state)
    starts = TASK.draw_resets(stream(KEY, Stream.FINAL_EVALUATION), (5,))
    np.testing.assert_array_equal(phases.final_starts(config, TASK, KEY).observation, starts.observation)

    def returns(params):
        return jax.jit(lambda starts: play(TASK, lambda s: mode(params, s), starts))(starts)

    assert float(outcome.last) == pytest.approx(-0.3)
    assert (int(outcome.updates), bool(outcome.frozen), int(outcome.model)) == (12, False, 3)
    np.testing.assert_allclose(outcome.returns_last, returns(-0.3), rtol=1e-6)
    if chosen is None:
        assert (outcome.chosen, outcome.returns_chosen) == (None, None)
    else:
        np.testing.assert_allclose(outcome.returns_chosen, returns(chosen), rtol=1e-6)
        assert not np.allclose(outcome.returns_chosen, outcome.returns_last)


def test_a_policy_is_played_with_the_memory_that_it_begins_with():
    """A policy that remembers how many steps it has taken, and goes to the right in the first ``params`` of them."""

    def begin(params, key, episodes):
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        return jnp.zeros(episodes, jnp.int32)

    def right_first(params, steps, observation):
        assert observation.shape == (5, 2)
        return steps + 1, (steps < params).astype(jnp.int32)

    starts = TASK.draw_resets(jax.random.key(0), (5,))
    played = jax.jit(lambda steps: phases.play_policy(TASK, Policy(begin, right_first), steps, starts, KEY))
    for steps in (0, 3, 10):
        place, expected = np.asarray(starts.observation, np.float64), np.zeros(5)
        for t in range(worlds.TIME_LIMIT):
            place = 0.9 * place + 0.1 * (1 if t < steps else -1)
            expected -= np.mean(place**2, axis=1)
        np.testing.assert_allclose(played(jnp.int32(steps)), expected, rtol=1e-4)


def test_a_policy_without_memory_is_its_mode():
    starts = TASK.draw_resets(jax.random.key(0), (5,))
    plain = jax.jit(lambda: play(TASK, lambda s: mode(0.1, s), starts))()
    np.testing.assert_array_equal(phases.play_policy(TASK, without_memory(mode), jnp.float32(0.1), starts, KEY), plain)


# --------------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("sampling", ["ts1", "ts_infinity", "mean"])
def test_imagination_is_by_the_sampling_that_is_set_and_is_judged_by_members_that_stay(config, cartpole, sampling):
    config = replace(config, imagination=replace(config.imagination, sampling=sampling))
    made = phases.imagination_of(config, cartpole, make_replay(cartpole.spec, 200), None)
    dealt = [world.draw(KEY, KEY, (4,)).deal is not None for world in (made.world, made.judge)]
    assert dealt == [sampling == "ts1", False]
    assert made.world.spec.one_mover == (sampling != "mean")
    assert made.judge.spec.one_mover


def test_a_controller_that_is_given_takes_the_place_of_the_one_that_is_named_and_is_penalised_as_it_would_be(config, cartpole):
    def step(state, view):
        return state, Decision(view.active, view.active, jnp.zeros_like(view.reward))

    mine = HorizonController(lambda lanes, spec: 7.0, lambda state, *_: state, step)
    given = phases.imagination_of(config, cartpole, make_replay(cartpole.spec, 200), mine).controller
    assert given.init(4, None) == 7.0
    assert not given.needs_members
    config = replace(config, imagination=replace(config.imagination, penalty="disagreement", penalty_weight=1.0))
    penalised = phases.imagination_of(config, cartpole, make_replay(cartpole.spec, 200), mine).controller
    assert penalised.init(4, None) == 7.0
    assert penalised.needs_members


def test_a_controller_that_needs_what_the_model_does_not_give_is_refused(config, cartpole):
    config = replace(config, model=replace(config.model, members=1, elites=None))
    asking = fixed(length=1)._replace(needs_members=True)
    with pytest.raises(ConfigError, match="model.members: 1 imagine, which does not fit"):
        phases.imagination_of(config, cartpole, make_replay(cartpole.spec, 200), asking)


REPLAY = make_replay(TASK.spec, 10)
WORLD = dream(REPLAY)


class Calibrations(NamedTuple):
    """What a controller was told of the model."""

    times: Any
    speed: Any  # [M]
    rows: Any  # how many count


def calibrating():
    """A controller that remembers what it was shown when it was calibrated."""

    def calibrate(state, world, params, rows, valid):
        assert world is WORLD
        assert rows.observation.shape == (10, 2)
        return Calibrations(state.times + 1, params.speed, jnp.sum(valid, dtype=jnp.int32))

    def step(state, view):
        return state, Decision(view.active, view.depth >= 1, jnp.zeros_like(view.reward))

    return HorizonController(lambda lanes, spec: Calibrations(jnp.int32(0), jnp.zeros(MEMBERS), jnp.int32(0)), calibrate, step)


IMAGINATION = Imagination(WORLD, WORLD, calibrating())


def a_state(config, *, score=-np.inf):
    """In the middle of a run, seven rows of which have been seen, and the policy 0.9 is the chosen one."""
    places = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)
    depth = jnp.array([0, 1, 2, 0, 1, 0, 1], jnp.int32)
    real = stored(REPLAY, Rows(places, places, depth % 2, jnp.ones(7), depth < 0, jnp.ones(7), depth))
    model = WORLD.init(KEY)
    begun = lanes.init(config.imagination, IMAGINATION.controller, WORLD, WORLD.acting(model), real)
    snapshot = Snapshot(jnp.float32(0.9), jnp.float32(score))
    return State(jnp.int32(20), KEY, TASK.draw_resets(KEY, ()), real, model, begun, AGENT.init(KEY), snapshot)


def losses(key):
    return [jax.random.uniform(each, (MEMBERS,)) for each in jax.random.split(key, 3)]


def test_the_first_fit_and_every_refit_have_random_numbers_of_their_own(config):
    state = a_state(config)
    for fit, key in ((phases.fit, stream(KEY, Stream.FIT)), (phases.refit, stream(KEY, Stream.REFIT, 20))):
        after, log = fit(WORLD, state)
        np.testing.assert_array_equal(log, losses(key))
        assert int(after.model.fits) == 1
        assert int(after.model.seen) == 7
        jax.tree.map(np.testing.assert_array_equal, after._replace(model=None, key=0), state._replace(model=None, key=0))


def test_the_controller_sees_the_model_as_it_is_and_which_rows_hold_data(config):
    state, _ = phases.fit(WORLD, a_state(config))
    seen = phases.calibrate(IMAGINATION, REPLAY, state).lanes.controller
    assert (int(seen.times), int(seen.rows)) == (1, 7)
    np.testing.assert_array_equal(seen.speed, 2 * np.array(SPEED, np.float32))


def score_of(config, model, policy, time=20):
    """The mean return of a policy's imagined episodes, as it is when policies are chosen."""
    key_start, key_noise = jax.random.split(stream(KEY, Stream.SELECTION, time))
    first = WORLD.first(model.params, a_state(config).real, draws.bits(key_start, (6,)))
    return float(jnp.mean(play_imagined(WORLD, model.params, lambda s: mode(policy, s), first, key_noise, 4)))


@pytest.mark.parametrize(("score", "better"), [(-np.inf, True), (1e6, False)])
def test_the_better_of_the_chosen_snapshot_and_the_policy_that_is_judged_is_kept(config, score, better):
    state = a_state(config, score=score)
    after, found, is_chosen = phases.choose(config, WORLD, AGENT, state, anew=False)
    assert float(found) == pytest.approx(score_of(config, state.model, -0.3), rel=1e-5)
    assert bool(is_chosen) == better
    assert float(after.chosen.params) == pytest.approx(-0.3 if better else 0.9)
    assert float(after.chosen.score) == pytest.approx(float(found) if better else score)


def test_a_batch_round_ends_without_a_fit(config):
    state = a_state(config, score=1e6)
    after, end = jax.jit(lambda state: phases.end_of_round(config, TASK, REPLAY, IMAGINATION, AGENT, state))(state)
    assert end.refit is None
    assert int(after.model.fits) == int(after.lanes.controller.times) == 0
    assert not bool(end.is_chosen)
    assert float(end.chosen_score) == 1e6  # of the same world, so it stays
    assert float(end.score) == pytest.approx(score_of(config, state.model, -0.3), rel=1e-5)
    curve = phases.curve_return(config, TASK, mode, jnp.float32(-0.3), KEY, jnp.int32(20))
    assert float(end.curve_return) == pytest.approx(float(curve), rel=1e-6)


def test_an_interactive_round_ends_with_a_refit_and_both_policies_are_scored_in_the_new_world(config):
    config, state = replace(config, protocol="interactive"), a_state(config, score=1e6)
    after, end = jax.jit(lambda state: phases.end_of_round(config, TASK, REPLAY, IMAGINATION, AGENT, state))(state)
    np.testing.assert_allclose(end.refit, losses(stream(KEY, Stream.REFIT, 20)), rtol=1e-6)
    assert int(after.model.fits) == int(after.lanes.controller.times) == 1
    np.testing.assert_array_equal(after.lanes.controller.speed, 2 * np.array(SPEED, np.float32))
    scores = [score_of(config, after.model, policy) for policy in (-0.3, 0.9)]
    assert float(end.score) == pytest.approx(scores[0], rel=1e-5)
    assert float(end.chosen_score) == pytest.approx(max(scores), rel=1e-5)
    assert bool(end.is_chosen) == (scores[0] > scores[1])


def test_where_no_policy_is_chosen_none_is_scored(config):
    config = replace(config, selection=replace(config.selection, choose=False))
    assert phases.first_snapshot(config, jnp.float32(0.9)) is None
    state = a_state(config)._replace(chosen=None)
    after, end = jax.jit(lambda state: phases.end_of_round(config, TASK, REPLAY, IMAGINATION, AGENT, state))(state)
    assert (end.score, end.chosen_score, end.is_chosen, after.chosen) == (None, None, None, None)
    curve = phases.curve_return(config, TASK, mode, jnp.float32(-0.3), KEY, jnp.int32(20))
    assert float(end.curve_return) == pytest.approx(float(curve), rel=1e-6)


def test_before_anything_is_scored_whatever_comes_first_is_better(config):
    first = phases.first_snapshot(config, jnp.float32(0.9))
    assert (float(first.params), float(first.score)) == (pytest.approx(0.9), -np.inf)
