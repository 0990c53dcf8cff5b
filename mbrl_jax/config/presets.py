"""The presets that are shipped, by name."""

import os
from pathlib import Path

from mbrl_jax.config.fields import ConfigError
from mbrl_jax.config.files import load
from mbrl_jax.config.paths import expand
from mbrl_jax.config.run import RunConfig


def presets() -> dict[str, Path]:
    """The shipped presets by name."""
    package = Path(__file__).parents[1]
    for place in (package / "configs", package.parent / "configs"):  # installed, or a checkout
        if place.is_dir():
            return {path.stem: path for path in place.rglob("*.yaml")}
    return {}


def read_preset(name: str) -> RunConfig:
    """The settings in a YAML file, or of a shipped preset. A file comes before a preset of that name, a folder does not.

    Raises ConfigError: there is neither, or it is bad.
    """
    path = expand(name)
    if os.path.exists(path) and not os.path.isdir(path):
        return load(path)
    if name not in presets():
        kind = "a folder, " if os.path.isdir(path) else ""
        known = ", ".join(sorted(presets()))
        raise ConfigError(f"config: {name!r} is {kind}neither a file nor a shipped preset; there are {known}")
    return load(presets()[name])
