import jax
import pytest

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import presets, read_preset, with_settings
from mbrl_jax.environments import environment_of

ONE_OF_EACH = (
    "smoke",
    "cartpole_batch_model_free",
    "pendulum_pg",
    "cartpole_pg_model_free",
    "pendulum_mpc",
    "cartpole_mpc",
    "pendulum_dmo",
    "cartpole_positions",
    "cartpole_positions_model_free",
)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [*((preset, {}) for preset in ONE_OF_EACH), ("cartpole_mpc", {"planning.terminal": "value"})],
)
def test_the_shapes_of_a_policy_are_known_without_the_whole_algorithm(preset, changes):
    config = with_settings(read_preset(preset), changes)
    task = environment_of(config.environment, None)
    algorithm = algorithm_of(config).make_train(config, environment=task)
    state, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
    expected, found = jax.eval_shape(algorithm.policies, state)[0], algorithm_of(config).params(config, task)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(expected)
    ]


def test_every_algorithm_is_among_them():
    assert {type(read_preset(preset)) for preset in presets()} == {type(read_preset(preset)) for preset in ONE_OF_EACH}
