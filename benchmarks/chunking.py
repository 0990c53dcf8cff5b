"""What it costs to run in rounds, to note every round, and to save: against one unbroken scan, by ratio in one run.

    python benchmarks/chunking.py

Trains the preset `cartpole_batch` on few seeds, again and again in turn: unbroken (all rounds in one compiled scan), in rounds
(a few to a call of the devices, with nothing kept), kept (the same, every round noted, as `mbrl-jax train` does between two
checkpoints), and saved (a checkpoint every tenth round, far more often than it would). Prints the medians of the ratios of the
training phase, each to the unbroken run beside it, and writes benchmarks/results/speed/chunking.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import load
from mbrl_jax.runs import execution, folder, runner
from mbrl_jax.runs.callbacks import Callback, Checkpoints
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.metrics import Entry

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
SAVE_EVERY = 10  # rounds


class EveryTenth(Callback):
    """Saves by rounds instead of by the clock."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints, self.rounds, self.saves = checkpoints, 0, 0

    def round(self, entry: Entry) -> None:
        """Count it."""
        self.rounds = entry.round

    def chunk(self, snapshot: Callable[[], Checkpoint], must: bool) -> None:
        """Save if ten more rounds have been counted."""
        if must or self.rounds // SAVE_EVERY > self.saves:
            self.saves += 1
            self.checkpoints.save(snapshot())


def unbroken(config: Any, seeds: int) -> Any:
    """A function that runs the training phase in one scan and gives its seconds."""
    algorithm, layout = runner.make_train(config), execution.choose_layout(seeds)
    keys = layout.place(seed_keys(0, layout.padded(seeds)))
    axes, none = algorithm.axes, jax.tree.map(lambda _: None, config)
    init = execution.lower(execution.spread(algorithm.init, (0, none), (axes, 0), layout), keys, config).compile()
    state, _ = init.call(keys, config)
    fit = execution.lower(execution.spread(algorithm.fit, (axes, none), (axes, 0), layout), state, config).compile()
    state, _ = fit.call(state, config)

    def train(state: Any, hyper: Any) -> Any:
        return jax.lax.scan(lambda state, _: algorithm.advance(state, hyper), state, None, length=algorithm.rounds)

    scan = execution.lower(execution.spread(train, (axes, none), (axes, 0), layout), state, config).compile()

    def timed() -> float:
        start = time.perf_counter()
        _, metrics = jax.block_until_ready(scan.call(state, config))
        jax.tree.map(np.asarray, metrics)
        return time.perf_counter() - start

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    execution.use_all_cores()
    config = load(ROOT / "configs" / "cartpole_batch.yaml")
    asked = Asked(config, given.seeds, 0, False)
    seconds: dict[str, list[float]] = {"unbroken": [], "in rounds": [], "kept": [], "saved": []}
    with tempfile.TemporaryDirectory() as temporary:
        jax.config.update("jax_compilation_cache_dir", str(Path(temporary, "cache")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        whole = unbroken(config, given.seeds)

        def kept(name: str, by_rounds: bool) -> float:
            with folder.opened(Path(temporary, name), asked, "", every=1e9) as opened:
                saving = EveryTenth(opened.checkpoints) if by_rounds else opened.checkpoints
                return runner.run(config, given.seeds, callbacks=[opened.lines, saving]).seconds.train

        for number in range(given.repetitions + 1):
            measured = {
                "unbroken": whole(),
                "in rounds": runner.run(config, given.seeds).seconds.train,
                "kept": kept(f"kept_{number}", by_rounds=False),
                "saved": kept(f"saved_{number}", by_rounds=True),
            }
            if number:  # the first warms up
                for name, value in measured.items():
                    seconds[name].append(value)
            print(number, {name: round(value, 2) for name, value in measured.items()}, flush=True)
    ratios = {name: np.array(values) / np.array(seconds["unbroken"]) for name, values in seconds.items() if name != "unbroken"}
    content = {
        "stage": "chunking",
        "preset": "cartpole_batch",
        "seeds": given.seeds,
        "rounds": config.steps // config.round_steps,
        "save_every": SAVE_EVERY,
        "repetitions": given.repetitions,
        "seconds": seconds,
        "ratio": {
            name: {"median": float(np.median(r)), "low": float(r.min()), "high": float(r.max())} for name, r in ratios.items()
        },
        "versions": packages.versions(execution.PACKAGES),
        "device": execution.device(),
        "precision": "float32",
        "git": packages.git_revision(),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    strict_json.write(OUT / "chunking.json", content)
    table = Table(title=f"training phase, {given.seeds} seeds, {content['rounds']} rounds, against one unbroken scan")
    for column in ("", "median ratio", "least", "most"):
        table.add_column(column, justify="right")
    for name, r in ratios.items():
        table.add_row(name, f"{np.median(r):.3f}", f"{r.min():.3f}", f"{r.max():.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
