"""Decoupled backpropagation: its three gradients, and the loop around them."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import linear
from algorithms.stages import stages_of
from faults import planted

from mbrl_jax import load_policy, load_run
from mbrl_jax.agents.policy_gradient import PolicyGradient, segment_of
from mbrl_jax.algorithms import dmo, windows
from mbrl_jax.algorithms.training import real_rows, seed_keys
from mbrl_jax.config import (
    ConfigError,
    DMOConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ModelConfig,
    PolicyGradientConfig,
    check,
    presets,
    read_preset,
)
from mbrl_jax.environments import EnvironmentState, Transition, make_environment
from mbrl_jax.imagination.horizon import controller_settings, make_controller
from mbrl_jax.runs import folder, results, runner
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.interruption import Interrupted, Interruption
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train

SEEDS, WINDOW = 2, 6
AGENT = PolicyGradientConfig(
    estimator="pathwise", hidden=(16, 16), learning_rate=1e-2, critic_learning_rate=1e-2, discount=0.9, gradient_clip=10.0
)
CONFIG = DMOConfig(
    environment=EnvironmentConfig(name="Pendulum-v1", time_limit=20),
    random_transitions=96,
    steps=96,
    round_steps=48,
    metric_steps=24,
    model=ModelConfig(members=2, hidden=(8, 8), batch_size=16, epochs=2, refit_batches=2, prediction="deterministic"),
    agent=AGENT,
    copies=4,
    window_steps=WINDOW,
    critic_updates=3,
    critic_batch=8,
    probes=2,
    evaluation=EvaluationConfig(episodes=3, curve_episodes=2),
)
GRADIENTS = ("true", "decoupled", "imagined")


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


# ------------------------------------------------------------------------------------------------------------- the gradients


class Case:
    """A window of a task from given episodes, by a policy ``tanh(K s)`` or the linear one, with a quadratic value."""

    discount, value = 0.9, np.array([[-2.0, 0.5], [0.5, -1.0]])

    def __init__(self, task, gradient, length=100.0, act=lambda gain, s: s @ gain.T):
        self.task, self.act, size = task, act, task.spec.observation_size
        self.config = replace(CONFIG, gradient=gradient, copies=3, probes=2)
        self.world, self.controller = linear.true_world(task), make_controller("fixed", {"length": length})
        self.weight = np.eye(size) if size != 2 else self.value

    def values(self, s):
        return jnp.einsum("...i,ij,...j->...", s, jnp.asarray(self.weight, s.dtype), s)

    def window(self, gain, episode, fresh):
        shape = (WINDOW, 3)
        number = jnp.zeros(shape, jnp.int32)
        drawn = windows.Draws(jnp.zeros(shape), jnp.zeros((*shape, self.task.spec.action_size)), number, number, fresh)
        time, policy = jnp.zeros((), jnp.int32), lambda s, uniform, random: self.act(gain, s)
        before = jnp.zeros(())
        return windows.unroll(
            self.config, self.task, self.world, None, self.controller, policy, (episode, ()), time, before, drawn
        )[1]

    def objective(self, gain, episode, fresh):
        path = self.window(gain, episode, fresh).path
        return windows.objective(path, self.values(path.next_observation), self.discount)

    def gradient(self, gain, key=0, spent=0):
        """The gradient, and the episodes that it began with, which have ``spent`` steps behind them."""
        keys = jax.random.split(jax.random.key(key))
        episode, fresh = self.task.draw_resets(keys[0], (3,)), self.task.draw_resets(keys[1], (1,))
        inner = episode.inner._replace(time=episode.inner.time + spent)
        episode = EnvironmentState(inner, episode.observation)
        return jax.jit(jax.grad(self.objective))(gain, episode, fresh), episode, fresh


def by_hand(case, gain, episode, fresh):
    """The same objective, one simulator by itself, one step after another."""
    fresh = jax.tree.map(lambda leaf: leaf[0], fresh)

    def one(state):
        def step(carry, t):
            state, total, worth = carry
            state, told = case.task.step(state, case.act(gain, state.observation), fresh)
            total, worth = total + worth * told.reward, worth * case.discount
            ends = (told.truncated | (t == WINDOW - 1)) & ~told.terminated
            total = total + jnp.where(ends, worth * case.values(told.next_observation), 0.0)
            return (state, total, jnp.where(told.truncated | told.terminated, 1.0, worth)), None

        begin = (state, jnp.zeros(()), jnp.ones(()))
        return jax.lax.scan(step, begin, jnp.arange(WINDOW))[0][1]

    return jnp.sum(jax.vmap(one)(episode)) / (3 * WINDOW)


def squashed(gain, s):
    return jnp.tanh(s @ gain.T)


SWINGUP = make_environment(EnvironmentConfig(name="control/cartpole-swingup", time_limit=20))
GAIN = np.array([[0.3, -0.5, 0.7, 0.2, -0.4]])


@pytest.mark.parametrize("spent", [0, 17])  # of 20 steps: no episode ends in the window, or all do in its middle
def test_the_true_gradient_is_that_of_the_simulator_and_the_decoupled_one_equals_it_with_the_true_model(spent):
    with jax.enable_x64(True):
        gain = jnp.asarray(GAIN)
        found, episode, fresh = Case(SWINGUP, "true", act=squashed).gradient(gain, spent=spent)
        case = Case(SWINGUP, "true", act=squashed)
        expected = jax.jit(jax.grad(functools.partial(by_hand, case)))(gain, episode, fresh)
        decoupled = Case(SWINGUP, "decoupled", act=squashed).gradient(gain, spent=spent)[0]
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(decoupled, expected, rtol=1e-6)


def closed_form_errors():
    """{gradient: the largest relative error against the closed form of the linear system}."""
    with jax.enable_x64(True):
        gain, errors = np.array([[-0.4, 0.3]]), {}
        for name in GRADIENTS:
            case = Case(linear.make(), name)
            found, episode, _ = case.gradient(jnp.asarray(gain))
            expected = linear.closed_form(gain, np.asarray(episode.observation), WINDOW, case.discount, case.value)
            errors[name] = float(np.max(np.abs(np.asarray(found) - expected) / np.abs(expected)))
        return errors


def test_on_a_linear_system_with_a_quadratic_cost_all_three_gradients_have_the_closed_form():
    assert max(closed_form_errors().values()) < 1e-9


def end_of_episode_error():
    """The relative error of the decoupled gradient where episodes end within the window."""
    with jax.enable_x64(True):
        gain = jnp.array([[-0.4, 0.3]])
        case = Case(linear.make(), "decoupled")
        found, episode, fresh = case.gradient(gain, spent=17)
        expected = jax.jit(jax.grad(functools.partial(by_hand, case)))(gain, episode, fresh)
        return float(np.max(np.abs(np.asarray(found - expected)) / np.abs(np.asarray(expected))))


def test_a_path_that_follows_an_episode_s_end_within_a_window_has_nothing_of_the_one_before():
    assert end_of_episode_error() < 1e-9


STOPPED = "after, told = jax.vmap(task.step)(episode, sg(action), fresh)\n            following"
FAULTS = {
    "the simulator's own gradient is not stopped": (
        "algorithms.windows:surrogate_step", "sg(told.next_observation) + following", "told.next_observation + following"),
    "the reward's own gradient is lost": (
        "algorithms.windows:surrogate_step", "sg(told.reward) + reward - sg(reward)", "sg(told.reward)"),
    "the model's gradient has the wrong sign": (
        "algorithms.windows:surrogate_step", "+ following - sg(following)", "- following + sg(following)"),
    "the gradient crosses an episode's end": (
        "algorithms.windows:unroll", "observation = _where(ended, sg(after.observation), goes_on)",
        "observation = sg(after.observation) + goes_on - sg(goes_on)"),
    "the discount crosses an episode's end": (
        "algorithms.windows:objective", "begins = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])",
        "begins = jnp.zeros_like(ended).at[0].set(True)"),
    "an episode's end does not bootstrap": (
        "algorithms.windows:objective", "path.terminated, ended, value", "path.terminated | path.truncated, ended, value"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_term_of_the_gradient_is_caught(name):
    where, old, new = FAULTS[name]
    with planted(where, old, new):
        if name == "the simulator's own gradient is not stopped":  # its action is stopped as well: both must be lost
            with planted("algorithms.windows:unroll", STOPPED, STOPPED.replace("sg(action)", "action")):
                errors = closed_form_errors()
        else:
            errors = closed_form_errors()
        assert max(errors["decoupled"], end_of_episode_error()) > 1e-3


def test_the_critic_values_the_state_that_a_window_leads_to():
    with jax.enable_x64(True):
        case = Case(linear.make(), "decoupled")
        gain = jnp.array([[-0.4, 0.3]])
        found, episode, fresh = case.gradient(gain)

        def of_the_wrong_state(gain):
            path = case.window(gain, episode, fresh).path
            return windows.objective(path, case.values(path.observation), case.discount)

        wrong = jax.grad(of_the_wrong_state)(gain)
        assert float(np.max(np.abs(np.asarray(found - wrong)))) > 1e-2


def test_the_objective_by_hand():
    reward = np.array([[1.0], [2.0], [3.0], [4.0]])
    flags = {
        name: np.array([[False], [name == "terminated"], [name == "truncated"], [False]]) for name in ("terminated", "truncated")
    }
    flags["truncated"][3] = True
    path = Transition(None, None, reward, None, **flags, elapsed=None)
    value = np.array([[10.0], [20.0], [30.0], [40.0]])
    discount = 0.5
    expected = (1 + 0.5 * 2) + (3 + 0.5 * 30) + (4 + 0.5 * 40)  # terminated, truncated, the window's end
    assert float(windows.objective(*jax.device_put((path, value, discount)))) == pytest.approx(expected / 4)


def test_a_horizon_controller_ends_paths_within_the_window():
    with jax.enable_x64(True):
        gain = jnp.array([[-0.4, 0.3]])
        case = Case(linear.make(), "decoupled", length=2.0)
        found, episode, fresh = case.gradient(gain)
        path = jax.jit(case.window)(gain, episode, fresh).path
        assert np.asarray(path.truncated).all(axis=1).tolist() == [False, True] * 3
        starts = np.asarray(path.observation)[::2].reshape(-1, 2)  # what a path of two steps begins with
        expected = linear.closed_form(np.asarray(gain), starts, 2, case.discount, case.value)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_termination_ends_a_path_without_a_value():
    with jax.enable_x64(True):
        case = Case(linear.make(bound=0.3), "decoupled")
        gain = jnp.array([[-0.4, 0.3]])
        found, episode, fresh = case.gradient(gain)
        window = jax.jit(case.window)(gain, episode, fresh)
        assert np.asarray(window.simulated.terminated).any()
        expected = jax.jit(jax.grad(functools.partial(by_hand, case)))(gain, episode, fresh)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------------ the loop


@functools.cache
def stages():
    algorithm = dmo.make_train(CONFIG)
    return algorithm, stages_of(algorithm, CONFIG, seed_keys(0, SEEDS), algorithm.axes)


@functools.cache
def run_in_chunks():
    """``([metrics after each round], state, outcome)`` of the seeds."""
    algorithm, compiled = stages()
    state, _ = compiled.init(seed_keys(0, SEEDS))
    state, _ = compiled.fit(state, CONFIG)
    rounds = []
    for _ in range(algorithm.rounds):
        state, metrics = compiled.advance(state, CONFIG)
        rounds.append(jax.tree.map(np.asarray, metrics))
    return rounds, jax.tree.map(np.asarray, state._replace(key=None)), compiled.finish(state, CONFIG)


def test_a_run_in_chunks_among_others_is_the_whole_run_of_a_seed_alone():
    rounds, _, outcome = run_in_chunks()
    alone = jax.tree.map(np.asarray, jax.jit(dmo.make_train(CONFIG).train)(seed_keys(0, 1, first=1)[0]))
    assert len(rounds) == 2
    for number, metrics in enumerate(rounds):
        among = jax.tree.map(lambda leaf: leaf[1], metrics)
        close(among, jax.tree.map(lambda leaf, number=number: leaf[number], alone.metrics), rtol=1e-3, atol=1e-4)
    close(jax.tree.map(lambda leaf: leaf[1], outcome), alone.outcome, rtol=1e-3, atol=1e-4)
    assert outcome.updates.tolist() == [CONFIG.updates] * SEEDS == [4, 4]


def test_every_step_of_every_simulator_is_one_more_real_transition_those_of_each_in_order():
    rounds, state, _ = run_in_chunks()
    assert int(state.real.written) == CONFIG.real_transitions == 192
    assert rounds[0].refit.loss.shape == (SEEDS, 2)
    assert rounds[0].surrogate.error.shape == (SEEDS, 2, WINDOW)
    assert rounds[0].update.path_length.tolist() == [[WINDOW] * 2] * SEEDS
    size = 3
    rows = state.real.rows[0, CONFIG.random_transitions :].reshape(4, 4, WINDOW, -1)  # windows, copies, steps
    np.testing.assert_array_equal(rows[0, :, 1:, :size], rows[0, :, :-1, size : 2 * size])  # s is the s' before it
    np.testing.assert_array_equal(rows[0, :, -1, size : 2 * size], rows[1, :, 0, :size])  # the next window goes on from there


def test_the_three_gradients_meet_the_same_random_numbers_and_differ_by_the_gradient_alone():
    firsts = {}
    for gradient in ("true", "imagined"):
        config = replace(CONFIG, gradient=gradient)
        algorithm = dmo.make_train(config)
        state, _ = jax.jit(algorithm.init)(seed_keys(0, 1)[0])
        firsts[gradient], _ = jax.jit(lambda state, config, learn=algorithm.learn: learn(state, config, 24))(state, config)
    rows = {name: np.asarray(state.real.rows) for name, state in firsts.items()}
    np.testing.assert_allclose(rows["true"], rows["imagined"], rtol=1e-5, atol=1e-6)  # of the first window
    actors = [state.agent.online.actor["params"]["Dense_0"]["kernel"] for state in firsts.values()]
    assert not np.allclose(*actors)


def test_the_critic_descends_to_the_lambda_returns_and_a_step_that_is_not_finite_freezes():
    learner = PolicyGradient(replace(AGENT, critic_learning_rate=3e-2), make_environment(CONFIG.environment).spec)
    state = learner.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    observation = rng.uniform(-1, 1, (WINDOW, 4, 3)).astype(np.float32)
    flags = np.zeros((WINDOW, 4), bool)
    told = Transition(
        observation,
        np.zeros((WINDOW, 4, 1), np.float32),
        observation[..., 0],
        observation,
        ~flags,
        flags,
        np.ones_like(flags, np.int32),
    )
    segment = segment_of(real_rows(jax.device_put(told)))
    places = jax.device_put(rng.integers(0, WINDOW * 4, (300, 16)).astype(np.int32))
    nothing = jax.tree.map(jnp.zeros_like, state.online.actor)
    improve = jax.jit(functools.partial(dmo.improve, learner))
    after, error, scaled = improve(state, segment, nothing, 0.0, places)
    value = learner.values(after.online.critic, jax.device_put(observation))
    np.testing.assert_allclose(value, observation[..., 0], atol=0.15)  # all terminate: the return is the reward
    assert float(scaled) == pytest.approx(float(error) / observation[..., 0].var(), rel=1e-4)
    close(after.online.actor, state.online.actor, rtol=0)
    broken, _, _ = improve(after, segment, jax.tree.map(lambda leaf: leaf + jnp.nan, nothing), 0.0, places)
    assert bool(broken.frozen)
    close(broken.online, after.online, rtol=0)
    assert int(broken.updates) == int(after.updates) == 1


@functools.cache
def program_and_run():
    """A program that trains the seeds, and what came of its unbroken run."""
    program = runner.prepare([CONFIG], SEEDS)
    return program, train(program, Batch(0, SEEDS))


def test_a_run_that_was_stopped_after_a_round_and_goes_on_is_bit_for_bit_the_unbroken_one(tmp_path):
    program, whole = program_and_run()
    asked, stop = Asked(CONFIG, SEEDS, 0, False), Interruption()
    stop.requested = True
    with folder.opened(tmp_path / "run", asked, "the command", every=1e9, keep=1) as kept, pytest.raises(Interrupted) as stopped:
        train(program, Batch(0, SEEDS), callbacks=[kept.lines, kept.checkpoints], interruption=stop)
    assert stopped.value.round == 1
    with folder.opened(tmp_path / "run", asked, "the command", resume=True, every=1e9, say=lambda text: None) as kept:
        again = train(program, Batch(0, SEEDS), callbacks=[kept.lines, kept.checkpoints], found=kept.found)
    jax.tree.map(np.testing.assert_array_equal, again.result, whole.result)


def test_a_run_is_saved_and_its_policies_load_and_play(tmp_path):
    results.write(program_and_run()[1], tmp_path)
    policy = load_policy(tmp_path)
    assert policy(np.zeros((5, 3), np.float32), seed=1).shape == (5, 1)
    run = load_run(tmp_path)
    assert run.result.metrics.surrogate.error.shape == (2, 2, 2, WINDOW)
    assert run.result.metrics.update.gradient_norm.shape == (2, 2, 2)


@pytest.mark.parametrize("measure", ["finite", "true"])
def test_the_surrogate_s_error_is_nothing_for_the_true_model(measure):
    with jax.enable_x64(True):
        case = Case(SWINGUP, "decoupled", act=squashed)
        _, episode, fresh = case.gradient(jnp.asarray(GAIN))
        window = jax.jit(case.window)(jnp.asarray(GAIN), episode, fresh)
        config = replace(case.config, surrogate_error=measure)
        found = jax.jit(lambda window: windows.measure_surrogate(config, SWINGUP, case.world, None, window))(window)
        np.testing.assert_allclose(found.error, 0, atol=1e-6)
        np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
        assert found.error.shape == (WINDOW,)


def test_the_window_s_length_follows_the_error_of_the_window_before():
    errors = {}
    for name, (low, high) in {"right": (1e3, 1e6), "wrong": (0.0, 1e-9)}.items():
        errors[name] = controller_settings("gradient_error", low=low, high=high, first=3.0, limit=5.0)
    config = replace(CONFIG, controller=errors["right"])
    algorithm = dmo.make_train(config)
    state, _ = jax.jit(algorithm.init)(seed_keys(0, 1)[0])
    learn = jax.jit(lambda state, hyper: algorithm.learn(state, hyper, 72))
    lengths, realised = {}, {}
    for name, settings in errors.items():
        after, (log, surrogate) = learn(state, replace(config, controller=settings))
        lengths[name], realised[name] = float(after.controller.length), np.asarray(log.path_length).tolist()
        assert float(after.error) == pytest.approx(float(np.asarray(surrogate.error)[-1].mean()), rel=1e-5)
    assert lengths == {"right": 5.0, "wrong": 1.0}  # of the first window nothing is known yet
    assert realised["wrong"] == [3.0, 2.0, 1.0]


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "batch"}, r"protocol: 'batch' does not fit; it acts in its simulators"),
        ({"metric_steps": 16}, r"metric_steps: 16 does not fit; it must be a multiple of a window's 4 x 6 steps \(24\)"),
        ({"probes": 5}, r"probes: 5 does not fit; there are 4 copies"),
        (
            {"controller": controller_settings("threshold", mark=1.0)},
            r"controller.kind: 'threshold' does not fit",
        ),
        ({"agent": replace(AGENT, estimator="score")}, r"agent.estimator: 'score' does not fit; .* it must be 'pathwise'"),
        ({"agent": replace(AGENT, baseline="none")}, r"agent.baseline: 'none' does not fit; .* it must be 'value'"),
        ({"model": replace(CONFIG.model, members=1)}, r"surrogate_error: 'spread' does not fit; 1 imagine"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(replace(CONFIG, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("CartPole-v1", {}, r"environment.name: 'CartPole-v1' does not fit; its actions are discrete"),
    ],
)
def test_a_task_that_windows_do_not_fit_is_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        dmo.make_train(replace(CONFIG, environment=EnvironmentConfig(name=name), **changes))


def test_a_truth_that_there_is_not_is_refused():
    blind = linear.make()._replace(dynamics=None)
    with pytest.raises(ConfigError, match=r"surrogate_error: 'true' does not fit; 'linear' has no known dynamics"):
        dmo.make_train(replace(CONFIG, surrogate_error="true"), environment=blind)


def test_a_controller_given_that_asks_what_members_predict_is_refused():
    asks = make_controller("threshold", {"mark": 1.0})
    with pytest.raises(ConfigError, match=r"controller: it asks what members predict"):
        dmo.make_train(CONFIG, controller=asks)


def test_the_defaults_are_of_a_task_that_it_takes():
    dmo.make_train(DMOConfig())
    assert DMOConfig().environment.name == "Pendulum-v1"


def test_the_presets_are_shipped_and_work():
    for name in ("pendulum_dmo", "swingup_dmo"):
        assert name in presets()
        dmo.make_train(read_preset(name))
