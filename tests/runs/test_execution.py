import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.runs import execution
from mbrl_jax.runs.execution import Layout

AXES = (None, 0)


def step(shared, own):
    return shared + 1, own * shared.astype(own.dtype)


@pytest.mark.parametrize("batch", [None, 1, 2, 3])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_every_way_of_spreading_gives_each_seed_its_own_numbers(batch, seeds):
    layout = execution.choose_layout(seeds)._replace(batch=batch)
    padded = layout.padded(seeds)
    own = layout.place(jnp.arange(padded, dtype=jnp.float32))
    made = execution.compile_(execution.spread(step, AXES, AXES, layout), jnp.asarray(3, jnp.int32), own)
    shared, result = made.call(jnp.asarray(3, jnp.int32), own)
    assert int(shared) == 4
    np.testing.assert_array_equal(result, 3.0 * np.arange(padded))
    assert made.seconds > 0


def test_the_devices_are_all_used_but_never_more_than_there_are_seeds():
    assert execution.choose_layout(1).mesh.size == 1
    assert execution.choose_layout(64).mesh.size == len(jax.local_devices()) == 2
    assert execution.choose_layout(64).padded(63) == 64


def test_a_prefix_of_axes_counts_only_what_each_seed_has():
    tree = {"time": jnp.zeros((), jnp.int32), "own": {"rows": jnp.zeros((4, 10)), "key": jax.random.split(jax.random.key(0), 4)}}
    assert execution.bytes_per_seed({"time": None, "own": 0}, tree, 4) == 40 + 8


def test_a_layout_on_a_cpu_maps_one_seed_at_a_time():
    assert execution.choose_layout(8).batch == 1
    assert isinstance(execution.choose_layout(8), Layout)
