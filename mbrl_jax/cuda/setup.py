"""What the parts of an engine are made of: a configuration, its task, and what runs the kernels."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, DynaQConfig
from mbrl_jax.cuda import coverage
from mbrl_jax.cuda.coverage import Gpu
from mbrl_jax.cuda.kernels import SCALES_FROM, SETTINGS
from mbrl_jax.cuda.launching import Backend, Kernel, launcher
from mbrl_jax.cuda.parameters import flat
from mbrl_jax.cuda.sizes import TASKS
from mbrl_jax.environments import Environment
from mbrl_jax.model.ensemble import Bounds, Members
from mbrl_jax.networks import ADAM_DECAYS

Sizes = TypeVar("Sizes")


class Setup(NamedTuple):
    """One engine's configuration, task and backend."""

    backend: Backend
    gpu: Gpu
    config: DynaQConfig
    task: Environment

    @property
    def networks(self) -> dict[str, int]:
        """Sizes that all kernels share."""
        model, spec = self.config.model, self.task.spec
        return {
            "terms": coverage.TERMS[self.config.precision],
            "observation": spec.observation_size,
            "actions": spec.action_count,
            "m_width1": model.hidden[0],
            "m_width2": model.hidden[1],
            "members": model.members,
        }

    @property
    def playing(self) -> dict[str, int]:
        """Sizes of the kernels that have a policy and a task."""
        first, second = self.config.agent.hidden
        return {"task": TASKS.index(self.task.spec.name), "q_width1": first, "q_width2": second}

    @property
    def policy_sizes(self) -> tuple[int, ...]:
        """Of the Q-network: inputs, hidden widths, outputs."""
        return (self.task.spec.observation_size, *self.config.agent.hidden, self.task.spec.action_count)

    @property
    def member_sizes(self) -> tuple[int, ...]:
        """Of a member: inputs, hidden widths, means and log-variances."""
        size, actions = self.task.spec.observation_size, self.task.spec.action_count
        return (size + (1 if actions == 2 else actions), *self.config.model.hidden, 2 * size)

    def settings(self, discount: Any = 0.0, target_rate: Any = 0.0, huber_delta: Any = 0.0) -> Array:
        """[16] numbers that hold for a whole launch; behind these the divisors of the observation's axes."""
        agent, spec = self.config.agent, self.task.spec
        scale = spec.observation_scale if agent.input_scale is None else agent.input_scale
        numbers = [discount, target_rate, huber_delta, *[0.0] * (SCALES_FROM - 3), *scale]
        numbers += [1.0] * (SETTINGS - len(numbers))
        return jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers])

    def launch(self, kernel: Kernel) -> Callable[..., list[Array]]:
        """The kernel as a function."""
        return launcher(kernel, self.backend)


def largest_that_fits(gpu: Gpu, variants: Iterable[Sizes], advice: str) -> Sizes:
    """The first variant of a kernel whose blocks have enough shared memory.

    Args:
      gpu: which has it.
      variants: best first; at least one.
      advice: the settings that the memory goes by.

    Raises:
      ConfigError: none has.

    """
    needed: list[int] = []
    for sizes in variants:
        needed.append(sizes.shared_bytes)  # type: ignore[attr-defined]
        if needed[-1] <= gpu.shared_bytes:
            return sizes
    architecture = f"{int(gpu.architecture) // 10}.{int(gpu.architecture) % 10}"
    raise ConfigError(
        f"{advice} do not fit the CUDA engine: a block needs {min(needed) / 1024:,.1f} KB of shared memory, and a GPU of compute "
        f"capability {architecture} gives it {gpu.shared_bytes / 1024:,.0f}; it must be less"
    )


def flat_bounds(bounds: Bounds) -> Array:
    """[E, 2, D] the minimum and the maximum of each member's log-variances."""
    return jnp.stack([bounds.minimum, bounds.maximum], axis=-2)


def world_operands(model: Members) -> tuple[Array, Array, Array]:
    """The members [E, P], their bounds [E, 2, D] and the normaliser [4, D], as the kernels take them."""
    return flat(model.params), flat_bounds(model.bounds), jnp.stack(list(model.normaliser))


def adam_schedule(count: Array, steps: Array, learning_rate: Array | float) -> Array:
    """[..., 2] what Adam scales its step and its second moment by: ``rate / (1 - b1^n)`` and ``1 / (1 - b2^n)``.

    Args:
      count: [] int32, steps made before.
      steps: [...] int32, numbers of the steps from 0 on; n is ``count + steps + 1``.
      learning_rate: [...] or [].

    """
    number = (count + steps + 1).astype(jnp.float32)
    first, second = (1 - jnp.asarray(decay, jnp.float32) ** number for decay in ADAM_DECAYS)
    rate = jnp.broadcast_to(jnp.asarray(learning_rate, jnp.float32), steps.shape)
    return jnp.stack([rate / first, 1 / second], axis=-1)
