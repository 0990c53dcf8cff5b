"""Many configurations from one: values that vary together, and every combination of values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import yaml

from mbrl_jax.config import files
from mbrl_jax.config.dotted import flat_settings, setting, traced_settings, with_settings
from mbrl_jax.config.fields import ConfigError
from mbrl_jax.config.files import RepeatedKeyError, to_dict
from mbrl_jax.config.run import RunConfig


class Cell(NamedTuple):
    """A combination."""

    settings: dict[str, Any]  # by dotted path, in the order in which they were given
    config: RunConfig

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ",".join(f"{path}={text_of(value)}" for path, value in self.settings.items())


def cells(config: RunConfig, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination of the values of some settings, put into ``config``.

    Raises ConfigError: there is no such setting, it has no values or one of them twice, or a combination cannot work.
    """
    if not grid:
        raise ConfigError("grid: it is empty; name at least one setting with its values, as in agent.learning_rate=1e-4,1e-3")
    for path, given in grid.items():
        _check_values(path, given)
        if not len(given):
            raise ConfigError(f"{path}: [] has no values; give at least one")
    made = []
    for values in itertools.product(*grid.values()):
        one = with_settings(config, dict(zip(grid, values, strict=True)))
        flat = flat_settings(one)
        made.append(Cell({path: flat[path] for path in grid}, one))
    labels = [cell.label for cell in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"grid: {label} is given twice; each value must be given once")
    return made


def groups(made: Sequence[Cell]) -> list[list[int]]:
    """The places of the combinations that compile to one program."""
    found: dict[Any, list[int]] = {}
    for place, cell in enumerate(made):
        found.setdefault(jax.tree.structure(cell.config), []).append(place)  # type: ignore[operator]
    return list(found.values())


def parse(words: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that words like ``agent.learning_rate=1e-4,1e-3`` or ``agent.hidden=[64,64],[32]`` say.

    Raises ConfigError: a word says none, or a setting is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        path, equals, values = word.partition("=")
        path = path.strip().replace("-", "_")  # as flags may be written
        try:
            read = files.parse(f"[{values}]") if equals else None
        except RepeatedKeyError as error:
            raise ConfigError(f"grid: {word!r}: {error}") from error
        except yaml.YAMLError:
            read = None
        if not path or not isinstance(read, list):
            raise ConfigError(f"grid: {word!r} must be a setting with its values, as in agent.learning_rate=1e-4,1e-3")
        if path in grid:
            raise ConfigError(f"grid: {path} is given twice; put all its values into one list")
        grid[path] = read
    return grid


def vary(config: RunConfig, settings: Mapping[str, Sequence[float]]) -> list[RunConfig]:
    """``config`` with the first values of all ``settings`` put in, with the second ones, and so on.

    Args:
      config: what all have in common.
      settings: values by the dotted paths of traced settings.

    Raises:
      ConfigError: a setting that is not known or is static; values that cannot work, none, or not as many for every setting.

    """
    if not settings:
        raise ConfigError("settings: there are none; name at least one traced setting with its values")
    known = traced_settings(config)
    for path, values in settings.items():
        _check_values(path, values)
        if path not in known:
            listed = f"the traced settings are {', '.join(known)}"
            static = setting(to_dict(config), path, listed)
            raise ConfigError(f"{path}: {static!r} is static, so it compiles anew and must be run apart; {listed}")
        if not len(values):
            raise ConfigError(f"{path}: [] has no values; give at least one")
    if len({len(values) for values in settings.values()}) > 1:
        counted = ", ".join(f"{path} has {len(values)}" for path, values in settings.items())
        raise ConfigError(f"settings: {counted} values; those that vary together must have equally many")
    together = zip(*settings.values(), strict=True)
    return [with_settings(config, dict(zip(settings, values, strict=True))) for values in together]


def _check_values(path: Any, values: Any) -> None:
    """Refuse what are not the values of a setting."""
    if not isinstance(path, str):
        raise ConfigError(f"grid: {path!r} does not fit; it must be the path of a setting, as agent.learning_rate")
    if isinstance(values, str) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise ConfigError(f"{path}: {values!r} does not fit; it must be a list of values")


def text_of(value: Any) -> str:
    """A value as it is written in a name: a list without blanks, a number without more digits than it needs."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(text_of(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
