"""Settings by their dotted paths, as in ``agent.learning_rate``."""

from collections.abc import Mapping
from typing import Any

import jax

from mbrl_jax.config.checks import check
from mbrl_jax.config.fields import ConfigError
from mbrl_jax.config.files import from_dict, to_dict
from mbrl_jax.config.run import RunConfig


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """Every setting of a config by its dotted path."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}{name}.", inner)
        else:
            flat[prefix[:-1]] = value

    walk("", to_dict(config))
    return flat


def traced_settings(config: RunConfig) -> dict[str, float]:
    """The traced settings by their dotted paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(config)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def setting(content: Any, path: str, listed: str = "`mbrl-jax train CONFIG --help` lists them") -> Any:
    """The value of the setting at a dotted path in what :func:`mbrl_jax.config.to_dict` gave.

    Raises ConfigError: there is no such setting, and ``listed`` says which there are; or it is a group of settings.
    """
    for name in path.split("."):
        if not isinstance(content, dict) or name not in content:
            raise ConfigError(f"{path}: there is no such setting; {listed}")
        content = content[name]
    if isinstance(content, dict):
        raise ConfigError(f"{path}: it is a group of settings; name one of {', '.join(f'{path}.{each}' for each in content)}")
    return content


def with_settings(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``config`` with other values at some dotted paths. Raises ConfigError: as :func:`setting`, or a value cannot work."""
    content = to_dict(config)
    for path, value in values.items():
        setting(content, path)
        *groups, name = path.split(".")
        place = content
        for group in groups:
            place = place[group]
        place[name] = value
    changed = from_dict(content)
    check(changed)
    return changed
