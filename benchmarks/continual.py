"""Whether a served policy that a change of physics has made fail recovers from its own real transitions.

    python benchmarks/continual.py RUNS

For each of 6 seeds it does what `examples/continual.py` does. A policy of `cartpole_best` is exported and served. It plays 50
real episodes with the motor that it knows, 10 N, and the same 50 with a motor that pulls the other way. 5,000 transitions of the
reversed motor, of which half are random actions, go to the server. The seed is trained again on them with its old model as the
start, the same server takes up the new export, and the same 50 episodes are played once more.

RUNS is a folder for runs, exports and data. A seed that is on file there is not repeated, so a call that is cut off goes on where
it stopped. Both trainings have the settings of the preset; nothing was tuned on the reversed motor.

Of the changes that were tried on 16 trained policies it is the only one under which all of them fail. Poles of 0.05 to 2.5 m and
of 1 to 14 kg, gravity of 15 to 60 m/s2, carts of 0.2 to 10 kg and forces of 1 to 40 N all left some of them at 500.

It writes benchmarks/results/serving/continual.json and prints its table.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "serving" / "continual.json"
PRESET = str(ROOT / "configs" / "cartpole_best.yaml")
TRAINED, SEEDS = 16, 6  # policies on which changes were tried, and those of them that are trained again
KNOWN, REVERSED = 10.0, -10.0  # N
PACKAGES = ("jax", "numpy", "onnxruntime", "gymnasium", "fastapi", "uvicorn")


def example() -> ModuleType:
    """``examples/continual.py``, whose server, episodes and requests these are."""
    spec = importlib.util.spec_from_file_location("continual_example", ROOT / "examples" / "continual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*words: str | Path) -> None:
    """A command of the library in a process of its own, as devices are set up once in each."""
    subprocess.run([sys.executable, "-m", "mbrl_jax.command", *map(str, words)], check=True)


def loop(continual: ModuleType, base: Path, folder: Path, seed: int) -> dict[str, list[float]]:
    """Returns of real episodes before the change, after it, and after training again."""
    options = continual.parser.parse_args([f"--force={REVERSED}"])
    exports, data = folder / "exports", folder / "data"

    def export(run: Path, place: int, name: str) -> None:
        command("export", run, "--out", exports / name, "--seed", str(place), "--what", "policy")

    export(base, seed, "1")
    with continual.Server(exports, data) as server:
        usual = continual.play(server, options, force=KNOWN)
        before = continual.play(server, options, force=REVERSED)
        continual.collect(server, options)
        server.connection.close()
        parts, seeds = sorted(data.glob("*.parquet")), f"{seed}:{seed + 1}"
        command("train", PRESET, "--seeds", seeds, "--out", folder / "run", "--data", *parts, "--from", base)
        export(folder / "run", 0, "2")
        server.ask("/reload", {})
        after = continual.play(server, options, force=REVERSED)
    return {"known": usual, "reversed": before, "reversed, trained again": after}


def summarise(found: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Mean return of each seed, with their IQMs and the paired difference."""
    means = {name: np.array([np.mean(each[name]) for each in found]) for name in found[0]}
    recovered = statistics.paired_difference(means["reversed, trained again"], means["reversed"])
    return {
        "returns": {name: values.tolist() for name, values in means.items()},
        "iqm": {name: statistics.estimate(values).as_json() for name, values in means.items()},
        "recovered": recovered.as_json(),
    }


def table(content: dict[str, Any]) -> Table:
    """The returns as they stand in docs/serving.md."""
    made = Table("motor", "IQM of the seeds", "lowest seed", "highest seed")
    for name, values in content["returns"].items():
        estimate = statistics.Estimate.from_json(content["iqm"][name])
        made.add_row(name, str(estimate), f"{min(values):.0f}", f"{max(values):.0f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    given = parser.parse_args()
    base, continual, found = given.runs / "base", example(), []
    if not (base / "summary.json").exists():
        command("train", PRESET, "--seeds", str(TRAINED), "--out", base)
    for seed in range(SEEDS):
        place = given.runs / f"{seed:02d}"
        told = place / "returns.json"
        if not told.exists():
            strict_json.write(told, loop(continual, base, place, seed))
        found.append(json.loads(told.read_text()))
    about = {"versions": packages.versions(PACKAGES), "git": packages.git_revision(), "device": "CPU, float32"}
    physics = {"force_known": KNOWN, "force_reversed": REVERSED, "transitions": 5_000, "episodes": 50, "seeds": SEEDS}
    content = {**about, **physics, **summarise(found)}
    strict_json.write(OUT, content)
    Console().print(table(content), f"recovered: {statistics.Estimate.from_json(content['recovered'])}", sep="\n")


if __name__ == "__main__":
    main()
