"""Time and memory of reading a large file of logged transitions: an audit, and loading a part of it for a run.

    python benchmarks/data_size.py --rows 10000000 --out benchmarks/results/speed/data_size.json

The file is made first, in blocks, and removed in the end. Each measurement is a process of its own, whose peak memory is set
beside that of a process that imports the same and opens the file only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_jax import packages, strict_json
from mbrl_jax.config import EnvironmentConfig, ImaginedPGConfig
from mbrl_jax.environments import data, make_environment
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.writing import write_parquet

BLOCK, LENGTH, PART = 100_000, 100, 5_000


def blocks(rows: int) -> Iterator[Logged]:
    """CartPole's shapes: random walks in episodes of a hundred steps."""
    generator = np.random.default_rng(0)
    for _ in range(0, rows, BLOCK):
        steps = generator.normal(size=(BLOCK // LENGTH, LENGTH, 4)).astype(np.float32)
        after = np.cumsum(steps, axis=1)
        elapsed = np.tile(np.arange(LENGTH, dtype=np.int32), BLOCK // LENGTH)
        yield Logged(
            observation=(after - steps).reshape(-1, 4),
            action=generator.integers(0, 2, BLOCK),
            reward=np.ones(BLOCK, np.float32),
            next_observation=after.reshape(-1, 4),
            terminated=elapsed == LENGTH - 1,
            truncated=np.zeros(BLOCK, bool),
            elapsed=elapsed,
            broken=np.zeros(BLOCK, bool),
        )


def measure(what: str, path: str) -> dict[str, Any]:
    """Do one thing with the file; seconds and peak memory of this process."""
    began = time.perf_counter()
    log = open_log(path)
    rows = log.rows
    if what == "audit":
        rows = Audit([log]).rows
    elif what == "load":
        make: Any = ImaginedPGConfig
        environment: Any = EnvironmentConfig
        settled = data.settle(make(data=(path,), data_transitions=PART, environment=environment(name="none")))
        rows = len(data.load(settled, make_environment(settled.environment)).rows.reward)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    peak = 1024 * int(status["VmHWM"].split()[0])  # ru_maxrss would count what the process was before it began this program
    return {"rows": rows, "seconds": time.perf_counter() - began, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.parquet"
        environment: Any = EnvironmentConfig
        write_parquet(path, blocks(given.rows), make_environment(environment(name="CartPole-v1")).spec)
        told: dict[str, Any] = {"rows": given.rows, "file_bytes": path.stat().st_size, "part": PART}
        for what in ("open", "audit", "load"):
            done = subprocess.run(
                [sys.executable, __file__, "--measure", what, str(path)], capture_output=True, text=True, check=True
            )
            told[what] = json.loads(done.stdout)
            print(f"{what:6} {told[what]['seconds']:7.1f} s, at most {told[what]['peak_bytes'] / 1e6:7.0f} MB")
    told |= {"versions": packages.versions(("numpy", "pyarrow", "jax")), "git": packages.git_revision()}
    if given.out is not None:
        strict_json.write(given.out, told)


if __name__ == "__main__":
    main()
