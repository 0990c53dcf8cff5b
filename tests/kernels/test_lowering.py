"""Without a GPU: that the kernels lower for one, through Triton's own IR, and what the program around them holds."""

import re
from dataclasses import replace

import jax
import pytest

from mbrl_jax import kernels
from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ModelFreeQConfig

CALL = "__gpu$xla.gpu.triton"


@pytest.fixture
def lowered(monkeypatch):
    """``(module, config) -> text`` of a round of three seeds, lowered for CUDA."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def lower(module, config):
        train = module.make_train(replace(config, kernels="pallas"))
        state = jax.eval_shape(jax.vmap(lambda key: train.init(key)[0], out_axes=train.axes), seed_keys(0, 3))
        advance = jax.jit(jax.vmap(lambda state: train.advance(state, config), in_axes=(train.axes,), out_axes=(train.axes, 0)))
        return advance.trace(state).lower(lowering_platforms=("cuda",)).as_text()

    return lower


def hops(text):
    return re.findall(rf"custom_call @{re.escape(CALL)}.*", text)


def test_a_round_of_dyna_q_becomes_one_triton_kernel_with_a_program_for_each_seed(lowered, tiny):
    (call,) = hops(lowered(dyna_q, tiny))
    assert "grid_x = 3 : i32, grid_y = 1 : i32" in call
    assert "output_operand_aliases" in call


def test_full_precision_lowers_too_and_to_another_program(lowered, tiny):
    (default,), (highest,) = (hops(lowered(dyna_q, replace(tiny, precision=precision))) for precision in ("default", "highest"))
    assert default != highest


def test_the_model_free_round_is_one_kernel_too(lowered):
    assert len(hops(lowered(model_free_q, ModelFreeQConfig(random_transitions=100, steps=10, round_steps=10)))) == 1


def test_the_plain_path_has_no_such_kernel(tiny):
    assert kernels.check_kernels(tiny, None) is None
    train = dyna_q.make_train(tiny)
    state = jax.eval_shape(jax.vmap(lambda key: train.init(key)[0], out_axes=train.axes), seed_keys(0, 3))
    advance = jax.jit(jax.vmap(lambda state: train.advance(state, tiny), in_axes=(train.axes,), out_axes=(train.axes, 0)))
    assert hops(advance.lower(state).as_text()) == []
