"""What a setting is: static or traced, within limits, of a type that a file's values are brought to."""

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar, dataclass_transform

import jax

from mbrl_jax.errors import ConfigError as ConfigError  # which the whole library takes from here

C = TypeVar("C")


class Limits(typing.NamedTuple):
    """The closed range of a number; for a tuple, of each of its entries."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # an open lower end

    def admit(self, value: float) -> bool:
        """Whether ``value`` is within."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and math.isfinite(value)
        )

    def __str__(self) -> str:
        parts = [
            None if self.minimum is None else f"at least {self.minimum}",
            None if self.above is None else f"above {self.above}",
            None if self.maximum is None else f"at most {self.maximum}",
        ]
        return " and ".join(part for part in (*parts, "finite") if part)


class Problems(list[str]):
    """What is wrong with settings that do not fit together."""

    def require(self, holds: bool, path: str, value: Any, right: str) -> None:
        """Note that ``value`` does not fit unless it holds that it does."""
        if not holds:
            self.append(f"{path}: {value!r} does not fit; {right}")


def static(default: Any, **limits: float) -> Any:
    """A setting that changes shapes or the graph."""
    return dataclasses.field(default=default, metadata={"traced": False, "limits": Limits(**limits)})


def traced(default: float, **limits: float) -> Any:
    """A number that may be a tracer: it can be vmapped over without compiling again."""
    return dataclasses.field(default=default, metadata={"traced": True, "limits": Limits(**limits)})


def group(make: Any) -> Any:
    """Settings within settings."""
    return dataclasses.field(default_factory=make, metadata={"traced": True, "limits": Limits()})


def kinds(group: Any, make: Any) -> Any:
    """Settings within settings that come in the kinds of a :class:`mbrl_jax.config.kinds.Kinds`; annotated as Any, for others
    may be registered.
    """
    return dataclasses.field(default_factory=make, metadata={"traced": True, "limits": Limits(), "kinds": group})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static, traced, group, kinds))
def settings(cls: type[C]) -> type[C]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its traced settings."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    leaves = [field.name for field in fields if field.metadata["traced"]]
    meta = [field.name for field in fields if not field.metadata["traced"]]
    return jax.tree_util.register_dataclass(made, data_fields=leaves, meta_fields=meta)


def convert(value: Any, hint: Any, path: str) -> Any:
    """``value`` as the type ``hint``, where no information is lost."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        *choices, last = (argument for argument in arguments if argument is not type(None))
        named = (choice for choice in choices if typing.get_origin(choice) is Literal and value in typing.get_args(choice))
        return convert(value, next(named, last), path)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{path}: {value!r} is not a choice; it must be one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        if isinstance(value, list | tuple) and value:
            return tuple(convert(entry, arguments[0], f"{path}[{i}]") for i, entry in enumerate(value))
        raise ConfigError(f"{path}: {value!r} must be a list of {arguments[0].__name__} with at least one entry")
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{path}: {value!r} must be {'a number' if hint is float else f'of type {hint.__name__}'}")
