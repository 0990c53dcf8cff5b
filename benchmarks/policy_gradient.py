"""Policies learned by policy gradients in imagination, over seeds, beside their twin on real transitions alone.

    python benchmarks/policy_gradient.py tuning learning data

tuning    the twin's learning rate, on seeds that no other stage uses
learning  CartPole-v1, 5,000 real transitions: actor and critic in imagination, REINFORCE in imagination, and the same actor and
          critic on what the policy itself does in the real environment
data      actor and critic in imagination against the number of random real transitions

Each writes a JSON file, and most a figure, into benchmarks/results/policy_gradient/, and prints a table.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import statistics, strict_json
from mbrl_jax.config import ImaginedPGConfig, RunConfig, load
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "policy_gradient"
TUNING_SEED = 1_000_000  # no seed of the tuning is a seed of another stage
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
DATA_SIZES = (100, 250, 500, 1_000, 2_000, 5_000)


def preset(name: str) -> Any:
    return load(ROOT / "configs" / f"{name}.yaml")


def run(name: str, config: RunConfig, seeds: int, base_seed: int = 0) -> Run:
    with Display.standard(name) as display:
        return runner.run(config, seeds, base_seed=base_seed, display=display)


def arms() -> dict[str, RunConfig]:
    """What is compared, by name; all use 5,000 real transitions."""
    based = preset("cartpole_pg")
    plain = dataclasses.replace(based, agent=dataclasses.replace(based.agent, baseline="none"))
    return {
        "actor and critic, imagined": based,
        "REINFORCE, imagined": plain,
        "actor and critic, real": preset("cartpole_pg_model_free"),
    }


def row(name: str, summary: dict[str, Any]) -> list[str]:
    """A line of the table."""
    cells = [name, f"{summary['real_transitions']:,}"]
    for arm in ("chosen", "last"):
        iqm = summary["iqm"][arm]
        cells.append("" if iqm is None else str(statistics.Estimate(iqm["value"], *iqm["ci95"])))
    share = summary["fraction_at_least"]["475"]
    return [*cells, *("" if share[arm] is None else f"{share[arm]:.0%}" for arm in ("chosen", "last"))]


def new_table(title: str) -> Table:
    return Table("", "real", "chosen, IQM", "last, IQM", "chosen >= 475", "last >= 475", title=title)


def stage_learning(seeds: int) -> None:
    """The three arms, and their learning curves."""
    table, told = new_table(f"CartPole-v1, {seeds} seeds"), {}
    figure, axes = figures.new_figure(2)
    colours = (figures.COLOURS["chosen"], figures.COLOURS["last"], figures.COLOURS["baseline"])
    for (name, config), colour in zip(arms().items(), colours, strict=True):
        finished = run(name, config, seeds)
        told[name] = results.summarise(finished)
        table.add_row(*row(name, told[name]))
        rounds = np.arange(1, finished.result.metrics.curve_return.shape[1] + 1)
        share = rounds / len(rounds)
        figures.draw_band(axes[0], share, finished.result.metrics.curve_return, name, colour)
        told[name]["last_iqm_low_high"] = statistics.running_interval(finished.result.metrics.curve_return).tolist()
        judged = "chosen" if isinstance(config, ImaginedPGConfig) else "last"
        figures.draw_profile(
            axes[1], {f"{name}, {judged}": (np.array(told[name][f"return_{judged}"]), colour)}, config.environment.name
        )
    axes[0].set_xlabel("share of the updates")
    axes[0].set_ylabel("return of the last policy, IQM over seeds")
    axes[0].set_ylim(bottom=0)
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    figure.suptitle(f"CartPole-v1, 5,000 real transitions, {seeds} seeds, 95 % intervals", fontsize=9)
    figure.savefig(OUT / "learning.png")
    write("learning", {"arms": told})
    Console(width=140).print(table)


def with_transitions(config: ImaginedPGConfig, size: int) -> ImaginedPGConfig:
    """The preset with fewer random transitions, and as many of the model's updates."""
    updates = config.model.epochs * (4_000 // config.model.batch_size)
    rows = size - size // 5
    batch = min(config.model.batch_size, rows // 2)
    model = dataclasses.replace(config.model, batch_size=batch, epochs=-(-updates // (rows // batch)))
    return dataclasses.replace(config, random_transitions=size, model=model)


def stage_data(seeds: int) -> None:
    """How few random real transitions are enough."""
    table, told = new_table(f"random real transitions, CartPole-v1, {seeds} seeds"), []
    for size in DATA_SIZES:
        summary = results.summarise(run(f"{size} transitions", with_transitions(preset("cartpole_pg"), size), seeds))
        told.append(summary)
        table.add_row(*row("actor and critic, imagined", summary))
    figure, (ax,) = figures.new_figure(1)
    for arm in ("chosen", "last"):
        value, low, high = np.array([statistics.bootstrap(each[f"return_{arm}"]) for each in told]).T
        error = np.stack([value - low, high - value])
        ax.errorbar(DATA_SIZES, value, error, label=f"{arm} policy", color=figures.COLOURS[arm], marker="o", capsize=3)
    ax.set_xscale("log")
    ax.set_xticks(DATA_SIZES, [f"{size:,}" for size in DATA_SIZES])
    ax.minorticks_off()
    ax.set_ylim(0, 510)
    ax.set_xlabel("random real transitions")
    ax.set_ylabel("return, IQM over seeds")
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(OUT / "data.png")
    write("data", {"runs": told})
    Console(width=140).print(table)


def write(stage: str, content: dict[str, Any]) -> None:
    strict_json.write(OUT / f"{stage}.json", {"stage": stage, **content})


def stage_tuning(seeds: int) -> None:
    """The learning rate of the twin on real transitions; its preset holds one of the best, which do not differ."""
    config = preset("cartpole_pg_model_free")
    table, told = new_table(f"actor and critic on real transitions, {seeds} seeds"), []
    for rate in RATES:
        tried = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=rate))
        summary = results.summarise(run(f"rate {rate:g}", tried, seeds, TUNING_SEED))
        told.append({"learning_rate": rate, "chosen": rate == config.agent.learning_rate, **summary})
        table.add_row(*row(f"learning rate {rate:g}", summary))
    write("tuning", {"runs": told})
    Console(width=140).print(table)


STAGES = {"tuning": stage_tuning, "learning": stage_learning, "data": stage_data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--seeds", type=int, default=64)
    arguments = parser.parse_args()
    execution.use_all_cores()
    OUT.mkdir(parents=True, exist_ok=True)
    for stage in arguments.stages:
        STAGES[stage](arguments.seeds)


if __name__ == "__main__":
    main()
