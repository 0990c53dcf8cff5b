"""Planners, in worlds whose best plan is known."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from algorithms import worlds
from dreams import NOISE, SPEED, dream
from ensembles import world_of

from mbrl_jax.config import ModelConfig, PlanningConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model.ensemble import Bounds, Ensemble, Members, Normaliser
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.planning.planners import Plan, Planner, correlated, sequences
from mbrl_jax.planning.rollouts import draw_particles, draw_proposals, proposed, returns_of
from mbrl_jax.replay import make_replay

MEMBERS, H = 2, 4
CONFIG = PlanningConfig(candidates=32, horizon=H, particles=4, iterations=4, elites=4)
METHODS = ("random_shooting", "cem", "mppi")


class Line(NamedTuple):
    """A world, its parameters, and the task."""

    spec: EnvironmentSpec
    world: WorldModel
    members: Members

    def planner(self, config):
        return Planner(config, self.spec, self.world)


def line(*, continuous=False, prediction="deterministic", reward=None, terminated=None, move=(1.0, 1.0)):
    """A point that a discrete action moves by -1 or +1 and a continuous one by as much as it says, each member by its own factor;
    the reward is minus the distance of s' from 2 that is left.
    """
    spec = EnvironmentSpec("a line", 1, 0 if continuous else 2, 10, (1.0,), action_size=int(continuous))
    near = lambda s, a, s2: -jnp.abs(s2[..., 0] - 2)  # noqa: E731
    never = lambda s, a, s2: jnp.zeros(s2.shape[:-1], bool)  # noqa: E731
    config = ModelConfig(members=MEMBERS, hidden=(2,), prediction=prediction, activation="relu")
    ensemble = Ensemble(config, spec, reward or near, terminated or never)
    factor = np.asarray(move, np.float32)[:, None, None]
    # relu(a) - relu(-a) = a, where the inputs are the state and the action
    first = np.broadcast_to(np.array([[0.0, 0.0], [1.0, -1.0]], np.float32), (MEMBERS, 2, 2))
    outputs = 1 if prediction == "deterministic" else 2
    last = factor * np.array([[1.0] * outputs, [-1.0] * outputs], np.float32)
    if prediction == "gaussian":
        last[..., 1] = 0.0
    params = {
        "params": {
            "Dense_0": {"kernel": first, "bias": np.zeros((MEMBERS, 2), np.float32)},
            "Dense_1": {"kernel": last, "bias": np.zeros((MEMBERS, outputs), np.float32)},
        }
    }
    bounds = Bounds(np.full((MEMBERS, 1), -10.0, np.float32), np.full((MEMBERS, 1), 0.5, np.float32))
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    world, _ = world_of(ensemble, 1, by="ts_infinity")
    return Line(spec, world, jax.device_put(Members(params, bounds, Normaliser(zero, one, zero, one))))


def planned(config, line, start=0.0, seed=0):
    planner = line.planner(config)

    @jax.jit
    def plan(members, start, key):
        return planner.plan(members, planner.init(), start, planner.draw(key, ()))

    return plan(line.members, np.array([start], np.float32), jax.random.key(seed))


@pytest.mark.parametrize("method", [*METHODS, "enumeration"])
@pytest.mark.parametrize(("start", "best"), [(-3.0, 1), (6.0, 0)])
def test_the_first_action_of_the_best_sequence_is_taken(method, start, best):
    config = replace(CONFIG, method=method, temperature=0.3)
    _, action, log = planned(config, line(), start=start)
    assert action.dtype == jnp.int32
    assert int(action) == best
    expected = sum(-abs(start + (1 if best else -1) * t - 2) for t in range(1, H + 1))
    assert float(log.value) <= expected + 1e-4
    if method in ("random_shooting", "enumeration"):  # which have one best sequence, and 32 draws of 16 sequences miss none
        assert float(log.value) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_continuous_action_goes_as_far_as_it_should(method):
    there = line(continuous=True)
    config = replace(CONFIG, method=method, candidates=256, elites=16, temperature=0.05, deviation=0.7)
    near = float(planned(config, there, start=1.6)[1][0])
    far = float(planned(config, there, start=-5.0)[1][0])
    assert near == pytest.approx(0.4, abs=0.3)
    assert far > (0.75 if method != "random_shooting" else 0.3)  # one sequence of random actions is never good throughout
    assert far <= 1.0


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_correlated_draws_stay_uniform_and_follow_each_other_as_closely_as_they_should(correlation):
    draw = jax.jit(lambda key: correlated(jax.random.uniform(key, (4_000, 6, 2)), correlation, axis=1))
    drawn = np.asarray(draw(jax.random.key(0)))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for t in range(6):
        assert scipy.stats.kstest(drawn[:, t, 0], "uniform").pvalue > 0.001
    normal = scipy.stats.norm.ppf(drawn)
    for lag in (1, 2):
        found = np.corrcoef(normal[:, :-lag].ravel(), normal[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(correlation**lag, abs=0.03)
    assert abs(np.corrcoef(normal[..., 0].ravel(), normal[..., 1].ravel())[0, 1]) < 0.03


def test_a_correlation_of_0_changes_nothing_and_one_of_1_repeats_the_first_draw():
    white = np.random.default_rng(0).uniform(0.01, 0.99, (100, 5)).astype(np.float32)
    same, repeated = jax.jit(lambda white: tuple(correlated(white, each, axis=1) for each in (0.0, 1.0)))(white)
    np.testing.assert_allclose(same, white, atol=1e-5)
    np.testing.assert_allclose(repeated, np.broadcast_to(white[:, :1], white.shape), atol=1e-5)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_planners_candidates_hold_on_to_what_they_do(continuous):
    there = line(continuous=continuous)

    def likeness(correlation):
        planner = there.planner(replace(CONFIG, candidates=512, correlation=correlation))
        draw = jax.jit(lambda key: planner.candidates(planner.init(), planner.draw(key, ()).candidates[0]))
        actions = np.asarray(draw(jax.random.key(1))).reshape(512, H).astype(float)
        return np.corrcoef(actions[:, :-1].ravel(), actions[:, 1:].ravel())[0, 1]

    assert abs(likeness(0.0)) < 0.1
    assert likeness(0.9) > 0.6


def test_iterations_improve_on_random_shooting():
    there = line(continuous=True)
    values = {}
    for method in ("random_shooting", "cem"):
        config = replace(CONFIG, method=method, horizon=8, iterations=6)
        found = [float(planned(config, there, seed=seed)[2].value) for seed in range(5)]
        values[method] = np.mean(found)
    assert values["cem"] > values["random_shooting"] + 0.3


def test_the_cross_entropy_method_weighs_all_that_tie_with_its_elites():
    planner = line().planner(replace(CONFIG, elites=2))
    np.testing.assert_allclose(planner.weights(jnp.array([3.0, 1.0, 2.0, 0.0])), [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(planner.weights(jnp.array([3.0, 2.0, 2.0, 0.0])), [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_the_cross_entropy_method_gives_no_weight_to_what_is_not_finite_though_it_lacks_elites():
    planner = line().planner(replace(CONFIG, elites=3))
    np.testing.assert_allclose(planner.weights(jnp.array([-jnp.inf, 1.0, 2.0, -jnp.inf])), [0, 0.5, 0.5, 0])


def test_mppi_weighs_by_the_exponential_of_the_return():
    planner = line().planner(replace(CONFIG, method="mppi", temperature=2.0))
    found = planner.weights(jnp.array([3.0, 1.0, -jnp.inf]))
    np.testing.assert_allclose(found, np.array([1, np.exp(-1), 0]) / (1 + np.exp(-1)), rtol=1e-6)


@pytest.mark.parametrize("method", [*METHODS, "enumeration"])
def test_where_no_candidate_has_a_finite_return_the_weights_are_still_weights(method):
    weights = np.asarray(line().planner(replace(CONFIG, method=method)).weights(jnp.full(8, -jnp.inf)))
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_a_fitted_plan_is_the_weighed_mean_and_deviation_of_the_candidates_with_its_momentum():
    config = replace(CONFIG, momentum=0.25, least_deviation=0.01)
    planner = line(continuous=True).planner(config)
    actions = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, H, 1)), jnp.float32)
    weights = jnp.array([0.5, 0.5, 0, 0, 0, 0])
    fitted = planner.fit(Plan(jnp.ones((H, 1)), jnp.full((H, 1), 2.0)), actions, weights)
    two = np.asarray(actions[:2])
    np.testing.assert_allclose(fitted.centre, 0.25 + 0.75 * two.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.spread, 0.25 * 2 + 0.75 * two.std(0), rtol=1e-5)
    alone = planner.fit(Plan(jnp.ones((H, 1)), jnp.full((H, 1), 0.0)), actions, jnp.array([1.0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(alone.spread, 0.01)


def test_the_next_plan_begins_with_this_one_shifted():
    planner = line().planner(replace(CONFIG, warm_start=0.5))
    centre = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.2, 0.8]])
    after = planner.shifted(Plan(centre, None))
    np.testing.assert_allclose(after.centre, [[0.25, 0.75], [0.75, 0.25], [0.35, 0.65], [0.5, 0.5]])
    blank = line().planner(replace(CONFIG, warm_start=0.0))
    np.testing.assert_allclose(blank.shifted(Plan(centre, None)).centre, 0.5)


def test_candidates_are_drawn_with_the_plans_probabilities_and_the_first_is_its_middle():
    planner = line().planner(CONFIG)
    plan = Plan(jnp.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.0, 1.0]]), None)
    uniform = jax.random.uniform(jax.random.key(0), (20_000, H))
    found = np.asarray(planner.candidates(plan, uniform))
    assert found[0].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.mean(0), plan.centre[:, 1], atol=0.02)


def test_continuous_candidates_are_gaussian_cut_to_the_range_of_actions():
    planner = line(continuous=True).planner(CONFIG)
    plan = Plan(np.full((H, 1), 0.8, np.float32), np.full((H, 1), 0.5, np.float32))
    uniform, candidates = jax.random.uniform(jax.random.key(0), (5_000, H, 1)), jax.jit(planner.candidates)
    found = np.asarray(candidates(plan, uniform))[1:, 0, 0]
    law = scipy.stats.truncnorm((-1 - 0.8) / 0.5, (1 - 0.8) / 0.5, loc=0.8, scale=0.5)
    assert scipy.stats.kstest(found, law.cdf).pvalue > 1e-3
    far = candidates(Plan(np.full((H, 1), 9.0, np.float32), np.full((H, 1), 0.05, np.float32)), uniform)
    assert np.isfinite(far).all()


# ------------------------------------------------------------------------------------------------------- what a policy proposes


def test_a_policy_proposes_what_it_does_in_each_members_world():
    there, config = line(move=(1.0, 3.0)), replace(CONFIG, proposals=4)

    @jax.jit
    def found(members, start, key):
        drawn = draw_proposals(config, there.spec, there.world, key, ())
        return proposed(there.world, members, start, lambda s, random: (s[..., 0] < 0).astype(jnp.int32), drawn), drawn

    sequences, drawn = found(there.members, np.array([-3.0], np.float32), jax.random.key(0))
    by_one, by_three = [1, 1, 1, 0], [1, 0, 1, 0]  # from -3: to 0 in three steps, or in one and back
    assert sequences.tolist() == [by_one, by_one, by_three, by_three]
    assert drawn.action.shape == (H, 4)
    assert 0 < np.asarray(drawn.action).mean() < 1


def test_a_policys_sequence_is_found_where_no_random_one_is_as_good():
    config = replace(
        CONFIG, method="mppi", candidates=8, horizon=16, temperature=1e-3, iterations=1, momentum=0.0, warm_start=1.0
    )
    planner, proposing = line().planner(config), line().planner(replace(config, proposals=2))
    start, members = np.array([-16.0], np.float32), line().members

    @jax.jit
    def both(members, key):
        alone = planner.plan(members, planner.init(), start, planner.draw(key, ()))
        drawn = proposing.draw(key, ())
        helped = proposing.plan(members, planner.init(), start, drawn, None, lambda s, random: jnp.ones(len(s), jnp.int32))
        return alone[2].value, helped[2].value, helped[0].centre, drawn.candidates, planner.draw(key, ()).candidates

    alone, helped, centre, drawn, same = both(members, jax.random.key(0))
    best = sum(-abs(-16 + t - 2) for t in range(1, 17))
    assert float(helped) == pytest.approx(best)
    assert float(alone) < best - 1
    np.testing.assert_allclose(centre[:-1, 1], 1.0)  # the next plan begins with the rest of the sequence
    np.testing.assert_array_equal(drawn, same)


# ---------------------------------------------------------------------------------------------------------- what sequences earn


def earned(config, line, actions, start=0.0, value=None, explore=False):
    @jax.jit
    def returns(members, start, actions, key):
        drawn = draw_particles(config, line.world, key, ())
        return returns_of(config, line.world, members, start, actions, drawn, value, explore=explore)

    return np.asarray(returns(line.members, np.array([start], np.float32), actions, jax.random.key(0)))


@pytest.mark.parametrize("propagation", ["ts1", "ts_infinity"])
def test_a_candidate_earns_the_discounted_sum_of_its_rewards_and_the_value_at_its_end(propagation):
    config = replace(CONFIG, discount=0.9, propagation=propagation)
    actions = np.array([[1, 1, 1, 1], [0, 1, 0, 1]], np.int32)
    path = np.cumsum(2 * actions - 1, axis=1)
    expected = (-np.abs(path - 2) * 0.9 ** np.arange(H)).sum(1)
    np.testing.assert_allclose(earned(config, line(), actions), expected, rtol=1e-5)
    valued = earned(config, line(), actions, value=lambda s: 10 * s[..., 0])
    np.testing.assert_allclose(valued, expected + 0.9**H * 10 * path[:, -1], rtol=1e-5)


def test_nothing_is_earned_after_a_termination():
    over = lambda s, a, s2: s2[..., 0] > 1.5  # noqa: E731
    found = earned(CONFIG, line(terminated=over), np.array([[1, 1, 1, 1]], np.int32), value=lambda s: 100 * jnp.ones(len(s)))
    np.testing.assert_allclose(found, [-1.0])  # -|1 - 2| - |2 - 2|, and then it is over


def test_particles_stay_with_their_members_or_change_them():
    unlike = line(move=(1.0, 3.0))
    right = np.array([[1, 1, 1, 1]], np.int32)
    stay = np.mean([(-np.abs(factor * np.arange(1, H + 1) - 4)).sum() for factor in (1.0, 3.0)])
    np.testing.assert_allclose(earned(replace(CONFIG, propagation="ts_infinity"), unlike, right, -2.0), [stay], rtol=1e-5)
    mixed = earned(replace(CONFIG, propagation="ts1", particles=64), unlike, right, -2.0)
    assert mixed[0] > stay + 0.5  # who has gone by 1 and by 3 is nearer than who has gone by 1 twice or by 3 twice


def test_while_it_explores_a_candidate_earns_by_how_far_its_members_are_apart():
    unlike = line(move=(1.0, 3.0))
    config = replace(CONFIG, discount=0.9, bonus="disagreement", bonus_weight=5.0)
    actions = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], np.int32)
    plain = earned(config, unlike, actions)
    np.testing.assert_array_equal(plain, earned(replace(config, bonus="none"), unlike, actions, explore=True))
    path = np.cumsum(2 * actions - 1, axis=1)
    deviation = np.abs(path)  # of a member at the path and one at three times the path
    expected = (5.0 * deviation * 0.9 ** np.arange(H)).sum(1)
    np.testing.assert_allclose(earned(config, unlike, actions, explore=True) - plain, expected, rtol=1e-4)


def test_the_bonus_is_in_units_of_the_typical_change():
    unlike = line(move=(1.0, 3.0))
    normaliser = unlike.members.normaliser
    wide = unlike._replace(members=unlike.members._replace(normaliser=normaliser._replace(target_std=4 * normaliser.target_std)))
    config, actions = replace(CONFIG, bonus="disagreement"), np.array([[1, 1, 1, 1]], np.int32)
    one, other = (earned(config, each, actions, explore=True) - earned(config, each, actions) for each in (unlike, wide))
    np.testing.assert_allclose(one, other, rtol=1e-4)  # four times as far apart, and so is what is typical


def test_candidates_meet_the_same_noise():
    noisy = line(prediction="gaussian")
    found = earned(CONFIG, noisy, np.array([[1, 0, 1, 1]] * 3, np.int32))
    assert found[0] == found[1] == found[2]
    assert found[0] != earned(CONFIG, line(), np.array([[1, 0, 1, 1]], np.int32))[0]


def test_what_is_not_finite_counts_as_minus_infinity():
    bad = line(reward=lambda s, a, s2: jnp.where(s2[..., 0] > 3, jnp.nan, 1.0))
    found = earned(CONFIG, bad, np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.int32))
    assert found.tolist() == [-np.inf, 4.0]


def test_all_sequences_are_enumerated():
    there = line()
    planner = there.planner(replace(CONFIG, method="enumeration"))
    found = np.asarray(planner.candidates(planner.init(), planner.draw(jax.random.key(0), ()).candidates[0]))
    assert len({tuple(row) for row in found.tolist()}) == sequences(there.spec, H) == 2**H


@pytest.mark.parametrize("method", METHODS)
def test_two_acts_in_one_state_draw_differently_and_every_episode_of_its_own(method):
    config = replace(CONFIG, method=method, warm_start=0.0, candidates=8)  # so that nothing but the draws can differ
    there = line(continuous=True, prediction="gaussian")
    planner = there.planner(config)
    act = jax.jit(planner.act)
    memory, observation = planner.begin(jax.random.key(3), 4), jnp.zeros((4, 1))
    actions = []
    for _ in range(3):
        memory, action = act(there.members, memory, observation)
        actions.append(np.asarray(action).ravel())
    assert len(set(np.concatenate(actions).tolist())) == 12
    _, again = act(there.members, planner.begin(jax.random.key(3), 4), observation)
    np.testing.assert_array_equal(np.asarray(again).ravel(), actions[0])


@pytest.mark.parametrize("warm_start", [1.0, 0.0])
def test_each_episode_goes_on_from_the_plan_that_its_last_step_left(warm_start):
    there, at = line(continuous=True), jnp.array([[-3.0], [6.0]])
    planner = there.planner(replace(CONFIG, warm_start=warm_start))
    act, plan = jax.jit(planner.act), jax.jit(planner.plan)
    memory, plans, key = planner.begin(jax.random.key(0), 2), [planner.init()] * 2, jax.random.key(0)
    for _ in range(3):
        memory, actions = act(there.members, memory, at)
        key, now = jax.random.split(key)
        drawn = planner.draw(now, (2,))
        for number in range(2):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], drawn)
            plans[number], action, _ = plan(there.members, plans[number], at[number], one)
            np.testing.assert_allclose(actions[number], action, rtol=1e-5, atol=1e-6)
            for kept, expected in zip(jax.tree.leaves(memory[0]), jax.tree.leaves(plans[number]), strict=True):
                np.testing.assert_allclose(kept[number], expected, rtol=1e-5, atol=1e-6)
    apart = np.abs(np.asarray(memory[0].centre[0] - memory[0].centre[1])).max()
    assert (apart > 0.5) == (warm_start == 1.0)  # what is kept of a plan is its episode's own


# -------------------------------------------------------------------------------------------- where rollouts stand elsewhere


@pytest.mark.parametrize("propagation", ["ts1", "ts_infinity"])
def test_particles_go_on_from_where_they_stand_whatever_that_is_made_of(propagation):
    config = replace(CONFIG, propagation=propagation, discount=0.9, horizon=6, particles=6)
    spec = worlds.points(2, discrete=True).spec
    world = dream(make_replay(spec, 4))
    params = world.acting(world.init(jax.random.key(0)))
    begin = {"place": jnp.array([0.3, -0.2]), "clock": jnp.array(2, jnp.int32)}  # three steps from its end
    planner = Planner(config, spec, world)
    drawn = planner.draw(jax.random.key(1), ())
    actions = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 6)), jnp.int32)
    found = returns_of(config, world, params, begin, actions, drawn.particles, lambda features: 1e6 * features[..., 2])
    push = np.asarray(drawn.particles.model["push"])
    place, earned = np.full((6, 5), 0.3), np.zeros((6, 5))
    for t in range(3):
        if propagation == "ts1":
            deal = np.asarray(drawn.particles.deal)[t]
            place, earned = place[deal], earned[deal]
        speed = np.repeat(SPEED, 3)[:, None] * (2 * np.asarray(actions)[None, :, t] - 1)
        place = place + speed + NOISE * push[t, :, :1]
        earned = earned + 0.9**t * place
    np.testing.assert_allclose(found, earned.mean(axis=0), rtol=1e-4)  # and no value, as all is over before the horizon
    _, action, log = jax.jit(planner.plan)(params, planner.init(), begin, drawn)
    assert int(action) == 1  # to the right, where the reward is
    assert np.isfinite(float(log.value))


def test_planning_from_observations_is_refused_in_a_world_whose_features_do_not_tell_where_a_rollout_stands():
    there = line()
    planner = Planner(CONFIG, there.spec, there.world._replace(belief=None))
    with pytest.raises(AssertionError, match="planning from observations needs a world in which they tell"):
        planner.act(there.members, planner.begin(jax.random.key(0), 2), jnp.zeros((2, 1)))
