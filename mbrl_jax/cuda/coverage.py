"""Which configurations the engine covers on which GPU, found out from the settings alone, before anything is compiled."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.config import ConfigError, DynaQConfig, ModelConfig, QLearningConfig, RunConfig
from mbrl_jax.cuda.sizes import TASKS
from mbrl_jax.environments import Environment
from mbrl_jax.environments import gymnax as tasks
from mbrl_jax.model.losses import EXACT_LAPLACIAN_UP_TO

PLAYED = ("CartPole-v1",)  # whose dynamics they have
TARGETS = {"max": 0, "double": 1}
LOSSES = {"squared": 0, "huber": 1}
SAMPLERS = {"ts1": 0, "ts_infinity": 1}
CONTROLLERS = ("fixed", "schedule")
TERMS = {"default": 1, "highest": 2}  # of a number, in fp16

SHARED_KB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""Shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, technical specifications)."""


class Gpu(NamedTuple):
    """What a kernel must be made for."""

    architecture: str  # compute capability without the point, such as 90
    shared_bytes: int  # that one block may have


class Refusal(NamedTuple):
    """A setting that the engine does not cover."""

    setting: str
    value: Any
    right: str  # what it covers

    def __str__(self) -> str:
        return f"{self.setting}: {self.value!r} does not fit the CUDA engine, which covers {self.right}"


def gpu() -> Gpu:
    """The GPU of this process.

    Raises:
      ConfigError: there is none, none of NVIDIA, several kinds, or one that is too old or unknown.

    """
    devices = jax.local_devices()
    found = {str(getattr(device, "compute_capability", "")) if device.platform == "gpu" else "" for device in devices}
    if found == {""} or not all(name.replace(".", "").isdecimal() for name in found):
        raise ConfigError(f"engine: 'cuda' does not fit; it needs NVIDIA GPUs, and JAX computes on {devices[0].device_kind}")
    if len(found) > 1:
        raise ConfigError(f"engine: 'cuda' does not fit; the GPUs here are of several kinds ({', '.join(sorted(found))})")
    return gpu_of(found.pop().replace(".", ""))


def gpu_of(architecture: str) -> Gpu:
    """A GPU by its compute capability without the point, such as ``90``. Raises ConfigError: it is not known."""
    if not architecture.isdecimal() or int(architecture) not in SHARED_KB:
        known = ", ".join(f"{each // 10}.{each % 10}" for each in SHARED_KB)
        raise ConfigError(f"engine: 'cuda' does not fit a GPU of compute capability {architecture!r}; it covers {known}")
    return Gpu(architecture, SHARED_KB[int(architecture)] * 1024)


def refusal(config: RunConfig, task: Environment) -> Refusal | None:
    """The first setting that keeps the kernels from computing the loop; none where they can."""
    return next(_of_loop(config, task), None)


def fit_refusal(config: DynaQConfig, task: Environment) -> Refusal | None:
    """The same of the model's fit, which the plain path takes over where it is not covered."""
    return next(_of_fit(config.model, task.spec.observation_size), None)


def play_refusal(task: Environment) -> Refusal | None:
    """The same of real episodes."""
    return None if task.spec.name in PLAYED else Refusal("environment.name", task.spec.name, _either(PLAYED))


def _of_loop(config: RunConfig, task: Environment) -> Iterator[Refusal]:
    if not isinstance(config, DynaQConfig):
        yield Refusal("algorithm", type(config).__name__, "dyna_q")
        return
    model, agent, lanes = config.model, config.agent, config.imagination
    if type(model) is not ModelConfig:
        yield Refusal("model.kind", model.kind, "ensemble")
        return
    if type(agent) is not QLearningConfig:
        yield Refusal("agent.kind", agent.kind, "q_learning")
        return
    name = task.spec.name
    if name not in TASKS or not tasks.is_shipped(task):
        yield Refusal("environment.name", name, f"{_either(TASKS)}, as they are shipped")
    if config.protocol == "interactive" and name not in PLAYED:
        yield Refusal("protocol", config.protocol, f"batch, and interactive for {_either(PLAYED)}")
    if jnp.zeros(()).dtype != jnp.float32:
        yield Refusal("jax_enable_x64", True, "numbers of 32 bits")

    for setting, value, covered in (
        ("model.activation", model.activation, ("silu",)),
        ("model.prediction", model.prediction, ("gaussian",)),
        ("model.target", model.target, ("change",)),
        ("model.normalise_targets", model.normalise_targets, (True,)),
        ("model.reward", model.reward, ("auto", "known")),
        ("model.termination", model.termination, ("auto", "known")),
        ("model.elites", model.elites, (None,)),
        ("imagination.sampling", lanes.sampling, tuple(SAMPLERS)),
        ("imagination.controller.kind", lanes.controller.kind, CONTROLLERS),
        ("imagination.penalty", lanes.penalty, ("none",)),
        ("agent.members", agent.members, (1,)),
        ("agent.real_ratio", agent.real_ratio, (0.0,)),
        ("mixing.rule", config.mixing.rule, ("fixed",)),
        ("agent.target", agent.target, tuple(TARGETS)),
        ("agent.gradient_clip", agent.gradient_clip, (None,)),
        ("agent.loss", agent.loss, tuple(LOSSES)),
    ):
        if value not in covered:
            yield Refusal(setting, value, _either(covered))
    for setting, hidden in (("agent.hidden", agent.hidden), ("model.hidden", model.hidden)):
        if len(hidden) != 2:
            yield Refusal(setting, hidden, "two layers")


def _of_fit(model: ModelConfig, observations: int) -> Iterator[Refusal]:
    if model.loss != "likelihood":
        yield Refusal("model.loss", model.loss, "likelihood")
    if model.learn_bounds:
        yield Refusal("model.learn_bounds", True, "False")
    estimated = model.laplacian == "hutchinson" or (model.laplacian == "auto" and observations > EXACT_LAPLACIAN_UP_TO)
    if estimated:
        yield Refusal("model.laplacian", model.laplacian, "none, and exact ones")
    for name, value, covered in (
        ("jacobian", model.jacobian, "none"),
        ("spectral_bound", model.spectral_bound, None),
        ("fits", model.fits, "all"),
    ):
        if value != covered:
            yield Refusal(f"model.{name}", value, str(covered))


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(str(value) for value in values)
