"""The engine against the plain path, number by number: the kernels run in the emulator, from the same sources as on a GPU."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    QLearningConfig,
    SelectionConfig,
    holdout_stride,
)
from mbrl_jax.cuda import episodes, loop
from mbrl_jax.cuda.coverage import gpu_of
from mbrl_jax.cuda.emulation import Emulator
from mbrl_jax.cuda.engine import engine_on
from mbrl_jax.cuda.launching import Device
from mbrl_jax.cuda.parameters import flat, tree
from mbrl_jax.cuda.setup import Setup, adam_schedule
from mbrl_jax.environments import make_environment
from mbrl_jax.evaluation import play, play_imagined
from mbrl_jax.imagination.horizon import View, controller_settings, make_controller
from mbrl_jax.model import fitting
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.worlds import make_world
from mbrl_jax.networks import ADAM, adam_step
from mbrl_jax.replay import make_replay

SEEDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def config():
    return DynaQConfig(
        random_transitions=60,
        steps=2 * STEPS,
        round_steps=STEPS,
        metric_steps=1,
        precision="highest",
        environment=EnvironmentConfig(time_limit=12),
        model=ModelConfig(members=2, hidden=(32, 32), batch_size=16, epochs=1),
        imagination=ImaginationConfig(lanes=4, steps=2, capacity=40),
        agent=QLearningConfig(hidden=(32, 32), batch_size=32, learning_rate_decay=0.5),
        selection=SelectionConfig(episodes=4, steps=20),
        evaluation=EvaluationConfig(episodes=3, curve_episodes=2),
    )


@pytest.fixture(scope="module")
def begun(config):
    """The state of two seeds before the first step, with models that no fit has made but that move as CartPole does."""
    plain = dyna_q.make_train(dataclasses.replace(config, protocol="interactive"))
    state, _ = jax.jit(jax.vmap(plain.init, out_axes=(plain.axes, 0)))(seed_keys(0, SEEDS))
    moves = jnp.asarray([[0.01, 0.0, -0.01, 0.0]] * SEEDS), jnp.asarray([[0.02, 0.3, 0.03, 0.4]] * SEEDS)
    known = state.model.normaliser._replace(target_mean=moves[0], target_std=moves[1])
    return state._replace(model=state.model._replace(normaliser=known))


@pytest.fixture(scope="module")
def hyper(config):
    """Other traced settings for the second seed."""
    one, other = (
        config,
        dataclasses.replace(
            config,
            agent=dataclasses.replace(config.agent, learning_rate=3e-3, discount=0.9, target_rate=0.1),
            imagination=dataclasses.replace(config.imagination, epsilon=0.6, cap=1),
            exploration=dataclasses.replace(config.exploration, start=1.0),
        ),
    )
    return jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), one, other)


def learn(config, engine, state, hyper):
    """T steps of both seeds, each with its own settings, and T more."""
    algorithm = dyna_q.make_train(config, engine=engine)

    def twice(state, hyper):
        return jax.lax.scan(lambda state, _: algorithm.learn(state, hyper, STEPS), state, None, length=2)

    return jax.jit(jax.vmap(twice, in_axes=(algorithm.axes, 0), out_axes=(algorithm.axes, 0)))(state, hyper)


def assert_close(ours, plain, rtol, atol):
    def check(path, a, b):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(check, ours, plain)


ENGINE = engine_on(Emulator(), gpu_of("90"))


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_the_steps_of_a_round_are_those_of_the_plain_path(config, begun, hyper, protocol):
    hyper = dataclasses.replace(hyper, protocol=protocol)
    begun = begun if protocol == "interactive" else begun._replace(real=begun.real._replace(rows=begun.real.rows[:, :60]))
    (ours, logs), (plain, plain_logs) = (
        learn(dataclasses.replace(config, protocol=protocol), engine, begun, hyper) for engine in (ENGINE, None)
    )
    assert_close(ours, plain, rtol=2e-5, atol=2e-6)
    assert_close(logs[1], plain_logs[1], rtol=1e-6, atol=0)
    assert_close(logs[0].loss, plain_logs[0].loss, rtol=1e-5, atol=0)
    assert_close(logs[0].scaled_loss, plain_logs[0].scaled_loss, rtol=1e-2, atol=0)  # over a variance of next to nothing
    shared = ours.time, ours.imagined.written, ours.real.written  # by the seeds, though each of them has a block
    assert [int(counter) for counter in shared] == [2 * STEPS, 2 * STEPS * 8, 60 + 2 * STEPS * (protocol == "interactive")]
    np.testing.assert_array_equal(ours.agent.updates, 2 * STEPS)
    logged = np.asarray(logs[1].ended)
    assert (logged[1] == 1).all()  # the second seed's cap
    assert (logged[0] < 1).all()


@pytest.fixture(scope="module")
def setup(config):
    return Setup(Emulator(), gpu_of("90"), config, make_environment(config.environment))


@pytest.fixture(scope="module")
def worlds(config, begun):
    """The world model's acting parameters, and a policy that pushes of each seed."""
    task = make_environment(config.environment)
    ensemble = Ensemble(config.model, task.spec, task.reward, task.terminated)
    members = jax.vmap(lambda state: fitting.members(ensemble, state))(begun.model)
    return members, begun.agent.online


def test_imagined_episodes_return_what_they_do_on_the_plain_path(config, setup, worlds):
    members, policy = worlds
    real = make_replay(setup.task.spec, config.real_transitions)
    judge = make_world(config.model, setup.task, real, first_rows=60, stride=holdout_stride(config), by="ts_infinity")
    starts = setup.task.draw_resets(jax.random.key(3), (config.selection.episodes,)).observation
    score, learner, steps = episodes.score_of(setup), make_q_learner(config.agent, setup.task.spec), config.selection.steps

    def ours(members, policy, key):
        return score(members, policy, starts, judge.draw(key, key, (steps, len(starts))))

    def plain(members, policy, key):
        return play_imagined(judge, members, lambda s: learner.greedy(policy, s), starts, key, steps)

    keys = seed_keys(5, SEEDS)
    found, expected = (jax.jit(jax.vmap(each))(members, policy, keys) for each in (ours, plain))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(np.asarray(expected))) > 2  # they end at different steps


def test_real_episodes_return_what_they_do_on_the_plain_path(config, setup, worlds):
    _, policy = worlds
    learner, run = make_q_learner(config.agent, setup.task.spec), episodes.play_of(setup)
    starts = setup.task.draw_resets(jax.random.key(8), (SEEDS, config.evaluation.episodes))
    found = jax.jit(jax.vmap(run))(policy, starts)

    def plain(policy, starts):
        return play(setup.task, lambda s: learner.greedy(policy, s), starts)

    expected = jax.jit(jax.vmap(plain))(policy, starts)
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(expected) < config.environment.time_limit).any()


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_a_fit_and_a_refit_are_those_of_the_plain_path(config, begun, protocol):
    """Batch: the first fit. Interactive: a refit, to data that have grown but do not fill the replay."""
    settings = {"laplacian": "auto", "laplacian_rows": 8, "weight_decay": 1e-3, "epochs": 2, "refit_batches": 3}
    model = dataclasses.replace(config.model, **settings, patience=1 if protocol == "batch" else None)
    config = dataclasses.replace(config, model=model, protocol=protocol)
    rates = jnp.asarray([1e-3, 3e-2])
    real = begun.real._replace(rows=begun.real.rows[:, : config.real_transitions])
    if protocol == "interactive":
        real = real._replace(rows=real.rows.at[:, 60:64].set(real.rows[:, :4]), written=real.written + 4)
    state = begun._replace(real=real)

    def fit_by(engine):
        algorithm = dyna_q.make_train(config, engine=engine)
        parts = algorithm.engine
        task = make_environment(config.environment)
        replay = make_replay(task.spec, config.real_transitions)

        def fit(state, rate):
            hyper = dataclasses.replace(config, model=dataclasses.replace(model, learning_rate=rate))
            world = make_world(hyper.model, task, replay, first_rows=60, stride=holdout_stride(config))
            plain, ours = (world.fit, parts.fit) if protocol == "batch" else (world.refit, parts.refit)
            how = plain if ours is None else partial(ours, hyper)
            return how(state.model, state.real, state.key)

        return jax.jit(jax.vmap(fit, in_axes=(algorithm.axes, 0)))(state, rates)

    (ours, our_log), (plain, plain_log) = map(fit_by, (ENGINE, None))
    assert_close(our_log, plain_log, rtol=1e-4, atol=1e-6)
    assert_close(ours, plain, rtol=1e-4, atol=2e-6)
    before, after = (model.params["params"]["Dense_1"]["kernel"] for model in (begun.model, ours))
    assert not np.allclose(before, after, atol=1e-3)


def test_on_a_gpu_a_round_is_three_launches_and_nothing_calls_back(config):
    algorithm = dyna_q.make_train(config, engine=engine_on(Device("90"), gpu_of("90")))
    state, _ = jax.eval_shape(jax.vmap(algorithm.init, out_axes=(algorithm.axes, 0)), seed_keys(0, SEEDS))
    advance = jax.jit(jax.vmap(algorithm.advance, in_axes=(algorithm.axes, None), out_axes=(algorithm.axes, 0)), donate_argnums=0)
    text = advance.trace(state, config).lower(lowering_platforms=("cuda",)).as_text()
    launched = re.findall(r'custom_call @__gpu\$xla\.gpu\.ptx.*?name = "(\w+)"', text)
    assert sorted(launched) == ["mbrl_round", "mbrl_score", "mbrl_score"]
    assert "callback" not in text
    rows = re.search(r"tensor<2x40x13xf32> \{[^}]*tf\.aliasing_output", text)
    assert rows, "the imagined replay is donated"


def test_the_schedule_of_adam_is_adams_own():
    rate, gradients = 0.01, [0.5, -2.0, 1.0]
    schedule = np.asarray(adam_schedule(jnp.asarray(0, jnp.int32), jnp.arange(3, dtype=jnp.int32), rate))
    param, state = jnp.zeros(()), ADAM.init(jnp.zeros(()))
    ours = first = second = 0.0
    for (scaled, square), gradient in zip(schedule, gradients, strict=True):
        param, state = adam_step(param, state, jnp.asarray(gradient), rate)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        ours -= scaled * first / (np.sqrt(second * square) + 1e-8)
    np.testing.assert_allclose(ours, param, rtol=1e-5)
    later = adam_schedule(jnp.asarray(2, jnp.int32), jnp.arange(1, dtype=jnp.int32), rate)
    np.testing.assert_array_equal(later[0], schedule[2])


@pytest.mark.parametrize(
    "controller",
    [
        controller_settings("fixed", length=3.0),
        controller_settings("schedule", start=2.0, end=7.0, first=1.0, last=5.0),
        controller_settings("schedule", start=2.0, end=7.0, first=5.0, last=1.0),
    ],
    ids=["fixed", "growing", "shrinking"],
)
def test_the_stopping_depth_is_where_the_controller_stops(controller):
    lanes = 8
    plain = make_controller(controller.kind, controller.numbers)
    depths = np.asarray(loop.stopping_depth(controller, jnp.asarray(1, jnp.int32), 8))
    nothing = jnp.zeros(lanes)
    for time, depth in enumerate(depths, start=1):
        view = View(
            *(jnp.asarray(time, jnp.int32), jnp.arange(lanes, dtype=jnp.int32)),
            **dict.fromkeys(View._fields[2:], nothing),
        )
        _, decision = plain.step((), view)
        np.testing.assert_array_equal(decision.stop, np.arange(lanes) + 1 >= depth, err_msg=str(time))


def test_parameters_go_into_a_vector_and_back():
    sizes, generator = (3, 4, 5, 2), np.random.default_rng(0)
    vector = jnp.asarray(generator.normal(size=(6, 3 * 4 + 4 + 4 * 5 + 5 + 5 * 2 + 2)).astype(np.float32))
    network = tree(vector, sizes)
    np.testing.assert_array_equal(flat(network), vector)
    np.testing.assert_array_equal(network["params"]["Dense_1"]["kernel"][2, 1], vector[2, 16 + 5 : 16 + 10])  # row by row
    with pytest.raises(ValueError, match=r"parameters: 53 do not fit; a network of sizes \(3, 4, 5, 3\) has 59"):
        tree(vector, (3, 4, 5, 3))
