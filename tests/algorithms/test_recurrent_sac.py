"""Soft actor-critic with a memory: the loop around it, and its policies on the host side."""

import dataclasses

import jax
import numpy as np
import pytest
from algorithms.memories import cue
from algorithms.stages import stages_of

import mbrl_jax
from mbrl_jax.algorithms import recurrent_sac
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, EvaluationConfig, RecurrentConfig, RecurrentSACConfig, check, from_dict, save, to_dict
from mbrl_jax.environments import make_environment
from mbrl_jax.runs import command_line

CONFIG = RecurrentSACConfig(
    random_transitions=200,
    steps=1200,
    round_steps=600,
    metric_steps=100,
    update_steps=2,
    agent=RecurrentConfig(
        units=16,
        hidden=(16,),
        sequence=6,
        learning_rate=5e-3,
        critic_learning_rate=1e-2,
        target_rate=0.1,
        discount=0.9,
        temperature=0.05,
    ),
    evaluation=EvaluationConfig(episodes=20, curve_episodes=4),
)


@pytest.fixture(scope="module")
def trained():
    """Two seeds of the cue: their metrics after each of two rounds, how they ended, and their last state."""
    algorithm = recurrent_sac.make_train(CONFIG, environment=cue())
    stages = stages_of(algorithm, CONFIG, seed_keys(0, 2), algorithm.axes)
    state, _ = stages.init(seed_keys(0, 2))
    rounds = []
    for _ in range(2):
        state, metrics = stages.advance(state, CONFIG)
        rounds.append(jax.device_get(metrics))
    return rounds, jax.device_get(stages.finish(state, CONFIG)), jax.device_get(state._replace(key=())), stages


def test_it_learns_what_only_a_memory_can_know(trained):
    rounds, outcome, _, _ = trained
    assert (outcome.returns_last.mean(axis=1) > 0.9).all()  # of what has no memory it is 0
    assert not outcome.frozen.any()
    assert (outcome.updates == CONFIG.steps / CONFIG.update_steps).all()
    assert rounds[0].update.loss.shape == (2, 6)
    assert (rounds[1].update.loss[:, -1] < rounds[0].update.loss[:, 0]).all()


def test_a_real_step_is_stored_as_it_was_made_and_remembered(trained):
    state = trained[2]
    rows = state.real.rows[0, CONFIG.random_transitions :]
    depth, reward, action = rows[:, -1], rows[:, -4], rows[:, 4]
    second = depth == 1
    assert second.mean() == pytest.approx(0.5, abs=0.01)
    cues = np.concatenate([[np.nan], rows[:-1, 0]])[second]
    np.testing.assert_array_equal(reward[second][1:], (cues * (2 * action[second] - 1))[1:])
    np.testing.assert_array_equal(state.memory.first[0, 0], second[-1])
    assert state.memory.action[0, 0] == action[-1]
    assert state.time == CONFIG.steps


def test_a_seed_has_the_same_numbers_whoever_is_beside_it(trained):
    rounds, _, _, stages = trained
    state, _ = stages.init(seed_keys(0, 2)[::-1])
    swapped = jax.device_get(stages.advance(state, CONFIG)[1])
    for found, expected in zip(jax.tree.leaves(swapped.update), jax.tree.leaves(rounds[0].update), strict=True):
        np.testing.assert_allclose(found[::-1, 0], expected[:, 0], rtol=1e-3)
        assert (found[0] != found[1]).any()


def test_a_run_of_continuous_actions_is_saved_read_and_played(tmp_path, capsys):
    content = {
        **{"algorithm": "recurrent_sac", "environment": {"name": "Pendulum-v1", "observed": "positions", "time_limit": 20}},
        **{"random_transitions": 60, "steps": 8, "round_steps": 4, "metric_steps": 2, "update_steps": 2},
        "agent": {"units": 4, "hidden": [4], "sequence": 4, "batch_size": 2},
        "evaluation": {"episodes": 2, "curve_episodes": 2},
    }
    config, folder, preset = from_dict(content), tmp_path / "run", tmp_path / "preset.yaml"
    assert from_dict(to_dict(config)) == config
    save(config, preset)
    command_line.main(["train", str(preset), "--seeds", "2", "--out", str(folder)])
    read = mbrl_jax.load_run(folder)
    policy, task = mbrl_jax.load_policy(folder), make_environment(config.environment)
    played, again = policy.play(3, seed=1), recurrent_sac.policy_of(config, task)
    params = jax.tree.map(lambda leaf: leaf[1], read.result.outcome.last)
    memory = again.begin(params, jax.random.key(0), 3)
    for seen in np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32):
        memory, expected = again.act(params, memory, seen)
        np.testing.assert_allclose(played(seen), 2 * expected, rtol=1e-4, atol=1e-6)  # newton metres
    assert not np.allclose(expected, again.act(params, again.begin(params, jax.random.key(0), 3), seen)[1])
    with pytest.raises(SystemExit):
        command_line.main(["export", str(folder), "--out", str(tmp_path / "export"), "--format", "onnx"])
    assert "format: onnx does not fit a policy with a memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "batch"}, "protocol: 'batch' does not fit; it acts, so it must be 'interactive'"),
        ({"metric_steps": 25, "update_steps": 2}, "metric_steps: 25 does not fit; .* update_steps"),
        ({"random_transitions": 5}, "agent.sequence: 6 does not fit; .* so it must be at most 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        check(dataclasses.replace(CONFIG, **change), RecurrentSACConfig)


def test_a_task_that_the_host_steps_is_refused():
    told = "'a cue' does not fit; the host steps it, and 'recurrent_sac' acts by its memory on the devices"
    with pytest.raises(ConfigError, match=told):
        recurrent_sac.make_train(CONFIG, environment=cue()._replace(host=object()))
