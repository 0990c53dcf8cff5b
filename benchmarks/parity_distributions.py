"""Whether full training runs of the PyTorch reference and of the JAX code come from the same distribution.

    python benchmarks/parity_distributions.py [ARM …] [--reference-seeds 24] [--jax-seeds 256] [--processes 2]

Each arm of the comparison (model-based and model-free, batch and interactive protocol) is trained by both, from random numbers
that have nothing to do with each other. Two-sample tests hold the results against one another: Kolmogorov-Smirnov for each figure
that is one number a seed, and a permutation test of the distance between mean TD-loss curves. As there are many tests, p-values
are corrected by Holm's method over all of them. Each arm is written into benchmarks/results/parity/distributions/ as it is done,
as ARM.json and ARM.png; the table that is printed at the end is over all arms that lie there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

from mbrl_jax import reference_run, statistics, strict_json
from mbrl_jax.config import DynaQConfig, load
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
ARMS = ("cartpole_batch", "cartpole_batch_model_free", "cartpole_interactive", "cartpole_interactive_model_free")
SIDES = {"PyTorch reference": "#5b5f97", "JAX": "#0b6e4f"}


def figures_of(run: Run) -> dict[str, np.ndarray]:
    """What is one number a seed [seeds]."""
    outcome, metrics = run.result.outcome, run.result.metrics
    found = {"return, last policy": results.per_seed(outcome.returns_last)}
    if isinstance(run.config, DynaQConfig):
        found["return, chosen policy"] = results.per_seed(outcome.returns_chosen)
        found["imagined score of the chosen policy"] = np.asarray(metrics.chosen_score, np.float64)[:, -1]
        found["holdout error of the first fit"] = np.asarray(run.result.fit.holdout_mse, np.float64)[:, -1].mean(1)
        found["holdout likelihood of the first fit"] = np.asarray(run.result.fit.holdout_nll, np.float64)[:, -1].mean(1)
        found["mean depth of imagined rows"] = np.asarray(metrics.lanes.depth, np.float64).mean((1, 2))
        if metrics.refit is not None:
            found["holdout error of the last refit"] = np.asarray(metrics.refit.holdout_mse, np.float64)[:, -1].mean(1)
    found["return of random episodes"] = np.nanmean(np.asarray(run.result.collected, np.float64), axis=1)
    return found


def loss_curves(run: Run) -> np.ndarray:
    """[seeds, blocks] log10 of the TD loss."""
    loss = np.asarray(run.result.metrics.update.loss, np.float64)
    return np.log10(loss.reshape(len(loss), -1))


def curve_test(a: np.ndarray, b: np.ndarray, permutations: int = 2_000) -> tuple[float, float]:
    """(mean distance of the mean curves, its permutation p-value) of curves [seeds, blocks]."""
    both, generator = np.concatenate([a, b]), np.random.default_rng(0)

    def distance(order: np.ndarray) -> float:
        return float(np.mean(np.abs(both[order[: len(a)]].mean(0) - both[order[len(a) :]].mean(0))))

    found = distance(np.arange(len(both)))
    shuffled = [distance(generator.permutation(len(both))) for _ in range(permutations)]
    return found, (1 + sum(value >= found for value in shuffled)) / (1 + permutations)


def measure(name: str, ours: Run, theirs: Run) -> dict[str, Any]:
    """An arm's tests, and both sides' summaries."""
    tests: list[dict[str, Any]] = []
    for what, values in figures_of(ours).items():
        other = figures_of(theirs)[what]
        p = float(scipy.stats.ks_2samp(values, other).pvalue)
        told = {"jax": list(statistics.bootstrap(values)), "reference": list(statistics.bootstrap(other))}
        tests.append({"what": what, "test": "Kolmogorov-Smirnov", "p": p, **told})
    distance, p = curve_test(loss_curves(ours), loss_curves(theirs))
    tests.append({"what": "TD-loss curve", "test": "permutation", "p": p, "mean_distance_log10": distance})
    return {"arm": name, "tests": tests, "jax": results.summarise(ours), "reference": results.summarise(theirs)}


def draw(name: str, sides: dict[str, Run], path: Path) -> None:
    """Returns of the last policy and of the chosen one, and TD-loss curves, of both sides in the same axes."""
    panels = [what for what in ("return, last policy", "return, chosen policy") if what in figures_of(sides["JAX"])]
    figure, axes = figures.new_figure(len(panels) + 1)
    for side, run in sides.items():
        for what, ax in zip(panels, axes, strict=False):
            ordered = np.sort(figures_of(run)[what])
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            ax.step(ordered, share, where="post", color=SIDES[side], label=f"{side}, {len(ordered)} seeds")
            ax.set_xlim(0, 505)
            ax.set_xlabel(what)
            ax.set_ylabel("share of seeds at most")
        low, middle, high = np.quantile(loss_curves(run), [0.25, 0.5, 0.75], axis=0)
        x = (np.arange(len(middle)) + 1) * run.config.metric_steps
        axes[-1].plot(x, 10**middle, color=SIDES[side], linewidth=1.1, label=side)
        axes[-1].fill_between(x, 10**low, 10**high, color=SIDES[side], alpha=0.2, linewidth=0)
    axes[-1].set_yscale("log")
    axes[-1].set_xlabel("steps")
    axes[-1].set_ylabel("TD loss, median and quartiles of seeds")
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    figure.suptitle(name, fontsize=9)
    figure.savefig(path)


def print_table(folder: Path) -> None:
    """All arms on file, their p-values corrected together."""
    arms = [
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ARMS if (folder / f"{name}.json").exists()
    ]
    tests = [{"arm": arm["arm"], **test} for arm in arms for test in arm["tests"]]
    corrected = statistics.holm([test["p"] for test in tests])
    table = Table("arm", "figure", "JAX, IQM", "reference, IQM", "p", "p, Holm")
    for test, p in zip(tests, corrected, strict=True):
        iqms = [f"{statistics.Estimate(*test[side]).value:.4g}" if side in test else "" for side in ("jax", "reference")]
        table.add_row(test["arm"], test["what"], *iqms, f"{test['p']:.3f}", f"{p:.2f}")
    Console(width=160).print(table)
    print(f"{len(tests)} tests of {len(arms)} arms, least corrected p-value {min(corrected):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", help=f"of {', '.join(ARMS)}; none runs all")
    parser.add_argument("--reference-seeds", type=int, default=24)
    parser.add_argument("--jax-seeds", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2, help="reference runs side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity" / "distributions")
    given = parser.parse_args()
    unknown = [name for name in given.arms if name not in ARMS]
    if unknown:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    execution.use_all_cores()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.arms or ARMS:
        config = load(ROOT / "configs" / f"{name}.yaml")
        with Display.standard(f"{name}, reference") as display:
            theirs = reference_run.run(config, given.reference_seeds, processes=given.processes, display=display)
        with Display.standard(f"{name}, JAX") as display:
            ours = runner.run(config, given.jax_seeds, display=display)
        content = strict_json.dumps(measure(name, ours, theirs), indent=1) + "\n"
        (given.out / f"{name}.json").write_text(content, encoding="utf-8")
        draw(name, {"JAX": ours, "PyTorch reference": theirs}, given.out / f"{name}.png")
    print_table(given.out)


if __name__ == "__main__":
    main()
