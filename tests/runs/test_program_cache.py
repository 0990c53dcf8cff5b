import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mbrl_jax.imagination import horizon
from mbrl_jax.runs import command_line, execution, program_cache, runner
from mbrl_jax.runs.program_cache import Known, ProgramCache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache in use, beside one of JAX's own that begins empty."""
    monkeypatch.setattr(program_cache, "_IN_USE", [])
    told = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    compilation_cache.reset_cache()
    program_cache.use(tmp_path / "programs")
    yield program_cache.in_use()
    jax.config.update("jax_compilation_cache_dir", told)
    compilation_cache.reset_cache()
    jax.monitoring.unregister_event_listener(program_cache._note)


def entries(cache):
    return sorted(cache.folder.glob("*")) if cache.folder.exists() else []


def with_learning_rate(config, rate):
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=rate))


def assert_same(ours, theirs):
    for x, y in zip(jax.tree.leaves(ours.result), jax.tree.leaves(theirs.result), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_is_in_the_cache_is_neither_traced_nor_compiled_serves_other_numbers_and_leaves_the_same_result(
    tiny, cache, monkeypatch
):
    def refuses(*_, **__):
        raise AssertionError("traced or compiled")

    other = with_learning_rate(tiny, 3e-3)
    first = runner.run(tiny, 3)
    assert sorted(path.suffix for path in entries(cache)) == [".function"] * 4 + [".program"]
    with monkeypatch.context() as patch:
        patch.setattr(execution, "lower", refuses)
        assert_same(runner.run(tiny, 3), first)
        recalled = runner.run(other, 3)
        told = (recalled.temporary_bytes_per_seed, recalled.state_bytes_per_seed)
        assert told == (first.temporary_bytes_per_seed, first.state_bytes_per_seed)
        with pytest.raises(AssertionError, match="traced or compiled"):
            runner.run(tiny, 3, devices=1)
    with monkeypatch.context() as patch:  # only a comment is new: traced, but not compiled, and then known
        patch.setattr(program_cache, "_source", lambda: "another")
        patch.setattr(execution.Lowered, "compile", refuses)
        assert_same(runner.run(other, 3), recalled)
        patch.setattr(execution, "lower", refuses)
        assert_same(runner.run(other, 3), recalled)
    for path in entries(cache):
        path.unlink()
    jax.clear_caches()
    traced = runner.run(other, 3)
    assert_same(recalled, traced)
    with pytest.raises(AssertionError):
        assert_same(recalled, first)
    assert not entries(cache)  # JAX read it from its own cache: what is read is never written


def test_a_key_follows_from_all_that_a_program_follows_from_and_from_no_traced_number(tiny, monkeypatch):
    devices = jax.local_devices()
    key = program_cache.key_of(tiny, devices, 3, 1)
    assert key == program_cache.key_of(with_learning_rate(tiny, 3e-3), devices, 3, 1)
    static = dataclasses.replace(tiny, agent=dataclasses.replace(tiny.agent, target="max"))
    others = [
        program_cache.key_of(static, devices, 3, 1),
        program_cache.key_of(with_learning_rate(tiny, jnp.ones(3)), devices, 3, 1),
        program_cache.key_of(with_learning_rate(tiny, jnp.ones(6)), devices, 3, 1),
        program_cache.key_of(tiny, devices[:1], 3, 1),
        program_cache.key_of(tiny, devices[1:], 3, 1),
        program_cache.key_of(tiny, devices, 4, 1),
        program_cache.key_of(tiny, devices, 3, 2),
    ]
    with jax.default_matmul_precision("highest"):
        others.append(program_cache.key_of(tiny, devices, 3, 1))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        others.append(program_cache.key_of(tiny, devices, 3, 1))
    for name in ("_source", "_versions"):
        with monkeypatch.context() as patch:
            patch.setattr(program_cache, name, lambda: "another")
            others.append(program_cache.key_of(tiny, devices, 3, 1))
    assert len({key, *others}) == 1 + len(others)
    assert key == program_cache.key_of(tiny, devices, 3, 1)


def with_controller(config):
    lanes = {"controller": "threshold", "controller_settings": {"mark": 0.3}, "penalty": "disagreement"}
    return dataclasses.replace(config, imagination=dataclasses.replace(config.imagination, **lanes, penalty_weight=0.1))


def text(config):
    """The functions of a program, as they are traced."""
    algorithm, key = runner.make_train(config), jax.random.key(0)
    state, _ = jax.eval_shape(algorithm.init, key, config)
    functions = (algorithm.fit, algorithm.advance, algorithm.finish)
    traced = [jax.make_jaxpr(algorithm.init)(key, config), *(jax.make_jaxpr(each)(state, config) for each in functions)]
    return [re.sub("0x[0-9a-f]+", "", str(each)) for each in traced]


@pytest.mark.parametrize(
    "name",
    ["cartpole_interactive", "cartpole_pg", "pendulum_pg", "cartpole_pg_model_free", "cartpole_batch_model_free", "cartpole_mpc"],
)
def test_no_traced_number_is_part_of_a_program(name):
    config = command_line.read_preset(name)
    config = with_controller(config) if name == "cartpole_interactive" else config
    other = jax.tree.map(lambda number: number + 1 if isinstance(number, int) else 0.9 * number, config)
    assert other != config
    assert text(config) == text(other)


def test_a_changed_source_file_is_another_source(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(program_cache.mbrl_jax, "__file__", str(tmp_path / "__init__.py"))
    before = program_cache._source.__wrapped__()
    assert program_cache._source.__wrapped__() == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert program_cache._source.__wrapped__() != before


@pytest.fixture
def function():
    return jax.jit(lambda x: x + 1).lower(jnp.zeros(2)).compile()


def test_what_is_damaged_is_told_of_removed_and_made_anew(tmp_path, function):
    cache, (before, after) = ProgramCache(tmp_path), (function.in_tree, function.out_tree)
    cache.keep("f", function)
    cache.note("key", {"init": Known("f", None)})
    assert cache.find("key") == {"init": Known("f", None)}
    assert cache.load("f", before, after, jax.local_devices()[:1]) is not None
    for path in entries(cache):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"key.program cannot be read and is made anew: "):
        assert cache.find("key") == {}
    with pytest.warns(UserWarning, match=r"f.function cannot be read and is made anew: "):
        assert cache.load("f", before, after, jax.local_devices()[:1]) is None
    assert not entries(cache)
    assert (cache.find("key"), cache.load("f", before, after, jax.local_devices()[:1])) == ({}, None)


def test_a_folder_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path, function):
    (tmp_path / "file").touch()
    cache = ProgramCache(tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match=r"folder cannot be written, the next start compiles again: NotADirectoryError"):
        cache.keep("f", function)
    assert cache.find("f") == {}


def test_a_program_of_which_a_function_is_gone_is_not_found(tmp_path, function):
    cache = ProgramCache(tmp_path)
    cache.keep("f", function)
    cache.note("key", {"init": Known("f", None), "fit": Known("g", None)})
    assert cache.find("key") == {}


def test_those_used_last_are_kept(tmp_path, monkeypatch, function):
    monkeypatch.setattr(program_cache, "FILES", 2)
    cache = ProgramCache(tmp_path)
    cache.note("key", {})
    for age, name in ((30, "a"), (20, "b")):
        cache.keep(name, function)
        program_cache.os.utime(tmp_path / f"{name}.function", (1e9 - age, 1e9 - age))
    cache.load("a", function.in_tree, function.out_tree, jax.local_devices()[:1])
    cache.keep("c", function)
    assert [path.name for path in entries(cache)] == ["a.function", "c.function", "key.program"]


def test_programs_with_a_controller_from_elsewhere_are_not_kept(tiny, cache, monkeypatch):
    assert program_cache.in_use() == cache
    monkeypatch.setitem(horizon.CONTROLLERS, "mine", lambda: horizon.make_controller("fixed", {"length": 1}))
    assert program_cache.in_use() is None
    monkeypatch.delitem(horizon.CONTROLLERS, "mine")
    given = []
    monkeypatch.setattr(
        runner.parts, "program_that_fits", lambda *arguments, **named: given.append((*arguments, *named.values()))
    )
    runner.prepare(tiny, 2)
    assert cache in given.pop()
    runner.prepare(tiny, 2, controller=horizon.make_controller("fixed", {"length": 1}))
    assert cache not in given.pop()
