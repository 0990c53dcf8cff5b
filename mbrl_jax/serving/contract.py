"""The contract of an export: what its files compute, in which units, and how far they agree with the library.

It is ``contract.json`` in the folder of an export, and written last: where it is, the rest is whole. This module imports no JAX.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax import packages, strict_json
from mbrl_jax.errors import ConfigError

FORMAT = 1
NAME = "contract.json"


class Port(NamedTuple):
    """One input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]  # "B" stands for any number of rows
    dtype: str
    meaning: str

    def as_json(self) -> dict[str, Any]:
        """As in the contract."""
        return {**self._asdict(), "shape": list(self.shape)}


class File(NamedTuple):
    """One file of an export."""

    path: str  # within the folder
    graph: str  # policy, model, member0 and so on
    role: str  # policy, vote, planner, member or ensemble
    format: str  # onnx, stablehlo or torchscript
    precision: str  # float32, int8-dynamic or int8-static
    opset: int | None  # of ONNX
    sha256: str
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    agreement: Mapping[str, Any]  # with the library, as it was measured
    tolerance: Mapping[str, Any]  # beyond which the file would not have been written

    def as_json(self) -> dict[str, Any]:
        """As in the contract."""
        ports = {name: [port.as_json() for port in getattr(self, name)] for name in ("inputs", "outputs")}
        return {**self._asdict(), **ports}


class Task(NamedTuple):
    """What whoever asks the served policy must know of the task."""

    name: str
    axes: tuple[str, ...]  # D names of the observation's numbers
    action_count: int  # A discrete actions, 0 where they are continuous
    action_low: tuple[float, ...]  # [A] in the task's own units, () for discrete ones
    action_high: tuple[float, ...]  # [A]
    time_limit: int  # steps until an episode is truncated
    low: tuple[float, ...]  # [D] of the data that the run learned from
    high: tuple[float, ...]  # [D]

    @property
    def observation_size(self) -> int:
        """D."""
        return len(self.axes)

    @property
    def continuous(self) -> bool:
        """Whether actions are numbers."""
        return self.action_count == 0


class Contract(NamedTuple):
    """A contract that has been read."""

    content: Mapping[str, Any]  # all of it, as in the file
    task: Task
    files: tuple[File, ...]

    def find(self, graph: str, format: str, precision: str) -> File | None:
        """The file of a graph, none where it was not exported so."""
        wanted = (graph, format, precision)
        return next((file for file in self.files if (file.graph, file.format, file.precision) == wanted), None)


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def task_of(content: Mapping[str, Any]) -> Task:
    """The task of a contract's content. Raises KeyError, TypeError or ValueError: it is no such content."""
    observation, action = content["task"]["observation"], content["task"]["action"]
    discrete = action["kind"] == "discrete"
    return Task(
        name=str(content["task"]["name"]),
        axes=tuple(str(axis["name"]) for axis in observation["axes"]),
        action_count=int(action["count"]) if discrete else 0,
        action_low=() if discrete else tuple(map(float, action["low"])),
        action_high=() if discrete else tuple(map(float, action["high"])),
        time_limit=int(content["task"]["time_limit"]),
        low=tuple(float(axis["low"]) for axis in observation["axes"]),
        high=tuple(float(axis["high"]) for axis in observation["axes"]),
    )


def read(folder: Path) -> Contract:
    """The contract in a folder.

    Raises:
      ConfigError: there is none, it cannot be read, or another version wrote it.

    """
    path = folder / NAME
    try:
        content = strict_json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{str(folder)!r}: there is no export; a folder of one has a {NAME}, as mbrl-jax export writes"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: it is no contract: it holds a {type(content).__name__}, not an object")
    found = content.get("format")
    if found != FORMAT:
        version = content.get("versions", {}).get("mbrl-jax", "another version")
        ours = packages.version_of("mbrl-jax")
        raise ConfigError(
            f"{path}: format {found!r} is not known; it must be {FORMAT}; mbrl-jax {version} wrote it, this is {ours}: export "
            "the run again"
        )
    try:
        return Contract(content, task_of(content), tuple(map(_file, content["files"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: it is no contract: {type(error).__name__}: {error}") from error


def _file(entry: Mapping[str, Any]) -> File:
    """An entry of the contract."""

    def port(told: Mapping[str, Any]) -> Port:
        return Port(**{**told, "shape": tuple(told["shape"])})

    ports = {name: tuple(map(port, entry[name])) for name in ("inputs", "outputs")}
    return File(**{**entry, **ports})


def content_of(folder: Path, file: File) -> bytes:
    """The content of a file of an export.

    Raises:
      ConfigError: it cannot be read, or it is not the one that the contract is about.

    """
    path = folder / file.path
    if Path(file.path).name != file.path:
        raise ConfigError(f"{folder / NAME}: path {file.path!r} does not fit; it must be a name in the folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    if digest(content) != file.sha256:
        raise ConfigError(
            f"{path}: its SHA-256 is {digest(content)}; it must be {file.sha256}, as {NAME} has it: export the run again"
        )
    return content
