import re
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from algorithms.stages import Stages, stages_of

from mbrl_jax import replay
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, EnvironmentConfig, MPCConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.evaluation import play
from mbrl_jax.imagination.horizon import Decision, HorizonController, controller_settings
from mbrl_jax.replay import make_replay

SEEDS = 3


@pytest.fixture(scope="module")
def interactive(tiny):
    return replace(tiny, protocol="interactive")


@pytest.fixture(scope="module")
def algorithm(interactive):
    return dyna_q.make_train(interactive)


@pytest.fixture(scope="module")
def result(algorithm):
    return jax.jit(jax.vmap(algorithm.train))(seed_keys(0, SEEDS))


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


@pytest.fixture(scope="module")
def stages(algorithm, interactive):
    """Of all seeds, with the state's axes declared."""
    return stages_of(algorithm, interactive, seed_keys(0, SEEDS), algorithm.axes)


@pytest.fixture(scope="module")
def in_chunks(stages, algorithm, interactive):
    """The run by init, fit, advance and finish: (last state, outcome, returns of random episodes, fit, metrics)."""
    state, collected = stages.init(seed_keys(0, SEEDS))
    state, fit = stages.fit(state, interactive)
    rounds = []
    for _ in range(algorithm.rounds):
        state, metrics = stages.advance(state, interactive)
        rounds.append(metrics)
    outcome = stages.finish(state, interactive)
    return state, outcome, collected, fit, jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rounds)


class Batch(NamedTuple):
    """Runs of one seed in the batch protocol, at two rates of the model."""

    config: Any
    slow: Any  # the same with a model that hardly learns
    stages: Stages

    def fitted(self, config):
        return self.stages.fit(self.stages.init(seed_keys(0, 1)[0])[0], config)[0]

    def train(self, advance, fitted, config, rounds=2):
        """The learner after some rounds of an ``advance`` with ``config``, and their logs; the model is ``fitted`` by another."""
        state, logs = self.fitted(fitted), []
        for _ in range(rounds):
            state, metrics = advance(state, config)
            logs.append(jax.tree.map(np.asarray, metrics))
        return jax.tree.map(np.asarray, state.agent), logs


@pytest.fixture(scope="module")
def batch(tiny):
    config = replace(tiny, steps=60)
    slow = replace(config, model=replace(config.model, learning_rate=1e-9))
    return Batch(config, slow, stages_of(dyna_q.make_train(config), config, seed_keys(0, 1)[0]))


def test_a_run_in_chunks_is_the_whole_run(result, in_chunks):
    _, outcome, collected, fit, metrics = in_chunks
    assert_same(outcome, result.outcome, rtol=1e-5, atol=1e-6)
    assert_same(metrics, result.metrics, rtol=1e-4, atol=1e-5)
    assert_same((collected, fit), (result.collected, result.fit), rtol=1e-5, atol=1e-6)


def test_the_last_policy_is_the_target_network_and_the_chosen_one_the_snapshot(algorithm, interactive, stages, in_chunks):
    state, pushes = in_chunks[0], []
    for action in (0, 1):  # a network that always prefers the one action, and one that prefers the other
        network = jax.tree.map(jnp.zeros_like, state.agent.target)
        network["params"]["Dense_2"]["bias"] = network["params"]["Dense_2"]["bias"].at[..., action].set(1.0)
        pushes.append(network)
    state = state._replace(agent=state.agent._replace(target=pushes[0]), chosen=state.chosen._replace(params=pushes[1]))
    assert_same(algorithm.policies(state), tuple(pushes), rtol=0)
    outcome = stages.finish(state, interactive)
    assert_same((outcome.last, outcome.chosen), tuple(pushes), rtol=0)
    task, played = make_environment(interactive.environment), []

    def episodes(key, action):
        starts = task.draw_resets(dyna_q.stream(key, dyna_q.Stream.FINAL_EVALUATION), (interactive.evaluation.episodes,))
        return play(task, lambda s: jnp.full(s.shape[:-1], action, jnp.int32), starts)

    for action in (0, 1):
        played.append(jax.jit(jax.vmap(lambda key, action=action: episodes(key, action)))(state.key).tolist())
    assert [outcome.returns_last.tolist(), outcome.returns_chosen.tolist()] == played
    assert played[0] != played[1]


def test_counters_are_shared_by_all_seeds(in_chunks, interactive):
    state = in_chunks[0]
    assert int(state.time) == interactive.steps
    assert int(state.real.written) == interactive.real_transitions
    assert int(state.imagined.written) == interactive.steps * 4 * 2  # steps x lanes x imagined steps


def test_a_seed_alone_gives_the_numbers_it_gives_among_others(algorithm, result):
    alone = jax.jit(algorithm.train)(seed_keys(0, 1, first=2)[0])
    assert_same(alone.metrics.update.loss, result.metrics.update.loss[2], rtol=1e-3, atol=1e-5)
    assert_same(alone.outcome.last, jax.tree.map(lambda leaf: leaf[2], result.outcome.last), rtol=1e-3, atol=1e-5)


def test_seeds_differ(result):
    loss = np.asarray(result.metrics.update.loss)
    assert not np.allclose(loss[0], loss[1])


def test_every_real_step_of_the_interactive_protocol_is_stored_once(in_chunks, interactive):
    stored = make_replay(make_environment(interactive.environment).spec, interactive.real_transitions)
    rows, _ = jax.vmap(stored.contents, in_axes=(replay.AXES,))(in_chunks[0].real)
    going_on = np.asarray(rows.depth)[:, 1:] > 0
    assert rows.reward.shape == (SEEDS, interactive.real_transitions)
    np.testing.assert_array_equal(
        np.asarray(rows.observation)[:, 1:][going_on], np.asarray(rows.next_observation)[:, :-1][going_on]
    )
    ended = np.asarray(rows.terminated) | (np.asarray(rows.depth) == 29)  # the time limit of these tests is 30
    np.testing.assert_array_equal(~going_on, ended[:, :-1])


def test_the_batch_protocol_never_touches_the_environment_again(batch):
    state, _ = batch.stages.init(seed_keys(0, 1)[0])
    before = state.real
    after, _ = batch.stages.advance(batch.fitted(batch.config), batch.config)
    assert_same(before, after.real, rtol=0)
    assert int(after.real.written) == batch.config.random_transitions


def test_learning_rate_and_seeds_are_vmapped_in_one_compiled_call(stages, algorithm, interactive, result):
    rates = jnp.array([0.0, interactive.agent.learning_rate])
    hyper = replace(interactive, agent=replace(interactive.agent, learning_rate=rates))
    axes = jax.tree.map(lambda _: None, interactive)
    axes = replace(axes, agent=replace(axes.agent, learning_rate=0))
    both = jax.jit(jax.vmap(jax.vmap(algorithm.train, in_axes=(0, None)), in_axes=(None, axes)))
    grid = both(seed_keys(0, SEEDS), hyper)
    assert grid.outcome.returns_last.shape[:2] == (2, SEEDS)
    assert_same(grid.metrics.update.loss[1], result.metrics.update.loss, rtol=1e-3, atol=1e-5)
    fresh = stages.init(seed_keys(0, SEEDS))[0].agent.online
    assert_same(jax.tree.map(lambda leaf: leaf[0], grid.outcome.last), fresh, atol=1e-6)  # rate 0 learns nothing


def test_hyper_with_other_static_settings_is_refused(algorithm, interactive):
    other = replace(interactive, agent=replace(interactive.agent, batch_size=8))
    with pytest.raises(ConfigError, match="hyper"):
        algorithm.train(seed_keys(0, 1)[0], other)


def test_a_config_of_another_algorithm_is_refused():
    with pytest.raises(ConfigError, match="config: MPCConfig does not fit; it must be a DynaQConfig"):
        dyna_q.make_train(MPCConfig())


@pytest.mark.parametrize("call", ["init", "train", "fit", "advance", "finish", "diagnose"])
@pytest.mark.parametrize("hyper", [3, "smoke", {}])
def test_hyper_that_is_no_config_is_refused(algorithm, call, hyper):
    first = seed_keys(0, 1)[0] if call in ("init", "train") else None
    with pytest.raises(ConfigError, match=f"hyper: {hyper!r} does not fit; it must be a DynaQConfig with other traced numbers"):
        getattr(algorithm, call)(first, hyper)


@pytest.mark.parametrize("call", ["init", "train"])
@pytest.mark.parametrize(
    ("key", "found"),
    [
        (0, "0"),
        (None, "None"),
        (np.zeros(2, np.uint32), r"uint32\[2\]"),
        (jnp.zeros((), jnp.int32), r"int32\[\]"),
        (seed_keys(0, 4), r"key<fry>\[4\]"),
    ],
)
def test_what_is_not_one_typed_key_is_refused(algorithm, call, key, found):
    with pytest.raises(ConfigError, match=f"key: {found} does not fit; it must be one typed key"):
        getattr(algorithm, call)(key)


def test_a_seed_driven_to_nan_is_frozen_and_reported_while_its_neighbours_finish(algorithm, interactive, stages, in_chunks):
    state, _ = stages.fit(stages.init(seed_keys(0, SEEDS))[0], interactive)
    poison = np.array([0, np.nan, 0], np.float32)
    params = jax.tree.map(np.asarray, state.model.params)
    poisoned = jax.tree.map(lambda leaf: leaf + poison.reshape(-1, *(1,) * (leaf.ndim - 1)), params)
    state = state._replace(model=state.model._replace(params=jax.device_put(poisoned)))
    for _ in range(algorithm.rounds):
        state, _ = stages.advance(state, interactive)
    outcome = stages.finish(state, interactive)
    assert outcome.frozen.tolist() == [False, True, False]
    assert int(outcome.updates[1]) == 0
    assert outcome.updates.tolist()[::2] == [interactive.steps] * 2
    for leaf in jax.tree.leaves(outcome.last):
        assert np.isfinite(leaf).all()
    healthy = np.array([0, 2])
    assert_same(
        jax.tree.map(lambda leaf: np.asarray(leaf)[healthy], outcome.last),
        jax.tree.map(lambda leaf: np.asarray(leaf)[healthy], in_chunks[1].last),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_chosen_policy_is_the_best_scored_snapshot_in_the_batch_protocol(batch):
    _, rounds = batch.train(batch.stages.advance, batch.config, batch.config, rounds=6)
    score = np.array([metrics.score for metrics in rounds])
    np.testing.assert_allclose([metrics.chosen_score for metrics in rounds], np.maximum.accumulate(score))
    best_before = np.append(-np.inf, np.maximum.accumulate(score)[:-1])
    np.testing.assert_array_equal([metrics.is_chosen for metrics in rounds], score > best_before)


def test_a_controller_may_be_passed_as_an_object_and_is_calibrated_after_every_fit(interactive):
    def calibrate(state, world, params, rows, valid):
        calls, _ = state
        return calls + 1, jnp.sum(valid, dtype=jnp.int32)

    def step(state, view):
        return state, Decision(view.active, view.depth >= state[0], 0.0 * view.reward)

    def init(lanes, spec):
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    controller = HorizonController(init, calibrate, step)
    algorithm = dyna_q.make_train(interactive, controller=controller)
    key = seed_keys(0, 1)[0]
    state, _ = jax.jit(algorithm.init)(key)
    state, _ = jax.jit(algorithm.fit)(state, interactive)
    assert [int(x) for x in state.lanes.controller] == [1, interactive.random_transitions]
    state, _ = jax.jit(algorithm.advance)(state, interactive)
    assert [int(x) for x in state.lanes.controller] == [2, interactive.random_transitions + interactive.round_steps]


@pytest.mark.parametrize("target", ["quantile", "mean_std"])
def test_conservative_targets_train_with_real_and_imagined_rows_mixed(batch, target):
    agent = replace(batch.config.agent, target=target, real_ratio=0.5, updates_per_step=2)
    config = replace(batch.config, agent=agent)
    learner, rounds = batch.train(jax.jit(dyna_q.make_train(config).advance), batch.config, config)
    assert int(learner.updates) == 2 * 2 * config.round_steps
    assert np.isfinite([metrics.update.loss for metrics in rounds]).all()


def test_a_batch_of_real_rows_only_is_unmoved_by_the_world_model(batch):
    real_only = {"agent": replace(batch.config.agent, real_ratio=1.0)}
    config, slow = replace(batch.config, **real_only), replace(batch.slow, **real_only)
    advance = jax.jit(dyna_q.make_train(config).advance)
    real = [batch.train(advance, *each)[0].target for each in ((batch.config, config), (batch.slow, slow))]
    assert_same(*real, rtol=1e-6)
    mixed = [batch.train(batch.stages.advance, each, each)[0].target for each in (batch.config, batch.slow)]
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, mixed), strict=True)) > 1e-5


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCar-v0"])
def test_other_tasks_run(tiny, name):
    config = replace(tiny, environment=EnvironmentConfig(name=name, time_limit=40))
    result = jax.jit(dyna_q.make_train(config).train)(seed_keys(0, 1)[0])
    returns = np.asarray(result.outcome.returns_last)
    assert ((returns >= -40) & (returns <= 0)).all()
    task = make_environment(config.environment)
    kernel = result.outcome.last["params"]["Dense_0"]["kernel"]
    assert kernel.shape[0] == task.spec.observation_size


def test_a_config_that_cannot_work_is_refused_before_anything_is_built(tiny):
    with pytest.raises(ConfigError, match="imagination.lanes: 5"):
        dyna_q.make_train(replace(tiny, imagination=replace(tiny.imagination, lanes=5, capacity=80)))
    with pytest.raises(ConfigError, match="environment.name: 'CartPole-v7'"):
        dyna_q.make_train(replace(tiny, environment=EnvironmentConfig(name="CartPole-v7")))
    with pytest.raises(ConfigError, match="imagination.controller: 'nope'"):
        dyna_q.make_train(replace(tiny, imagination=replace(tiny.imagination, controller="nope")))


def test_the_compiled_loop_updates_replays_in_place_with_no_copy_and_no_scatter(stages, interactive):
    state, _ = stages.init.eval_shape(seed_keys(0, SEEDS))
    program = stages.advance.as_text()
    body = program[: program.index("\nENTRY")]
    for stored, capacity in ((state.real, interactive.real_transitions), (state.imagined, interactive.imagination.capacity)):
        assert stored.rows.shape[:2] == (SEEDS, capacity)
        replays = re.escape(f"f32[{','.join(map(str, stored.rows.shape))}]") + r"\S* (\S+?)\("
        done = set(re.findall(replays, body))
        assert "dynamic-update-slice" in done
        assert not done & {"copy", "copy-start", "scatter"}


def test_an_axis_goes_on_in_imagination_as_it_does_in_all_real_data(tiny):
    imagination = replace(tiny.imagination, cap=8, controller=controller_settings("fixed", length=8))
    config = replace(tiny, protocol="interactive", imagination=imagination)
    begin, growth = np.float32([[0.001, 0.0], [0.0, 0.1]])  # one axis that is constant, one that grows by a constant

    def run(begin, growth):
        task = worlds.points(discrete=True, axis=(begin, growth, 0.001))
        algorithm = dyna_q.make_train(config, environment=task)
        state, _ = algorithm.fit(algorithm.init(seed_keys(0, 1)[0])[0], config)
        state = algorithm.advance(state, config)[0]
        return make_replay(task.spec, config.imagination.capacity).contents(state.imagined), state.model.normaliser.target_mean

    (rows, valid), learned = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(begin, growth))
    rows = jax.tree.map(lambda leaf: leaf[:, valid[0]], rows)
    assert (valid == valid[0]).all()
    assert (rows.depth.max(axis=1) == 7).all()
    assert (rows.next_observation[..., 0].std(axis=1) > 0.1).all()
    np.testing.assert_allclose(rows.next_observation[..., 1], rows.observation[..., 1] + learned[:, None, 1], rtol=0)
    np.testing.assert_allclose(learned[:, 1], growth, atol=1e-7)
    np.testing.assert_array_equal(rows.next_observation[0, :, 1], begin[0])
