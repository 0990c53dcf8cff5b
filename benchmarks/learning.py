"""What is learned from so many real transitions, over seeds: the figures of docs/results/learning.md.

    python benchmarks/learning.py tuning batch interactive best data

Each stage writes a JSON file, and most a figure, into benchmarks/results/learning/, and prints a table:

tuning       the baseline's learning rate, on seeds that no other stage uses
batch        both arms at the tutorial's sizes, batch protocol; also the imagined TD loss
interactive  both arms, interactive protocol
best         the preset that reaches the most, beside the baseline of the batch stage
data         chosen policies against the number of random real transitions; the largest number is the batch stage's
speed        the batch stage's model-based arm alone: seconds, rates, memory
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import statistics, strict_json
from mbrl_jax.config import DynaQConfig, ModelFreeQConfig, load, to_dict
from mbrl_jax.report import comparison, figures
from mbrl_jax.report.measures import chosen_so_far
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
TUNING_SEED = 1_000_000  # no seed of the tuning is a seed of the comparison
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
DATA_SIZES = (250, 500, 1_000, 2_000, 5_000)


def preset(name: str) -> ModelFreeQConfig:
    config = load(ROOT / "configs" / f"{name}.yaml")
    assert isinstance(config, ModelFreeQConfig)
    return config


def run(name: str, config: ModelFreeQConfig, seeds: int, base_seed: int = 0) -> Run:
    with Display.standard(name) as display:
        return runner.run(config, seeds, base_seed=base_seed, display=display)


def stage_tuning(seeds: int, out: Path) -> None:
    """The baseline's learning rate in both protocols; the presets hold the winners."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # the rates share one program
    table = Table("protocol", "learning rate", "IQM", ">= 195", ">= 475", title=f"the baseline's learning rate, {seeds} seeds")
    rows = []
    for protocol in ("batch", "interactive"):
        config = preset(f"cartpole_{protocol}_model_free")
        for rate in RATES:
            tried = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=rate))
            summary = results.summarise(run(f"{protocol} {rate:g}", tried, seeds, TUNING_SEED))
            rows.append({"protocol": protocol, "learning_rate": rate, "chosen": rate == config.agent.learning_rate, **summary})
            iqm, share = summary["iqm"]["last"], summary["fraction_at_least"]
            estimate = statistics.Estimate(iqm["value"], *iqm["ci95"])
            table.add_row(protocol, f"{rate:g}", str(estimate), f"{share['195']['last']:.0%}", f"{share['475']['last']:.0%}")
    jax.config.update("jax_compilation_cache_dir", None)
    write(out / "tuning.json", {"stage": "tuning", "runs": rows})
    Console().print(table)


def compare(name: str, ours: ModelFreeQConfig, theirs: ModelFreeQConfig, seeds: int, out: Path) -> tuple[Run, dict[str, Any]]:
    model_based, model_free = run(f"{name}, model-based", ours, seeds), run(f"{name}, model-free", theirs, seeds)
    measured = comparison.compare(model_based, model_free)
    figures.draw_comparison(model_based, model_free, out / f"{name}.png")
    content = {
        "stage": name,
        "comparison": comparison.as_json(measured),
        "model_based": results.summarise(model_based),
        "model_free": results.summarise(model_free),
        "learning_curves": {"model_based": curves(model_based), "model_free": curves(model_free)},
    }
    Console(width=140).print(comparison.as_table(measured, f"{name}, {seeds} seeds"))
    return model_based, content


def curves(finished: Run) -> dict[str, Any]:
    """IQM over seeds of the present and of the chosen policy's return at every round's end, with intervals."""
    chosen = chosen_so_far(finished)
    rounds = np.arange(1, finished.config.steps // finished.config.round_steps + 1) * finished.config.round_steps
    return {
        "step": rounds.tolist(),
        "last_iqm_low_high": statistics.running_interval(finished.result.metrics.curve_return).tolist(),
        "chosen_iqm_low_high": None if chosen is None else statistics.running_interval(chosen).tolist(),
    }


def stage_batch(seeds: int, out: Path) -> None:
    """Both arms at the tutorial's sizes, and the imagined TD loss against imagined transitions."""
    ours, content = compare("batch", preset("cartpole_batch"), preset("cartpole_batch_model_free"), seeds, out)
    config = ours.config
    assert isinstance(config, DynaQConfig)
    figures.draw_run(ours, out / "batch_run.png")
    figure, (ax,) = figures.new_figure(1)
    figures.draw_loss(ax, ours)
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(out / "loss.png")
    loss = np.asarray(ours.result.metrics.update.loss).reshape(seeds, -1)
    transitions = (np.arange(loss.shape[1]) + 1) * config.metric_steps * config.imagination.lanes * config.imagination.steps
    early = transitions <= figures.LOSS_MARK_TRANSITIONS
    below = np.median(loss, axis=0) < figures.LOSS_MARK
    metrics = ours.result.metrics
    content["imagined_td_loss"] = {
        "transitions": transitions.tolist(),
        "median": np.median(loss, axis=0).tolist(),
        "median_over_target_variance": np.median(metrics.update.scaled_loss.reshape(seeds, -1), axis=0).tolist(),
        "first_transitions_with_median_below_mark": int(transitions[below][0]) if below.any() else None,
        "fraction_of_seeds_below_mark_in_time": float(np.mean(loss[:, early].min(axis=1) < figures.LOSS_MARK)),
    }
    score, real = np.asarray(metrics.score).ravel(), np.asarray(metrics.curve_return).ravel()
    content["correlation_of_imagined_and_real_return"] = float(np.corrcoef(score, real)[0, 1])
    write(out / "batch.json", content)
    told = content["imagined_td_loss"]
    print(
        f"imagined TD loss: median below {figures.LOSS_MARK} at {told['first_transitions_with_median_below_mark']} "
        f"imagined transitions, {told['fraction_of_seeds_below_mark_in_time']:.0%} of seeds in time"
    )
    print(f"correlation of imagined and real return of snapshots: {content['correlation_of_imagined_and_real_return']:.2f}")


def stage_interactive(seeds: int, out: Path) -> None:
    """Both arms, interactive protocol."""
    arms = preset("cartpole_interactive"), preset("cartpole_interactive_model_free")
    write(out / "interactive.json", compare("interactive", *arms, seeds, out)[1])


def stage_best(seeds: int, out: Path) -> None:
    """The preset that reaches the most, beside a baseline that is given as many updates."""
    ours, theirs = preset("cartpole_best"), preset("cartpole_batch_model_free")
    theirs = dataclasses.replace(theirs, steps=ours.steps, round_steps=ours.round_steps)
    write(out / "best.json", compare("best", ours, theirs, seeds, out)[1])


def stage_data(seeds: int, out: Path) -> None:
    """How few random real transitions are enough: the tutorial preset, with as many model updates whatever the data."""
    config = preset("cartpole_batch")
    assert isinstance(config, DynaQConfig)
    model_updates = config.model.epochs * (4_000 // config.model.batch_size)
    table = Table("transitions", "chosen, IQM", "last, IQM", ">= 195", ">= 475", title=f"random real transitions, {seeds} seeds")
    rows = []
    for size in DATA_SIZES:
        training_rows = size - size // 5
        batch = min(config.model.batch_size, training_rows // 2)
        model = dataclasses.replace(config.model, batch_size=batch, epochs=-(-model_updates // (training_rows // batch)))
        model = dataclasses.replace(model, laplacian_rows=min(16, batch))
        tried = dataclasses.replace(config, random_transitions=size, model=model)
        if size == config.random_transitions:  # the batch stage's own arm
            summary = json.loads((out / "batch.json").read_text(encoding="utf-8"))["model_based"]
            if summary["config"] != to_dict(config) or summary["seeds"] != seeds:
                raise SystemExit("data: batch.json is of another preset or other seeds; run the batch stage first")
        else:
            summary = results.summarise(run(f"{size} transitions", tried, seeds))
        rows.append(summary)
        chosen, last = (statistics.Estimate(x["value"], *x["ci95"]) for x in (summary["iqm"]["chosen"], summary["iqm"]["last"]))
        share = summary["fraction_at_least"]
        table.add_row(f"{size:,}", str(chosen), str(last), f"{share['195']['chosen']:.0%}", f"{share['475']['chosen']:.0%}")
    write(out / "data.json", {"stage": "data", "runs": rows})
    figure, (ax,) = figures.new_figure(1)
    for arm, label in (("chosen", "chosen policy"), ("last", "last policy")):
        estimates = [bootstrap_row(row[f"return_{arm}"]) for row in rows]
        value, low, high = np.array(estimates).T
        ax.errorbar(
            DATA_SIZES, value, [value - low, high - value], label=label, color=figures.COLOURS[arm], marker="o", capsize=3
        )
    ax.set_xscale("log")
    ax.set_xticks(DATA_SIZES, [f"{size:,}" for size in DATA_SIZES])
    ax.minorticks_off()
    ax.set_ylim(0, 510)
    ax.set_xlabel("random real transitions")
    ax.set_ylabel("return, IQM over seeds")
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(out / "data.png")
    Console().print(table)


def stage_speed(seeds: int, out: Path) -> None:
    """The tutorial preset alone, for its time and memory: run this on a machine that does nothing else."""
    summary = results.summarise(run("speed", preset("cartpole_batch"), seeds))
    seconds, memory = summary["seconds"], summary["bytes_per_seed"]
    write(out / "speed.json", {"stage": "speed", **summary})
    print(f"{seeds} seeds: compiled in {seconds['compile']:.1f} s, ran in {seconds['run']:.1f} s on {summary['device']}")
    print("phases: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds["phases"].items()))
    print(f"{summary['real_steps_per_second']:,.0f} steps/s and {summary['imagined_transitions_per_second']:,.0f} imagined/s")
    state, temporary = memory["state"] / 1e6, memory["temporary"] / 1e6
    print(f"a seed holds {state:.2f} MB between rounds and needs {temporary:.2f} MB more while it computes")


def bootstrap_row(returns: list[float]) -> tuple[float, float, float]:
    estimate = statistics.bootstrap(returns)
    return estimate.value, estimate.low, estimate.high


def write(path: Path, content: dict[str, Any]) -> None:
    strict_json.write(path, content)


STAGES = {
    "tuning": stage_tuning,
    "batch": stage_batch,
    "interactive": stage_interactive,
    "best": stage_best,
    "data": stage_data,
    "speed": stage_speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning")
    arguments = parser.parse_args()
    execution.use_all_cores()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stage in arguments.stages:
        STAGES[stage](arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
