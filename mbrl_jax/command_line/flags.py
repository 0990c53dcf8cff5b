"""The flags that several commands have: CONFIG, a new folder, seeds, any setting, and the machine."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mbrl_jax import config as settings
from mbrl_jax.command_line.usage import show_usage
from mbrl_jax.config import ConfigError, expand, read_preset
from mbrl_jax.environments import data
from mbrl_jax.runs import engines, execution, runner, shards
from mbrl_jax.runs.launch import RETRIES, Launcher, Work

MANY = tyro.conf.UseAppendAction[tuple[str, ...]]
MACHINE: tuple[tuple[str, Any, Any], ...] = (  # flags
    ("memory", float | None, None),
    ("devices", str, "all"),
    ("launcher", Literal["slurm", "ray"] | None, None),
    ("shards", int | None, None),
    ("retries", int, RETRIES),
    ("launcher_option", MANY, ()),
)
ENGINE: tuple[str, Any, Any] = ("engine", engines.Named, "xla")


def parse(command: str, words: list[str], *options: tuple[str, Any] | tuple[str, Any, Any]) -> Any:
    """The flags of a command that takes CONFIG, a new folder, seeds, any setting, and ``options``: name, type and default."""
    if not words or words[0].startswith("-"):
        show_usage(words)
    execution.use_all_cores()  # before a task's own functions are asked about a log file
    preset = read_preset(words[0])
    fields: list[Any] = [
        ("seeds", str),
        ("out", Path),
        ("seed", int, 0),
        *options,
        ("config", Annotated[type(preset), tyro.conf.arg(name="")], preset),
    ]
    flags = dataclasses.make_dataclass(command.capitalize(), fields, kw_only=True)
    given: Any = tyro.cli(flags, args=words[1:], prog=f"mbrl-jax {command} {words[0]}", description=type(preset).__doc__)
    given.out, given.seeds = expand(given.out), shards.parse_seeds(given.seeds)
    settings.check(given.config)
    given.config = data.settle(given.config)
    settings.check(given.config)
    runner.seed_numbers(given.seeds, given.seed)
    return given


def memory_and_devices(given: Any) -> tuple[int | None, int | None]:
    """How many bytes and devices may be used, none for all."""
    memory, devices = given.memory, given.devices
    if memory is not None and not 0 < memory < math.inf:
        raise ConfigError(f"memory: {memory!r} is out of range; it must be a positive number of GB")
    if devices != "all" and not devices.isdecimal():
        raise ConfigError(f"devices: {devices!r} does not fit; it must be all or a number")
    return None if memory is None else max(1, int(1e9 * memory)), None if devices == "all" else int(devices)


def machine(given: Any, work: Work) -> tuple[int | None, int | None, Launcher | None]:
    """The same, and what launches shards."""
    memory, devices = memory_and_devices(given)
    launcher = None
    if given.launcher is not None and given.shards is not None:
        launcher = Launcher(given.launcher, given.shards, work, given.retries, given.launcher_option)
    elif given.launcher is not None or given.shards is not None:
        raise ConfigError("launcher: --launcher and --shards go together; without them this process trains all seeds")
    elif given.launcher_option or given.retries != RETRIES:
        raise ConfigError("launcher: --retries and --launcher-option are for jobs, and there is no --launcher")
    return memory, devices, launcher
