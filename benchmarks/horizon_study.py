"""Does an adaptive rollout horizon beat the best fixed one? Every controller against fixed horizons, at equal compute and data.

    python benchmarks/horizon_study.py tuning poor marks data_250 data_1000 data_5000 interactive
    python benchmarks/horizon_study.py two_or_three mismatch cost report

The hypothesis, stated before anything was run: at the same number of real transitions, model steps and updates, at least one
adaptive controller has a higher mean return than the best fixed horizon on the same seeds. It is tested in each setting by paired
differences to the fixed horizon with the highest IQM (picked on the same seeds, which favours it), Holm-corrected over the
controllers.

Settings: the batch protocol with 250, 1,000 and 5,000 random transitions; with 250 noisy ones, a narrow network and inputs
standardised by the data (`poor`); and the interactive protocol. Each writes benchmarks/results/horizons/SETTING.json.

tuning        one number of each controller in the setting `poor`, on seeds of its own; the presets hold the winners
marks         in the setting `poor`, controllers at as many marks as there are fixed horizons: is the best mark better than the
              best horizon, both picked on the same seeds?
two_or_three  the imagined loss and the variance of targets at H = 2 and 3, from the setting data_5000
mismatch      likelihood of many models against the return that each yields (objective mismatch, Lambert et al. 2020)
cost          the step of each controller against that of `fixed`, by ratio in one run; wants a quiet machine
report        tables and figures from the files
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import DynaQConfig, load, to_dict
from mbrl_jax.config.grid import vary
from mbrl_jax.report import horizon_figures
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.run import Run, frozen_seeds
from mbrl_jax.runs.sweep import sweep
from mbrl_jax.statistics import Estimate

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "horizons"
LENGTHS = (1, 2, 3, 5, 10, 20, 50)
TUNING_SEED = 1_000_000
CONTROLLERS = (
    "schedule",
    "threshold",
    "threshold_quantile",
    "accumulated",
    "macura",
    "m2ac",
    "infoprop",
    "infoprop_fused",
    "infoprop_ts1",
    "three_model",
    "mopo",
    "disagreement_penalty",
    "morel",
    "conservative",
    "oracle",  # no method: it asks the real dynamics
    "two_q_networks",
    "steve",
)
MODEL_UPDATES = 750  # of the first fit, whatever the data

SETTINGS = ("poor", "data_250", "data_1000", "data_5000", "interactive")
SETTING_NAMES = {
    "poor": "250 noisy transitions, narrow network",
    "data_250": "250 transitions",
    "data_1000": "1,000 transitions",
    "data_5000": "5,000 transitions",
    "interactive": "interactive, 5,000 transitions",
}
# what the tuning tries: the path of one number, several numbers that move together being joined by commas
TUNED: dict[str, tuple[str, tuple[float, ...]]] = {
    "threshold": ("mark", (0.1, 0.2, 0.4, 0.8)),
    "threshold_quantile": ("quantile", (0.8, 0.9, 0.95, 0.99)),
    "accumulated": ("budget", (0.5, 1.0, 2.0, 4.0)),
    "macura": ("scale", (0.5, 1.0, 2.0, 4.0)),
    "m2ac": ("length", (3.0, 5.0, 10.0, 20.0)),
    "infoprop": ("low", (0.1, 0.3, 0.5, 0.9)),
    "infoprop_fused": ("low", (0.1, 0.3, 0.5, 0.9)),
    "infoprop_ts1": ("low", (0.1, 0.3, 0.5, 0.9)),
    "three_model": ("high", (0.1, 0.2, 0.4, 0.8)),
    "mopo": ("penalty_weight", (0.03, 0.1, 0.3, 1.0)),
    "disagreement_penalty": ("penalty_weight", (0.1, 0.3, 1.0, 3.0)),
    "morel": ("mark", (0.3, 0.6, 1.2, 2.4)),
    "conservative": ("quantile", (0.8, 0.9, 0.95, 0.99)),
    "oracle": ("mark", (0.25, 0.5, 1.0, 2.0)),
}


# what the stage `marks` tries
MARKS: dict[str, tuple[str, tuple[float, ...]]] = {
    "threshold_quantile": ("quantile", (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97)),
    "oracle": ("mark", (0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0)),
}


def preset(name: str) -> DynaQConfig:
    config = load(ROOT / "configs" / "horizons" / f"horizon_{name}.yaml")
    assert isinstance(config, DynaQConfig)
    return config


def in_setting(config: DynaQConfig, setting: str) -> DynaQConfig:
    """An arm in a setting: the data and the model change, the horizon stays."""
    if setting == "interactive":
        model = dataclasses.replace(config.model, refit_batches=100)
        return dataclasses.replace(config, protocol="interactive", random_transitions=500, steps=4_500, model=model)
    size = 250 if setting == "poor" else int(setting.removeprefix("data_"))
    training_rows = size - size // 5
    batch = min(config.model.batch_size, training_rows // 2)
    model = dataclasses.replace(config.model, batch_size=batch, epochs=-(-MODEL_UPDATES // (training_rows // batch)))
    environment = config.environment
    if setting == "poor":
        model = dataclasses.replace(model, hidden=(16, 16), input_scale="data")
        environment = dataclasses.replace(environment, observation_noise=0.01)
    return dataclasses.replace(config, random_transitions=size, model=model, environment=environment)


def fixed_lengths(setting: str) -> list[DynaQConfig]:
    """The fixed horizons, which differ in traced numbers only."""
    lengths = {"imagination.cap": LENGTHS, "imagination.controller.length": LENGTHS}
    return vary(in_setting(preset("study"), setting), lengths)  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------------------------- arms


def arm_of(run: Run) -> dict[str, Any]:
    """What the study keeps of a run."""
    assert isinstance(run.config, DynaQConfig)
    outcome, metrics = run.result.outcome, run.result.metrics
    last, chosen = results.per_seed(outcome.returns_last), results.per_seed(outcome.returns_chosen)
    loss, scaled = (np.asarray(x, np.float64) for x in (metrics.update.loss, metrics.update.scaled_loss))
    return {
        **horizon_figures.describe(run),
        "return_last": last,
        "return_chosen": chosen,
        "iqm_last": statistics.bootstrap(last),
        "iqm_chosen": statistics.bootstrap(chosen),
        "at_least_475_chosen": float(np.mean(chosen >= 475)),
        "at_least_475_last": float(np.mean(last >= 475)),
        "frozen_seeds": frozen_seeds(outcome),
        "return_by_round": statistics.running_interval(metrics.curve_return),
        "loss_by_round": np.median(loss.mean(axis=2), axis=0),
        "target_variance_by_round": np.median((loss / np.maximum(scaled, 1e-12)).mean(axis=2), axis=0),
        "holdout_nll": np.asarray(run.result.fit.holdout_nll, np.float64)[:, -1].mean(axis=1),
        "seconds": run.seconds.fit + run.seconds.train,
    }


def plain(value: Any) -> Any:
    """Numbers as JSON has them, to five digits."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}")
    return value.item() if isinstance(value, np.generic) else value


def circumstances(seeds: int) -> dict[str, Any]:
    return {
        "seeds": seeds,
        "versions": packages.versions(execution.PACKAGES),
        "device": execution.device(),
        "git": packages.git_revision(),
        "precision": "float32",
    }


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    strict_json.write(path, plain(content), indent=None)


def read(name: str) -> dict[str, Any]:
    path = OUT / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path.relative_to(ROOT)} is missing: run the stage {name} first")
    return json.loads(path.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------------- stages


def keep(name: str, run: Run) -> dict[str, Any]:
    """An arm for the file; in the batch protocol all arms have the same model, whose map is kept once."""
    arm = plain(arm_of(run))
    if run.config.protocol == "batch" and name != f"fixed {LENGTHS[-1]}":
        del arm["map"]
    return arm


def stage_setting(setting: str, seeds: int, only: Sequence[str]) -> None:
    """All arms in one setting; each is on file as soon as it is done, and one on file with the same settings is not run again."""
    path = OUT / f"{setting}.json"
    content = {"setting": setting, **circumstances(seeds), "arms": {}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["seeds"] == seeds:
            content["arms"] = before["arms"]

    def on_file(name: str, config: DynaQConfig) -> bool:
        return name in content["arms"] and content["arms"][name]["config"] == plain(to_dict(config))

    fixed = fixed_lengths(setting)
    names = [f"fixed {length}" for length in LENGTHS]
    if not all(on_file(name, config) for name, config in zip(names, fixed, strict=True)):
        with Display.standard(f"{setting}, fixed horizons") as display:
            runs = list(runner.run_all(fixed, seeds, display=display, diagnose=True))
        for name, run in zip(names, runs, strict=True):
            content["arms"][name] = keep(name, run)
        write(path, content)
    for name in only:
        config = in_setting(preset(name), setting)
        if not on_file(name, config):
            with Display.standard(f"{setting}, {name}") as display:
                content["arms"][name] = keep(name, runner.run(config, seeds, display=display, diagnose=True))
            write(path, content)
    print_setting(setting)


def stage_tuning(seeds: int) -> None:
    """One number of each controller, in the setting where it should matter."""
    rows = []
    table = Table("controller", "number", "value", "chosen, IQM", "last, IQM", "horizon", title=f"setting poor, {seeds} seeds")
    for name, (number, values) in TUNED.items():
        path = f"imagination.{number}" if number == "penalty_weight" else f"imagination.controller.{number}"
        settings = {path: values}
        if number == "length":
            settings["imagination.cap"] = tuple(int(value) for value in values)
        if name == "three_model":
            settings["imagination.controller.low"] = tuple(value / 2 for value in values)
        with Display.standard(f"tuning, {name}") as display:
            runs = sweep(in_setting(preset(name), "poor"), settings, seeds, base_seed=TUNING_SEED, display=display)
        arms = [arm_of(run) for run in runs]
        best = max(range(len(arms)), key=lambda i: float(np.mean(arms[i]["return_chosen"]) + np.mean(arms[i]["return_last"])))
        for i, (value, arm) in enumerate(zip(values, arms, strict=True)):
            kept = ("return_last", "return_chosen", "iqm_last", "iqm_chosen", "realised_horizon", "kept")
            rows.append({"controller": name, "number": path, "value": value, "best": i == best, **{k: arm[k] for k in kept}})
            mark = "*" if i == best else ""
            table.add_row(
                name,
                number,
                f"{value:g}{mark}",
                str(arm["iqm_chosen"]),
                str(arm["iqm_last"]),
                f"{arm['realised_horizon']:.1f}",
            )
        write(OUT / "tuning.json", {"stage": "tuning", "base_seed": TUNING_SEED, **circumstances(seeds), "runs": rows})
    Console(width=120).print(table)


def stage_marks(seeds: int) -> None:
    """Controllers at as many marks as there are fixed horizons, where the model is poor."""
    content: dict[str, Any] = {"stage": "marks", "setting": "poor", **circumstances(seeds), "arms": {}}
    for name, (number, values) in MARKS.items():
        settings = {f"imagination.controller.{number}": values}
        with Display.standard(f"marks, {name}") as display:
            runs = sweep(in_setting(preset(name), "poor"), settings, seeds, display=display, diagnose=True)
        content["arms"] |= {f"{name} {value:g}": keep(name, run) for value, run in zip(values, runs, strict=True)}
        write(OUT / "marks.json", content)
    print_marks()


def print_marks() -> None:
    content, fixed = read("marks"), read("poor")["arms"]
    arms = {name: arm for name, arm in fixed.items() if name.startswith("fixed")} | content["arms"]
    table = Table(
        "arm", "horizon", "kept", "chosen, IQM", "last, IQM", "surfing", title="controllers at many marks, setting poor"
    )
    for name, arm in arms.items():
        estimates = [str(Estimate(*arm[what])) for what in ("iqm_chosen", "iqm_last", "surfing")]
        table.add_row(name, f"{arm['realised_horizon']:.1f}", f"{arm['kept']:.2f}", *estimates)
    Console(width=140).print(table)
    content["best_against_best"] = {}
    for policy in ("chosen", "last"):
        for family in MARKS:
            best, other = (
                max((name for name in arms if name.startswith(each)), key=lambda name: arms[name][f"iqm_{policy}"][0])
                for each in (family, "fixed")
            )
            a, b = (arms[name][f"return_{policy}"] for name in (best, other))
            told = {"ours": best, "theirs": other, "difference": statistics.paired_difference(a, b)}
            told["p"] = statistics.paired_p_value(a, b)
            content["best_against_best"][f"{family}, {policy}"] = told
            print(f"{policy}: {best} less {other}: {told['difference']}, p = {told['p']:.3f}")
    write(OUT / "marks.json", content)


def stage_mismatch(seeds: int) -> None:
    """Models of very different likelihood from the same data, and the return of the policies that each yields."""
    config = in_setting(preset("study"), "data_1000")
    rates, decays = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (0.0, 0.1)
    grid = [(rate, decay) for rate in rates for decay in decays]
    settings = {"model.learning_rate": [rate for rate, _ in grid], "model.weight_decay": [decay for _, decay in grid]}
    with Display.standard("objective mismatch") as display:
        runs = sweep(config, settings, seeds, display=display)
    points = []
    for (rate, decay), run in zip(grid, runs, strict=True):
        arm = arm_of(run)
        kept = ("holdout_nll", "return_chosen", "return_last", "surfing")
        points.append({"learning_rate": rate, "weight_decay": decay, **{name: arm[name] for name in kept}})
    content: dict[str, Any] = {"stage": "mismatch", **circumstances(seeds), "models": points}
    nll = np.concatenate([point["holdout_nll"] for point in points])
    for policy in ("chosen", "last"):
        returns = np.concatenate([point[f"return_{policy}"] for point in points])
        content[f"rank_correlation_{policy}"] = rank_correlation(nll, returns, seeds)
        good = nll < np.median(nll)
        content[f"rank_correlation_{policy}_better_half"] = rank_correlation(nll[good], returns[good], None)
    write(OUT / "mismatch.json", content)


def rank_correlation(nll: np.ndarray, returns: np.ndarray, seeds: int | None) -> Estimate:
    """Spearman's correlation of likelihood (minus the NLL) and return with its bootstrap interval, over seeds where all models
    have the same ones, else over models.
    """
    generator = np.random.default_rng(0)

    def of(places: np.ndarray) -> float:
        return float(scipy.stats.spearmanr(-nll[places], returns[places]).statistic)

    def resample() -> np.ndarray:
        if seeds is None:
            return generator.integers(0, len(nll), len(nll))
        chosen = generator.integers(0, seeds, seeds)
        return (np.arange(len(nll) // seeds)[:, None] * seeds + chosen[None]).ravel()

    low, high = np.quantile([of(resample()) for _ in range(1_000)], [0.025, 0.975])
    return Estimate(of(np.arange(len(nll))), float(low), float(high))


def _wait_for(function: Callable[..., Any], *arguments: Any) -> None:
    jax.block_until_ready(function(*arguments))


def stage_cost(repetitions: int) -> None:
    """The time of a round under each controller over that under `fixed`, all compiled first, then timed in turns."""
    arms = {"fixed 3": preset("study"), **{name: preset(name) for name in CONTROLLERS}}
    compiled: dict[str, Callable[[], Any]] = {}
    for name, config in arms.items():
        config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, episodes=5, steps=1))
        algorithm = dyna_q.make_train(config)
        state, _ = jax.jit(algorithm.fit)(jax.jit(algorithm.init)(seed_keys(0, 1)[0])[0], config)
        advance = jax.jit(algorithm.advance).lower(state, config).compile()
        compiled[name] = functools.partial(_wait_for, advance, state, config)
        compiled[name]()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, call in compiled.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    table = Table("arm", "seconds a round", "over fixed", title=f"{preset('study').round_steps} steps, median of {repetitions}")
    rows = {}
    for name, times in seconds.items():
        ratio = np.median(np.array(times) / np.array(seconds["fixed 3"]))
        rows[name] = {"median_seconds": np.median(times), "ratio": ratio, "seconds": times}
        table.add_row(name, f"{np.median(times):.4f}", f"{ratio:.2f}")
    write(OUT / "cost.json", {"stage": "cost", **circumstances(1), "arms": rows})
    Console().print(table)


# ----------------------------------------------------------------------------------------------------------------- report


def compare(arms: dict[str, Any], policy: str) -> dict[str, Any]:
    """The best fixed horizon for ``policy`` (last or chosen), and every adaptive arm's paired difference to it."""
    fixed = [name for name in arms if name.startswith("fixed")]
    best = max(fixed, key=lambda name: arms[name][f"iqm_{policy}"][0])
    reference = arms[best][f"return_{policy}"]
    others = [name for name in CONTROLLERS if name in arms]
    p_values = [statistics.paired_p_value(arms[name][f"return_{policy}"], reference) for name in others]
    rows = {}
    for name, p, corrected in zip(others, p_values, statistics.holm(p_values), strict=True):
        difference = statistics.paired_difference(arms[name][f"return_{policy}"], reference)
        rows[name] = {"difference": difference, "p": p, "p_holm": corrected}
    return {"best_fixed": best, "arms": rows}


def print_setting(setting: str) -> None:
    content = read(setting)
    arms = content["arms"]
    compared = {policy: compare(arms, policy) for policy in ("chosen", "last")}
    content["comparison"] = compared
    write(OUT / f"{setting}.json", content)
    caption = "differences: mean over seeds to the best fixed horizon ("
    caption += ", ".join(f"{policy}: {compared[policy]['best_fixed']}" for policy in compared)
    table = Table(title=f"{SETTING_NAMES[setting]}, {content['seeds']} seeds", caption=caption + "); p after Holm's correction")
    for column in ("arm", "horizon", "kept", "chosen, IQM", "difference", "p", "last, IQM", "difference", "p", "surfing", "s"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name in (*(f"fixed {length}" for length in LENGTHS), *CONTROLLERS):
        if name not in arms:
            continue
        arm, cells = arms[name], []
        for policy in ("chosen", "last"):
            cells.append(str(Estimate(*arm[f"iqm_{policy}"])))
            row = compared[policy]["arms"].get(name)
            cells += ["", ""] if row is None else [str(Estimate(*row["difference"])), f"{row['p_holm']:.2g}"]
        surfing = str(Estimate(*arm["surfing"]))
        table.add_row(name, f"{arm['realised_horizon']:.1f}", f"{arm['kept']:.2f}", *cells, surfing, f"{arm['seconds']:.0f}")
    Console(width=200).print(table)


def stage_two_or_three() -> None:
    """What the tutorial asks of a student: does a shorter rollout lower the variance?"""
    arms = read("data_5000")["arms"]
    table = Table("updates", "TD loss, H = 2", "H = 3", "variance of targets, H = 2", "H = 3", title="median over seeds")
    rounds = preset("study").round_steps
    told: dict[str, Any] = {"stage": "two_or_three", "updates": [], "loss": {}, "target_variance": {}}
    for length in (2, 3):
        told["loss"][str(length)] = arms[f"fixed {length}"]["loss_by_round"]
        told["target_variance"][str(length)] = arms[f"fixed {length}"]["target_variance_by_round"]
    for i in range(len(told["loss"]["2"])):
        told["updates"].append((i + 1) * rounds)
        if (i + 1) % 4 == 0:
            cells = [told[what][length][i] for what in ("loss", "target_variance") for length in ("2", "3")]
            table.add_row(f"{(i + 1) * rounds:,}", *(f"{cell:.3g}" for cell in cells))
    write(OUT / "two_or_three.json", told)
    Console(width=100).print(table)


def stage_report() -> None:
    """All tables and figures from the files."""
    done = [setting for setting in SETTINGS if (OUT / f"{setting}.json").exists()]
    for setting in done:
        print_setting(setting)
        arms = read(setting)["arms"]
        horizon_figures.draw_setting(arms, SETTING_NAMES[setting], OUT / f"{setting}.png")
    horizon_figures.draw_lengths(
        {SETTING_NAMES[setting]: read(setting)["arms"] for setting in done}, LENGTHS, CONTROLLERS, OUT / "lengths.png"
    )
    if (OUT / "marks.json").exists():
        print_marks()
        fixed = {name: arm for name, arm in read("poor")["arms"].items() if name.startswith("fixed")}
        families = {"fixed": "fixed", **{name: name for name in MARKS}}
        horizon_figures.draw_families(fixed | read("marks")["arms"], families, OUT / "marks.png")
    if (OUT / "mismatch.json").exists():
        mismatch = read("mismatch")
        horizon_figures.draw_mismatch(mismatch["models"], OUT / "mismatch.png")
        for name, value in mismatch.items():
            if name.startswith("rank_correlation"):
                print(f"{name.replace('_', ' ')}: {value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("tuning", *SETTINGS, "marks", "two_or_three", "mismatch", "cost", "report"))
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--tuning-seeds", type=int, default=16)
    parser.add_argument("--mismatch-seeds", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=15, help="of the cost")
    parser.add_argument(
        "--only", nargs="*", choices=CONTROLLERS, default=CONTROLLERS, help="controllers of a setting; others stay"
    )
    arguments = parser.parse_args()
    execution.use_all_cores()
    for stage in arguments.stages:
        if stage in SETTINGS:
            stage_setting(stage, arguments.seeds, arguments.only)
        elif stage == "tuning":
            stage_tuning(arguments.tuning_seeds)
        elif stage == "marks":
            stage_marks(arguments.seeds)
        elif stage == "mismatch":
            stage_mismatch(arguments.mismatch_seeds)
        elif stage == "cost":
            stage_cost(arguments.repetitions)
        else:
            {"two_or_three": stage_two_or_three, "report": stage_report}[stage]()


if __name__ == "__main__":
    main()
