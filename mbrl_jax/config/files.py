"""Settings as YAML files and as plain dictionaries."""

import dataclasses
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mbrl_jax.config.algorithms import ALGORITHMS, algorithm_name
from mbrl_jax.config.checks import check, check_kind
from mbrl_jax.config.fields import ConfigError, convert
from mbrl_jax.config.kinds import Kind, Kinds
from mbrl_jax.config.paths import expand
from mbrl_jax.config.run import RunConfig


class RepeatedKeyError(yaml.YAMLError):
    """A YAML mapping names one key twice."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but for repeated keys: it would keep the last value and drop the others without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and look at its keys, before a merge key (``<<``) adds those that it may override."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # any other cannot be looked up, which PyYAML refuses itself
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    where = f"in lines {lines[name]} and {line}" if line != lines[name] else f"in line {line}"
                    raise RepeatedKeyError(f"{key.value}: it is given twice, {where}; give it once, with all that belongs to it")
                lines[name] = line
                # PyYAML 6.0.4 compares the keys of merged mappings by identity; of equal ones not interned the last would win.
                key.value = sys.intern(key.value)
        return node


def parse(text: str) -> Any:
    """The content of a YAML document.

    Raises:
      RepeatedKeyError: a mapping at whatever depth names a key twice.
      yaml.YAMLError: it is not YAML.

    """
    return yaml.load(text, _Loader)


def load(path: str | Path) -> RunConfig:
    """Read a preset: a YAML mapping with an ``algorithm`` and any of that algorithm's settings.

    A preset may name another as its ``base``, by a path from its own folder: it then holds only what differs. Groups of settings
    are merged; a list replaces that of the base, and so does a group of another kind.

    Raises:
      ConfigError: a file is missing, is not a YAML mapping, names a key twice, or holds an unknown field or a bad value.

    """
    path = expand(path, "path")
    try:
        config = from_dict(_read(path, ()))
        check(config)
    except ConfigError as error:
        told = str(error)
        raise ConfigError(told if told.startswith(f"{path}: ") else f"{path}: {told}") from None
    return config


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The settings in a file and in its base; ``readers`` are the files that led here."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    except RepeatedKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: it is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: it must hold a mapping of settings, not {type(content).__name__}")
    own = dict(content)
    base = own.pop("base", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} must be the path of another preset")
    if path.resolve() in readers:
        raise ConfigError(f"{path}: base: {base!r} leads back to this file")
    below = _read(path.parent / expand(base), (*readers, path.resolve()))
    algorithm = ALGORITHMS.get(str((below | own).get("algorithm")))
    defaults = {} if algorithm is None else to_dict(typing.cast(Any, algorithm)())
    return _merge(below, own, defaults)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, group by group; of a group of another kind ``own`` alone. One without a kind has the default's."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        default = defaults.get(key)
        default = default if isinstance(default, Mapping) else {}
        kind = base[key].get("kind", default.get("kind")) if both else None
        merged[key] = _merge(base[key], value, default) if both and value.get("kind", kind) == kind else value
    return merged


def save(config: RunConfig, path: str | Path) -> None:
    """Write ``config`` as a preset that :func:`load` reads back to an equal one.

    Raises:
      ConfigError: ``config`` is none, or ``path`` is no path.

    """
    check_kind(config, RunConfig)
    expand(path, "path").write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """``config`` as plain nested dictionaries, lists and scalars, the algorithm's name first."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            kind: dict[str, Any] = {"kind": value.kind} if isinstance(value, Kind) else {}
            return kind | {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return {"algorithm": algorithm_name(config), **plain(config)}


def from_dict(content: Mapping[str, Any]) -> RunConfig:
    """The configuration that :func:`to_dict` describes; missing settings take their defaults.

    Raises:
      ConfigError: an unknown algorithm or field, or a value of the wrong type.

    """
    content = dict(content)
    name = content.pop("algorithm", None)
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError(f"algorithm: {name!r} is not known; it must be one of {', '.join(ALGORITHMS)}")
    config: RunConfig = _build(ALGORITHMS[name], content, "")
    return config


def _build(cls: type, content: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [key for key in content if key not in fields]
    if unknown:
        _explain_old_form(content, prefix)
        there = ", ".join(fields) or "none"
        raise ConfigError(f"{prefix}{unknown[0]}: there is no such setting; there are {there}")
    values = {}
    for key, value in content.items():
        kinds: Kinds | None = fields[key].metadata.get("kinds")
        if kinds is not None:
            values[key] = _build_kind(kinds, fields[key], value, prefix + key)
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _build(typing.cast(type, hints[key]), _mapping(value, prefix + key), f"{prefix}{key}.")
        else:
            values[key] = convert(value, hints[key], prefix + key)
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]}: it is missing; {cls.__name__} needs exactly {', '.join(fields)}")
    return cls(**values)


def _build_kind(kinds: Kinds, field: "dataclasses.Field[Any]", value: Any, path: str) -> Any:
    """A group that comes in kinds; one that names none is of the default's."""
    if isinstance(value, str):
        raise ConfigError(f"{path}: {value!r} must be a mapping with a kind; it is written {kinds.example} now")
    content = dict(_mapping(value, path))
    if path == "model" and content.get("kind") in ("gaussian", "deterministic"):
        raise ConfigError(f"model.kind: {content['kind']!r} is written model.prediction now; model.kind says which kind of model")
    assert field.default_factory is not dataclasses.MISSING, "a group of kinds has a default"
    cls = kinds.of(content.pop("kind")) if "kind" in content else type(field.default_factory())
    return _build(cls, content, f"{path}.")


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: {value!r} must be a mapping of settings")
    return value


def _explain_old_form(content: Mapping[str, Any], prefix: str) -> None:
    """Say how settings of an earlier version are written now, if these are such."""
    if "controller_settings" in content:
        numbers = content["controller_settings"]
        told = ", ".join(f"{name}: {number}" for name, number in numbers.items()) if isinstance(numbers, Mapping) else "..."
        name = content.get("controller", "fixed")
        raise ConfigError(f"{prefix}controller_settings: it is written {prefix}controller: {{kind: {name}, {told}}} now")
