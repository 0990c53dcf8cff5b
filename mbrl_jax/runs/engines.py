"""Which engine trains: XLA, the CUDA kernels, or whichever of the two fits."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import ConfigError, RunConfig, algorithm_name
from mbrl_jax.engine import PLAIN, Engine, MakeEngine

Named = Literal["auto", "xla", "cuda"]
"""``auto`` takes the CUDA kernels where they cover the configuration on the GPU of this process."""
Asked = Named | MakeEngine
"""One of these, or an engine of one's own."""


def make_with(engine: Asked, config: RunConfig, make: Callable[..., Train]) -> Train:
    """The algorithm with the engine that was asked for.

    Args:
      engine: which.
      config: what the algorithm is of.
      make: ``(**engine) -> Train``, the algorithm's own, which is given ``engine`` where it is not XLA.

    Raises:
      ConfigError: there is no such engine, it does not cover the configuration, or the configuration cannot work.

    """
    if engine == "xla":
        return make()
    if engine != "auto":
        return make(engine=_maker(engine, config))
    try:
        return make(engine=_maker("cuda", config))
    except ConfigError as error:
        train = make()  # what is wrong with the configuration itself is wrong here as well
        return train._replace(engine=PLAIN._replace(notes=(f"not cuda: {error}",)))


def describe(engine: Engine) -> str:
    """The engine in a line."""
    return "; ".join((f"engine {engine.name}", *engine.notes))


def as_json(engine: Engine | None) -> dict[str, Any] | None:
    """As in ``summary.json``; none of PyTorch."""
    return None if engine is None else {"name": engine.name, "notes": list(engine.notes)}


def from_json(content: Mapping[str, Any] | None) -> Engine | None:
    """The name and the notes of an engine as :func:`as_json` gives them."""
    return None if content is None else Engine(content["name"], notes=tuple(content["notes"]))


def _maker(engine: Asked, config: RunConfig) -> MakeEngine:
    if not algorithm_of(config).takes_engine:
        name = algorithm_name(config)
        raise ConfigError(f"engine: {engine!r} does not fit the algorithm {name!r}, which XLA alone compiles; it must be 'xla'")
    if callable(engine):
        return engine
    if engine != "cuda":
        raise ConfigError(f"engine: {engine!r} is not known; it must be 'auto', 'xla', 'cuda' or a function that makes one")
    from mbrl_jax.cuda.engine import engine as make

    return make
