"""A grid of values of traced settings times seeds in one compiled program, each value on the same seeds.

A sweep leaves a folder for each value, as :mod:`mbrl_jax.runs.results` writes them, and ``sweep.json``: a list of the values'
summaries, each with its ``settings``.
"""

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, algorithm_name, check
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.runner import Run, traced_settings
from mbrl_jax.statistics import Estimate, bootstrap


def sweep(
    config: ModelFreeQConfig,
    settings: Mapping[str, Sequence[float]],
    seeds: int,
    *,
    base_seed: int = 0,
    display: Display | None = None,
    controller: HorizonController | None = None,
    diagnose: bool = False,
) -> list[Run]:
    """Train ``seeds`` agents for each value of a setting, all in one compiled program.

    Seed i begins with the same numbers at every value, so the runs are paired.

    Args:
      config: what all values share.
      settings: dotted paths of traced settings with their values; of several, as in ``{"imagination.cap": [1, 3],
        "agent.discount": [0.9, 0.99]}``, the first values go together, then the second ones, and so on.
      seeds: at least 1, for each value.
      base_seed: seed i's numbers follow from this and i alone.
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


def vary(config: ModelFreeQConfig, settings: Mapping[str, Sequence[float]]) -> list[ModelFreeQConfig]:
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


def _check_path(config: ModelFreeQConfig, path: str) -> None:
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


def _put(config: ModelFreeQConfig, values: Mapping[str, float]) -> ModelFreeQConfig:
    """``config`` with other numbers at some paths; a whole number becomes a float where the setting is one."""

    def choose(path: Any, leaf: float) -> float:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        value = values.get(name, leaf)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and _kind(config, name) is float else value

    return jax.tree_util.tree_map_with_path(choose, config)


def _kind(config: ModelFreeQConfig, path: str) -> type:
    """The type of a traced setting."""
    *groups, name = path.split(".")
    place: Any = config
    for group in groups:
        place = getattr(place, group)
    return float if isinstance(place, Mapping) else typing.get_type_hints(type(place))[name]


# ---------------------------------------------------------------------------------------------------------------- command


def command(config: ModelFreeQConfig, setting: str, values: Sequence[str], seeds: int, out: Path, seed: int) -> None:
    """Train all values of one setting, print their figures, and write the sweep's folder; folders are named by the values given.

    Raises:
      ConfigError: as :func:`sweep`, or a value is no number or given twice.

    """
    numbers = [_number(setting, value) for value in values]
    for place, number in enumerate(numbers):
        if number in numbers[:place]:
            raise ConfigError(f"{setting}: {values[place]!r} is given twice; each value must be given once")
    execution.use_all_cores()
    runner.make_train_together(vary(config, {setting: numbers}))  # refuses what cannot work before a folder is made
    folder = results.make_folder(out)
    with Display.standard(f"sweep of {setting}") as display:
        runs = sweep(config, {setting: numbers}, seeds, base_seed=seed, display=display)
    summaries = []
    for value, run in zip(values, runs, strict=True):
        arm = folder / value
        arm.mkdir()
        summaries.append({"settings": {setting: traced_settings(run.config)[setting]}, **results.write(run, arm)})
    (folder / "sweep.json").write_text(json.dumps(summaries, indent=1) + "\n", encoding="utf-8")
    console = Console()
    console.print(as_table(setting, values, runs))
    compiling, running = (len(runs) * seconds for seconds in (runs[0].seconds.compile, runs[0].seconds.run))
    console.print(f"compiled in {compiling:.0f} s, ran in {running:.0f} s; written to {folder}")


def as_table(setting: str, values: Sequence[str], runs: Sequence[Run]) -> Table:
    """The figures of a sweep for a terminal: a row for each value."""
    config, seeds = runs[0].config, len(runs[0].result.outcome.frozen)
    based = isinstance(config, DynaQConfig)
    table = Table(
        title=f"{algorithm_name(config)}, {config.protocol}, {seeds} seeds for each value",
        caption="IQM over seeds with 95 % bootstrap intervals" + ("; depth: mean of the imagined rows kept" if based else ""),
    )
    for column in (setting, *(("chosen",) if based else ()), "last", *(("depth",) if based else ())):
        table.add_column(column, justify="right")
    for value, run in zip(values, runs, strict=True):
        last = str(_iqm(run.result.outcome.returns_last))
        if based:
            table.add_row(value, str(_iqm(run.result.outcome.returns_chosen)), last, f"{mean_depth(run):.2f}")
        else:
            table.add_row(value, last)
    return table


def mean_depth(run: Run) -> float:
    """Mean depth of the imagined rows that a model-based run kept, over seeds and time; a root's first step counts 1."""
    log = run.result.metrics.lanes
    kept = np.asarray(log.kept, np.float64)
    total = kept.sum()
    return float((np.asarray(log.depth, np.float64) * kept).sum() / total) if total else float("nan")


def _iqm(returns: Any) -> Estimate:
    return bootstrap(results.per_seed(returns))


def _number(path: str, text: str) -> float:
    """The number that ``text`` says, a whole one as an int."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{path}: {text!r} must be a number") from None
