"""The policy gradient with a model and without one."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import probes, worlds
from algorithms.stages import stages_of
from ensembles import rows_of

from mbrl_jax import draws
from mbrl_jax.agents.policy_gradient import PolicyGradient, segment_of
from mbrl_jax.algorithms import imagined_pg, model_free_pg, phases, selection
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    ConfigError,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginedPGConfig,
    LanesConfig,
    ModelConfig,
    ModelFreePGConfig,
    PolicyGradientConfig,
    SelectionConfig,
    check,
)
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import lanes
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.replay import make_replay

SEEDS = 2
AGENT = PolicyGradientConfig(hidden=(16, 16), learning_rate=1e-2, critic_learning_rate=1e-2)
COMMON = {"agent": AGENT, "evaluation": EvaluationConfig(episodes=3, curve_episodes=2)}
SHORT = {"steps": 20, "round_steps": 10, "metric_steps": 5, "environment": EnvironmentConfig(time_limit=30), **COMMON}
WITHOUT = ModelFreePGConfig(**SHORT, segment_steps=5)
WITH = ImaginedPGConfig(
    **SHORT,
    random_transitions=100,
    model=ModelConfig(members=2, hidden=(8, 8), batch_size=16, epochs=2, refit_batches=2),
    imagination=LanesConfig(lanes=4, steps=3, cap=5, controller=controller_settings("fixed", length=5)),
    selection=SelectionConfig(episodes=4, steps=20),
)
CONFIGS = {"batch": WITH, "interactive": replace(WITH, protocol="interactive"), "without a model": WITHOUT}


PENDULUM = {"environment": EnvironmentConfig(name="Pendulum-v1", time_limit=30)}
PATHWISE = {"agent": replace(AGENT, estimator="pathwise")}


def make(config, environment=None):
    return algorithm_of(config).make_train(config, environment=environment)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


@functools.cache
def run_in_chunks(name):
    """``(returns of random episodes, [(state, metrics) after each round], outcome)`` of the same seeds."""
    config, algorithm, keys = CONFIGS[name], make(CONFIGS[name]), seed_keys(0, SEEDS)
    stages = stages_of(algorithm, config, keys, algorithm.axes)
    state, collected = stages.init(keys)
    state, _ = stages.fit(state, config)
    rounds = []
    for _ in range(algorithm.rounds):
        state, metrics = stages.advance(state, config)
        written = None if config is WITHOUT else int(state.real.written)
        rounds.append((int(state.time), written, metrics))
    return collected, rounds, stages.finish(state, config)


@functools.cache
def batch():
    """The stages of one seed in the batch protocol."""
    return stages_of(make(WITH), WITH, seed_keys(0, 1)[0])


def fitted():
    """The state that the first round of that seed begins with."""
    return batch().fit(batch().init(seed_keys(0, 1)[0])[0], WITH)[0]


@pytest.mark.parametrize("name", ["interactive", "without a model"])
def test_a_run_in_chunks_among_others_is_the_whole_run_of_a_seed_alone(name):
    config = CONFIGS[name]
    alone = jax.tree.map(np.asarray, jax.jit(make(config).train)(seed_keys(0, 1, first=1)[0]))
    collected, rounds, outcome = run_in_chunks(name)
    assert len(rounds) == 2
    for number, (_, _, metrics) in enumerate(rounds):
        among = jax.tree.map(lambda leaf: leaf[1], metrics)
        close(among, jax.tree.map(lambda leaf, number=number: leaf[number], alone.metrics), rtol=1e-3, atol=1e-4)
    close(jax.tree.map(lambda leaf: leaf[1], outcome), alone.outcome, rtol=1e-3, atol=1e-4)
    assert not np.allclose(*outcome.last["params"]["Dense_0"]["kernel"])
    assert collected.shape == (SEEDS, config.random_transitions)
    assert outcome.updates.tolist() == [config.updates] * SEEDS
    assert rounds[-1][0] == config.steps


def test_the_batch_protocol_never_touches_the_environment_again():
    state, (after, _) = fitted(), batch().advance(fitted(), WITH)
    close(state.real, after.real, rtol=0)
    close(state.episode, after.episode, rtol=0)


def test_in_the_interactive_protocol_every_step_is_one_more_real_transition_by_the_policy():
    config = CONFIGS["interactive"]
    _, rounds, _ = run_in_chunks("interactive")
    for number, (_, written, metrics) in enumerate(rounds, start=1):
        assert written == config.random_transitions + number * config.round_steps
        assert metrics.refit.loss.shape == (SEEDS, config.model.members)


def test_an_imagined_policy_gradient_and_dyna_q_are_given_the_same_real_data(tiny):
    assert WITH.random_transitions == tiny.random_transitions
    key = seed_keys(3, 1)[0]
    close(batch().init(key)[0].real, jax.jit(make(tiny).init)(key)[0].real, rtol=0)


PROBE = {"steps": 300, "round_steps": 300, "metric_steps": 100, **COMMON}


@pytest.mark.parametrize(
    ("with_model", "probe", "baseline"),
    [
        (True, "both", "value"),
        (True, "action value", "none"),
        (False, "both", "none"),
        (False, "action value", "value"),
    ],
)
def test_the_policy_finds_the_action_that_is_rewarded(with_model, probe, baseline):
    agent, task = replace(AGENT, baseline=baseline, entropy_weight=0.0), probes.make(probe)
    if with_model:
        config = ImaginedPGConfig(
            **{**PROBE, "agent": agent},
            random_transitions=200,
            model=ModelConfig(members=2, hidden=(16, 16), batch_size=32, epochs=20, prediction="deterministic"),
            imagination=LanesConfig(lanes=8, steps=2, cap=2, controller=controller_settings("fixed", length=2)),
            selection=SelectionConfig(episodes=2, steps=5),
        )
    else:
        config = ModelFreePGConfig(**{**PROBE, "steps": 3_000, "round_steps": 3_000, "agent": agent}, segment_steps=10)
    outcome = jax.jit(make(config, task).train)(seed_keys(0, 1)[0]).outcome
    np.testing.assert_allclose(outcome.returns_last, 1.0)


# Of several actions by their scores in the interactive protocol: the test below.
@pytest.mark.parametrize(("protocol", "estimator"), [("batch", "score"), ("interactive", "pathwise")])
def test_continuous_actions_are_learned_of_both_ways(estimator, protocol):
    config = replace(WITH, **PENDULUM, protocol=protocol, agent=replace(AGENT, estimator=estimator))
    result = jax.jit(make(config).train)(seed_keys(0, 1)[0])
    assert np.isfinite(np.asarray(result.metrics.update.loss)).all()
    assert np.isfinite(np.asarray(result.outcome.returns_chosen)).all()
    assert not bool(result.outcome.frozen)


@pytest.mark.parametrize("numbers", [2, 3, 6])
def test_a_run_with_several_continuous_actions_imagines_from_real_states_and_tells_policies_apart(numbers):
    config, task = replace(WITH, protocol="interactive", random_transitions=60), worlds.points(numbers)
    algorithm = make(config, task)

    def run(key):
        state, _ = algorithm.fit(algorithm.init(key)[0], config)
        state, metrics = jax.lax.scan(lambda state, _: algorithm.advance(state, config), state, None, length=algorithm.rounds)
        return state, metrics, algorithm.finish(state, config)

    state, metrics, outcome = jax.jit(run)(seed_keys(0, 1)[0])
    stored = make_replay(task.spec, config.real_transitions)
    real = rows_of(stored, state.real)
    roots = {tuple(root) for root in np.asarray(state.lanes.root)}
    assert roots <= {tuple(row) for row in np.asarray(real.observation)}
    assert int(state.real.written) == config.real_transitions
    assert np.isfinite(np.asarray(metrics.update.loss)).all()
    assert not bool(outcome.frozen)
    assert (np.asarray(outcome.returns_chosen) < 0).all()
    firsts = np.asarray(real.observation)[np.asarray(real.depth) == 0]
    policy = jax.jit(lambda s: PolicyGradient(config.agent, task.spec).greedy(outcome.last, s))
    assert policy(firsts).shape == (len(firsts), numbers)
    begun = jax.jit(stored.first_states)(state.real, jnp.arange(8, dtype=jnp.uint32))
    np.testing.assert_array_equal(begun, firsts[:8])


@pytest.mark.parametrize("numbers", [2, 3, 6])
def test_snapshots_are_scored_from_the_first_states_of_several_episodes(numbers):
    task = worlds.points(numbers)._replace(reward=lambda s, a, s2: s[..., 0])  # a first step earns what its state shows
    config = replace(WITH, selection=SelectionConfig(episodes=8, steps=1))
    state, _ = jax.jit(make(config, task).init)(seed_keys(0, 1)[0])
    stored = make_replay(task.spec, config.real_transitions)
    judge = phases.imagination_of(config, task, stored, None).judge
    learner = PolicyGradient(config.agent, task.spec)
    key = jax.random.key(2)
    chosen, score, _ = jax.jit(
        lambda state: selection.choose(
            config.selection,
            judge,
            judge.acting(state.model),
            learner.greedy,
            state.agent.target.actor,
            state.chosen,
            state.real,
            key,
            anew=False,
        )
    )(state)
    real = rows_of(stored, state.real)
    firsts = np.asarray(real.observation)[np.asarray(real.depth) == 0]
    bits = np.asarray(draws.bits(jax.random.split(key)[0], (8,)))
    expected = firsts[bits % len(firsts), 0]
    assert len(set(expected)) > 3
    assert float(score) == float(chosen.score) == pytest.approx(expected.mean(), rel=1e-5)


def test_without_a_model_continuous_actions_are_learned_of_too():
    outcome = jax.jit(make(replace(WITHOUT, **PENDULUM)).train)(seed_keys(0, 1)[0]).outcome
    assert np.isfinite(np.asarray(outcome.returns_last)).all()


def test_the_pathwise_gradient_is_the_slope_of_what_the_same_draws_imagine():
    config = replace(WITH, **PENDULUM, model=replace(WITH.model, activation="tanh"), agent=replace(PATHWISE["agent"], decay=0.9))
    with jax.enable_x64(True):
        task = make_environment(config.environment)
        learner = PolicyGradient(config.agent, task.spec)
        stored = make_replay(task.spec, config.real_transitions)
        world, _, fixed = phases.imagination_of(config, task, stored, None)
        state, _ = jax.jit(make(config).init)(seed_keys(0, 1)[0])
        settings, members = config.imagination, world.acting(state.model)
        draws = jax.jit(lambda key: lanes.draw(settings, task.spec, world, key, (1,)))(jax.random.key(1))
        draws = jax.tree.map(lambda leaf: np.asarray(leaf)[0], draws)

        def loss(actor):
            _, rows, _ = lanes.advance(
                settings,
                world,
                fixed,
                state.lanes,
                members,
                lambda s, u, a: learner.relaxed(actor, s, u, a),
                state.real,
                jnp.int32(0),
                draws,
            )
            return learner.pathwise_loss(actor, state.agent.target.critic, segment_of(rows))[0]

        actor, loss = state.agent.online.actor, jax.jit(loss)
        gradient = jax.jit(jax.grad(loss))(actor)
        rng = np.random.default_rng(0)
        for _ in range(3):
            direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), actor)
            ahead, back = (jax.tree.map(lambda p, d, h=h: np.asarray(p) + h * d, actor, direction) for h in (1e-5, -1e-5))
            expected = (float(loss(ahead)) - float(loss(back))) / 2e-5
            found = sum(np.sum(np.asarray(g) * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
            assert found == pytest.approx(expected, rel=1e-5)


def test_discrete_actions_are_differentiated_straight_through():
    with_value = replace(PATHWISE["agent"], entropy_weight=0.0)
    config = replace(WITH, agent=with_value)
    state = fitted()
    after, _ = jax.jit(make(config).advance)(state, config)
    other, _ = batch().advance(fitted(), WITH)
    assert not bool(after.agent.frozen)
    moved = [np.asarray(each.agent.online.actor["params"]["Dense_2"]["kernel"]) for each in (state, after, other)]
    assert not np.allclose(moved[0], moved[1])
    assert not np.allclose(moved[1], moved[2])


def test_a_critic_learns_the_known_value_through_time_limits():
    discount = 0.8
    agent = replace(AGENT, discount=discount, decay=0.9)
    config = ModelFreePGConfig(**{**PROBE, "steps": 15_000, "round_steps": 15_000, "agent": agent}, segment_steps=10)
    task = probes.make("endless")
    algorithm = make(config, task)
    state, _ = jax.jit(algorithm.init)(seed_keys(0, 1)[0])
    state, _ = jax.jit(algorithm.advance)(state, config)
    learner = PolicyGradient(agent, task.spec)
    assert float(learner.values(state.agent.online.critic, jnp.array([1.0, 0.0]))) == pytest.approx(1 / (1 - discount), rel=0.05)


def test_another_horizon_controller_ends_the_lanes():
    settings = replace(WITH.imagination, cap=500, controller=controller_settings("threshold", **{"mark": 0.1}))
    config = replace(WITH, imagination=settings)
    algorithm = make(config)
    run = jax.jit(lambda key: algorithm.advance(algorithm.fit(algorithm.init(key)[0], config)[0], config)[1])
    metrics = run(seed_keys(0, 1)[0])
    assert float(np.max(metrics.lanes.ended)) > 0
    assert np.isfinite(np.asarray(metrics.update.loss)).all()


def test_a_diagnosis_asks_how_wrong_the_model_is():
    told = jax.jit(make(WITH).diagnose)(fitted(), WITH)
    assert float(jnp.sum(told.by_depth.rows)) > 0
    assert make(WITHOUT).diagnose is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(WITHOUT, protocol="batch"), "protocol: 'batch' does not fit"),
        (replace(WITHOUT, random_transitions=5), "random_transitions: 5 does not fit; here it must be 0"),
        (replace(WITHOUT, segment_steps=3), r"segment_steps: 3 does not fit; it must divide metric_steps \(5\)"),
        (replace(WITH, imagination=replace(WITH.imagination, lanes=5)), "imagination.lanes: 5 does not fit"),
        (replace(WITH, agent=replace(AGENT, decay=1.5)), "agent.decay: 1.5 is out of range"),
        (
            replace(WITHOUT, agent=replace(AGENT, estimator="pathwise")),
            "agent.estimator: 'pathwise' does not fit; there is no model",
        ),
        (replace(WITH, random_transitions=0), "random_transitions: 0 is out of range; it must be at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check(config)
    with pytest.raises(ConfigError, match=message):
        (imagined_pg if isinstance(config, ImaginedPGConfig) else model_free_pg).make_train(config)
