"""Time 64 settings of Dyna-Q with 8 seeds each: in one search, and as one process for each setting.

    python benchmarks/tune_speed.py                 # about six minutes on two quiet cores

Every process begins with empty caches, so compilation is included, and so are imports. The search is `mbrl-jax tune`,
without pruning, which is the same work, and with it. Of the 64 processes of `mbrl-jax train` some are run, one at a time,
before and after the searches, and all are taken as 64 times their median; then one is run twice, to have the time of one
that finds its program in the cache. Writes benchmarks/results/speed/tune.json and prints a table.
"""

import argparse
import os
import statistics as numbers
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.config import from_dict, load, save, to_dict
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed" / "tune.json"
TRIALS, SEEDS = 64, 8
SIZES = {"random_transitions": 1_000, "steps": 1_000, "round_steps": 50}
SPACE = {
    "agent.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "agent.target_rate": {"float": [0.002, 0.2], "log": True},
    "imagination.cap": {"int": [1, 6]},
    "imagination.epsilon": {"float": [0.0, 0.5]},
}
SETTINGS = ("--agent.learning-rate 3e-4", "--agent.learning-rate 3e-3", "--imagination.cap 1", "--imagination.epsilon 0.3")


def seconds(words: list[str], cache: Path) -> float:
    """Wall-clock seconds of a command in a process of its own.

    Raises:
      RuntimeError: it failed, with what it printed.

    """
    surroundings = os.environ | {"XDG_CACHE_HOME": str(cache)}
    surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mbrl_jax.command", *words], env=surroundings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    execution.use_all_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = from_dict(to_dict(load(ROOT / "configs" / "cartpole_batch.yaml")) | SIZES)
        save(config, folder / "config.yaml")
        (folder / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
        count = iter(range(100))

        def train(setting: str, cache: str | None = None) -> float:
            place = str(next(count))
            words = [
                "train",
                str(folder / "config.yaml"),
                "--seeds",
                str(SEEDS),
                "--out",
                str(folder / f"run{place}"),
                *setting.split(),
            ]
            return seconds(words, folder / (cache or f"cache{place}"))

        def tune(rungs: int) -> float:
            place = str(next(count))
            words = ["tune", str(folder / "config.yaml"), "--space", str(folder / "space.yaml"), "--trials", str(TRIALS)]
            words += ["--batch", str(TRIALS), "--seeds", str(SEEDS), "--rungs", str(rungs), "--out", str(folder / f"run{place}")]
            return seconds(words, folder / f"cache{place}")

        processes = [train(setting) for setting in SETTINGS[:2]]
        searches = {"every trial to its end": tune(0), "pruned at two rungs": tune(2)}
        processes += [train(setting) for setting in SETTINGS[2:]]
        train(SETTINGS[0], "shared")
        cached = train(SETTINGS[1], "shared")
    one = numbers.median(processes)
    rows = {"one process a setting": TRIALS * one, "the same, programs from the cache": TRIALS * cached, **searches}
    table = Table("64 settings x 8 seeds", "seconds", "times as fast", title=execution.device())
    for label, spent in rows.items():
        table.add_row(label, f"{spent:,.0f}", f"{TRIALS * one / spent:.1f}")
    content = {
        "stage": "tune_speed",
        "settings": TRIALS,
        "seeds": SEEDS,
        "config": to_dict(config),
        "space": SPACE,
        "processes": {"measured": processes, "median": one, "from_cache": cached, "for_all": "settings x median"},
        "searches": searches,
        "seconds": rows,
        "times_as_fast": {label: TRIALS * one / spent for label, spent in rows.items()},
        "precision": config.precision,
        "versions": packages.versions((*execution.PACKAGES, "optuna")),
        "device": execution.device(),
        "git": packages.git_revision(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    strict_json.write(given.out, content)
    Console().print(table)


if __name__ == "__main__":
    main()
