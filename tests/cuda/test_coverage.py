"""What the engine refuses: each setting by its name, its value and what is covered, with nothing compiled."""

import dataclasses

import jax
import pytest

from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, load
from mbrl_jax.cuda import coverage
from mbrl_jax.cuda.coverage import gpu_of
from mbrl_jax.cuda.engine import engine_on
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.horizon import controller_settings


def refuse_to_run(kernel, operands):
    raise AssertionError("nothing is launched where only settings are looked at")


@pytest.fixture(scope="module")
def config():
    config = load("configs/cartpole_batch.yaml")
    assert isinstance(config, DynaQConfig)
    return config


@pytest.fixture(scope="module")
def task(config):
    return make_environment(config.environment)


def changed(config, path, value):
    first, _, rest = path.partition(".")
    return dataclasses.replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


def made(config, task, architecture="90"):
    return engine_on(refuse_to_run, gpu_of(architecture))(config, task)


@pytest.mark.parametrize("name", ["cartpole_batch", "cartpole_best", "cartpole_interactive"])
@pytest.mark.parametrize("architecture", ["80", "89", "90", "100", "120"])
def test_the_presets_are_covered_on_every_gpu(name, architecture):
    config = load(f"configs/{name}.yaml")
    engine = made(config, make_environment(config.environment), architecture)
    assert engine.name == "cuda"
    assert engine.notes == ()
    assert None not in (engine.advance, engine.score, engine.play, engine.fit)
    assert (engine.refit is not None) == (config.protocol == "interactive")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.activation", "tanh", "model.activation: 'tanh' does not fit the CUDA engine, which covers silu"),
        ("model.prediction", "deterministic", "model.prediction: 'deterministic'.*covers gaussian"),
        ("model.reward", "learned", "model.reward: 'learned'.*covers auto or known"),
        ("model.termination", "learned", "model.termination: 'learned'.*covers auto or known"),
        ("model.elites", 3, "model.elites: 3.*covers None"),
        ("model.hidden", (64,), r"model.hidden: \(64,\).*covers two layers"),
        ("model.hidden", (64, 40), r"model.hidden: \(64, 40\) does not fit the CUDA engine; it must be two layers"),
        ("imagination.sampling", "fused", "imagination.sampling: 'fused'.*covers ts1 or ts_infinity"),
        ("imagination.penalty", "mopo", "imagination.penalty: 'mopo'.*covers none"),
        (
            "imagination.controller",
            controller_settings("infoprop", length=3.0, low=0.1, high=0.2, resolution=1.0),
            "imagination.controller.kind: 'infoprop'.*fixed or schedule",
        ),
        ("agent.members", 2, "agent.members: 2.*covers 1"),
        ("agent.real_ratio", 0.5, "agent.real_ratio: 0.5.*covers 0.0"),
        ("agent.target", "quantile", "agent.target: 'quantile'.*covers max or double"),
        ("agent.gradient_clip", 1.0, "agent.gradient_clip: 1.0.*covers None"),
        ("agent.hidden", (64, 64, 64), r"agent.hidden: \(64, 64, 64\).*covers two layers"),
        ("agent.hidden", (256, 256), r"agent.hidden: \(256, 256\) does not fit the CUDA engine; it must be"),
    ],
)
def test_a_setting_that_is_not_covered_is_refused(config, task, path, value, message):
    with pytest.raises(ConfigError, match=message):
        made(changed(config, path, value), task)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("agent.target", "max"),
        ("agent.loss", "huber"),
        ("imagination.sampling", "ts_infinity"),
        ("imagination.restart", "per_step"),
        ("imagination.controller", controller_settings("schedule", start=0.0, end=10.0, first=1.0, last=5.0)),
        ("agent.updates_per_step", 2),
        ("precision", "highest"),
    ],
)
def test_the_choices_that_are_covered_are_taken(config, task, path, value):
    assert made(changed(config, path, value), task).advance is not None


def test_another_algorithm_is_refused(task):
    with pytest.raises(ConfigError, match="algorithm: 'ModelFreeQConfig' does not fit the CUDA engine, which covers dyna_q"):
        made(ModelFreeQConfig(), task)


def test_a_task_that_merely_has_the_name_of_one_is_refused(config, task):
    message = "environment.name: 'CartPole-v1'.*CartPole-v1 or MountainCar-v0 or Acrobot-v1, as they are shipped"
    heavier = task._replace(step=lambda state, action, fresh: task.step(state, action, fresh))
    with pytest.raises(ConfigError, match=message):
        made(config, heavier)
    with pytest.raises(ConfigError, match=message):
        made(config, task._replace(reward=lambda s, a, s2: s[..., 0]))


@pytest.mark.parametrize(("name", "value"), [("jacobian", "agreement"), ("spectral_bound", 2.0), ("fits", "none")])
def test_a_regularised_or_frozen_model_is_left_to_xla(config, task, name, value):
    engine = made(changed(config, f"model.{name}", value), task)
    assert engine.fit is None
    assert engine.notes[0].startswith(f"the fit by xla: model.{name}: {value!r} does not fit the CUDA engine")


def test_parts_that_are_not_covered_are_left_to_xla_and_named(config, task):
    engine = made(changed(config, "model.learn_bounds", True), task)
    assert engine.fit is None
    assert engine.score is not None
    (note,) = engine.notes
    assert note == "the fit by xla: model.learn_bounds: True does not fit the CUDA engine, which covers False"


def test_real_episodes_of_a_task_without_a_simulator_in_the_kernel_are_left_to_xla(config):
    config = changed(config, "environment.name", "MountainCar-v0")
    engine = made(config, make_environment(config.environment))
    assert engine.play is None
    assert engine.notes == (
        "real episodes by xla: environment.name: 'MountainCar-v0' does not fit the CUDA engine, which covers CartPole-v1",
    )
    with pytest.raises(ConfigError, match="protocol: 'interactive'.*covers batch, and interactive for CartPole-v1"):
        made(changed(config, "protocol", "interactive"), make_environment(config.environment))


def test_what_does_not_fit_into_shared_memory_is_refused_with_what_there_is(config, task):
    wide = changed(changed(config, "precision", "highest"), "agent.hidden", (128, 128))
    with pytest.raises(
        ConfigError,
        match=r"agent.hidden, agent.batch_size and model.hidden do not fit.* KB of shared memory, and a "
        r"GPU of compute capability 8\.9 gives it 99; it must be less",
    ):
        made(wide, task, "89")


def test_numbers_of_64_bits_are_refused(config, task):
    with jax.enable_x64(True), pytest.raises(ConfigError, match="jax_enable_x64: True.*covers numbers of 32 bits"):
        made(config, task)


def test_the_estimated_laplacian_is_left_to_xla(config, task):
    refused = coverage.fit_refusal(changed(config, "model.laplacian", "hutchinson"), task)
    assert str(refused) == "model.laplacian: 'hutchinson' does not fit the CUDA engine, which covers none, and exact ones"
    assert coverage.fit_refusal(config, task) is None
