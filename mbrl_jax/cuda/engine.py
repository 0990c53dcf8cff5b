"""The engine as a whole: what it covers by kernels, and what it leaves to the plain path.

Random numbers are the plain path's own, drawn by JAX, and so is what the kernels need not touch: counters that all seeds share,
schedules, the statistics of the data, the order of minibatches. The kernels compute what takes the time.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mbrl_jax.config import ConfigError, DynaQConfig, RunConfig
from mbrl_jax.cuda import coverage, episodes, fit, loop, nvrtc
from mbrl_jax.cuda.coverage import Gpu
from mbrl_jax.cuda.launching import Backend, Device
from mbrl_jax.cuda.setup import Setup
from mbrl_jax.engine import Engine, MakeEngine
from mbrl_jax.environments import Environment

Part = TypeVar("Part")


def engine(config: RunConfig, task: Environment) -> Engine:
    """The engine on the GPU of this process, to be handed to ``make_train``.

    Raises:
      ConfigError: there is no NVIDIA GPU, no compiler for its kernels, or they do not cover the configuration.

    """
    gpu = coverage.gpu()
    made = _engine(Device(gpu.architecture), gpu, config, task)
    nvrtc.newest()  # found to be missing here, not while something is traced
    return made


def engine_on(backend: Backend, gpu: Gpu) -> MakeEngine:
    """The engine on a backend of one's own, or for another GPU than that of this process."""
    return partial(_engine, backend, gpu)


def _engine(backend: Backend, gpu: Gpu, config: RunConfig, task: Environment) -> Engine:
    """The engine, its loop by a kernel, and so the other parts, as far as they are covered."""
    refused = coverage.refusal(config, task)
    if refused is not None:
        raise ConfigError(str(refused))
    assert isinstance(config, DynaQConfig)
    setup, notes = Setup(backend, gpu, config, task), list[str]()

    def part(name: str, refused: coverage.Refusal | None, make: Callable[[Setup], Part]) -> Part | None:
        try:
            if refused is not None:
                raise ConfigError(str(refused))
            return make(setup)
        except ConfigError as error:
            notes.append(f"{name} by xla: {error}")
            return None

    return Engine(
        name="cuda",
        advance=loop.advance_of(setup),
        score=part("scoring", None, episodes.score_of) if config.selection.choose else None,
        play=part("real episodes", coverage.play_refusal(task), episodes.play_of),
        fit=part("the fit", coverage.fit_refusal(config, task), fit.fit_of),
        refit=part("refits", coverage.fit_refusal(config, task), fit.refit_of) if config.protocol == "interactive" else None,
        notes=tuple(notes),
    )
