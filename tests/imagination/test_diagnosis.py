import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import world_of

from mbrl_jax.config import EnvironmentConfig, ModelConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import diagnosis, disagreement
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.replay import Rows

TASK = make_environment(EnvironmentConfig())
STEPS, LANES, LENGTH = 12, 5, 4  # rollouts of four steps, three after each other


@pytest.fixture(scope="module")
def model():
    ensemble = Ensemble(ModelConfig(members=3, hidden=(8, 8)), TASK.spec, TASK.reward, TASK.terminated)
    world, _ = world_of(ensemble, 1)
    members = world.acting(world.init(jax.random.key(7)))
    scale = jnp.array([0.1, 0.2, 0.05, 0.4])
    return ensemble, world, members._replace(normaliser=members.normaliser._replace(target_std=scale))


def rollouts(off, start=0.02):
    """Rows of rollouts by the real dynamics, but for ``off`` [4] that is added at every step."""
    observation = start * jax.random.normal(jax.random.key(0), (LANES, 4))
    rows = []
    for t in range(STEPS):
        if t % LENGTH == 0:
            observation = start * jax.random.normal(jax.random.key(t), (LANES, 4))
        action = jax.random.bernoulli(jax.random.key(100 + t), 0.5, (LANES,)).astype(jnp.int32)
        after = TASK.dynamics(observation, action) + off[None]
        ones = jnp.ones(LANES)
        depth = jnp.full(LANES, t % LENGTH, jnp.int32)
        rows.append(Rows(observation, after, action, ones, ones < 0, ones, depth))
        observation = after
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def judge(model, rows):
    _, world, members = model
    return jax.jit(lambda rows: diagnosis.judge(TASK, world, members, rows))(rows)


def test_a_perfect_model_has_no_error_at_any_depth(model):
    told = judge(model, rollouts(jnp.zeros(4)))
    assert told.rows[: LENGTH + 1].tolist() == [15.0] * 4 + [0.0]
    np.testing.assert_allclose(told.one_step_error[:LENGTH], 0.0, atol=1e-6)
    np.testing.assert_allclose(told.compounded_error[:LENGTH], 0.0, atol=1e-5)
    assert np.isneginf(told.one_step_error[LENGTH:]).all()
    assert not np.isnan(jax.tree.leaves(told)).any()


def test_the_one_step_error_is_in_deviations_and_the_compounded_one_grows_from_it(model):
    off = jnp.array([0.1, 0.0, 0.0, 0.0])  # one deviation of the position, on which nothing else depends
    told = judge(model, rollouts(off))
    np.testing.assert_allclose(told.one_step_error[:LENGTH], np.sqrt(1 / 4), rtol=1e-5)
    np.testing.assert_allclose(told.compounded_error[:LENGTH], np.arange(1, 5) * np.sqrt(1 / 4), rtol=1e-4)


def test_the_compounded_error_ends_where_the_real_episode_does(model):
    rows = rollouts(jnp.zeros(4), start=0.0)
    falling = rows._replace(observation=rows.observation.at[0, :, 2].set(0.3))  # beyond the angle at which an episode ends
    falling = falling._replace(next_observation=falling.next_observation.at[1:LENGTH].add(1e3))
    told = judge(model, falling)
    assert told.one_step_error[1] > 1e3
    np.testing.assert_allclose(told.compounded_error[1:LENGTH], 0.0, atol=1e-4)  # only the lanes of the later rollouts count


def test_disagreement_by_depth_is_the_mean_over_the_rows_there(model):
    ensemble, _, members = model
    rows = rollouts(jnp.zeros(4))
    spread = disagreement.std(ens.predict_all(ensemble, members, rows.observation, rows.action))
    told = judge(model, rows)
    for depth in range(LENGTH):
        np.testing.assert_allclose(told.disagreement[depth], np.asarray(spread)[depth::LENGTH].mean(), rtol=1e-5)


@pytest.mark.parametrize(("name", "sides"), [("Pendulum-v1", ((0, 1), (2,))), ("Acrobot-v1", ((0, 1), (2, 3)))])
def test_where_angles_are_observed_the_map_is_of_states_that_there_are(name, sides):
    spec = make_environment(EnvironmentConfig(name=name)).spec
    assert tuple(side.axes for side in diagnosis.map_coordinates(spec)) == sides
    states = np.asarray(diagnosis.map_states(spec))
    for cosine, sine in spec.angles:
        np.testing.assert_allclose(np.hypot(states[..., cosine], states[..., sine]), 1, rtol=1e-6)
    angle = np.arctan2(states[..., 1], states[..., 0])
    np.testing.assert_allclose(angle[7, 1:-1], np.linspace(-np.pi, np.pi, diagnosis.MAP_POINTS)[1:-1], atol=1e-5)
    if name == "Pendulum-v1":
        np.testing.assert_allclose(states[:, 7, 2], np.linspace(-8, 8, diagnosis.MAP_POINTS), rtol=1e-6)
    else:
        assert np.all(states[..., 4:] == 0)


def test_the_map_is_of_position_and_angle_with_the_rest_at_zero(model):
    ensemble, world, members = model
    told = jax.jit(lambda: diagnosis.error_map(TASK, world, members))()
    row, column, n = 3, 20, diagnosis.MAP_POINTS
    place = jnp.array([np.linspace(-2.4, 2.4, n)[column], 0.0, np.linspace(-0.21, 0.21, n)[row], 0.0], jnp.float32)
    spread, wrong = [], []
    for action in (jnp.array(0, jnp.int32), jnp.array(1, jnp.int32)):
        everyone = ens.predict_all(ensemble, members, place, action)
        spread.append(float(disagreement.std(everyone)))
        for member in range(3):
            one = jax.tree.map(lambda leaf, m=member: leaf[m], everyone)
            imagined = ens.decode(ensemble, members.normaliser, one, place, action, None)
            wrong.append(float(diagnosis.error(imagined.next_observation, TASK.dynamics(place, action), world.scale(members))))
    np.testing.assert_allclose(told.disagreement[row, column], np.mean(spread), rtol=1e-4)
    np.testing.assert_allclose(told.one_step_error[row, column], np.mean(wrong), rtol=1e-4)
