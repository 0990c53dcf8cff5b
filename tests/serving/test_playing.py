from dataclasses import replace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mbrl_jax
from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, EnvironmentConfig, ImaginedPGConfig, ModelFreeQConfig, PolicyGradientConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.runs import results, runner
from mbrl_jax.serving import playing


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results.write(runner.run(tiny, 3), folder)
    return folder


def test_policies_are_loaded_in_one_line_and_act_as_the_learner_does(folder, tiny, cartpole, real_rows):
    policy = mbrl_jax.load_policy(folder)
    assert len(policy) == 3
    observation = real_rows.observation[:50]
    learner = make_q_learner(tiny.agent, cartpole.spec)
    params = results.read(folder).result.outcome.chosen
    for seed in range(3):
        expected = learner.greedy(jax.tree.map(lambda leaf, seed=seed: jnp.asarray(leaf[seed]), params), observation)
        np.testing.assert_array_equal(policy(observation, seed=seed), expected)
        np.testing.assert_array_equal(policy(np.asarray(observation[7]), seed=seed), expected[7])
    everyone = policy(jnp.broadcast_to(observation[None], (3, 50, 4)))
    np.testing.assert_array_equal(everyone[2], policy(observation, seed=2))


def test_what_is_read_back_of_the_chosen_and_of_the_last_policies_is_not_swapped(tiny, tmp_path):
    run = runner.run(tiny, 3)
    outcome = run.result.outcome
    told = outcome._replace(
        last=jax.tree.map(lambda leaf: np.full_like(leaf, 1), outcome.last),
        chosen=jax.tree.map(lambda leaf: np.full_like(leaf, 2), outcome.chosen),
        returns_last=np.full_like(outcome.returns_last, 3),
        returns_chosen=np.full_like(outcome.returns_chosen, 4),
    )
    summary = results.write(run._replace(result=run.result._replace(outcome=told)), tmp_path)
    read = results.read(tmp_path).result.outcome
    for name in ("last", "chosen", "returns_last", "returns_chosen"):
        jax.tree.map(np.testing.assert_array_equal, getattr(read, name), getattr(told, name))
    for name, value in (("last", 1), ("chosen", 2), (None, 2)):
        assert {float(leaf.max()) for leaf in jax.tree.leaves(mbrl_jax.load_policy(tmp_path, name).params)} == {value}
    assert (summary["return_last"], summary["return_chosen"]) == ([3.0] * 3, [4.0] * 3)
    assert (summary["iqm"]["last"]["value"], summary["iqm"]["chosen"]["value"]) == (3.0, 4.0)
    assert summary["fraction_at_least"]["195"] == {"last": 0.0, "chosen": 0.0}


def test_the_last_policies_are_there_too(folder):
    last = results.read(folder).result.outcome.last
    jax.tree.map(np.testing.assert_array_equal, mbrl_jax.load_policy(folder, "last").params, last)


def test_what_is_not_there_is_refused(folder, tiny, tmp_path):
    with pytest.raises(ConfigError, match="seed: 3 is out of range; it must be from 0 to 2"):
        mbrl_jax.load_policy(folder)(np.zeros(4), seed=3)
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    results.write(runner.run(replace(free, steps=10), 1), tmp_path)
    with pytest.raises(ConfigError, match="which: 'chosen' does not fit; .* has the policies last"):
        mbrl_jax.load_policy(tmp_path, "chosen")
    assert len(mbrl_jax.load_policy(tmp_path)) == 1
    for simulator in ("gymnax", "gymnasium"):
        for seed, message in ((-1, "out of range"), (2**32, "out of range"), (0.5, "must be a whole number")):
            with pytest.raises(ConfigError, match=f"seed: .*{message}"):
                playing.play_policies(tiny, mbrl_jax.load_policy(folder).params, 1, simulator, seed)
    with pytest.raises(ConfigError, match="episodes: 0"):
        playing.play_policies(tiny, mbrl_jax.load_policy(folder).params, 0, "gymnax", 0)


@pytest.mark.parametrize(
    ("observation", "seed", "message"),
    [
        (np.zeros(3), 0, r"observation: shape \[3\] does not fit; it must be \[\.\.\., 4\], as of CartPole-v1"),
        (0.5, 0, r"observation: shape \[\] does not fit; it must be \[\.\.\., 4\]"),
        (np.zeros((4, 7)), 0, r"observation: shape \[4, 7\] does not fit"),
        (np.zeros((2, 5, 4)), None, r"shape \[2, 5, 4\] does not fit; it must be \[3, \.\.\., 4\].*name its seed"),
        (np.zeros(4), None, r"shape \[4\] does not fit; it must be \[3, \.\.\., 4\]"),
        (np.zeros(4, complex), 0, "observation: dtype complex128 does not fit; it must be floats"),
        (["a", "b", "c", "d"], 0, "observation: dtype <U1 does not fit"),
        (None, 0, "observation: dtype object does not fit"),
        ([[0.0, 0.0], [0.0]], 0, r"observation: it is no array \(.*\); it must be \[\.\.\., 4\] numbers"),
        (np.zeros(4), 1.5, "seed: 1.5 does not fit; it must be a whole number"),
        (np.zeros(4), True, "seed: True does not fit"),
    ],
)
def test_what_is_no_observation_of_the_task_is_refused_in_plain_words(folder, observation, seed, message):
    with pytest.raises(ConfigError, match=message):
        mbrl_jax.load_policy(folder)(observation, seed=seed)


def test_whole_numbers_and_double_precision_are_observations_too(folder):
    policy = mbrl_jax.load_policy(folder)
    expected = policy(np.zeros((2, 4), np.float32), seed=np.int64(1))
    for dtype in (np.float64, np.int32, np.float16):
        np.testing.assert_array_equal(policy(np.zeros((2, 4), dtype), seed=1), expected)


@pytest.mark.parametrize("load", [mbrl_jax.load_policy, mbrl_jax.load_run])
def test_a_folder_that_is_no_path_is_refused(load):
    with pytest.raises(ConfigError, match="folder: 3 does not fit; it must be a path"):
        load(3)


def pendulum_config():
    return ImaginedPGConfig(environment=EnvironmentConfig(name="Pendulum-v1"), agent=PolicyGradientConfig(hidden=(8,)))


def pendulum_params(bias):
    """Two seeds' actors on Pendulum whose mean outputs are ``bias`` [2], pushed about a little by the observation."""
    config = pendulum_config()
    learner = PolicyGradient(config.agent, make_environment(config.environment).spec)
    params = jax.vmap(lambda key: learner.init(key).online.actor)(jax.random.split(jax.random.key(0), 2))
    params["params"]["Dense_1"]["bias"] = jnp.stack([jnp.array(bias), jnp.zeros(2)], axis=1)
    return params


def returns_of_ours_and_of_gymnasium(policy, seed, same_start, steps):
    """Returns of the first ``steps`` of one episode: in our environment by the greedy policy itself, and in gymnasium's by
    ``env.step(policy(observation))``, from the same state.
    """
    task = make_environment(policy.config.environment)
    greedy = algorithm_of(policy.config).policy(policy.config, task)
    params = jax.tree.map(lambda leaf: leaf[seed], policy.params)
    start = task.draw_resets(jax.random.key(3), ())

    def step(carry, _):
        state, memory = carry
        memory, action = greedy.act(params, memory, state.observation[None])
        state, transition = task.step(state, action[0], start)
        return (state, memory), transition.reward

    begin = start, greedy.begin(params, jax.random.key(0), 1)
    ours = float(jax.jit(lambda: jax.lax.scan(step, begin, length=steps)[1].sum())())
    environment = gymnasium.make(policy.config.environment.name)
    environment.reset(seed=0)
    environment.unwrapped.state = same_start(start.inner)
    observation, theirs = np.asarray(start.observation), 0.0
    for _ in range(steps):
        action = policy(observation, seed=seed)
        assert environment.action_space.contains(action)
        observation, reward, terminated, truncated, _ = environment.step(action)
        assert not terminated
        assert not truncated
        theirs += reward
    return ours, theirs


def test_env_step_of_gymnasium_takes_a_continuous_action_as_it_is_and_returns_the_same():
    policy = playing.Policy(pendulum_config(), pendulum_params([0.9, -2.0]))
    for seed in range(2):
        ours, theirs = returns_of_ours_and_of_gymnasium(
            policy, seed, lambda inner: np.array([inner.theta, inner.theta_dot], np.float64), steps=60
        )
        assert theirs == pytest.approx(ours, rel=1e-3)


def test_env_step_of_gymnasium_takes_a_discrete_action_as_it_is_and_returns_the_same(tiny):
    params = jax.vmap(lambda key: make_q_learner(tiny.agent, make_environment(tiny.environment).spec).init(key).online)(
        jax.random.split(jax.random.key(1), 2)
    )
    policy = playing.Policy(tiny, params)
    ours, theirs = returns_of_ours_and_of_gymnasium(
        policy, 1, lambda inner: [float(x) for x in (inner.x, inner.x_dot, inner.theta, inner.theta_dot)], steps=5
    )
    assert theirs == ours == 5.0


def test_actions_have_the_shapes_of_observations_and_the_types_of_gymnasium(tiny):
    policy = playing.Policy(pendulum_config(), pendulum_params([9.0, -9.0]))
    one, several = [1.0, 0.0, 0.1], np.ones((5, 3))
    everyone = policy([[one] * 4] * 2)
    for action, shape in ((policy(one, seed=0), (1,)), (policy(several, seed=1), (5, 1)), (everyone, (2, 4, 1))):
        assert type(action) is np.ndarray
        assert action.shape == shape
        assert action.dtype == np.float32
    np.testing.assert_allclose(everyone[:, :, 0], [[2.0] * 4, [-2.0] * 4], rtol=1e-3)
    learner = make_q_learner(tiny.agent, make_environment(tiny.environment).spec)
    policy = playing.Policy(tiny, jax.vmap(lambda key: learner.init(key).online)(jax.random.split(jax.random.key(1), 2)))
    assert type(policy([0.0] * 4, seed=0)) is np.int64
    for action, shape in (
        (policy(np.ones((5, 4)), seed=1), (5,)),
        (policy(np.ones((2, 5, 4))), (2, 5)),
        (policy(np.ones((2, 4))), (2,)),
    ):
        assert type(action) is np.ndarray
        assert action.shape == shape
        assert action.dtype == np.int64


def test_no_action_that_leaves_exceeds_the_tasks_bounds_by_rounding():
    spec = make_environment(EnvironmentConfig(name="Pendulum-v1")).spec
    action = playing.actions_for_others(spec, jnp.array([[1.0000001], [-1.0000001], [0.5]]))
    np.testing.assert_array_equal(action, np.array([[2.0], [-2.0], [1.0]], np.float32))


@pytest.mark.parametrize(
    ("shape", "seed", "message"),
    [
        ((3,), 0, r"observation: shape \[3\] does not fit; it must be \[..., 4\], as of CartPole-v1$"),
        ((), 0, r"observation: shape \[\] does not fit; it must be \[..., 4\], as of CartPole-v1$"),
        (
            (4,),
            None,
            r"observation: shape \[4\] does not fit; it must be \[3, ..., 4\], as of CartPole-v1; for one policy name its seed",
        ),
        ((2, 4), None, r"observation: shape \[2, 4\] does not fit; it must be \[3, ..., 4\]"),
    ],
)
def test_observations_of_another_shape_are_refused(folder, shape, seed, message):
    with pytest.raises(ConfigError, match=message):
        mbrl_jax.load_policy(folder)(np.zeros(shape), seed=seed)


def test_continuous_policies_are_played_in_both_simulators_in_the_tasks_own_units():
    config, params = pendulum_config(), pendulum_params([9.0, -9.0])  # full torque, one way and the other
    ours, theirs = (playing.play_policies(config, params, 40, name, 0) for name in ("gymnax", "gymnasium"))
    assert ours.shape == theirs.shape == (2, 40)
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=0.1)
    mild = jax.tree.map(jnp.zeros_like, params)
    assert abs(playing.play_policies(config, mild, 40, "gymnasium", 0).mean() - theirs.mean()) > 50
