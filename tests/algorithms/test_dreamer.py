"""Dreamer: a policy with a memory that learns in a latent world, and the loop around it."""

import dataclasses
from functools import partial
from unittest import mock

import guests
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms.memories import cue
from algorithms.stages import stages_of

import mbrl_jax
from mbrl_jax import command_line
from mbrl_jax.algorithms import dreamer, phases
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    ConfigError,
    DreamerConfig,
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    LanesConfig,
    ModelConfig,
    PolicyGradientConfig,
    check,
    from_dict,
    save,
    to_dict,
)
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import lanes as lanes_
from mbrl_jax.imagination.horizon import controller_settings, make_controller
from mbrl_jax.model.rssm import RSSM, Belief, RSSMConfig
from mbrl_jax.runs import results
from mbrl_jax.serving import playing

LANES = LanesConfig(lanes=32, steps=3, cap=3, restart="per_step", controller=controller_settings("fixed", length=3))
CONFIG = DreamerConfig(
    random_transitions=200,
    steps=1200,
    round_steps=600,
    metric_steps=100,
    update_steps=2,
    model=RSSMConfig(
        deterministic=16,
        hidden=(16,),
        variables=4,
        classes=4,
        sequence=6,
        batch_size=16,
        fit_batches=100,
        learning_rate=1e-2,
        decoder_deviation=0.3,
    ),
    imagination=LANES,
    agent=PolicyGradientConfig(hidden=(16,), learning_rate=3e-3, critic_learning_rate=1e-2, discount=0.9, entropy_weight=0.03),
    evaluation=EvaluationConfig(episodes=20, curve_episodes=4),
)


@pytest.fixture(scope="module")
def trained():
    """Two seeds of the cue: what their states and metrics were after each of two rounds, and how they ended."""
    algorithm = dreamer.make_train(CONFIG, environment=cue())
    stages = stages_of(algorithm, CONFIG, seed_keys(0, 2), algorithm.axes)
    state, _ = stages.init(seed_keys(0, 2))
    state, fit = stages.fit(state, CONFIG)
    rounds = []
    for _ in range(2):
        state, metrics = stages.advance(state, CONFIG)
        rounds.append(jax.device_get(metrics))
    return (
        jax.device_get(fit),
        rounds,
        jax.device_get(stages.finish(state, CONFIG)),
        jax.device_get(state._replace(key=())),
        stages,
    )


def test_it_learns_what_only_a_memory_can_know(trained):
    _, rounds, outcome, _, _ = trained
    assert (outcome.returns_last.mean(axis=1) > 0.9).all()  # of what has no memory it is 0
    assert not outcome.frozen.any()
    assert (outcome.updates == CONFIG.steps / CONFIG.update_steps).all()
    assert rounds[0].update.loss.shape == (2, 6)
    np.testing.assert_array_less(rounds[1].world.reward, 0.2)  # the sign of the cue is carried to where the reward is


def test_the_first_fit_tells_errors_of_sequences_that_it_was_not_made_to(trained):
    fit = trained[0]
    assert fit.loss.shape == fit.holdout_mse.shape == (2, 10, 1)
    assert (fit.holdout_mse[:, -1] < 0.5 * fit.holdout_mse[:, 0]).all()


def test_a_real_step_is_stored_as_it_was_made_and_remembered(trained):
    state = trained[3]
    rows = state.real.rows[0, CONFIG.random_transitions :]
    depth, reward, action, end = rows[:, -1], rows[:, -4], rows[:, 4], rows[:, -3]
    np.testing.assert_array_equal(depth, np.arange(len(depth)) % 2 if depth[0] == 0 else 1 - np.arange(len(depth)) % 2)
    second = depth == 1
    cues = np.concatenate([[np.nan], rows[:-1, 0]])[second]
    np.testing.assert_array_equal(reward[second][1:], (cues * (2 * action[second] - 1))[1:])
    np.testing.assert_array_equal(end == 1, second)
    np.testing.assert_array_equal(state.memory.first[0], second[-1])
    assert state.memory.action[0] == action[-1]
    assert state.time == CONFIG.steps


@pytest.mark.parametrize(
    "task", [guests.dots(EnvironmentConfig()), make_environment(EnvironmentConfig(name="pixels/CartPole-v1"))]
)
def test_images_go_through_convolutions(task):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, encoder="convolutional", channels=(2, 3)))
    algorithm = dreamer.make_train(config, environment=task)
    state, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
    encoder = state.model.params.encoder["params"]
    assert {name: leaf["kernel"].shape for name, leaf in encoder.items() if "Dense" in name} == {
        "Dense_0": (4, 2),
        "Dense_1": (8, 3),
        "Dense_2": (task.spec.observation_size // 16 * 3, 16),
    }
    policy, params = dreamer.policy_of(config, task), dreamer.params_of(config, task)
    memory = jax.eval_shape(lambda params: policy.begin(params, jax.random.key(0), 3), params)
    after, action = jax.eval_shape(policy.act, params, memory, jnp.zeros((3, task.spec.observation_size)))
    assert action.shape == (3, *task.spec.action_shape)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), memory
    )


def test_convolutions_of_what_is_no_image_are_refused():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, encoder="convolutional"))
    with pytest.raises(
        ConfigError, match="model.encoder: 'convolutional' does not fit; observations of 'a cue' are vectors of 2"
    ):
        dreamer.make_train(config, environment=cue())


def test_lanes_begin_at_beliefs_in_which_an_episode_goes_on():
    rng = np.random.default_rng(0)
    before = Belief(*(rng.normal(size=(6, 4, size)).astype(np.float32) for size in (3, 2)))
    roots = dreamer._roots(before)
    drawn = dreamer._drawn(None, roots, jnp.asarray(rng.integers(0, 2**32, (5, 7), np.uint32)))
    assert drawn.deterministic.shape == (5, 7, 3)
    there = {tuple(row) for row in before.deterministic[1:].reshape(-1, 3).tolist()}
    assert {tuple(row) for row in np.asarray(drawn.deterministic).reshape(-1, 3).tolist()} <= there
    places = dreamer._drawn(None, roots, jnp.arange(20, dtype=jnp.uint32))
    np.testing.assert_array_equal(places.stochastic, before.stochastic[1:].reshape(-1, 2))


def test_an_imagined_reward_is_credited_to_the_step_that_earned_it():
    """The rows of lanes have the reward, the end and the features of the belief that each step led to."""
    task, rssm = cue(), RSSM(CONFIG.model, cue().spec)
    world = phases.world_of(CONFIG, task)._replace(start=dreamer._drawn)
    params = jax.jit(rssm.init)(jax.random.key(1))
    controller = make_controller("fixed", {"length": 3.0})

    @jax.jit
    def imagine(key):
        roots = rssm.blank((10,))
        lanes = lanes_.init(LANES, controller, world, params, roots)
        draws = lanes_.draw(LANES, task.spec, world, key, ())
        act = lambda features, explore, random: random  # noqa: E731
        rows = lanes_.advance(LANES, world, controller, lanes, params, act, roots, jnp.int32(0), draws)[1]
        return rows, world.step(params, Belief(*jnp.split(rows.observation, [16], -1)), rows.action, draws.model)

    rows, again = jax.device_get(imagine(jax.random.key(0)))
    goes_on = rows.weight == 1
    for found, expected in (
        (rows.reward, again.reward),
        (rows.terminated, again.terminated),
        (rows.next_observation, np.concatenate(again.belief, -1)),
    ):
        np.testing.assert_allclose(found[goes_on], expected[goes_on], rtol=1e-5, atol=1e-6)
    follows = goes_on[1:]
    np.testing.assert_array_equal(rows.observation[1:][follows], rows.next_observation[:-1][follows])
    assert 0 < follows.mean() < 1  # some lanes have ended, and idle


def test_a_policy_is_the_filter_and_the_actor(trained):
    """What a saved policy does along an episode is what its parts do by hand."""
    _, _, outcome, state, _ = trained
    task = cue()
    policy = dreamer.policy_of(CONFIG, task)
    params = jax.tree.map(lambda leaf: leaf[0], outcome.last)
    model, actor = jax.tree.map(lambda leaf: leaf[0], (state.model.params, state.agent.target.actor))
    rssm, learner = RSSM(CONFIG.model, task.spec), dreamer.learner_of(CONFIG, task)
    seen = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    memory = policy.begin(params, jax.random.key(0), 3)
    act = jax.jit(policy.act)
    belief = rssm.begin(model, rssm.encode(model, seen[0]), None)
    for step in range(4):
        memory, action = act(params, memory, seen[step])
        if step > 0:
            belief, _ = rssm.filter(model, belief, taken, rssm.encode(model, seen[step]), None)  # noqa: F821
        for found, expected in zip(memory.belief, belief, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(action, learner.greedy(actor, rssm.features(belief)))
        taken = action  # noqa: F841


def test_a_seed_has_the_same_numbers_whoever_is_beside_it(trained):
    _, rounds, _, _, stages = trained
    state, _ = stages.init(seed_keys(0, 2)[::-1])
    state, _ = stages.fit(state, CONFIG)
    swapped = jax.device_get(stages.advance(state, CONFIG)[1])
    for found, expected in zip(jax.tree.leaves(swapped.world), jax.tree.leaves(rounds[0].world), strict=True):
        np.testing.assert_allclose(found[::-1, 0], expected[:, 0], rtol=1e-3)
        assert (found[0] != found[1]).any()


def test_the_rule_of_drift_sees_the_model_after_its_first_fit():
    drifting = dataclasses.replace(LANES, controller=controller_settings("drift", quantile=0.9))
    config = dataclasses.replace(CONFIG, imagination=drifting)
    algorithm = dreamer.make_train(config, environment=cue())
    begun, _ = jax.jit(algorithm.init)(seed_keys(0, 1)[0])
    assert np.isinf(begun.lanes.controller.mark)
    fitted, _ = jax.jit(algorithm.fit)(begun, config)
    bank, mark = fitted.lanes.controller
    assert 0 < float(mark) < np.inf
    assert np.asarray(bank.features).std(axis=0).max() == pytest.approx(1, abs=0.01)
    same = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(begun)]
    after = jax.eval_shape(lambda state: algorithm.advance(state, config)[0], fitted)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(after)] == same


# ------------------------------------------------------------------------------------------------------------ on the host

POSITIONS = {
    **{"algorithm": "dreamer", "environment": {"name": "Pendulum-v1", "observed": "positions", "time_limit": 20}},
    **{"random_transitions": 60, "steps": 8, "round_steps": 4, "metric_steps": 2, "update_steps": 2},
    "model": {
        "deterministic": 4,
        "hidden": [4],
        "latent": "gaussian",
        "variables": 2,
        "sequence": 4,
        "batch_size": 2,
        "fit_batches": 10,
    },
    "imagination": {"lanes": 3, "steps": 2, "cap": 2, "restart": "per_step", "controller": {"kind": "fixed", "length": 2}},
    "agent": {"hidden": [4], "estimator": "pathwise"},
    "random_actions": {"rule": "surprise", "share": 0.3},
    "evaluation": {"episodes": 2, "curve_episodes": 2},
}


def test_a_run_is_saved_stopped_resumed_read_played_and_reported(tmp_path, capsys):
    config, folder, preset = from_dict(POSITIONS), tmp_path / "run", tmp_path / "preset.yaml"
    assert from_dict(to_dict(config)) == config
    save(config, preset)
    words = ["train", str(preset), "--seeds", "2", "--out", str(folder), "--checkpoint-every", "0"]
    with mock.patch.object(results, "write", side_effect=RuntimeError("lost")), pytest.raises(RuntimeError, match="lost"):
        command_line.main(words)
    saved = playing.load_policies(folder)[1]["last"]  # of the last checkpoint
    command_line.main([*words, "--resume"])
    read, whole = mbrl_jax.load_run(folder), mbrl_jax.run(config, 2)
    jax.tree.map(np.testing.assert_array_equal, saved, read.result.outcome.last)
    jax.tree.map(np.testing.assert_array_equal, read.result.outcome, whole.result.outcome)
    for one, other in zip(read.result.metrics, whole.result.metrics, strict=True):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one), jax.tree.leaves(other))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), read.result.fit, whole.result.fit)
    assert (read.result.metrics.random_actions.mark > 0).all()
    policy = mbrl_jax.load_policy(folder)
    assert policy(np.zeros((2, 3, 2), np.float32)).shape == (2, 3, 1)
    playing_ = policy.play(3, seed=1)
    seen = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    actions = [playing_(each) for each in seen]
    again = dreamer.policy_of(config, make_environment(config.environment))
    params = jax.tree.map(lambda leaf: leaf[1], policy.params)
    memory = again.begin(params, jax.random.key(0), 3)
    for each, action in zip(seen, actions, strict=True):
        memory, expected = again.act(params, memory, each)
        np.testing.assert_allclose(action, 2 * expected, rtol=1e-4, atol=1e-6)  # newton metres
    assert not np.allclose(actions[1], policy(seen[1], seed=1))  # which begins an episode there
    with pytest.raises(mbrl_jax.ConfigError, match=r"observation: shape \[2, 2\] does not fit; it must be \[3"):
        playing_(seen[0, :2])
    with pytest.raises(mbrl_jax.ConfigError, match="seed: 2 is out of range"):
        policy.play(seed=2)
    with pytest.raises(mbrl_jax.ConfigError, match="episodes: 0 is out of range"):
        policy.play(0)
    command_line.main(["evaluate", str(folder), "--episodes", "2"])
    assert "Pendulum-v1" in capsys.readouterr().out
    command_line.main(["report", str(folder), "--out", str(tmp_path / "report.html")])
    assert "<svg" in (tmp_path / "report.html").read_text()


# --------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "batch"}, "protocol: 'batch' does not fit; it acts, so it must be 'interactive'"),
        ({"metric_steps": 25, "update_steps": 2}, "metric_steps: 25 does not fit; .* update_steps"),
        ({"model": ModelConfig()}, "model.kind: 'ensemble' does not fit; a latent world is filtered, as 'rssm' is"),
        (
            {"imagination": dataclasses.replace(LANES, controller=controller_settings("threshold", mark=0.1))},
            "imagination.controller.kind: 'threshold' does not fit; a latent world has one member.*: fixed, schedule, drift",
        ),
        ({"imagination": dataclasses.replace(LANES, penalty="mopo")}, "imagination.penalty: 'mopo' does not fit; a latent world"),
        ({"imagination": dataclasses.replace(LANES, sampling="mean")}, "imagination.sampling: 'mean' does not fit; a latent"),
    ],
)
def test_settings_that_do_not_fit_a_latent_world_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        check(dataclasses.replace(CONFIG, **change))


def test_an_algorithm_that_acts_without_a_filter_refuses_a_latent_world():
    config = DynaQConfig(model=CONFIG.model, random_transitions=200)
    with pytest.raises(
        ConfigError, match="model.kind: 'rssm' does not fit; policies act in it by a filter, as those of 'dreamer'"
    ):
        mbrl_jax.dyna_q.make_train(config)


def test_too_few_random_transitions_for_a_sequence_are_refused():
    config = dataclasses.replace(CONFIG, random_transitions=11)
    with pytest.raises(ConfigError, match="model.sequence: 6 does not fit; of 11 random transitions .* must be at most 5"):
        dreamer.make_train(config, environment=cue())


def test_a_task_without_a_simulator_on_the_devices_is_refused():
    task = make_environment(EnvironmentConfig())
    with pytest.raises(ConfigError, match="environment.name: 'CartPole-v1' does not fit; the host steps it"):
        dreamer.make_train(CONFIG, environment=task._replace(host=object()))


def test_a_controller_that_goes_by_members_is_refused():
    with pytest.raises(ConfigError, match="model.members: 1 imagine, which does not fit"):
        dreamer.make_train(CONFIG, environment=cue(), controller=make_controller("threshold", {"mark": 0.1}))
