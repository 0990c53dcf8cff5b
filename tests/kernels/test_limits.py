from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, check, from_dict, to_dict
from mbrl_jax.imagination.horizon import make_controller


@pytest.fixture
def fused(tiny):
    return replace(tiny, kernels="pallas_interpret")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("agent.target", "quantile"),
        ("agent.target", "steve"),
        ("agent.members", 2),
        ("agent.real_ratio", 0.25),
        ("model.activation", "gelu"),
        ("model.kind", "deterministic"),
        ("model.reward", "learned"),
        ("model.termination", "learned"),
        ("imagination.restart", "per_step"),
        ("imagination.sampling", "mean"),
        ("imagination.sampling", "infoprop"),
        ("imagination.controller", "schedule"),
        ("imagination.penalty", "mopo"),
        ("protocol", "interactive"),
    ],
)
def test_a_setting_that_the_kernel_lacks_is_refused_with_its_value_and_what_would_do(fused, path, value):
    content = to_dict(fused)
    *groups, name = path.split(".")
    inner = content
    for group in groups:
        inner = inner[group]
    inner[name] = value
    if value == "steve":
        content["agent"]["members"] = 2
    with pytest.raises(ConfigError, match=rf"{path}: '?{value}'? does not fit; with kernels 'pallas_interpret' it must be "):
        check(from_dict(content))
    content["kernels"] = "xla"
    check(from_dict(content))


def test_the_compiled_kernel_is_refused_where_there_is_no_gpu_and_both_ways_out_are_named(tiny):
    assert jax.default_backend() == "cpu"
    for make, config in ((dyna_q.make_train, tiny), (model_free_q.make_train, ModelFreeQConfig())):
        with pytest.raises(
            ConfigError, match="kernels: 'pallas' does not fit; it needs an NVIDIA GPU.*'xla', or 'pallas_interpret'"
        ):
            make(replace(config, kernels="pallas"))


@pytest.mark.parametrize(("group", "hidden"), [("agent", (128, 64)), ("model", (64, 65))])
def test_networks_too_wide_for_the_chip_are_refused(fused, group, hidden):
    with pytest.raises(ConfigError, match=rf"{group}.hidden: \[{hidden[0]}, {hidden[1]}\] does not fit"):
        dyna_q.make_train(replace(fused, **{group: replace(getattr(fused, group), hidden=hidden)}))


def test_more_lanes_than_a_product_has_rows_are_refused(fused):
    with pytest.raises(ConfigError, match="imagination.lanes: 66 does not fit"):
        dyna_q.make_train(replace(fused, imagination=replace(fused.imagination, lanes=66, capacity=660)))


def test_a_controller_of_ones_own_is_refused(fused):
    with pytest.raises(ConfigError, match="kernels: 'pallas_interpret' does not fit; it has the controller 'fixed' alone"):
        dyna_q.make_train(fused, controller=make_controller("fixed", {"length": 3}))


def test_a_task_whose_functions_do_not_look_at_single_axes_is_refused(fused, cartpole):
    odd = cartpole._replace(reward=lambda s, a, s2: jnp.sum(s2, axis=-1))
    with pytest.raises(ConfigError, match="environment.name: 'CartPole-v1' does not fit.*single axes"):
        dyna_q.make_train(fused, environment=odd)
    scalar = cartpole._replace(reward=lambda s, a, s2: jnp.ones(()))
    with pytest.raises(ConfigError, match="environment.name: 'CartPole-v1' does not fit.*one number a row"):
        dyna_q.make_train(fused, environment=scalar)


def test_sixty_four_bits_are_refused(fused):
    with (
        jax.enable_x64(True),
        pytest.raises(ConfigError, match="kernels: 'pallas_interpret' does not fit; it computes in float32"),
    ):
        dyna_q.make_train(fused)


def test_the_plain_path_takes_all_of_it(tiny):
    dyna_q.make_train(replace(tiny, agent=replace(tiny.agent, hidden=(256, 256), members=2)))
    assert DynaQConfig().kernels == ModelFreeQConfig().kernels == "xla"
