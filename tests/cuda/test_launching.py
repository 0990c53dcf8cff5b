import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_kernel import N, sample

from mbrl_jax.config import ConfigError
from mbrl_jax.cuda import emulation
from mbrl_jax.cuda.emulation import Emulator
from mbrl_jax.cuda.launching import Device, launcher

X = np.arange(2 * 3 * N, dtype=np.float32).reshape(2, 3, N)
RATE = np.asarray([10.0, 20.0], np.float32)
Y = np.arange(9, dtype=np.int32).reshape(3, 3)


def test_a_call_that_is_not_mapped_is_one_block():
    x, total = launcher(sample(), Emulator())(X[0, 0], jnp.asarray(RATE[0]), Y[2])
    np.testing.assert_array_equal(x, X[0, 0] + 20)
    assert int(total) == 21


def test_maps_over_settings_and_seeds_make_one_grid():
    launch = launcher(sample(), Emulator())
    seeds = jax.vmap(launch, in_axes=(0, None, 0))
    x, total = jax.jit(jax.vmap(seeds, in_axes=(0, 0, None)))(X, RATE, Y)
    np.testing.assert_array_equal(x, X + 2 * RATE[:, None, None])
    np.testing.assert_array_equal(total, np.broadcast_to([3, 12, 21], (2, 3)))


def test_a_mapped_axis_may_be_any():
    launch = launcher(sample(), Emulator())
    x, _ = jax.vmap(launch, in_axes=(1, None, None), out_axes=[1, 0])(X[0].T, jnp.asarray(RATE[1]), Y[0])
    np.testing.assert_array_equal(x, X[0].T + 40)


def test_a_kernel_in_a_scan_carries_its_state():
    launch = launcher(sample(), Emulator())

    def run(x, y):
        def step(x, rate):
            return launch(x, rate, y)

        return jax.lax.scan(step, x, RATE)

    x, totals = jax.jit(jax.vmap(run))(X[0], Y)
    np.testing.assert_array_equal(x, X[0] + 60)
    np.testing.assert_array_equal(totals, np.repeat([[3], [12], [21]], 2, axis=1))


def test_an_operand_that_a_result_takes_the_place_of_stays_as_it_is():
    kept = X[0, 0].copy()
    Emulator().run(sample(), [kept[None], RATE[:1], Y[:1]])
    np.testing.assert_array_equal(kept, X[0, 0])


def lowered(function, *arguments, **options):
    return jax.jit(function, **options).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_for_a_gpu_the_launch_is_one_custom_call_with_its_grid_block_memory_and_aliases():
    launch = launcher(sample(), Device("90"))
    text = lowered(jax.vmap(jax.vmap(launch, in_axes=(0, None, 0)), in_axes=(0, 0, None)), X, RATE, Y)
    (call,) = re.findall(r"stablehlo\.custom_call @\"?__gpu\$xla\.gpu\.ptx.*", text)
    for name, value in {"grid_x": 6, "grid_y": 1, "block_x": N, "block_z": 1, "shared_mem_bytes": 4 * N}.items():
        assert f"{name} = {value} : i32" in call
    assert 'kernel_type = "ptx"' in call
    assert 'name = "add"' in call
    assert "output_indices = [3 : i32, 4 : i32]" in call
    assert re.search(r"output_operand_alias<output_tuple_indices = \[0\],\s+operand_index = 0,", call)
    assert call.count("output_operand_alias<") == 1
    assert ".version 7.8" in call
    assert re.search(r"\(tensor<6x8xf32>, tensor<6xf32>, tensor<6x3xi32>\) -> \(tensor<6x8xf32>, tensor<6xi32>\)", call)
    assert "callback" not in text


def test_for_a_gpu_a_donated_state_stays_in_place_through_a_loop():
    launch = launcher(sample(), Device("90"))

    def run(x, y):
        return jax.lax.scan(lambda x, rate: launch(x, rate, y), x, RATE)

    text = lowered(jax.vmap(run), X[0], Y, donate_argnums=0)
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.ptx") == 1
    assert "stablehlo.while" in text
    assert re.search(r"%arg0: tensor<3x8xf32> \{tf\.aliasing_output = 0 : i32\}", text)


def test_each_size_is_a_kernel_of_its_own():
    by_two, by_five = (launcher(sample(scale), Emulator())(X[0, 0], jnp.asarray(RATE[0]), Y[0])[0] for scale in (2, 5))
    np.testing.assert_array_equal(by_five - by_two, np.full(N, 30))


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((X[0, 0], RATE[0]), "add: 2 operands do not fit; there must be 3"),
        ((X[0, 0, :7], RATE[0], Y[0]), r"add: x is float32\[7\]; it must be float32\[8\]"),
        ((X[0, 0], RATE, Y[0]), r"add: rate is float32\[2\]; it must be float32\[\]"),
        ((X[0, 0], RATE[0], Y[0].astype(np.float32)), r"add: y is float32\[3\]; it must be int32\[3\]"),
    ],
)
def test_operands_of_other_shapes_or_types_are_refused(operands, message):
    with pytest.raises(ValueError, match=message):
        launcher(sample(), Emulator())(*map(jnp.asarray, operands))


def test_the_emulator_refuses_arrays_of_other_shapes():
    with pytest.raises(ValueError, match=r"add: y is int32\[1, 2\]; it must be int32\[1, 3\]"):
        Emulator().run(sample(), [X[0, :1], RATE[:1], Y[:1, :2]])


def test_an_emulation_that_ends_badly_is_an_error():
    with pytest.raises(RuntimeError, match="add: the emulation ended with 7"):
        Emulator().run(sample(status=7), [X[0, :1], RATE[:1], Y[:1]])


def test_a_planted_fault_changes_the_sources_text():
    faulty = Emulator(faults=(("return SCALE * rate", "return rate - SCALE"),))
    x, _ = faulty.run(sample(), [X[0, :1], RATE[:1], Y[:1]])
    np.testing.assert_array_equal(x, X[0, :1] + 8)


@pytest.mark.parametrize(("text", "count"), [("nowhere", 0), ("SCALE", 2)])
def test_a_fault_whose_text_is_missing_or_unclear_is_refused(text, count):
    with pytest.raises(ValueError, match=f"{text!r} occurs {count} times"):
        Emulator(faults=((text, "x"),)).run(sample(), [X[0, :1], RATE[:1], Y[:1]])


def test_a_source_that_does_not_compile_is_told_with_the_compilers_words():
    faulty = Emulator(faults=(("return SCALE * rate", "return SCALE * rage"),))
    with pytest.raises(RuntimeError, match=r"(?s)add\.cu does not compile for the emulator.*rage"):
        faulty.run(sample(), [X[0, :1], RATE[:1], Y[:1]])


def test_without_a_compiler_the_emulator_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    emulation.built.cache_clear()
    with pytest.raises(ConfigError, match="the emulator needs a C\\+\\+ compiler"):
        Emulator().run(sample(), [X[0, :1], RATE[:1], Y[:1]])


def test_the_emulator_tells_the_shared_memory_that_the_source_lays_out():
    kernel = sample()
    assert emulation.shared_bytes(kernel.source, dict(kernel.macros)) == kernel.shared_bytes
