import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import environments as env
from mbrl_jax.config import ConfigError, EnvironmentConfig, from_dict
from mbrl_jax.environments import observing
from mbrl_jax.serving import playing

STEPS = 60  # of random CartPole, in which several episodes end


def make(**settings):
    return env.make_environment(EnvironmentConfig(**settings))


@pytest.fixture(scope="module")
def walks():
    """The same random actions from the same resets in the whole task, masked, delayed, and both."""
    tasks = {
        "whole": make(time_limit=20),
        "masked": make(time_limit=20, observed="positions"),
        "late": make(time_limit=20, delay=2),
        "both": make(time_limit=20, observed=(2, 0), delay=2),
    }

    @jax.jit
    def walk(key):
        return {name: env.collect(task, env.draw_collection(task, key, STEPS))[1:] for name, task in tasks.items()}

    return jax.tree.map(np.asarray, walk(jax.random.key(3)))


def test_positions_are_the_axes_of_the_task_that_do_not_move(walks):
    whole, masked = walks["whole"][0], walks["masked"][0]
    np.testing.assert_array_equal(masked.observation, whole.observation[:, [0, 2]])
    np.testing.assert_array_equal(masked.next_observation, whole.next_observation[:, [0, 2]])
    assert make(name="Pendulum-v1", observed="positions").spec.observed == (0, 1)


def test_what_is_not_seen_changes_nothing_else(walks):
    whole, returns = walks["whole"]
    for name in ("masked", "late", "both"):
        seen, same = walks[name]
        np.testing.assert_array_equal(returns, same)
        for field in ("action", "reward", "terminated", "truncated", "elapsed"):
            np.testing.assert_array_equal(getattr(seen, field), getattr(whole, field), err_msg=field)
    assert (whole.terminated | whole.truncated).sum() >= 2


@pytest.mark.parametrize(("name", "axes"), [("late", [0, 1, 2, 3]), ("both", [2, 0])])
def test_a_delayed_observation_is_the_one_of_so_many_steps_before_or_the_first_of_its_episode(walks, name, axes):
    whole, late = walks["whole"][0], walks[name][0]
    begins = np.arange(STEPS) - whole.elapsed  # rows in which the episodes begin
    before = np.maximum(np.arange(STEPS) - 2, begins)
    np.testing.assert_array_equal(late.observation, whole.observation[before][:, axes])
    after = np.maximum(np.arange(STEPS) + 1 - 2, begins)
    np.testing.assert_array_equal(late.next_observation, whole.observation[after][:, axes])


@pytest.mark.parametrize("settings", [{"observed": "positions"}, {"delay": 2}], ids=["masked", "late"])
def test_a_policy_is_shown_the_next_episode_where_one_has_ended(settings):
    task = make(time_limit=2, **settings)
    first, fresh = task.draw_resets(jax.random.key(0), ()), task.draw_resets(jax.random.key(1), ())
    on, transition = task.step(first, np.int32(1), fresh)
    np.testing.assert_array_equal(on.observation, transition.next_observation)
    after, transition = task.step(on, np.int32(1), fresh)
    assert transition.truncated
    assert (np.asarray(transition.next_observation) != np.asarray(fresh.observation)).all()
    jax.tree.map(np.testing.assert_array_equal, after, fresh)


def test_the_spec_is_that_of_the_axes_that_are_seen():
    spec = make(name="Pendulum-v1", observed=(1, 0)).spec
    assert (spec.observation_size, spec.observation_scale, spec.angles) == (2, (1.0, 1.0), ((1, 0),))
    assert make(name="Pendulum-v1", observed=(0, 2)).spec.angles == ()
    assert make(name="Pendulum-v1", observed=(2,)).spec.observation_limits == (8.0,)


def test_distractors_are_seen_beside_positions_and_by_their_numbers():
    tasks = [make(distractors=3), make(observed="positions", distractors=3), make(observed=(2, 0, 5), distractors=3)]
    begun = [task.draw_resets(jax.random.key(0), ()) for task in tasks]
    after = [task.step(state, jnp.int32(1), state)[1] for task, state in zip(tasks, begun, strict=True)]
    whole = np.asarray(after[0].next_observation)
    assert (whole[4:] != 0).all()
    for task, transition, axes in zip(tasks[1:], after[1:], ((0, 2, 4, 5, 6), (2, 0, 5)), strict=True):
        assert task.spec.observed == axes
        np.testing.assert_array_equal(transition.next_observation, whole[list(axes)])


def test_known_functions_of_the_whole_observation_are_not_offered():
    for task in (make(observed="positions"), make(delay=1)):
        assert task.reward is task.terminated is task.dynamics is None


@pytest.mark.parametrize("distractors", [0, 3])
def test_a_task_that_is_wrapped_already_stays_as_it_is(distractors):
    config = EnvironmentConfig(observed="positions", delay=2, distractors=distractors)
    assert env.environment_of(config, task := env.make_environment(config)) is task


def test_a_masked_task_is_shown_by_its_axes():
    assert env.view_of("CartPole-v1", 4).drawing == "cartpole"
    assert env.view_of("CartPole-v1", 2).drawing == "lines"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"observed": (0, 4)}, r"environment.observed: \[0, 4\] does not fit; of 'CartPole-v1' it must be numbers from 0 to 3"),
        ({"observed": (1, 1)}, r"environment.observed: \[1, 1\] does not fit"),
        ({"name": "control/pendulum-swingup-twice", "observed": "positions"}, "environment.name: .* is not known"),
    ],
)
def test_axes_that_are_not_there_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        make(**settings)


def test_what_cannot_be_masked_is_refused():
    task = make()
    unknown = task._replace(spec=task.spec._replace(name="my/task"))
    with pytest.raises(ConfigError, match="environment.observed: 'positions' does not fit 'my/task'; .* numbers of axes"):
        env.environment_of(EnvironmentConfig(observed="positions"), unknown)
    with pytest.raises(ConfigError, match=r"environment.observed: \[0\] does not fit; .* only \[0, 2\] are seen already"):
        observing.masked(make(observed="positions"), (0,))
    with pytest.raises(ConfigError, match="environment.delay: 1 does not fit; .* by 2 steps already"):
        observing.delayed(make(delay=2), 1)
    with pytest.raises(ConfigError, match="environment.delay: 1 does not fit; .* stepped on the host"):
        observing.delayed(task._replace(host=object()), 1)
    logged = task._replace(step=env.protocol.no_simulator)
    with pytest.raises(ConfigError, match=r"environment.observed: \[0\] does not fit; there are only logged transitions"):
        observing.masked(logged, (0,))


@pytest.mark.parametrize(("environment", "told"), [({"observed": "positions"}, "observed"), ({"delay": 1}, "delay")])
def test_gymnasiums_simulator_shows_everything_at_once_so_it_is_refused(environment, told):
    config = from_dict({"algorithm": "model_free_q", "environment": environment})
    with pytest.raises(ConfigError, match=f"env: 'gymnasium' does not fit environment.{told}"):
        playing.play_policies(config, {"kernel": np.zeros((1, 2))}, 1, "gymnasium", 0)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("velocities", "environment.observed: 'velocities' must be a list of int with at least one entry"),
        ([0.5], r"environment.observed\[0\]: 0.5 must be of type int"),
        ([], "environment.observed: .* must be a list of int with at least one entry"),
    ],
)
def test_settings_that_name_no_axes_are_refused(value, told):
    with pytest.raises(ConfigError, match=told):
        from_dict({"algorithm": "dyna_q", "environment": {"observed": value}})


def test_a_file_names_positions_or_numbers():
    observed = [
        from_dict({"algorithm": "dyna_q", "environment": {"observed": x}}).environment.observed for x in ("positions", [2, 0])
    ]
    assert observed == ["positions", (2, 0)]


def test_beneath_whatever_hides_a_state_is_the_whole_observation():
    key = jax.random.key(4)
    expected = make().draw_resets(key, (2,)).observation
    hidden = {"observed": "positions", "delay": 2, "distractors": 3}
    for changes in ({}, *({name: value} for name, value in hidden.items()), hidden):
        state = make(**changes).draw_resets(key, (2,))
        np.testing.assert_array_equal(observing.beneath(state), expected)
