"""Settings as YAML files and as plain dictionaries."""

import dataclasses
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mbrl_jax.config.checks import check, check_kind
from mbrl_jax.config.fields import ConfigError, convert
from mbrl_jax.config.paths import expand
from mbrl_jax.config.schema import ALGORITHMS, RunConfig, algorithm_name


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
    are merged; a list or a controller's numbers replace those of the base.

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
    return _merge(_read(path.parent / expand(base), (*readers, path.resolve())), own)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, group by group."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "controller_settings"
        merged[key] = _merge(base[key], value) if both else value
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
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {"algorithm": algorithm_name(config), **plain(dataclasses.asdict(config))}


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
    unknown = [key for key in content if key not in hints]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]}: there is no such setting; there are {', '.join(hints)}")
    values = {}
    for key, value in content.items():
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key}: {value!r} must be a mapping of settings")
            values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.")
        else:
            values[key] = convert(value, hints[key], prefix + key)
    return cls(**values)
