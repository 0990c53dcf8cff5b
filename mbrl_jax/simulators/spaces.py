"""Observations and actions of Gymnasium's spaces as flat vectors, and back."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

FLOAT = np.float32


class SimulatorError(ValueError):
    """What a simulator says of itself or gives does not fit: the message names it, its value and what would be right."""


class Part(NamedTuple):
    """One part of an observation, with its place in the space."""

    path: tuple[Any, ...]  # keys of dictionaries and numbers of tuples that lead to it
    space: spaces.Space
    size: int  # numbers that it becomes

    @property
    def name(self) -> str:
        """Its keys, joined by slashes; empty for an observation that is one part."""
        return "/".join(map(str, self.path))


class Interface(NamedTuple):
    """How the library's vectors are written into a simulator and read out of it."""

    name: str  # the simulator's
    parts: tuple[Part, ...]  # of an observation, in the order of its numbers
    action: spaces.Space  # Discrete, or a bounded Box of floats

    @property
    def observation_size(self) -> int:
        """D."""
        return sum(part.size for part in self.parts)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of an observation that is an array of more than one axis, as an image; empty otherwise."""
        space = self.parts[0].space
        single = len(self.parts) == 1 and isinstance(space, spaces.Box) and len(space.shape) > 1
        return tuple(space.shape or ()) if single else ()

    @property
    def axes(self) -> tuple[str, ...]:
        """D names, empty where the space has none."""
        if not self.parts[0].path:
            return ()
        return tuple(axis for part in self.parts for axis in _axis_names(part))

    def bounds(self) -> np.ndarray:
        """[2, D] the lowest and the highest values that the space declares."""
        return np.concatenate([_bounds_of(part) for part in self.parts], axis=1)

    def read(self, observation: Any) -> np.ndarray:
        """An observation as [D] float32.

        Raises:
          SimulatorError: it is not of the declared space, or a number is not finite.

        """
        if len(self.parts) == 1 and not self.parts[0].path:
            flat = self._part(self.parts[0], observation)
        else:
            flat = np.concatenate([self._part(part, self._find(part, observation)) for part in self.parts])
        if not np.isfinite(flat).all():
            place = int(np.flatnonzero(~np.isfinite(flat))[0])
            axis = self.axes[place] if self.axes else f"number {place}"
            raise SimulatorError(f"observation of {self.name}: {axis} is {flat[place]}; it must be finite")
        return flat

    def is_one(self, observation: Any) -> bool:
        """Whether this is one observation, not several of them."""
        space = self.parts[0].space
        if self.parts[0].path or not isinstance(space, spaces.Box):
            return True
        return np.shape(observation) == space.shape

    def _find(self, part: Part, observation: Any) -> Any:
        for key in part.path:
            try:
                observation = observation[key]
            except (KeyError, IndexError, TypeError) as error:
                raise SimulatorError(f"observation of {self.name}: {part.name!r} is missing from {observation!r}") from error
        return observation

    def _part(self, part: Part, value: Any) -> np.ndarray:
        space, what = part.space, f"observation of {self.name}" + (f", {part.name}" if part.path else "")
        if isinstance(space, spaces.Discrete):
            return _one_hot(what, value, int(space.n), int(space.start))
        try:
            found = np.asarray(value)
        except ValueError as error:
            raise SimulatorError(f"{what}: it is no array ({error}); it must be {list(space.shape or ())} numbers") from error
        if found.shape != space.shape or found.dtype.kind not in "fiub":
            right = f"{space.dtype}{list(space.shape or ())}, as its space declares"
            raise SimulatorError(f"{what}: {found.dtype}{list(found.shape)} does not fit; it must be {right}")
        if isinstance(space, spaces.MultiDiscrete):
            flat, counts, starts = found.ravel(), space.nvec.ravel(), space.start.ravel()
            return np.concatenate([_one_hot(what, *each) for each in zip(flat, counts, starts, strict=True)])
        with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
            return found.astype(FLOAT).ravel()

    def write(self, action: np.ndarray) -> Any:
        """The simulator's own action from the library's: one number, or [A] from -1 to 1, as [low, high] of its Box."""
        space = self.action
        if isinstance(space, spaces.Discrete):
            return np.int64(int(space.start) + int(action))
        assert isinstance(space, spaces.Box), "interface_of refuses other actions"
        scale, centre = self.action_units()
        units = (centre + scale * np.clip(np.asarray(action, np.float64), -1.0, 1.0)).reshape(space.shape)
        return np.clip(units, space.low, space.high).astype(space.dtype)

    def action_units(self) -> tuple[np.ndarray, np.ndarray]:
        """[A] what 1 and what 0 are in the simulator's units."""
        assert isinstance(self.action, spaces.Box), "discrete actions have no units"
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (self.action.low, self.action.high))
        return (high - low) / 2, (high + low) / 2


def interface_of(name: str, observation: spaces.Space, action: spaces.Space) -> Interface:
    """The interface of a simulator's spaces.

    Raises:
      SimulatorError: a space is of a kind that is no vector, or an action has no bounds.

    """
    if isinstance(action, spaces.Box):
        if not np.issubdtype(action.dtype, np.floating) or action.low.size == 0:
            raise SimulatorError(f"action space of {name}: {action} does not fit; it must be Discrete or a Box of floats")
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all() and (action.low < action.high).all()):
            right = "every number must have finite bounds, low below high, as of a wrapper gymnasium.wrappers.RescaleAction"
            raise SimulatorError(f"action space of {name}: {action} does not fit; {right}")
    elif not isinstance(action, spaces.Discrete):
        raise SimulatorError(f"action space of {name}: {action} does not fit; it must be Discrete or a Box of floats")
    parts = tuple(_parts(name, observation, ()))
    if sum(part.size for part in parts) == 0:
        raise SimulatorError(f"observation space of {name}: {observation} does not fit; it must have a number at least")
    return Interface(name, parts, action)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _parts(name: str, space: spaces.Space, path: tuple[Any, ...]) -> list[Part]:
    if isinstance(space, spaces.Dict):
        return [part for key, inner in space.spaces.items() for part in _parts(name, inner, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [part for place, inner in enumerate(space.spaces) for part in _parts(name, inner, (*path, place))]
    if isinstance(space, spaces.Discrete):
        return [Part(path, space, int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        return [Part(path, space, int(space.nvec.sum()))]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return [Part(path, space, int(np.prod(space.shape, dtype=int)))]
    right = "Box, Discrete, MultiBinary and MultiDiscrete fit, and a Dict or a Tuple of them"
    raise SimulatorError(f"observation space of {name}: {space} does not fit; {right}")


def _axis_names(part: Part) -> list[str]:
    if isinstance(part.space, spaces.Discrete):
        return [f"{part.name}={value + int(part.space.start)}" for value in range(part.size)]
    if part.size == 1:
        return [part.name]
    return [f"{part.name}[{place}]" for place in range(part.size)]


def _bounds_of(part: Part) -> np.ndarray:
    if isinstance(part.space, spaces.Box):
        return np.stack([np.asarray(bound, np.float64).ravel() for bound in (part.space.low, part.space.high)])
    return np.stack([np.zeros(part.size), np.ones(part.size)])


def _one_hot(what: str, value: Any, count: int, start: int) -> np.ndarray:
    number = np.asarray(value)
    if number.shape != () or number.dtype.kind not in "iu" or not start <= number < start + count:
        raise SimulatorError(f"{what}: {value!r} does not fit; it must be a whole number from {start} to {start + count - 1}")
    flat = np.zeros(count, FLOAT)
    flat[int(number) - start] = 1.0
    return flat
