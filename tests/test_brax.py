"""Brax's tasks, step by step against brax's own functions; all five in both physics in `benchmarks/brax_returns.py`."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.agents.sac import SACConfig
from mbrl_jax.algorithms import model_free_q
from mbrl_jax.config import ConfigError, EnvironmentConfig, ModelFreeQConfig, PhysicsConfig
from mbrl_jax.environments import brax as ours

pytest.importorskip("brax", reason="pip install 'mbrl-jax[brax]'")

LANES, LIMIT, STEPS = 8, 30, 70
OPTIONS = {"xla_backend_optimization_level": 0}  # compiles in a fraction of the time


@functools.cache
def make(name, time_limit=None):
    return env.make_environment(EnvironmentConfig(name=name, time_limit=time_limit))


@pytest.fixture(scope="module")
def played():
    """Random episodes of several pendulums: rows [T, lanes], states after, what brax's own step says, and the fresh states."""
    task = make("brax/inverted_pendulum", LIMIT)
    with ours._physics():
        simulator = ours._simulator("brax/inverted_pendulum", "inverted_pendulum", "spring")

    def step(state, action, fresh):
        after, row = task.step(state, action, fresh)
        with ours._physics():
            theirs = simulator.step(state.inner.simulator, action)
        return after, row, (theirs.obs, theirs.reward, theirs.done)

    stepped = jax.jit(jax.vmap(step), compiler_options=OPTIONS)
    both = jax.jit(task.draw_resets, static_argnums=1, compiler_options=OPTIONS)(jax.random.key(0), (2, LANES))
    state, fresh = (jax.tree.map(lambda leaf, place=place: leaf[place], jax.device_get(both)) for place in range(2))
    actions, rows = np.random.default_rng(0).uniform(-1, 1, (STEPS, LANES, 1)).astype(np.float32), []
    actions[:, LANES // 2 :] *= 0.1  # these hold out until the time limit
    for action in actions:
        state, row, theirs = jax.device_get(stepped(state, action, fresh))
        rows.append((state.observation, row, theirs))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), both, fresh


def test_each_step_is_that_of_braxs_own_environment(played):
    (_, rows, (observation, reward, done)), *_ = played
    np.testing.assert_allclose(rows.next_observation, observation, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(rows.reward, np.broadcast_to(reward, rows.reward.shape))
    np.testing.assert_array_equal(rows.terminated, done > 0)
    assert np.isfinite(rows.next_observation).all()


def test_a_fall_is_a_termination_and_the_time_limit_a_truncation(played):
    (_, rows, _), *_ = played
    assert rows.terminated.any()
    assert rows.truncated.any()
    np.testing.assert_array_equal(rows.truncated, rows.elapsed == LIMIT - 1)
    fallen = np.abs(rows.next_observation[..., 1]) > 0.2
    np.testing.assert_array_equal(rows.terminated, fallen)


def test_an_episode_ends_with_its_true_observation_and_goes_on_from_the_fresh_state(played):
    (after, rows, _), _, fresh = played
    ended = rows.terminated | rows.truncated
    np.testing.assert_array_equal(after, np.where(ended[..., None], fresh.observation, rows.next_observation))
    np.testing.assert_array_equal(rows.observation[1:], after[:-1])
    np.testing.assert_array_equal(rows.elapsed[1:], np.where(ended, 0, rows.elapsed + 1)[:-1])


def test_resets_are_drawn_and_not_one_that_is_repeated(played):
    _, both, _ = played
    observations = np.asarray(both.observation)
    assert observations.shape == (2, LANES, 4)
    assert len(np.unique(observations[..., 0])) == 2 * LANES
    assert np.abs(observations).max() <= 0.01
    assert both.inner.time.shape == (2, LANES)


def test_the_known_reward_and_termination_of_the_pendulum_are_those_of_its_steps(played):
    (_, rows, _), *_ = played
    task = make("brax/inverted_pendulum", LIMIT)
    s, a, s2 = map(jnp.asarray, (rows.observation, rows.action, rows.next_observation))
    np.testing.assert_array_equal(task.terminated(s, a, s2), rows.terminated)
    np.testing.assert_array_equal(task.reward(s, a, s2), rows.reward)


@pytest.mark.parametrize(
    ("name", "sizes", "knows_the_end"),
    [
        ("brax/hopper", (11, 3), False),
        ("brax/walker2d", (17, 6), False),
        ("brax/ant", (27, 8), False),
        ("brax/halfcheetah", (17, 6), True),
        ("brax/reacher", (11, 2), True),
        ("brax/inverted_pendulum-generalized", (4, 1), True),
    ],
)
def test_every_task_fits_the_protocol_and_leaves_to_the_model_what_no_observation_tells(name, sizes, knows_the_end):
    task = make(name)  # which checks the shapes of all its functions
    assert (task.spec.observation_size, task.spec.action_size) == sizes
    assert (task.spec.time_limit, task.spec.action_count, task.spec.name) == (1_000, 0, name)
    assert (task.terminated is not None) == knows_the_end
    assert (task.reward is not None) == ("pendulum" in name)


def test_factors_scale_what_a_step_of_the_spring_physics_does_to_the_hopper():
    with ours._physics():
        from brax.spring import pipeline

        system = ours._simulator("brax/hopper", "hopper", "spring").sys
        position = np.asarray(system.init_q, np.float32) + np.float32([0, 1, 0, 0.1, -0.2, 0.3])  # in the air, joints bent
        still, turning = np.zeros(6, np.float32), np.float32([0, 0, 0, 1, -2, 0.5])

        @functools.partial(jax.jit, compiler_options=OPTIONS)
        def gained(factors, act, velocity):
            """[6] what a step adds to the velocity of each degree of freedom."""
            body = ours._scaled(system, PhysicsConfig(**factors), "spring")
            return pipeline.step(body, pipeline.init(body, position, velocity), act).qd - velocity

        def of(act=0.0, velocity=still, **factors):
            scaled = {name: np.float32(factors.get(name, 1.0)) for name in ours.FACTORS}
            return np.asarray(gained(scaled, np.full(3, act, np.float32), velocity), np.float64)

        push = of(act=0.5) - of()
        np.testing.assert_allclose(of(act=0.5, force=2.0) - of(force=2.0), 2 * push, rtol=0.02, atol=2e-3)
        np.testing.assert_allclose(of(act=0.5, mass=2.0) - of(mass=2.0), push / 2, rtol=0.02, atol=2e-3)
        fall = [of(gravity=factor)[1] for factor in (0.0, 1.0, 2.0)]
        assert fall[2] - fall[1] == pytest.approx(fall[1] - fall[0], rel=1e-3)
        drag = [of(velocity=turning, damping=factor)[3:] for factor in (0.0, 1.0, 2.0)]
        np.testing.assert_allclose(drag[2] - drag[1], drag[1] - drag[0], rtol=0.02, atol=1e-3)
        for differences in (push, fall[1] - fall[0], drag[1] - drag[0]):
            assert np.abs(differences).max() > 0.01


def test_factors_scale_the_numbers_of_the_generalised_physics():
    with ours._physics():
        system = ours._simulator("brax/hopper-generalized", "hopper", "generalized").sys
        scaled = ours._scaled(system, PhysicsConfig(mass=2.0, damping=3.0, gravity=0.5, force=5.0), "generalized")
    for of, factor in (
        (lambda each: each.link.inertia.mass, 2),
        (lambda each: each.link.inertia.i, 2),
        (lambda each: each.dof.damping, 3),
        (lambda each: each.gravity, 0.5),
        (lambda each: each.actuator.gear, 5),
    ):
        np.testing.assert_allclose(of(scaled), factor * np.asarray(of(system)), rtol=1e-6)


def test_a_task_is_made_with_the_body_that_its_settings_name_and_lengths_are_refused():
    config = EnvironmentConfig(name="brax/inverted_pendulum")
    sped = {}
    for mass in (1.0, 2.0):
        task = env.make_environment(dataclasses.replace(config, physics=PhysicsConfig(mass=mass)))
        state = jax.jit(task.draw_resets, static_argnums=1, compiler_options=OPTIONS)(jax.random.key(0), ())
        row = jax.jit(task.step, compiler_options=OPTIONS)(state, jnp.ones(1), state)[1]
        sped[mass] = float(row.next_observation[2])
    assert sped[1.0] > 1.5 * sped[2.0] > 0
    with pytest.raises(ConfigError, match=r"environment.physics.length: 2.0 does not fit; 'brax/inverted_pendulum' cannot"):
        env.make_environment(dataclasses.replace(config, physics=PhysicsConfig(length=2.0)))


def test_the_physics_has_full_precision_whatever_the_run_has():
    task = make("brax/inverted_pendulum", LIMIT)
    state = jax.eval_shape(lambda key: task.draw_resets(key, ()), jax.random.key(0))
    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(task.step)(state, jnp.zeros(1), state))
    found = {line.split("precision=")[1].split("\n")[0] for line in text.split("dot_general")[1:] if "precision=" in line}
    assert found
    assert all("HIGHEST" in each for each in found), found


def test_a_run_begins_with_random_transitions_of_a_task():
    task = EnvironmentConfig(name="brax/inverted_pendulum")
    config = ModelFreeQConfig(protocol="interactive", environment=task, random_transitions=20, agent=SACConfig())
    state, collected = jax.eval_shape(model_free_q.make_train(config).init, jax.eval_shape(lambda: jax.random.key(0)))
    assert collected.shape == (20,)
    assert state.episode.observation.shape == (4,)


def test_without_brax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ConfigError, match=r"environment.name: 'brax/hopper' needs brax: .* install the extra `mbrl-jax\[brax\]`"):
        env.make_environment(EnvironmentConfig(name="brax/hopper"))
