"""Time 64 settings of Dyna-Q with 8 seeds each: in one search, and as one process for each setting.

    python benchmarks/tune_speed.py                      # all parts, about five minutes on two quiet cores
    python benchmarks/tune_speed.py --parts process.0    # one part; those measured before are kept

Every process begins with empty caches, so compilation is included, and so are imports. The search is `mbrl-jax tune`,
without pruning, which is the same work, and with it. Of the 64 processes of `mbrl-jax train` four are run, one at a time,
and all are taken as 64 times their median; one more is run twice, to have the time of one that finds its program in the
cache. Beside the wall clock stand the seconds of processor time, which other processes on the machine disturb less. Writes
benchmarks/results/speed/tune.json and prints a table.
"""

import argparse
import os
import resource
import statistics as numbers
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.config import RunConfig, from_dict, load, save, to_dict
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed" / "tune.json"
TRIALS, SEEDS = 64, 8
SIZES: dict[str, Any] = {"random_transitions": 500, "steps": 500, "round_steps": 50}
SELECTION = {"episodes": 10, "steps": 100}
SPACE = {
    "agent.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "agent.target_rate": {"float": [0.002, 0.2], "log": True},
    "imagination.cap": {"int": [1, 6]},
    "imagination.epsilon": {"float": [0.0, 0.5]},
}
SETTINGS = ("--agent.learning-rate 3e-4", "--agent.learning-rate 3e-3", "--imagination.cap 1", "--imagination.epsilon 0.3")
PARTS = ("process.0", "process.1", "search.all", "search.pruned", "process.2", "process.3", "process.cached")


def spent(words: list[str], cache: Path) -> dict[str, float]:
    """Seconds that a command takes in a process of its own: on the clock, and of processor time.

    Raises:
      RuntimeError: it failed, with what it printed.

    """
    surroundings = os.environ | {"XDG_CACHE_HOME": str(cache)}
    surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "mbrl_jax.command", *words], env=surroundings, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "processor_seconds": processor}


def measure(part: str) -> dict[str, float]:
    """Run one of the parts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(config(), folder / "config.yaml")
        (folder / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
        common = [str(folder / "config.yaml"), "--seeds", str(SEEDS)]
        kind, _, which = part.partition(".")
        if kind == "search":
            words = ["tune", *common, "--space", str(folder / "space.yaml"), "--trials", str(TRIALS), "--batch", str(TRIALS)]
            rungs = "0" if which == "all" else "2"
            return spent([*words, "--rungs", rungs, "--out", str(folder / "run")], folder / "cache")
        if which != "cached":
            return spent(["train", *common, "--out", str(folder / "run"), *SETTINGS[int(which)].split()], folder / "cache")
        spent(["train", *common, "--out", str(folder / "first"), *SETTINGS[0].split()], folder / "cache")
        return spent(["train", *common, "--out", str(folder / "run"), *SETTINGS[1].split()], folder / "cache")


def config() -> RunConfig:
    """Dyna-Q as in `cartpole_batch`, with fewer steps."""
    content = to_dict(load(ROOT / "configs" / "cartpole_batch.yaml")) | SIZES
    return from_dict(content | {"selection": content["selection"] | SELECTION})


LABELS = {
    "process.cached": "one process a setting, programs from the cache",
    "search.all": "one search, every trial to its end",
    "search.pruned": "one search, pruned at two rungs",
}


def compare(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Seconds for all 64 settings by what trained them, and how many times as fast as one process a setting; of what there is."""
    rows: dict[str, dict[str, float]] = {}
    processes = [each for part, each in measured.items() if part.removeprefix("process.").isdecimal()]
    for unit in ("seconds", "processor_seconds") if processes else ():
        base = TRIALS * numbers.median(each[unit] for each in processes)
        rows.setdefault("one process a setting", {})[unit] = base
        for part, label in LABELS.items():
            if part in measured:
                rows.setdefault(label, {})[unit] = measured[part][unit] * (TRIALS if part == "process.cached" else 1)
        for row in rows.values():
            row[f"times_as_fast_in_{unit}"] = base / row[unit]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    execution.use_all_cores()
    measured = strict_json.loads(given.out.read_text(encoding="utf-8"))["measured"] if given.out.exists() else {}
    for part in given.parts:
        measured[part] = measure(part)
        compared = compare(measured)
        content = {
            "stage": "tune_speed",
            "settings": TRIALS,
            "seeds": SEEDS,
            "config": to_dict(config()),
            "space": SPACE,
            "measured": measured,
            "for_all_settings": compared,
            "extrapolated": "one process a setting: settings x the median of those measured",
            "precision": "float32, matrix products default",
            "versions": packages.versions((*execution.PACKAGES, "optuna")),
            "device": execution.device(),
            "git": packages.git_revision(),
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write(given.out, content)
        print(part, measured[part], flush=True)
    table = Table(f"{TRIALS} settings x {SEEDS} seeds", "s", "times as fast", "processor s", "times", title=execution.device())
    for label, row in compared.items():
        told = (f"{row[unit]:,.0f}" for unit in ("seconds", "processor_seconds"))
        faster = (f"{row[f'times_as_fast_in_{unit}']:.1f}" for unit in ("seconds", "processor_seconds"))
        table.add_row(label, *(each for pair in zip(told, faster, strict=True) for each in pair))
    Console().print(table)


if __name__ == "__main__":
    main()
