"""Whether policies recover from a change of physics by what a server has kept of it.

    python benchmarks/continual.py RUNS

It does what `examples/continual.py` does, with 16 seeds in place of the best one. 16 seeds of `cartpole_best` are trained, and
the first policy is exported and served. 5,000 transitions of a motor that pulls the other way go to the server; half of their
actions are random. The 16 seeds are trained again on what it has kept, with their old models as the start. The old and the new
policies play the same 50 real episodes each.

RUNS is a folder for runs, exports and data. What is there is not repeated, so a call that is cut off goes on where it stopped.
Both trainings have the settings of the preset; nothing was tuned on the reversed motor.

Of the changes that were tried on 16 trained policies it is the only one under which all of them fail. Poles of 0.05 to 2.5 m and
of 1 to 14 kg, gravity of 15 to 60 m/s2, carts of 0.2 to 10 kg and forces of 1 to 40 N all left some of them at 500.

It writes benchmarks/results/serving/continual.json and prints its table.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mbrl_jax
from mbrl_jax import packages, statistics, strict_json

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "serving" / "continual.json"
PRESET = str(ROOT / "configs" / "cartpole_best.yaml")
SEEDS, EPISODES, STEPS = 16, 50, 500
KNOWN, REVERSED = 10.0, -10.0  # N
PACKAGES = ("jax", "numpy", "onnxruntime", "gymnasium", "fastapi", "uvicorn")


def example() -> ModuleType:
    """``examples/continual.py``, whose cart, server and requests these are."""
    spec = importlib.util.spec_from_file_location("continual_example", ROOT / "examples" / "continual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*words: str | Path) -> None:
    """A command of the library in a process of its own, as devices are set up once in each."""
    subprocess.run([sys.executable, "-m", "mbrl_jax.command", *map(str, words)], check=True)


def learn_again(continual: ModuleType, runs: Path) -> None:
    """Train, serve, collect and train again, each unless it is there."""
    base, exports, data, again = (runs / name for name in ("base", "exports", "data", "again"))
    if not (base / "summary.json").exists():
        command("train", PRESET, "--seeds", str(SEEDS), "--out", base)
    if not exports.exists():
        command("export", base, "--out", exports / "1", "--seed", "0", "--what", "policy")
    if not data.exists():
        with continual.Server(exports, data) as server:
            continual.collect(server, continual.parser.parse_args([f"--force={REVERSED}"]))
    if not (again / "summary.json").exists():
        parts = sorted(data.glob("*.parquet"))
        command("train", PRESET, "--seeds", str(SEEDS), "--out", again, "--data", *parts, "--from", base)


def returns_of(continual: ModuleType, run: Path, force: float) -> np.ndarray:
    """[seeds] mean returns of the chosen policies, in episodes from the same starts for all."""
    policy = mbrl_jax.load_policy(run)
    carts = [[continual.cart(force) for _ in range(EPISODES)] for _ in range(len(policy))]
    seen = np.stack([[env.reset(seed=1_000 + place)[0] for place, env in enumerate(row)] for row in carts])
    returns, running = np.zeros(seen.shape[:2]), np.ones(seen.shape[:2], bool)
    for _ in range(STEPS):
        actions = policy(seen)
        for seed, place in np.argwhere(running):
            seen[seed, place], reward, terminated, truncated, _ = carts[seed][place].step(int(actions[seed, place]))
            returns[seed, place] += float(reward)
            running[seed, place] = not (terminated or truncated)
        if not running.any():
            break
    return returns.mean(axis=1)


def table(content: dict[str, Any]) -> Table:
    """The returns as they stand in docs/serving.md."""
    made = Table("policies", "motor", "IQM of the seeds", "lowest", "highest")
    for each in content["played"]:
        estimate, values = statistics.Estimate.from_json(each["iqm"]), each["returns"]
        made.add_row(each["policies"], f"{each['force']:g} N", str(estimate), f"{min(values):.0f}", f"{max(values):.0f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    given = parser.parse_args()
    continual = example()
    learn_again(continual, given.runs)
    played = []
    for name, force in (("base", KNOWN), ("base", REVERSED), ("again", REVERSED)):
        found = returns_of(continual, given.runs / name, force)
        iqm = statistics.estimate(found).as_json()
        played.append({"policies": name, "force": force, "returns": found.tolist(), "iqm": iqm})
    recovered = statistics.paired_difference(played[2]["returns"], played[1]["returns"])
    about = {"versions": packages.versions(PACKAGES), "git": packages.git_revision(), "device": "CPU, float32"}
    content = {**about, "episodes": EPISODES, "played": played, "recovered": recovered.as_json()}
    strict_json.write(OUT, content)
    Console().print(table(content), f"recovered: {recovered}", sep="\n")


if __name__ == "__main__":
    main()
