"""One policy, three gradients: through a learned model at the simulator's states, along imagined paths, through the simulator.

    python benchmarks/decoupled.py train               # every arm of every task that is not on file yet
    python benchmarks/decoupled.py train pendulum --arms decoupled true
    python benchmarks/decoupled.py table               # print what is on file, and draw the learning curves
    python benchmarks/decoupled.py speed               # steps a second of the methods on the swing-up, in one quiet run
    python benchmarks/decoupled.py gpu                 # the three gradients, 128 seeds each, for a GPU

An arm is trained, written to benchmarks/results/decoupled/TASK_ARM.json, and not trained again; so a call that is cut off goes
on where it stopped. `decoupled`, `imagined` and `true` are the presets pendulum_dmo, swingup_dmo, hopper_dmo and ant_dmo, the
last two of Brax's spring physics, and differ by the gradient alone: seed i has the same random numbers in each. `window_4` and
`window_8` are `decoupled` with paths of 4 and of 8 steps within the same windows of 16, and in `adaptive` their length follows
the spread of the members' Jacobians (`gradient_error`), between 1 and 16. `host` is `decoupled` in simulators that the host
steps, Gymnasium's own pendulum: its reward is learned, the scale of its observations is another, and fewer seeds are enough to
see that it learns (`--seeds 4`). `wide` is `decoupled` on the hopper with members of 128 units a layer in place of 64, and
twice the minibatches of each refit, `imagined_wide` the same with imagined gradients.

Other methods in the same simulator: `sac` is soft actor-critic without a model, one update for each action, and `pg` the policy
gradient of imagined rollouts from 5,000 random transitions, preset pendulum_pg. Where another study has an arm on file
(benchmarks/control_study.py) it is read from there. A PPO of another library is written by benchmarks/rivals/rejax_ppo.py.

`speed` times whole rounds of 16 seeds, refits and the learning curve's episodes included, in turn: medians of three, after one
that warms up. Of PPO, where rejax is installed, it is iterations without an evaluation. It writes speed.json.

Steps are those of the simulators. Settings were tuned with base seed 77 on seeds 1,000 and up, hopper's and the ant's on seeds
7,000 and 7,001; the arms run with base seed 0, those of the ant with four seeds (`--seeds 4`).

Written down before the runs, on 2026-11-28:

(a) Decoupled gradients reach the mark (-160 on Pendulum-v1, 800 on the cart-pole swing-up) within twice the steps that true ones
    take.
(b) At paths of 16 steps decoupled gradients end higher than imagined ones, whose states drift away from the simulator's.
(c) Shorter paths end lower: the critic has to tell what the gradient no longer does.
(d) Paths whose length follows the error of the model's gradient end higher than the best fixed length.
(e) On the hopper `wide` ends higher than `decoupled`, and its members' Jacobians are closer to each other. (Written down on
    2026-11-29, after the three gradients of the hopper.)
(f) With such members decoupled gradients end higher than imagined ones. (Written down when `wide` was on file.)
(g) On the ant, where standing still for an episode earns 1,000, true gradients end above that, and decoupled and imagined ones do
    not. (Written down when tuning runs of two seeds had shown it of the first two.)
"""

import argparse
import dataclasses
import importlib.util
import statistics as numbers
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arm_by_arm
import numpy as np
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.config import RunConfig, load
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.report import figures
from mbrl_jax.runs import execution
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "decoupled"
CONTROL = ROOT / "benchmarks" / "results" / "control"
MARKS = {"pendulum": -160.0, "swingup": 800.0, "hopper": 400.0, "ant": 1_000.0}
GRADIENTS = ("decoupled", "imagined", "true")
SHORTER = (4, 8)
HOSTED = {"pendulum": "gymnasium/Pendulum-v1"}
WIDER = {"hopper": {"hidden": (128, 128), "refit_batches": 240}}
ERRORS = {"pendulum": (0.004, 0.008), "swingup": (0.025, 0.045)}  # marks of `adaptive`, within the range seen while tuning
OTHERS = ("pg", "sac", "ppo")  # methods that share no random numbers with the three gradients
COLOURS = {
    "decoupled": "#0b6e4f",
    "imagined": "#b0413e",
    "true": "#5b5f97",
    "window_4": "#e08e45",
    "window_8": "#c9a227",
    "adaptive": "#2a2a2a",
    "host": "#7a9e9f",
    "wide": "#e08e45",
    "imagined_wide": "#c9a227",
    "pg": "#8d6a9f",
    "sac": "#2d7dd2",
    "ppo": "#97ab16",
}
ELSEWHERE = {("swingup", "sac"): "swingup_sac", ("hopper", "sac"): "hopper_sac"}  # arms of the study of continuous control


def arms(task: str) -> dict[str, RunConfig]:
    """The configs of a task by name."""
    base: Any = load(ROOT / "configs" / f"{task}_dmo.yaml")
    found: dict[str, RunConfig] = {name: dataclasses.replace(base, gradient=name) for name in GRADIENTS}
    for length in SHORTER:
        found[f"window_{length}"] = dataclasses.replace(base, controller=controller_settings("fixed", length=length))
    if task in ERRORS:
        low, high = ERRORS[task]
        adaptive = controller_settings("gradient_error", low=low, high=high, first=8, limit=16)
        found["adaptive"] = dataclasses.replace(base, controller=adaptive)
    if task in WIDER:
        wider = dataclasses.replace(base, model=dataclasses.replace(base.model, **WIDER[task]))
        found["wide"], found["imagined_wide"] = wider, dataclasses.replace(wider, gradient="imagined")
    if task in HOSTED:
        found["host"] = dataclasses.replace(base, environment=dataclasses.replace(base.environment, name=HOSTED[task]))
    if task == "pendulum":
        sac: Any = load(ROOT / "configs" / "pendulum_swingup_sac.yaml")
        found["sac"] = dataclasses.replace(sac, environment=base.environment, steps=19_500)
        pg: Any = load(ROOT / "configs" / "pendulum_pg.yaml")
        found["pg"] = dataclasses.replace(pg, selection=dataclasses.replace(pg.selection, choose=False))
    return found


def keep(run: Run) -> dict[str, Any]:
    """What is kept of an arm besides what every study keeps."""
    config, metrics = run.config, run.result.metrics
    if config.protocol == "batch":  # which takes no real steps after the random ones
        return {"steps": [config.random_transitions] * (config.steps // config.round_steps)}
    if not hasattr(metrics, "surrogate"):
        return {}
    surrogate = {name: np.asarray(leaf, np.float64).mean(axis=(0, 2)) for name, leaf in metrics.surrogate._asdict().items()}
    return {
        "surrogate": {
            name: [[float(f"{x:.4g}") for x in row] for row in table] for name, table in surrogate.items()
        },  # [rounds, H]
        "path_length": np.asarray(metrics.update.path_length, np.float64).mean(axis=(0, 2)).round(3).tolist(),
        "gradient_norm": np.asarray(metrics.update.gradient_norm, np.float64).mean(axis=(0, 2)).round(4).tolist(),
    }


def stage_train(tasks: Sequence[str], names: Sequence[str], seeds: int, out: Path) -> None:
    """Train the arms that are not on file."""
    arm_by_arm.train({task: arms(task) for task in tasks}, names, seeds, out, keep, indent=None)


def on_file(out: Path) -> list[dict[str, Any]]:
    """The arms of all tasks, those of the study of continuous control among them."""
    paths = {(task, arm): out / f"{task}_{arm}.json" for task in MARKS for arm in COLOURS}
    paths |= {place: CONTROL / f"{name}.json" for place, name in ELSEWHERE.items()}
    return [strict_json.loads(path.read_text(encoding="utf-8")) for path in paths.values() if path.exists()]


def first_at(told: dict[str, Any], mark: float) -> float:
    """Steps at which the IQM over seeds of the learning curve is first at the mark, NaN where it never is."""
    value = [statistics.interquartile_mean(now) for now in np.asarray(told["curves"]).T]
    return next((step for step, now in zip(told["steps"], value, strict=True) if now >= mark), float("nan"))


def stage_speed(out: Path, seeds: int) -> None:
    """Time rounds of every method on the swing-up."""
    execution.use_compilation_cache()
    configs: dict[str, RunConfig] = {name: arms("swingup")[name] for name in GRADIENTS}
    configs |= {name: load(ROOT / "configs" / f"swingup_{name}.yaml") for name in ("sac", "mbpo")}
    ready = {name: arm_by_arm.rounds_of(config, seeds) for name, config in configs.items()}
    if importlib.util.find_spec("rejax") is not None:
        sys.path.append(str(Path(__file__).parent / "rivals"))
        import rejax_ppo

        ready["ppo"] = rejax_ppo.iterations_of("swingup", seeds)
    seconds = arm_by_arm.timed({name: go_on for name, (go_on, _) in ready.items()})
    speed = {name: ready[name][1] / numbers.median(each) for name, each in seconds.items()}
    found = {told["arm"]: told for told in on_file(out) if told["task"] == "swingup"}
    found["mbpo"] = strict_json.loads((CONTROL / "swingup_mbpo.json").read_text(encoding="utf-8"))
    table = Table("method", "steps a second", "IQM at 800 from", "seconds to there", title=f"swing-up, {seeds} seeds")
    for name, each in speed.items():
        first = first_at(found[name], MARKS["swingup"]) if name in found else float("nan")
        reached = not np.isnan(first)
        cells = (f"{first:,.0f}", f"{first * seeds / each:.0f}") if reached else ("never", "")
        table.add_row(name, f"{each:,.0f}", *cells)
    Console().print(table)
    content = {
        "seeds": seeds,
        "steps_a_second": {name: round(each, 1) for name, each in speed.items()},
        "seconds_of_rounds": {name: [round(x, 4) for x in each] for name, each in seconds.items()},
        "steps_of_a_round": {name: steps for name, (_, steps) in ready.items()},
        "versions": packages.versions([*execution.PACKAGES, "rejax"]),
        "device": execution.device(),
        "precision": "float32, matrix products default; of PPO highest",
        "git": packages.git_revision(),
    }
    strict_json.write(out / "speed.json", content)


def stage_table(out: Path) -> None:
    """Print what is on file, and draw the learning curves."""
    found = on_file(out)
    tasks = [task for task in MARKS if any(told["task"] == task for told in found)]
    figure, axes = figures.new_figure(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        here = {told["arm"]: told for told in found if told["task"] == task}
        mark = MARKS[task]
        title = f"{task}: last policy"
        table = Table(
            "arm", "seeds", "steps", "IQM, 95 %", f"seeds >= {mark:.0f}", f"IQM at {mark:.0f} from", "less decoupled", title=title
        )
        for arm in COLOURS:
            if arm not in here:
                continue
            told = here[arm]
            returns, first = np.asarray(told["returns"]), first_at(told, mark)
            cells = [
                arm,
                str(len(returns)),
                f"{told['steps'][-1]:,}",
                str(statistics.estimate(returns)),
                f"{np.mean(returns >= mark):.0%}",
            ]
            base = np.asarray(here["decoupled"]["returns"]) if "decoupled" in here else returns[:0]
            pairs = arm not in ("decoupled", *OTHERS) and len(base) == len(returns)
            paired = str(statistics.estimate(returns - base)) if pairs else ""
            table.add_row(*cells, "never" if np.isnan(first) else f"{first:,.0f}", paired)
            steps = np.asarray(told["steps"]) / 1e3
            if steps[0] == steps[-1]:  # all of whose real steps were taken before it learned
                ax.plot(steps[-1:], [statistics.interquartile_mean(returns)], "D", markersize=4, label=arm, color=COLOURS[arm])
            else:
                figures.draw_band(ax, steps, np.asarray(told["curves"]), arm, COLOURS[arm])
        Console(width=140).print(table)
        ax.axhline(mark, color="black", linewidth=0.6, linestyle=":")
        ax.set_title(task, fontsize=9)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("steps of the simulators, thousands")
        ax.set_ylabel("return, IQM over seeds")
        ax.legend(frameon=False, fontsize=7)
    figure.savefig(out / "decoupled.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "speed", "table", "gpu"))
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(MARKS)}; all by default")
    parser.add_argument("--arms", nargs="*", default=())
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    for task in given.tasks:
        if task not in MARKS:
            parser.error(f"task: {task!r} is not known; it must be one of {', '.join(MARKS)}")
    tasks = given.tasks or list(MARKS)
    if given.stage == "table":
        stage_table(given.out)
    elif given.stage == "speed":
        stage_speed(given.out, given.seeds)
    elif given.stage == "train":
        stage_train(tasks, given.arms, given.seeds, given.out)
    else:
        place = given.out / "gpu"
        stage_train(tasks, GRADIENTS, 128, place)
        stage_table(place)


if __name__ == "__main__":
    main()
