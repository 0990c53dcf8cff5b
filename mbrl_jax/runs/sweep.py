"""Values of traced settings times seeds in one compiled program, each value on the same seeds."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mbrl_jax.config import ConfigError, RunConfig, check
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.runs import runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.runner import Run, traced_settings


def sweep(
    config: RunConfig,
    settings: Mapping[str, Sequence[float]],
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
) -> list[Run]:
    """Train ``seeds`` agents for each value of a setting, all in one compiled program.

    Seed i has the same random numbers at every value, so the runs are paired.

    Args:
      config: what all values share.
      settings: dotted paths of traced settings with their values; of several, as in ``{"imagination.cap": [1, 3],
        "agent.discount": [0.9, 0.99]}``, the first values go together, then the second ones, and so on.
      seeds: at least 1, for each value.
      base_seed: seed i's random numbers follow from this and i alone.
      display: shows progress; none is silent.
      controller: a horizon controller in place of the one that ``config`` names.
      diagnose: ask the real dynamics at the end how wrong the final models are.

    Returns:
      A run for each value, with the value in its config. Seconds are the whole program's, shared out equally over the values.

    Raises:
      ConfigError: a setting that is not known or is static; values that cannot work, none, or not as many for every setting;
        there are no seeds.

    """
    configs = vary(config, settings)
    for path, values in settings.items():
        if controller is not None and path.startswith("imagination.controller_settings."):
            raise ConfigError(f"{path}: {list(values)!r} do not fit; a controller is given, which has its own numbers")
    return runner.run_together(configs, seeds, base_seed=base_seed, display=display, controller=controller, diagnose=diagnose)


def vary(config: RunConfig, settings: Mapping[str, Sequence[float]]) -> list[RunConfig]:
    """``config`` with the first values of all ``settings`` put in, with the second ones, and so on.

    Raises:
      ConfigError: as :func:`sweep`, unless it is about the seeds.

    """
    if not settings:
        raise ConfigError("settings: there are none; name at least one traced setting with its values")
    for path in settings:
        _check_path(config, path)
    lengths = {path: len(values) for path, values in settings.items()}
    for path, length in lengths.items():
        if length == 0:
            raise ConfigError(f"{path}: [] has no values; give at least one")
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        raise ConfigError(f"settings: {counted} values; those that vary together must have equally many")
    configs = []
    for values in zip(*settings.values(), strict=True):
        varied = _put(config, dict(zip(settings, values, strict=True)))
        check(varied)
        configs.append(varied)
    return configs


def _check_path(config: RunConfig, path: str) -> None:
    """Refuse what is not the path of a traced setting."""
    known = traced_settings(config)
    if path in known:
        return
    place: Any = config
    for name in path.split("."):
        names = list(place) if isinstance(place, Mapping) else list(getattr(place, "__dataclass_fields__", ()))
        if name not in names:
            raise ConfigError(f"{path}: there is no such setting; the traced settings are {', '.join(known)}")
        place = place[name] if isinstance(place, Mapping) else getattr(place, name)
    inner = [each for each in known if each.startswith(f"{path}.")]
    if inner:
        raise ConfigError(f"{path}: it is a group of settings; name one of {', '.join(inner)}")
    raise ConfigError(
        f"{path}: {place!r} is static, so it compiles anew and must be run apart; the traced settings are {', '.join(known)}"
    )


def _put(config: RunConfig, values: Mapping[str, float]) -> RunConfig:
    """``config`` with other numbers at some paths; a whole number becomes a float where the setting is one."""

    def choose(path: Any, leaf: float) -> float:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        value = values.get(name, leaf)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and _kind(config, name) is float else value

    return jax.tree_util.tree_map_with_path(choose, config)


def _kind(config: RunConfig, path: str) -> type:
    """The type of a traced setting."""
    *groups, name = path.split(".")
    place: Any = config
    for group in groups:
        place = getattr(place, group)
    return float if isinstance(place, Mapping) else typing.get_type_hints(type(place))[name]


def mean_depth(run: Run) -> float:
    """Mean depth of the imagined rows that a model-based run kept, over seeds and time; a root's first step counts 1."""
    log = run.result.metrics.lanes
    kept = np.asarray(log.kept, np.float64)
    total = kept.sum()
    return float((np.asarray(log.depth, np.float64) * kept).sum() / total) if total else float("nan")
