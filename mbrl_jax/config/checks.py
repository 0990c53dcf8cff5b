"""Refuses settings that cannot work, alone or together."""

import dataclasses
import operator
import typing
from typing import Any

from mbrl_jax.config.combinations import joint_problems
from mbrl_jax.config.fields import ConfigError, Limits, convert
from mbrl_jax.config.kinds import Kind, Kinds
from mbrl_jax.config.run import RunConfig


def check_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuse what is no configuration of a kind.

    Raises:
      ConfigError: saying what it is and what would be right.

    """
    if not isinstance(config, kind):
        right = "one of mbrl_jax's, which mbrl_jax.load reads from a YAML file" if kind is RunConfig else f"a {kind.__name__}"
        raise ConfigError(f"config: {type(config).__name__} does not fit; it must be {right}")


def check_whole(value: Any, name: str) -> None:
    """Refuse a number that is not whole.

    Raises:
      ConfigError: naming it.

    """
    try:
        fits = not isinstance(value, bool) and operator.index(value) == value
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"{name}: {value!r} does not fit; it must be a whole number")


def check(config: RunConfig, kind: type[RunConfig] = RunConfig) -> None:
    """Refuse a configuration that cannot work, or is of another kind.

    Raises:
      ConfigError: naming every field that is wrong, its value and what would be right.

    """
    check_kind(config, kind)
    problems = list(_field_problems(config, ""))
    if not problems:
        problems += joint_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def check_seeds(seeds: int, base_seed: int, first: int = 0) -> None:
    """Refuse seeds that cannot be.

    Args:
      seeds: how many there are.
      base_seed: from which and from its number the numbers of each follow.
      first: number of the first one.

    Raises:
      ConfigError: there are none, one of the arguments is no whole number, or it is out of range.

    """
    for name, value in (("seeds", seeds), ("seed", base_seed), ("first", first)):
        check_whole(value, name)
    seeds, base_seed, first = int(seeds), int(base_seed), int(first)  # of numpy's types a sum may overflow
    if not 1 <= seeds <= 2**31:
        raise ConfigError(f"seeds: {seeds!r} is out of range; it must be from 1 to 2^31")
    if not 0 <= base_seed < 2**32:
        raise ConfigError(f"seed: {base_seed!r} is out of range; it must be from 0 to 2^32 - 1")
    if not 0 <= first <= 2**31 - seeds:
        raise ConfigError(f"first: {first!r} is out of range; for {seeds} seeds it must be from 0 to {2**31 - seeds}")


def _field_problems(config: Any, prefix: str) -> typing.Iterator[str]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        kinds: Kinds | None = field.metadata.get("kinds")
        if kinds is not None and not (isinstance(value, Kind) and kinds.classes().get(value.kind) is type(value)):
            yield f"{path}: {value!r} is of no kind that is registered; it must be one of {', '.join(kinds.classes())}"
            continue
        if dataclasses.is_dataclass(value):
            yield from _field_problems(value, path + ".")
            continue
        try:
            convert(value, hints[field.name], path)
        except ConfigError as error:
            yield str(error)
            continue
        limits: Limits = field.metadata["limits"]
        named = {"": value}
        if isinstance(value, tuple):
            named = {f"[{i}]": entry for i, entry in enumerate(value)}
        for name, number in named.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and not limits.admit(number):
                yield f"{path}{name}: {number!r} is out of range; it must be {limits}"
