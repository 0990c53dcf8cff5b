"""Learning from positions alone and from pictures: Dreamer in a latent world, and an ensemble's learner beside it.

    python benchmarks/latent_study.py train cartpole            # every arm that is not on file yet
    python benchmarks/latent_study.py train cartpole --arms dreamer --seeds 16
    python benchmarks/latent_study.py train pixels --seeds 8
    python benchmarks/latent_study.py gpu --seeds 8             # MinAtar, for a GPU
    python benchmarks/latent_study.py throughput                # real steps a second by seeds, in one quiet run
    python benchmarks/latent_study.py table

An arm is trained, written to benchmarks/results/latent/TASK_ARM.json, and not trained again; so a call that is cut off goes on
where it stopped. `dreamer` is the preset TASK_positions, or, of `pixels`, the preset cartpole_pixels. The others are

* `full`: the preset cartpole_interactive (Dyna-Q) or pendulum_pg (a policy gradient in imagination), which see everything, an
  upper bound; `masked` is the same on positions alone, and `masked_long` that for as many real steps as `dreamer`;
* `recurrent`: the preset TASK_positions_model_free, a soft actor-critic with a recurrent memory and without a model, on as many
  real steps as `dreamer`;
* `explore_surprise`: `dreamer` with one action in ten random, where the filter is surprised; `explore_uniform`: with as many
  random actions anywhere;
* `halted`: `dreamer` whose imagined rollouts end where the belief is further from real ones than 99 % of these from each other.

`gpu` trains breakout_pixels on gymnax's Breakout and SpaceInvaders of MinAtar, 500,000 real steps of each, or `--steps`.

`throughput` times rounds of 250 real steps of cartpole_positions, 50 updates and the learning curve's episodes included: medians
of three after one that warms up, of all numbers of seeds in turn. It writes throughput.json.

Returns are means of 50 greedy episodes of the last policy; for the ensembles those of the policy that imagination chose stand
beside them. `table` also prints differences of arms that share seeds and real steps, with their 95 % intervals. The presets'
settings were tuned on base seed 7,000, the arms run on base seed 0.
"""

import argparse
import dataclasses
import itertools
import statistics as numbers
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arm_by_arm
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json, trees
from mbrl_jax.config import RunConfig, load, to_dict, with_settings
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.runs import execution, results
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "latent"
MARKS = {"cartpole": 475.0, "pendulum": -250.0, "pixels": 195.0}  # IQMs that are to be reached
PRESETS = {"cartpole": "cartpole_positions", "pendulum": "pendulum_positions", "pixels": "cartpole_pixels"}
MINATAR = {"breakout": "Breakout-MinAtar", "space_invaders": "SpaceInvaders-MinAtar"}
RECURRENT = {"cartpole": "cartpole_positions_model_free"}
PAIRED = (
    ("recurrent", "dreamer"),
    ("explore_surprise", "explore_uniform"),
    ("explore_surprise", "dreamer"),
    ("halted", "dreamer"),
)
SEEDS = (1, 4, 16, 64)  # of `throughput`
WITHOUT_MEMORY = {"cartpole": "cartpole_interactive", "pendulum": "pendulum_pg"}


def arms(task: str) -> dict[str, RunConfig]:
    """The configs of a task's arms."""
    dreamer: Any = load(ROOT / "configs" / f"{PRESETS[task]}.yaml")
    if task not in WITHOUT_MEMORY:
        return {"dreamer": dreamer}
    full = load(ROOT / "configs" / f"{WITHOUT_MEMORY[task]}.yaml")
    masked = with_settings(full, {"environment.observed": "positions"})
    found = {"dreamer": dreamer, "full": full, "masked": masked}
    if task in RECURRENT:
        found["recurrent"] = load(ROOT / "configs" / f"{RECURRENT[task]}.yaml")
        halting = dataclasses.replace(dreamer.imagination, controller=controller_settings("drift", quantile=0.99))
        found["halted"] = dataclasses.replace(dreamer, imagination=halting)
        found |= {f"explore_{rule}": with_settings(dreamer, {"random_actions.rule": rule}) for rule in ("uniform", "surprise")}
    if full.protocol == "interactive":
        steps = dreamer.real_transitions - full.random_transitions
        found["masked_long"] = with_settings(masked, {"steps": steps, "round_steps": 500})
    return found


def minatar(steps: int | None) -> dict[str, dict[str, RunConfig]]:
    """The configs of MinAtar's tasks, for as many steps of the main loop, or the preset's."""
    config = load(ROOT / "configs" / "breakout_pixels.yaml")
    if steps is not None:
        rounds = min(config.round_steps, steps)
        config = with_settings(config, {"steps": steps, "round_steps": rounds, "metric_steps": min(config.metric_steps, rounds)})
    return {task: {"dreamer": with_settings(config, {"environment.name": name})} for task, name in MINATAR.items()}


def keep(work: Path | None, run: Run) -> dict[str, Any]:
    """What else an arm leaves: the returns of the chosen policy, and how a latent world went.

    The networks of a latent world are written to the folder ``work``, where there is one.
    """
    outcome, world = run.result.outcome, getattr(run.result.metrics, "world", None)
    chosen = None if outcome.returns_chosen is None else results.per_seed(outcome.returns_chosen).tolist()
    if world is None:
        return {"returns_chosen": chosen, "world": {}}
    config: Any = run.config
    if work is not None and config.random_actions.rule == "none":
        work.mkdir(parents=True, exist_ok=True)
        stem = run.config.environment.name.replace("/", "_")
        for name, tree in (("model", outcome.model), ("policies", outcome.last)):
            np.savez(work / f"{stem}_{name}.npz", **typing.cast(Any, trees.flatten(tree)))
    means = {name: np.asarray(leaf).mean((0, 2)).round(5).tolist() for name, leaf in world._asdict().items()}  # by round
    return {"returns_chosen": chosen, "world": means}


def table(out: Path) -> None:
    """Print what is on file."""
    shown = Table("task", "arm", "seeds", "real steps", "IQM, last policy", "IQM, chosen policy", "seeds at the mark", "seconds")
    for path in sorted(out.glob("*_*.json")):
        arm = strict_json.loads(path.read_text(encoding="utf-8"))
        last, chosen = arm["returns"], arm["returns_chosen"]
        mark = MARKS.get(arm["task"])
        shown.add_row(
            *(arm["task"], arm["arm"], str(len(last)), f"{arm['steps'][-1]:,}"),
            str(statistics.estimate(np.asarray(last))),
            "" if chosen is None else str(statistics.estimate(np.asarray(chosen))),
            "" if mark is None else f"{np.mean(np.asarray(last) >= mark):.0%}",
            f"{arm['seconds']['compile'] + sum(arm['seconds']['phases'].values()):.0f}",
        )
    paired = Table("task", "difference of arms", "seeds", "mean of the learning curve", "last policy")
    for task, (ours, theirs) in itertools.product(MARKS, PAIRED):
        places = [out / f"{task}_{arm}.json" for arm in (ours, theirs)]
        if not all(place.exists() for place in places):
            continue
        one, other = (strict_json.loads(place.read_text(encoding="utf-8")) for place in places)
        if one["steps"] == other["steps"] and len(one["returns"]) == len(other["returns"]):
            curve = statistics.paired_difference(*(np.mean(arm["curves"], axis=1) for arm in (one, other)))
            last = statistics.paired_difference(one["returns"], other["returns"])
            paired.add_row(task, f"{ours} - {theirs}", str(len(one["returns"])), str(curve), str(last))
    for each in (shown, paired):
        Console(width=140).print(each)


def throughput(out: Path) -> None:
    """Time rounds by seeds."""
    execution.use_compilation_cache()
    config = with_settings(
        load(ROOT / "configs" / "cartpole_positions.yaml"), {"steps": 1_000, "round_steps": 250, "metric_steps": 50}
    )
    ready = {seeds: arm_by_arm.rounds_of(config, seeds) for seeds in SEEDS}
    seconds = arm_by_arm.timed({seeds: go_on for seeds, (go_on, _) in ready.items()})
    medians = {seeds: numbers.median(each) for seeds, each in seconds.items()}
    shown = Table("seeds", "seconds of 250 real steps", "real steps a second, all seeds", "times one seed")
    for seeds, each in medians.items():
        shown.add_row(str(seeds), f"{each:.2f}", f"{ready[seeds][1] / each:,.0f}", f"{each / medians[SEEDS[0]]:.1f}")
    Console().print(shown)
    content = {
        "config": to_dict(config),
        "seconds_of_rounds": {str(seeds): [round(x, 4) for x in each] for seeds, each in seconds.items()},
        "steps_a_second": {str(seeds): round(ready[seeds][1] / each, 1) for seeds, each in medians.items()},
        "versions": packages.versions(execution.PACKAGES),
        "device": execution.device(),
        "precision": "float32, matrix products default",
        "git": packages.git_revision(),
    }
    strict_json.write(out / "throughput.json", content)


def main(words: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "gpu", "throughput", "table"))
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(MARKS)}, or of {', '.join(MINATAR)} (gpu); none is all")
    parser.add_argument("--arms", nargs="*", default=())
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, help="of the main loop (gpu); none is the preset's")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, help="folder for the latent worlds' networks; none leaves them")
    asked = parser.parse_args(words)
    known = MINATAR if asked.command == "gpu" else MARKS
    if unknown := set(asked.tasks) - set(known):
        raise SystemExit(f"tasks: {sorted(unknown)} are not known; they must be of {', '.join(known)}")
    if asked.command == "throughput":
        throughput(asked.out)
        return
    if asked.command != "table":
        studies = minatar(asked.steps) if asked.command == "gpu" else {task: arms(task) for task in MARKS}
        studies = {task: studies[task] for task in asked.tasks or studies}
        arm_by_arm.train(studies, asked.arms, asked.seeds, asked.out, partial(keep, asked.work))
    table(asked.out)


if __name__ == "__main__":
    main()
