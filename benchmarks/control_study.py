"""Soft actor-critic on continuous control: by itself, in imagination (MBPO) and as the value of what comes after a plan (MPC), by
rollout horizon, and with the model's two faults.

    python benchmarks/control_study.py train swingup            # every arm of a task that is not on file yet
    python benchmarks/control_study.py train swingup --arms mbpo sac fixed_1 fixed_5
    python benchmarks/control_study.py train hopper --arms mbpo sac --seeds 8
    python benchmarks/control_study.py again                    # the horizons that came out best, on seeds of their own
    python benchmarks/control_study.py table
    python benchmarks/control_study.py gpu                      # the arms that matter most, 128 seeds each, for a GPU

An arm is trained, written to benchmarks/results/control/TASK_ARM.json, and not trained again; so a call that is cut off goes on
where it stopped. `mbpo`, `mpc` and `sac` are the presets at their full length (Hopper has no `mpc`). All other arms of a task
share one shorter length, the same real steps, imagined rows and updates: `fixed_H` and the horizon controllers differ by where
rollouts stop, `fault_…` by what members predict and in which units, `twin` learns from the same real rows, with as many
updates, without a model.

Steps are those of the simulator, of which each action takes four (on Hopper one); an episode has at most 1,000. Returns are
means of 10 greedy episodes. Settings were tuned on seeds 7,000 and up, the arms run on seeds 0 and up.

Written down before the runs, on 2026-11-28:

(a) One of the adaptive controllers has a higher IQM than the best fixed horizon, at the same real steps and updates.
(b) With next states as normalised targets MBPO beats its own SAC at the same real steps and updates; with changes in their own
    units it does not.
(c) On Hopper MBPO reaches with half of the steps what SAC reaches with 100,000.
(d) On 16 other seeds of the swing-up `infoprop` is ahead of `fixed_5`. (Written down after the arms of all fixed horizons, the
    threshold and Infoprop, which was 62 [-5, 164] ahead on the first 16.)

The arms of the pendulum and of Hopper ran on 2026-11-29, when those of the swing-up were on file. (a) and (b) are what was
expected of them too, and their steps were chosen before: 22,000, where the preset's curve is steep, and 5,000, where it bends.
On that day too, before its runs:

(e) On the same 16 other seeds of the swing-up `schedule`, from 1 to 10 steps over the run, is ahead of `fixed_5`. (On the first
    16 it was by 69 [8, 145], the only one of nine rules whose interval does not hold 0.)
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arm_by_arm
import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

from mbrl_jax import statistics, strict_json
from mbrl_jax.config import RunConfig, from_dict, load, to_dict
from mbrl_jax.report import figures
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "control"
TASKS = {"swingup": "swingup", "pendulum": "pendulum_swingup", "hopper": "hopper"}  # and what its presets' names begin with
LENGTHS = (1, 2, 5, 10)
SHORT = {"swingup": 3_500, "pendulum": 5_000, "hopper": 4_000}  # decisions after the random ones, of all arms but the presets
PRESETS = ("mbpo", "mpc", "sac")
COLOURS = {"mbpo": "#0b6e4f", "mpc": "#e08e45", "sac": "#2d7dd2", "twin": "#b0413e", "fault_both": "#8d6a9f"}  # of what is drawn
AGAIN = ("infoprop", "schedule", "fixed_5")  # on cartpole-swingup, in a folder of their own; all are held against the last
OTHER_SEEDS = range(16, 32)
GPU_ARMS = ("mbpo", "mpc", "sac", "fixed_1", "fixed_5", "threshold_quantile", "infoprop", "fault_neither", "fault_both", "twin")
PUBLISHED: dict[str, dict[str, int]] = {  # at 100,000 steps; of brax's own hopper nothing is published at as few
    "swingup": {"TD-MPC2": 839, "SAC": 835},
    "pendulum": {"TD-MPC2": 724, "SAC": 96},
    "hopper": {},
}

# Horizon arms need members that tell their variance. Their numbers are those of benchmarks/horizon_study.py.
GAUSSIAN = {"prediction": "gaussian", "loss": "beta_likelihood"}
HORIZONS: dict[str, dict[str, Any]] = {
    "schedule": {"cap": 10, "controller": {"kind": "schedule", "first": 1, "last": 10, "start": 0}},  # to the run's end
    "threshold_quantile": {"cap": 10, "controller": {"kind": "threshold_quantile", "quantile": 0.9}},
    "accumulated": {"cap": 10, "controller": {"kind": "accumulated", "budget": 1.0}},
    "macura": {"cap": 10, "controller": {"kind": "macura", "scale": 1, "percentile": 95, "memory": 500}},
    "m2ac": {"cap": 5, "controller": {"kind": "m2ac", "length": 5, "penalty": 0.001}},
    "infoprop": {
        "cap": 10,
        "sampling": "infoprop",
        "controller": {"kind": "infoprop", "high": 0.99, "low": 0.5, "length": 10, "resolution": 0.01},
    },
    "three_model": {"cap": 10, "controller": {"kind": "three_model", "low": 0.2, "high": 0.4, "first": 3, "limit": 10}},
    "oracle": {"cap": 10, "controller": {"kind": "oracle", "mark": 0.5}},
    "model_share": {"cap": 10, "controller": {"kind": "model_share", "longest": 10}},
}
FAULTS = {  # the two faults of arXiv:2510.01457
    "fault_neither": {"target": "state", "normalise_targets": True},
    "fault_kind": {"target": "change", "normalise_targets": True},
    "fault_scale": {"target": "state", "normalise_targets": False},
    "fault_both": {"target": "change", "normalise_targets": False},
}


def presets(task: str) -> list[str]:
    """The kinds of agent that a task has a preset for."""
    return [kind for kind in PRESETS if (ROOT / "configs" / f"{TASKS[task]}_{kind}.yaml").exists()]


def preset(task: str, kind: str) -> Any:
    return load(ROOT / "configs" / f"{TASKS[task]}_{kind}.yaml")


def changed(config: RunConfig, changes: dict[str, dict[str, Any]]) -> RunConfig:
    """A config with other settings in its groups; a group's ``controller`` is replaced as a whole."""
    told = to_dict(config)
    for group, settings in changes.items():
        told[group] = {**told[group], **settings}
    return from_dict(told)


def arms(task: str) -> dict[str, RunConfig]:
    """The configs of a task by name."""
    mbpo, sac = preset(task, "mbpo"), preset(task, "sac")
    short = dataclasses.replace(mbpo, steps=SHORT[task])
    agent = dataclasses.replace(sac.agent, updates_per_step=mbpo.agent.updates_per_step)
    found: dict[str, RunConfig] = {name: preset(task, name) for name in presets(task)}
    found["twin"] = dataclasses.replace(sac, steps=SHORT[task], round_steps=mbpo.round_steps, agent=agent)
    lanes: dict[str, Any]
    for length in LENGTHS:
        lanes = {"cap": length, "controller": {"kind": "fixed", "length": length}}
        found[f"fixed_{length}"] = changed(short, {"model": GAUSSIAN, "imagination": lanes})
    for name, lanes in HORIZONS.items():
        if name == "oracle" and task == "hopper":
            continue  # whose dynamics are no function of the observation
        if name == "schedule":
            lanes = {**lanes, "controller": {**lanes["controller"], "end": SHORT[task]}}
        found[name] = changed(short, {"model": GAUSSIAN, "imagination": lanes})
    for name, model in FAULTS.items():
        found[name] = changed(short, {"model": model})
    return found


def keep(run: Run) -> dict[str, Any]:
    """What is kept of an arm besides what every study keeps."""
    kept: dict[str, Any] = {"action_repeat": run.config.environment.action_repeat}
    if hasattr(run.result.metrics, "lanes"):
        kept["depth_by_round"] = np.asarray(run.result.metrics.lanes.depth, np.float64).mean(axis=(0, 2)).tolist()
    return kept


def stage_train(tasks: Sequence[str], names: Sequence[str], seeds: int | range, out: Path) -> None:
    """Train the arms that are not on file."""
    arm_by_arm.train({task: arms(task) for task in tasks}, names, seeds, out, keep)


def at(told: dict[str, Any], steps: int) -> np.ndarray:
    """[seeds] the learning curve's returns at the last point up to so many steps."""
    place = max(i for i, now in enumerate(told["steps"]) if now <= steps)
    return np.asarray(told["curves"])[:, place]


def table_of_other_seeds(out: Path) -> None:
    """Print what comes of the differences between horizons on other seeds, and on all."""
    *rules, base = AGAIN
    first, other = (
        {
            name: np.asarray(strict_json.loads(path.read_text("utf-8"))["returns"])
            for name in AGAIN
            if (path := out / folder / f"swingup_{name}.json").exists()
        }
        for folder in ("", "again")
    )
    for name, returns in other.items():
        print(f"swingup, other seeds: {name} {statistics.estimate(returns)}, mean {returns.mean():.0f}")
    for rule in rules:
        if {rule, base} <= set(first) & set(other):
            ahead = [each[rule] - each[base] for each in (first, other)]
            for label, difference in (("other seeds", ahead[1]), ("all seeds", np.concatenate(ahead))):
                p = scipy.stats.wilcoxon(difference).pvalue
                print(f"swingup, {label} ({len(difference)}): {rule} less {base}: {statistics.estimate(difference)}, p {p:.3g}")


def stage_table(out: Path) -> None:
    """Print what is on file, and draw the learning curves."""
    found = {path.stem: strict_json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*_*.json"))}
    tasks = [task for task in TASKS if any(told["task"] == task for told in found.values())]
    figure, axes = figures.new_figure(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        here = {told["arm"]: told for told in found.values() if told["task"] == task}
        table = Table(
            "arm", "seeds", "steps", "mean", "IQM, 95 %", "depth", title=f"{TASKS[task]}: last policy, 10 greedy episodes"
        )
        for arm, told in here.items():
            returns = np.asarray(told["returns"])
            depth = f"{np.mean(told['depth_by_round']):.1f}" if "depth_by_round" in told else ""
            cells = (
                arm,
                str(len(returns)),
                f"{told['steps'][-1]:,}",
                f"{returns.mean():.0f}",
                str(statistics.estimate(returns)),
                depth,
            )
            table.add_row(*cells)
        Console().print(table)
        paired = [name for name in here if name not in PRESETS]
        fixed = [name for name in paired if name.startswith("fixed_")]
        if fixed:
            best = max(fixed, key=lambda name: statistics.interquartile_mean(np.asarray(here[name]["returns"])))
            others = [name for name in paired if len(here[name]["returns"]) == len(here[best]["returns"]) and name != best]
            for name in others:
                difference = np.asarray(here[name]["returns"]) - np.asarray(here[best]["returns"])
                print(f"{task}: {name} less {best}: {statistics.estimate(difference)}")
        for arm, colour in COLOURS.items():
            if arm in here:
                curves = np.asarray(here[arm]["curves"])
                low, middle, high = (np.percentile(curves, q, axis=0) for q in (25, 50, 75))
                ax.plot(here[arm]["steps"], middle, label=arm, color=colour, linewidth=1.5)
                ax.fill_between(here[arm]["steps"], low, high, color=colour, alpha=0.15, linewidth=0)
        for name, value in PUBLISHED[task].items():
            ax.plot([100_000], [value], "k^" if name == "SAC" else "ks", markersize=5, label=f"{name}, published")
        ax.set_title(TASKS[task], fontsize=9)
        ax.set_xlabel("steps of the simulator")
        ax.set_ylabel("return: median and quartiles over seeds")
        if task != "hopper":
            ax.set_ylim(0, 1_000)
        ax.legend(frameon=False, fontsize=7)
    table_of_other_seeds(out)
    figure.savefig(out / "control.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "again", "table", "gpu"))
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--arms", nargs="*", default=())
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    for task in given.tasks:
        if task not in TASKS:
            parser.error(f"task: {task!r} is not known; it must be one of {', '.join(TASKS)}")
    if given.stage == "table":
        stage_table(given.out)
    elif given.stage == "again":
        stage_train(["swingup"], given.arms or AGAIN, OTHER_SEEDS, given.out / "again")
    elif given.stage == "train":
        stage_train(given.tasks or list(TASKS), given.arms, given.seeds, given.out)
    else:
        place = given.out / "gpu"
        for task in given.tasks or ["swingup"]:
            stage_train([task], [name for name in GPU_ARMS if name in arms(task)], 128, place)
        stage_table(place)


if __name__ == "__main__":
    main()
