"""Refuses what the fused kernels cannot do, beyond what :func:`mbrl_jax.config.check` refuses from the settings alone."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig
from mbrl_jax.environment import Environment
from mbrl_jax.kernels.arrays import Columns, padded

LARGEST = 64 * 64
"""Numbers of a padded weight matrix at the most: it goes into shared memory whole, next to three of the kind, and the sum of its
gradients stays in registers."""
LANES = 64
"""Lanes at the most, which go through a network as the rows of one matrix product."""


def check_kernels(config: ModelFreeQConfig, task: Environment, controller: Any = None) -> None:
    """Refuse settings that the kernels asked for cannot run, or a machine that cannot run them.

    Args:
      config: settings that :func:`mbrl_jax.config.check` has passed.
      task: the environment.
      controller: a horizon controller that replaces the one which the settings name.

    Raises:
      ConfigError: naming the setting, its value and what would be right.

    """
    if config.kernels == "xla":
        return
    if config.kernels == "pallas" and jax.default_backend() != "gpu":
        raise ConfigError(
            f"kernels: 'pallas' does not fit; it needs an NVIDIA GPU and this is a {jax.default_backend()!r}: "
            "'xla', or 'pallas_interpret' to check the kernel without one"
        )
    if jnp.zeros(()).dtype != jnp.float32:
        raise ConfigError(f"kernels: {config.kernels!r} does not fit; it computes in float32 and JAX is set to 64 bits")
    spec = task.spec
    _check_widths("agent.hidden", config.agent.hidden, (spec.observation_size, *config.agent.hidden, spec.action_count))
    if not isinstance(config, DynaQConfig):
        return
    if controller is not None:
        raise ConfigError(
            f"kernels: {config.kernels!r} does not fit; it has the controller 'fixed' alone, and make_train was given another"
        )
    inputs = spec.observation_size + spec.action_count
    _check_widths("model.hidden", config.model.hidden, (inputs, *config.model.hidden, spec.observation_size))
    if config.imagination.lanes > LANES:
        raise ConfigError(
            f"imagination.lanes: {config.imagination.lanes!r} does not fit; with kernels {config.kernels!r} it must be at most "
            f"{LANES}"
        )
    _check_axes(config, task)


def _check_widths(path: str, hidden: tuple[int, ...], widths: tuple[int, ...]) -> None:
    if any(padded(a) * padded(b) > LARGEST for a, b in itertools.pairwise(widths)):
        raise ConfigError(
            f"{path}: {list(hidden)!r} does not fit; the fused kernel holds weight matrices of at most {LARGEST:,} numbers, "
            "as from 64 to 64, sizes rounded up to a power of two"
        )


def _check_axes(config: ModelFreeQConfig, task: Environment) -> None:
    """The task's known functions must look at single axes, which is all that a kernel can give them."""

    def ask(s: Any, a: Any, s2: Any) -> Any:
        count = task.spec.observation_size
        return [known(Columns(s, count), a, Columns(s2, count)) for known in (task.reward, task.terminated)]  # type: ignore[arg-type]

    rows = jax.ShapeDtypeStruct((16, padded(task.spec.observation_size)), jnp.float32)
    try:
        reward, terminated = jax.eval_shape(ask, rows, jax.ShapeDtypeStruct((16,), jnp.int32), rows)
    except TypeError as error:
        raise ConfigError(
            f"environment.name: {task.spec.name!r} does not fit; with kernels {config.kernels!r} its reward and termination must "
            f"be functions of single axes, s[..., i]: {error}"
        ) from error
    if reward.shape != (16,) or terminated.shape != (16,):
        raise ConfigError(
            f"environment.name: {task.spec.name!r} does not fit; with kernels {config.kernels!r} its reward and termination must "
            "be one number a row"
        )
