"""An export that is loaded: its policy, its ensemble and its members, ready to be asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.serving import contract
from mbrl_jax.serving.contract import Contract, File, Task
from mbrl_jax.serving.runtime import Session

PROBE_ROWS = 2  # that every graph is asked before it is served


class Served:
    """An export whose files are those that its contract is about, and give what it says.

    It never changes, and may be asked by several threads at once.

    Attributes:
      folder: the export's.
      contract: its contract.
      task: the task that it is of.
      digest: of the policy's file, by which exports are told apart.
      members: M, how many members of the world model there are; 0 without a model.

    """

    def __init__(self, folder: Path, precision: str = "float32"):
        """Load an export.

        Args:
          folder: with a ``contract.json``.
          precision: float32, int8-dynamic or int8-static.

        Raises:
          ConfigError: there is no export, another version wrote it, it has no policy in ONNX of that precision, or a file is not
            the one that its contract is about.

        """
        self.folder, self.contract = folder, contract.read(folder)
        self.task: Task = self.contract.task
        policy = self.contract.find("policy", "onnx", precision)
        if policy is None:
            told = f"there is no policy in onnx of precision {precision!r}"
            raise ConfigError(f"{str(folder)!r}: {told}; mbrl-jax export --format onnx writes one, with --int8 in INT8 too")
        self.digest = policy.sha256
        self._policy = self._load(policy)
        self._outputs = tuple(port.name for port in policy.outputs)
        self._low, self._high = (np.array(each, np.float32)[None] for each in (self.task.low, self.task.high))
        self._ensemble = self._model("model", precision)
        self._members: list[Session] = []
        while (member := self._model(f"member{len(self._members)}", precision)) is not None:
            self._members.append(member)

    @property
    def members(self) -> int:
        """M, 0 without a model."""
        return len(self._members)

    @property
    def content(self) -> dict[str, Any]:
        """All of the contract."""
        return dict(self.contract.content)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Actions [B] int32, or [B, A] float32 in the task's own units, in observations [B, D] float32."""
        action: np.ndarray = self._policy.run_some(["action"], {"observation": observation})[0]
        return action

    def explain(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that the policy gives in observations [B, D]: actions, and what they were chosen by."""
        return self._policy.run({"observation": observation})

    def expect(self, observation: np.ndarray, action: np.ndarray) -> dict[str, np.ndarray]:
        """What the ensemble expects of actions [B] in observations [B, D], its disagreement among it."""
        assert self._ensemble is not None, "who asks has seen that there are members"
        return self._ensemble.run({"observation": observation, "action": action})

    def expect_of(self, member: int, observation: np.ndarray, action: np.ndarray) -> dict[str, np.ndarray]:
        """What one member expects of actions [B] in observations [B, D]."""
        return self._members[member].run({"observation": observation, "action": action})

    def out_of_range(self, observation: np.ndarray) -> int:
        """How many of observations [B, D] leave the range of the data that the run learned from, by one number at least."""
        outside = (observation < self._low) | (observation > self._high)
        return int(np.count_nonzero(outside.any(axis=1)))

    def _model(self, graph: str, precision: str) -> Session | None:
        file = self.contract.find(graph, "onnx", precision) or self.contract.find(graph, "onnx", "float32")
        return None if file is None else self._load(file)

    def _load(self, file: File) -> Session:
        """The session of a file that gives what the contract says."""
        session = Session(contract.content_of(self.folder, file))
        place = self.folder / file.path
        for name, ports, found in (("inputs", file.inputs, session.inputs), ("outputs", file.outputs, session.outputs)):
            if {port.name for port in ports} != set(found):
                raise ConfigError(f"{place}: its {name} are {', '.join(found)}, not those of the contract; export the run again")
        zeros = {port.name: np.zeros(_sized(port.shape), port.dtype) for port in file.inputs}
        try:
            given = session.run(zeros)
        except Exception as error:  # onnxruntime has a class of its own for each kind of failure
            raise ConfigError(f"{place}: it does not run: {error}") from error
        for port in file.outputs:
            found_shape, found_type = given[port.name].shape, given[port.name].dtype
            if found_shape != _sized(port.shape) or found_type != port.dtype:
                right = f"{port.dtype}{list(_sized(port.shape))}"
                raise ConfigError(
                    f"{place}: {port.name} is {found_type}{list(found_shape)}; it must be {right}, as the contract has it"
                )
        return session


def _sized(shape: Sequence[int | str]) -> tuple[int, ...]:
    """A port's shape with the rows of a probe."""
    return tuple(PROBE_ROWS if isinstance(size, str) else size for size in shape)


def same_task(ours: Contract, theirs: Contract) -> bool:
    """Whether clients of one export can go on with the other."""

    def of(task: Task) -> Any:
        return task.name, task.axes, task.action_count, task.action_low, task.action_high

    return bool(of(ours.task) == of(theirs.task))
