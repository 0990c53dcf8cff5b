"""The space that a search draws settings from, as a YAML file says it.

The file maps the dotted path of a setting to what it may be:

* ``{float: [low, high]}`` a number, ``{int: [low, high]}`` a whole number, both ends included; ``log: true`` draws it on a
  logarithmic scale, ``step: s`` draws only ``low``, ``low + s``, and so on;
* ``{choice: [a, b, …]}`` one of the values, which may be lists, as widths of hidden layers are.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from mbrl_jax.config import ConfigError, Kind, Limits, RunConfig, expand, traced_settings
from mbrl_jax.config.fields import convert
from mbrl_jax.config.files import parse as parse_yaml

MEASURED = ("environment.name", "environment.time_limit", "steps", "round_steps", "evaluation")
"""Settings, or groups of them, that say what is measured: trials that differ in them cannot be compared."""
Scalar = float | int | str | bool | None


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included."""

    kind: Literal["float", "int"]
    low: float
    high: float
    log: bool = False
    step: float | None = None  # none: every number for a float, 1 for an int


class Choice(NamedTuple):
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[Scalar, ...]:
        """The values as a study stores them: scalars as they are, lists as text."""
        return tuple(_text(value) if isinstance(value, list | tuple) else value for value in self.values)


Space = Mapping[str, Range | Choice]


def read(path: str | Path, config: RunConfig) -> dict[str, Range | Choice]:
    """Read the space in a YAML file for the settings of ``config``.

    Raises:
      ConfigError: the file cannot be read, or as :func:`parse`.

    """
    path = expand(path, "space")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"space: {str(path)!r} is no file; name a YAML file of settings and what they may be") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"space: {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"space: {str(path)!r} is not valid YAML: {error}") from error
    try:
        return parse(content, config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(content: Any, config: RunConfig) -> dict[str, Range | Choice]:
    """Read a space from a mapping of dotted paths; every value must be one that its setting can have.

    Raises:
      ConfigError: naming the setting, what is wrong with what it may be, and what would be right.

    """
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            f"space: {content!r} does not fit; it must map settings to what they may be, as in "
            "agent.learning_rate: {float: [1e-4, 1e-2], log: true}"
        )
    return {path: _domain(path, given, *_setting(config, path)) for path, given in content.items()}


def traced(config: RunConfig, space: Space) -> list[str]:
    """The settings of a space that do not compile anew."""
    known = traced_settings(config)
    return [path for path in space if path in known]


def value_of(domain: Range | Choice, stored: Any) -> Any:
    """The value of a setting that a study stored as ``stored``."""
    return domain.values[domain.names.index(stored)] if isinstance(domain, Choice) else stored


def as_json(space: Space) -> dict[str, Any]:
    """The space as its file has it."""
    plain: dict[str, Any] = {}
    for path, domain in space.items():
        if isinstance(domain, Choice):
            plain[path] = {"choice": list(domain.values)}
        else:
            steps = {} if domain.step is None else {"step": domain.step}
            plain[path] = {domain.kind: [domain.low, domain.high], **({"log": True} if domain.log else {}), **steps}
    return plain


# ------------------------------------------------------------------------------------------------------------------ pieces


def _setting(config: RunConfig, path: Any) -> tuple[Any, Limits]:
    """The type and the limits of a setting."""
    if not isinstance(path, str):
        raise ConfigError(f"{path!r}: it must be the dotted path of a setting, as agent.learning_rate is")
    for measured in MEASURED:
        if f"{path}.".startswith(f"{measured}."):
            raise ConfigError(f"{path}: it says what is measured, so it cannot be searched; give it as a flag, --{path}")
    here: Any = config
    *groups, name = path.split(".")
    for depth, group in enumerate(groups):
        here = getattr(here, group, None)
        if not dataclasses.is_dataclass(here):
            raise ConfigError(f"{path}: there is no group of settings {'.'.join(groups[: depth + 1])!r}")
    if name == "kind" and isinstance(here, Kind):
        raise ConfigError(f"{path}: a kind decides which settings there are; search each kind by itself")
    fields = {field.name: field for field in dataclasses.fields(here)}
    if name not in fields:
        raise ConfigError(f"{path}: there is no such setting; there are {', '.join(fields)}")
    if dataclasses.is_dataclass(getattr(here, name)):
        inner = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(getattr(here, name)))
        raise ConfigError(f"{path}: it is a group of settings; name one of {inner}")
    return typing.get_type_hints(type(here))[name], fields[name].metadata["limits"]


def _domain(path: str, given: Any, hint: Any, limits: Limits) -> Range | Choice:
    """What a setting may be. Raises ConfigError: it says nothing, or not what the setting can be."""
    kinds = [kind for kind in ("float", "int", "choice") if isinstance(given, Mapping) and kind in given]
    if len(kinds) != 1:
        raise ConfigError(
            f"{path}: {given!r} does not fit; it must be {{float: [low, high]}}, {{int: [low, high]}} or {{choice: […]}}"
        )
    (kind,) = kinds
    allowed = {kind} if kind == "choice" else {kind, "log", "step"}
    if unknown := [key for key in given if key not in allowed]:
        raise ConfigError(f"{path}: {unknown[0]!r} is not known beside {kind}; there are {', '.join(sorted(allowed))}")
    if kind == "choice":
        return _choice(path, given[kind], hint, limits)
    return _range(path, given, kind, hint, limits)


def _choice(path: str, values: Any, hint: Any, limits: Limits) -> Choice:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: {values!r} must be a list of at least one value")
    made = Choice(tuple(_admitted(path, value, hint, limits) for value in values))
    if len(set(made.names)) < len(made.names):
        raise ConfigError(f"{path}: {values!r} has a value twice; each must be given once")
    return made


def _range(path: str, given: Mapping[str, Any], kind: str, hint: Any, limits: Limits) -> Range:
    plain = next((each for each in (*typing.get_args(hint), hint) if each in (float, int, bool)), hint)
    if plain is not {"float": float, "int": int}[kind]:
        right = {float: "float: [low, high]", int: "int: [low, high]"}.get(plain, "choice: […]")
        raise ConfigError(f"{path}: {kind} does not fit its type; it must be {right}")
    ends = given[kind]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ConfigError(f"{path}: {ends!r} must be two numbers, [low, high]")
    low, high = (_admitted(path, end, hint, limits) for end in ends)
    if low >= high:
        raise ConfigError(f"{path}: {ends!r} is no range; low must be below high")
    log = given.get("log", False)
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(
            f"{path}: log: {log!r} with low {low!r} does not fit; it must be true or false, true only where low is above 0"
        )
    step = given.get("step")
    if step is not None:
        step = convert(step, plain, f"{path}: step")
        count = (high - low) / step if step > 0 else 0.5
        if log or not math.isclose(count, round(count), rel_tol=1e-9):
            raise ConfigError(
                f"{path}: step: {step!r} does not fit; it must divide {high} - {low} evenly, and there must be no log"
            )
    return Range(typing.cast(Literal["float", "int"], kind), low, high, log, step)


def _admitted(path: str, value: Any, hint: Any, limits: Limits) -> Any:
    """A value as the type of its setting. Raises ConfigError: it is none of its values."""
    made = convert(value, hint, path)
    for number in made if isinstance(made, tuple) else (made,):
        if isinstance(number, int | float) and not isinstance(number, bool) and not limits.admit(number):
            raise ConfigError(f"{path}: {number!r} is out of range; it must be {limits}")
    return list(made) if isinstance(made, tuple) else made


def _text(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]"
