"""Groups of settings that come in kinds: which class a ``kind`` key names.

A room that offers kinds registers their settings here; those that the library ships are registered when their room is imported,
which the first look does.
"""

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from mbrl_jax.config.fields import ConfigError


class _Name:
    """The name of a kind whose room has not been imported: importing the rooms registers it."""

    def __get__(self, settings: Any, owner: type) -> str:
        for kinds in (AGENTS, MODELS, CONTROLLERS):
            kinds.classes()
        for each in owner.__mro__:
            if isinstance(name := vars(each).get("kind"), str):
                return name
        raise AttributeError(f"{owner.__name__} is of no kind yet: register it")


class Kind:
    """Settings of one kind, as :func:`mbrl_jax.config.settings` makes them; ``kind`` is the name that files have."""

    kind: ClassVar[str] = _Name()  # type: ignore[assignment]


class Kinds:
    """The kinds of one group."""

    def __init__(self, group: str, room: str, example: str):
        """Of a group by its path in files, whose kinds the module ``room`` registers; the example is one of them in a file."""
        self.group, self.example = group, example
        self._room = room
        self._classes: dict[str, type[Kind]] = {}

    def register(self, kind: str, settings: type[Kind]) -> None:
        """Let files name a kind.

        Raises:
          ConfigError: the name is taken.

        """
        if kind in self._classes:
            raise ConfigError(f"{self.group}.kind: {kind!r} is registered already; name another")
        settings.kind = kind
        self._classes[kind] = settings

    def classes(self) -> Mapping[str, type[Kind]]:
        """The settings of every kind by name."""
        importlib.import_module(self._room)
        return self._classes

    def of(self, kind: Any) -> type[Kind]:
        """The settings of a kind.

        Raises:
          ConfigError: there is no such kind.

        """
        classes = self.classes()
        if not isinstance(kind, str) or kind not in classes:
            raise ConfigError(f"{self.group}.kind: {kind!r} is not known; it must be one of {', '.join(classes)}")
        return classes[kind]


AGENTS = Kinds("agent", "mbrl_jax.agents.registry", "agent: {kind: q_learning, learning_rate: 3e-4}")
MODELS = Kinds("model", "mbrl_jax.model.worlds", "model: {kind: ensemble, members: 5}")
CONTROLLERS = Kinds("imagination.controller", "mbrl_jax.imagination.horizon", "controller: {kind: threshold, mark: 0.2}")
