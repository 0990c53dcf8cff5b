"""Policies learned from log files of known quality: by a model with a penalty, by cloning, and by Q-learning without a model.

    python benchmarks/offline_study.py data FOLDER
    python benchmarks/offline_study.py train FOLDER [--pieces 1]
    python benchmarks/offline_study.py table
    python benchmarks/offline_study.py reach FOLDER [--pieces 1]

data   trains an expert for each task and records files by it: random actions; medium, the expert with half of its actions random;
       expert, with a twentieth of them random; and mixed, a third of each
train  trains every arm on every file, writes each result as soon as it is there, and goes on where an earlier call stopped
table  prints the results and draws them
       (--pieces: that many trainings, and no more, in this call)
reach  cartpole_pg from 1,000 random transitions without an environment, reward and termination learned; then plays in Gymnasium

Written down before the runs, on 2026-11-28:

1. On random files the model-based arms beat cloning, which can only imitate chance, and Q-learning, which has few rows.
2. On expert files cloning is as good as the expert, and the model-based arms are worse than it: the model has seen nothing beside
   the expert's path, and the penalty keeps a policy near the data without telling it which way is back.
3. On medium and mixed files the model-based arms are better than cloning, because they tell good actions from bad.
4. MOReL is the better of the two where the data are narrow (expert), MOPO where they are wide (random).
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.agents.cloning import CloningConfig
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import EnvironmentConfig, RunConfig, load
from mbrl_jax.environments import make_environment
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.writing import write_parquet
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Run
from mbrl_jax.serving import recording

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "offline"
SEEDS = {"CartPole-v1": 6, "Pendulum-v1": 4}
TRANSITIONS = 2_000
PENDULUM_STEPS = 600  # of the model-based arms, in place of the presets' 1,000
REACH_SEEDS, REACH_PIECE = 16, 4  # of which so many at a time
EXPERTS = {"CartPole-v1": "cartpole_pg", "Pendulum-v1": "pendulum_pg"}
EPSILON = {"random": 1.0, "medium": 0.5, "expert": 0.05}
QUALITIES = ("random", "medium", "mixed", "expert")
COLOURS = {"MOPO": "#0b6e4f", "MOReL": "#e08e45", "cloning": "#5b5f97", "Q-learning": "#b0413e"}


def preset(name: str) -> Any:
    return load(ROOT / "configs" / f"{name}.yaml")


def arms(task: str) -> dict[str, RunConfig]:
    """What is trained on a task, by name."""
    cloning: Any = CloningConfig
    environment = dataclasses.replace(preset("offline_mopo").environment, name=task)
    free = dataclasses.replace(preset("cartpole_batch_model_free"), environment=environment)
    found = {name: dataclasses.replace(preset(f"offline_{name.lower()}"), environment=environment) for name in ("MOPO", "MOReL")}
    if task == "Pendulum-v1":  # differentiable dynamics, rewards from -16 to 0, so that a halt must cost more than going on
        for name, config in found.items():
            agent = dataclasses.replace(config.agent, estimator="pathwise", discount=0.97, entropy_weight=0.001)
            weight = 1.0 if name == "MOPO" else 200.0
            imagination = dataclasses.replace(config.imagination, penalty_weight=weight)
            found[name] = dataclasses.replace(config, agent=agent, imagination=imagination, steps=PENDULUM_STEPS)
    found["cloning"] = dataclasses.replace(free, agent=cloning(learning_rate_decay=1.0, weight_decay=1e-4))
    if task == "CartPole-v1":  # with discrete actions
        found["Q-learning"] = free
    return found


def file_of(folder: Path, task: str, quality: str) -> list[Path]:
    """The files of a quality; mixed is a third of each of the others."""
    if quality == "mixed":
        return [folder / f"{task}_{each}_third.parquet" for each in EPSILON]
    return [folder / f"{task}_{quality}.parquet"]


def stage_data(folder: Path, pieces: int) -> None:
    """Train the experts and record what they do."""
    execution.use_compilation_cache()
    folder.mkdir(parents=True, exist_ok=True)
    for task, name in EXPERTS.items():
        if pieces == 0 or all(path.exists() for quality in QUALITIES for path in file_of(folder, task, quality)):
            continue
        pieces -= 1
        with Display.standard(f"expert of {task}") as display:
            expert = runner.run(preset(name), 2, base_seed=1_000_000, display=display)
        best = int(np.argmax(results.per_seed(expert.result.outcome.returns_chosen)))
        params = jax.tree.map(lambda leaf, best=best: leaf[best], expert.result.outcome.chosen)
        environment = make_environment(expert.config.environment)
        policy = algorithm_of(expert.config).policy(expert.config, environment)
        for number, (quality, epsilon) in enumerate(EPSILON.items()):
            for part, count in ((0, TRANSITIONS), (1, -(-TRANSITIONS // 3))):
                path = file_of(folder, task, quality)[0] if part == 0 else file_of(folder, task, "mixed")[number]
                key = jax.random.key(10 * number + part)
                write_parquet(path, recording.record(environment, policy, params, key, count, epsilon), environment.spec)
                print(f"{path}: {count:,} transitions")


def told_of(files: list[Path]) -> dict[str, Any]:
    """What there is in files."""
    audit = Audit([open_log(str(path)) for path in files])
    whole = audit.returns[:-1] if audit.episodes > 1 else audit.returns  # the last episode is cut
    return {"episodes": audit.episodes, "mean_return": float(whole.mean()), "best_return": float(whole.max())}


def stage_train(folder: Path, pieces: int) -> None:
    """Train what is left, at most so many arms."""
    execution.use_compilation_cache()
    OUT.mkdir(parents=True, exist_ok=True)
    for task in EXPERTS:
        for quality in QUALITIES:
            for arm, config in arms(task).items():
                place = OUT / f"{task}_{quality}_{arm}.json"
                if place.exists() or pieces == 0:
                    continue
                pieces -= 1
                files = file_of(folder, task, quality)
                with Display.standard(place.stem) as display:
                    config_here = dataclasses.replace(config, data_transitions=TRANSITIONS)
                    run = runner.run(config_here, SEEDS[task], data=files, display=display)
                summary = results.summarise(run)
                returns = results.per_seed(run.result.outcome.returns_last)
                kept = {"task": task, "quality": quality, "arm": arm, "returns": returns.tolist(), "data": told_of(files)}
                kept["held_out"] = results.summarise_held_out(run.result.outcome.held_out)
                for name in ("frozen_seeds", "seconds", "versions", "device", "precision"):
                    kept[name] = summary[name]
                kept["git"] = packages.git_revision()
                strict_json.write(place, kept)


def stage_table() -> None:
    """Print the IQM over seeds of every arm on every file, and draw it."""
    found = [strict_json.loads(path.read_text(encoding="utf-8")) for path in sorted(OUT.glob("*-v*_*.json"))]
    table = Table("task", "file", "return of the data", *COLOURS, title="IQM over seeds, 95 % intervals, last policy")
    figure, axes = figures.new_figure(len(EXPERTS))
    for ax, task in zip(axes, EXPERTS, strict=True):
        for place, quality in enumerate(QUALITIES):
            here = {each["arm"]: each for each in found if (each["task"], each["quality"]) == (task, quality)}
            if not here:
                continue
            cells = []
            for offset, (arm, colour) in enumerate(COLOURS.items()):
                if arm not in here:
                    cells.append("")
                    continue
                told = statistics.bootstrap(np.array(here[arm]["returns"]), statistics.interquartile_mean)
                cells.append(str(told))
                x = place + 0.16 * (offset - 1.5)
                ax.plot([x, x], [told.low, told.high], color=colour, linewidth=2)
                ax.plot(x, told.value, "o", color=colour, markersize=4, label=arm if place == 0 else None)
            mean = next(iter(here.values()))["data"]["mean_return"]
            ax.plot([place - 0.4, place + 0.4], [mean, mean], color="0.4", linewidth=1, linestyle=":")
            table.add_row(task, quality, f"{mean:.0f}", *cells)
        ax.set_xticks(range(len(QUALITIES)), QUALITIES)
        ax.set_title(task, fontsize=9)
        ax.set_ylabel("real return; dotted: of the data")
    axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(OUT / "offline.png")
    Console().print(table)


def play_in_gymnasium(run: Run, task: str, seed: int) -> dict[str, np.ndarray]:
    """[seeds] mean returns of 20 greedy episodes of Gymnasium's own task, by the chosen and by the last policies."""
    environment, returns = make_environment(run.config.environment), {}
    policy, seeds = algorithm_of(run.config).policy(run.config, environment), len(run.result.outcome.frozen)
    act = jax.jit(jax.vmap(lambda params, s: policy.act(params, (), s)[1]))
    for name in ("chosen", "last"):
        simulators: Any = gymnasium.make_vec(task, num_envs=seeds * 20, vectorization_mode="sync")
        observation, _ = simulators.reset(seed=seed)
        running, total = np.ones(seeds * 20, bool), np.zeros(seeds * 20)
        while running.any():
            seen = jnp.asarray(observation, jnp.float32).reshape(seeds, 20, -1)
            actions = np.asarray(act(getattr(run.result.outcome, name), seen), np.int64)
            observation, reward, terminated, truncated, _ = simulators.step(actions.ravel())
            total += np.where(running, reward, 0.0)
            running &= ~(terminated | truncated)
        simulators.close()
        returns[name] = total.reshape(seeds, 20).mean(axis=1)
    return returns


def stage_reach(folder: Path, pieces: int) -> None:
    """Train on a file alone, and play where it came from."""
    execution.use_compilation_cache()
    folder.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    path, task = folder / "reach.parquet", "CartPole-v1"
    make: Any = EnvironmentConfig
    environment = make_environment(make(name=task))
    if not path.exists():
        write_parquet(path, recording.record(environment, None, None, jax.random.key(0), 1_000), environment.spec)
    config = preset("cartpole_pg")
    model = dataclasses.replace(config.model, batch_size=64, epochs=100)
    config = dataclasses.replace(config, environment=make(name="none"), model=model)
    for first in range(0, REACH_SEEDS, REACH_PIECE):
        place = OUT / f"reach_{first:02}.json"
        if place.exists() or pieces == 0:
            continue
        pieces -= 1
        with Display.standard(place.stem) as display:
            run = runner.run(config, range(first, first + REACH_PIECE), data=path, display=display)
        returns, summary = play_in_gymnasium(run, task, seed=first), results.summarise(run)
        told = ("data", "imagined_by_member", "return_last", "return_chosen", "seconds", "versions", "device", "git")
        kept: dict[str, Any] = {name: summary[name] for name in told}
        kept["environment"] = summary["config"]["environment"]
        kept["data"]["files"] = [path.name]
        kept["returns"] = {name: each.tolist() for name, each in returns.items()}
        strict_json.write(place, kept)
    found = [strict_json.loads(place.read_text(encoding="utf-8")) for place in sorted(OUT.glob("reach_*.json"))]
    for name in ("chosen", "last"):
        real = np.concatenate([each["returns"][name] for each in found])
        imagined = np.concatenate([each[f"return_{name}"] for each in found])
        print(
            f"{name}, {len(real)} seeds: IQM {statistics.estimate(real)} in Gymnasium, {statistics.estimate(imagined)} imagined"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("data", "train", "table", "reach"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--pieces", type=int, default=1_000)
    given = parser.parse_args()
    if given.stage == "table":
        stage_table()
    elif given.folder is None:
        parser.error("a folder for the files must be named")
    elif given.stage == "data":
        stage_data(given.folder, given.pieces)
    elif given.stage == "reach":
        stage_reach(given.folder, given.pieces)
    else:
        stage_train(given.folder, given.pieces)


if __name__ == "__main__":
    main()
