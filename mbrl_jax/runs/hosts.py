"""Several processes, on one machine or many, that share the seeds of a run.

JAX's distributed runtime brings them together, and then leaves: while it is there, every process ends once one of them dies, but
here the death of one should cost its own seeds alone, and those only since their last checkpoint. So at the beginning each
process has a child that meets the others' children. They agree on what is trained and on how many seeds at once; from then on
each process works by itself on parts of the run, in a folder that all of them see (:mod:`mbrl_jax.runs.kept`).
"""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import interruption

PATIENCE = 300  # seconds that a process waits for the others to come


class Host(NamedTuple):
    """One of the processes."""

    number: int  # 0 begins the run
    processes: int
    coordinator: str  # address and port at which they meet, which is process 0's; or slurm, to find it from the job


def host(coordinator: str | None, number: int | None, count: int | None) -> Host | None:
    """What three flags say; none if none is given. Under SLURM, the number and the count are the task's.

    Raises:
      ConfigError: one is missing, or out of range.

    """
    if coordinator == "slurm":
        told = {name: os.environ.get(name) for name in ("SLURM_PROCID", "SLURM_NTASKS")}
        if None in told.values():
            missing = " and ".join(name for name, value in told.items() if value is None)
            raise ConfigError(f"coordinator: 'slurm' does not fit; {missing} must be set, as `srun` does for each task of a job")
        number, count = (int(value or 0) for value in told.values())
    given = {"coordinator": coordinator, "process_id": number, "num_processes": count}
    if all(value is None for value in given.values()):
        return None
    for name, value in given.items():
        if value is None:
            raise ConfigError(f"{name}: it is missing; several processes need all of {', '.join(given)}")
    assert coordinator is not None
    assert number is not None
    assert count is not None
    address, _, port = coordinator.rpartition(":")
    if coordinator != "slurm" and not (address and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"coordinator: {coordinator!r} does not fit; it must be ADDRESS:PORT of process 0, or slurm")
    if count < 1:
        raise ConfigError(f"num_processes: {count!r} is out of range; it must be at least 1")
    if not 0 <= number < count:
        raise ConfigError(f"process_id: {number!r} is out of range; of {count} processes it must be from 0 to {count - 1}")
    return Host(number, count, coordinator)


def agree(host: Host, settings: dict[str, Any], at_once: int, patience: float = PATIENCE) -> int:
    """Meet the other processes; how many seeds all of them can train at once.

    Args:
      host: who this is.
      settings: what is to be trained, by dotted path.
      at_once: how many seeds fit here.
      patience: seconds to wait for the others.

    Raises:
      ConfigError: they did not come, or were given other settings.

    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()[:8]
    words = [json.dumps(each) for each in (host._asdict(), [*np.frombuffer(digest, np.int32).tolist(), at_once], int(patience))]
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},  # it computes nothing
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child, interruption.on_leaving(child.kill):
        answer, complaint = child.communicate()
    if child.returncode:
        reason = next((line for line in complaint.splitlines() if "Error" in line or "absl::Status" in line), "")
        raise ConfigError(
            f"coordinator: {host.coordinator!r}: process {host.number} of {host.processes} did not meet the others within "
            f"{patience:.0f} s: {reason.strip() or f'status {child.returncode}'}. All must be started with the same coordinator, "
            "the address of process 0, and each with a process_id of its own"
        )
    told = np.array(json.loads(answer.splitlines()[-1]))  # [processes, 3]
    unlike = [number for number, each in enumerate(told) if not np.array_equal(each[:2], told[0, :2])]
    if unlike:
        raise ConfigError(
            f"coordinator: {host.coordinator!r}: processes {unlike} were given other settings than process 0; all must be given "
            "the same preset, settings, --seeds, --seed and --diagnose"
        )
    return int(told[:, 2].min())


def _meet(host: Host, numbers: list[int], patience: int) -> list[list[int]]:
    """What each process says, by number."""
    import jax
    from jax.experimental import multihost_utils

    by_slurm = host.coordinator == "slurm"
    jax.distributed.initialize(
        None if by_slurm else host.coordinator,
        host.processes,
        host.number,
        cluster_detection_method="slurm" if by_slurm else "deactivate",
        initialization_timeout=patience,
    )
    told = multihost_utils.process_allgather(np.array(numbers, np.int32)).reshape(host.processes, -1)
    jax.distributed.shutdown()
    return np.asarray(told).tolist()


if __name__ == "__main__":
    who, numbers, patience = (json.loads(word) for word in sys.argv[1:])
    print(json.dumps(_meet(Host(**who), numbers, patience)))
