import platform
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import execution, runner
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
    made = execution.lower(execution.spread(step, AXES, AXES, layout), jnp.asarray(3, jnp.int32), own).compile()
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


def test_seeds_that_do_not_fit_into_memory_are_refused_before_anything_compiles(tiny, monkeypatch):
    def compiles(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiles)
    with pytest.raises(ConfigError, match=r"seeds: 1000000000 do not fit into memory: the results of each take .*at most \d+"):
        runner.run(tiny, 1_000_000_000)
    with pytest.raises(ConfigError, match=r"memory: 0.000 GB do not hold one seed, which takes [\d.]+ MB"):
        runner.run(tiny, 3, memory=1_000)
    with pytest.raises(ConfigError, match=r"devices: 7 is out of range; here it must be from 1 to 2"):
        runner.run(tiny, 3, devices=7)
    with pytest.raises(ConfigError, match=r"memory: 0 bytes is out of range"):
        runner.run(tiny, 3, memory=0)


def test_the_memory_of_this_machine_is_known():
    assert 1e8 < execution.memory() < 1e13


def test_compiled_programs_are_kept_in_the_user_s_cache_folder_unless_jax_was_told_where(tmp_path, monkeypatch):
    told = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    execution.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == told
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", False)
        execution.use_compilation_cache()
        jax.config.update("jax_enable_compilation_cache", True)
        assert jax.config.jax_compilation_cache_dir is None
        execution.use_compilation_cache()
        first = Path(jax.config.jax_compilation_cache_dir)
        assert first.parent == tmp_path / "mbrl_jax"
        monkeypatch.setattr(execution.platform, "processor", lambda: "another kind")
        jax.config.update("jax_compilation_cache_dir", None)
        execution.use_compilation_cache()
        assert Path(jax.config.jax_compilation_cache_dir) != first
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def test_the_devices_in_words_name_the_model_of_the_processor():
    told = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.exists() else []
    assert execution.device() == f"2 x cpu ({models[0].strip() if models else platform.machine()})"
