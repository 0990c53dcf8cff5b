"""How long it takes until a run begins, on the command line: the first time, and once its program is in the cache.

    python benchmarks/start.py

For each repetition two processes, one after the other, do what `mbrl-jax train` does before the first seed is trained; the first
has empty caches. Writes benchmarks/results/speed/start.json and prints the medians.
"""

import argparse
import os
import statistics as numbers
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.config import RunConfig, load, save
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed" / "start.json"
GET_READY = """
import sys, time
from mbrl_jax.config import read_preset
from mbrl_jax import command_line
from mbrl_jax.runs import execution, runner
execution.use_all_cores()
execution.use_compilation_cache()
imported = time.perf_counter()
runner.prepare([read_preset(sys.argv[1])], int(sys.argv[2]))
print(time.perf_counter() - imported)
"""


def starts(config: RunConfig, seeds: int) -> dict[str, float]:
    """Seconds until all is compiled, in a process with empty caches and in the next; and those since the next one was begun.

    Raises:
      RuntimeError: a process failed, with what it printed, as where memory ran out.

    """
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        save(config, Path(folder, "config.yaml"))
        surroundings = os.environ | {"XDG_CACHE_HOME": folder, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-c", GET_READY, str(Path(folder, "config.yaml")), str(seeds)]
        for name in ("compile", "from_cache"):
            start = time.perf_counter()
            done = subprocess.run(command, env=surroundings, check=False, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            told[name], told["second_start"] = float(done.stdout), time.perf_counter() - start
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cartpole_batch", "cartpole_interactive", "cartpole_pg"])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    execution.use_all_cores()
    table = Table("preset", "compiled, s", "from the cache, s", "second start with imports, s", title=execution.device())
    rows = []
    for name in given.presets:
        config = load(ROOT / "configs" / f"{name}.yaml")
        measured = [starts(config, given.seeds) for _ in range(given.repetitions)]
        medians = {which: numbers.median(each[which] for each in measured) for which in measured[0]}
        rows.append({"preset": name, "seeds": given.seeds, "median": medians, "measured": measured})
        table.add_row(name, *(f"{medians[which]:.1f}" for which in ("compile", "from_cache", "second_start")))
    content = {
        "stage": "start",
        "rows": rows,
        "versions": packages.versions(execution.PACKAGES),
        "device": execution.device(),
        "git": packages.git_revision(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    strict_json.write(given.out, content)
    Console().print(table)


if __name__ == "__main__":
    main()
