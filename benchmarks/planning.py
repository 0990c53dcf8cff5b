"""Planning, and continuous actions, over seeds.

    python benchmarks/planning.py cartpole pendulum

cartpole  CartPole-v1 by the planner of configs/cartpole_mpc.yaml: return against real transitions, 500 in all
pendulum  Pendulum-v1 by the pathwise policy gradient of configs/pendulum_pg.yaml, 5,000 real transitions

Each writes a JSON file and a figure into benchmarks/results/planning/, and prints a line.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mbrl_jax import statistics
from mbrl_jax.config import load
from mbrl_jax.runs import execution, figures, results, runner
from mbrl_jax.runs.display import Display

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "planning"
STAGES = {"cartpole": ("cartpole_mpc", 64), "pendulum": ("pendulum_pg", 32)}


def measure(stage: str, seeds: int | None, out: Path) -> None:
    """Train a stage's preset, and write and print what came of it."""
    name, default = STAGES[stage]
    config = load(ROOT / "configs" / f"{name}.yaml")
    with Display.standard(name) as display:
        run = runner.run(config, default if seeds is None else seeds, display=display)
    arms = {"last": results.per_seed(run.result.outcome.returns_last)}
    if run.result.outcome.returns_chosen is not None:
        arms["chosen"] = results.per_seed(run.result.outcome.returns_chosen)
    told: dict[str, Any] = {}
    for arm, returns in arms.items():
        middle, iqm = statistics.bootstrap(returns, statistics.median), statistics.bootstrap(returns)
        told[arm] = {"median": middle._asdict(), "iqm": iqm._asdict()}
        Console().print(
            f"{name}, {len(returns)} seeds, {config.real_transitions:,} real transitions, {arm}: median {middle}, IQM {iqm}"
        )
    curve = np.asarray(run.result.metrics.curve_return, np.float64)
    steps = config.random_transitions + (np.arange(curve.shape[1]) + 1) * config.round_steps
    summary = results.summarise(run)
    out.mkdir(parents=True, exist_ok=True)
    content = {"preset": name, **told, "curve": {"step": steps.tolist(), "return": curve.tolist()}, "summary": summary}
    (out / f"{stage}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    figures.draw_run(run, out / f"{stage}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--seeds", type=int, help="in place of the stage's own number")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    flags = parser.parse_args()
    execution.use_all_cores()
    for stage in flags.stages:
        measure(stage, flags.seeds, flags.out)


if __name__ == "__main__":
    main()
