"""When the model's likelihood is the wrong thing to improve: losses that know the value, and how much of the data is real.

    python benchmarks/mismatch_study.py train shares losses       # every arm that is not on file yet
    python benchmarks/mismatch_study.py train losses --arms narrow_16_vagram narrow_16_likelihood
    python benchmarks/mismatch_study.py table
    python benchmarks/mismatch_study.py gpu                       # narrow models with 16 distractors, and all shares

Dyna-Q on CartPole-v1, interactive: 500 random transitions and 1,500 more, eight updates for each. Returns are means of 20 greedy
episodes of the last policy. An arm is trained, written to benchmarks/results/mismatch/STUDY_ARM.json, and not trained again.

losses   A `narrow` model has two hidden layers of 8 units, a `wide` one of 64. The observation has 0, 1, 4 or 16 distractors.
         Members are Gaussian and fitted by the likelihood, by VaGraM or by IterVAML with its correction; or they are
         deterministic and fitted by the squared error (`squared`). Losses that know the value begin after the first fit, which is
         by the likelihood. A quarter of each minibatch is real; `imagined` is the narrow model with no real rows.
shares   `plain` has the wide model; `narrow` the narrow one; `starved` is the wide one with 2 epochs of its first fit and 2
         minibatches of each refit; with `distracted` the observation has 16 distractors. The real share of a minibatch is fixed
         at 0, 0.25, 0.5, 0.75 or 1, or follows the model's share in the value's error (`adaptive`, from 0.25 to 0.95); by
         `members` the model's error is its members' deviation; with `both` rollouts of at most 10 steps follow the share too.

swingup  MBPO on cartpole-swingup with 16 distractors, by preset swingup_mbpo with 12,000 steps of the simulator and ten greedy
         episodes: deterministic members of 16 units a layer fitted by the squared error or by VaGraM, with half of each minibatch
         real; and the squared error with real shares of 5 and 95 %, and the adaptive one from 5 to 95 %.
swingup4 The same with 4 distractors and 16,000 steps.
hopper   The same on Brax's hopper, by preset hopper_mbpo with 4 distractors and 5,000 steps.

In every arm a minibatch is gathered from both replays, so that shares differ in nothing else. The arms of a study share their
seeds.

Written down before the runs, on 2026-11-28:

(a) With 16 distractors and a narrow model a loss that knows the value has a higher IQM than the likelihood.
(b) The adaptive share is in no setting significantly below the best fixed one (paired, Holm-corrected over the settings), and
    above the worst fixed one in all of them.
(c) Over the seeds of a setting the return falls with the model's share in the value's error (a negative rank correlation), and
    goes with it more closely than with the model's squared error on held-out rows.

(d) On the swing-up with 4 distractors the adaptive share is not significantly below the better of 5 and 95 %, and above the
    worse. (Written down after four arms with 16 distractors, where nothing had learned to swing up.)

(e) On the hopper VaGraM is above the squared error, and the adaptive share as in (d). (Written down on 2026-11-29, after all arms
    of the swing-up and before any of the hopper.)

Tried before, on seeds 0 to 7 with 2,000 steps: fixed shares of 0, 0.5 and 1 in `plain`, and an adaptive one from 0.05, which at a
model's share of 0.03 learned little more than none; that is why it begins at 0.25. And two losses of the narrow model. The arms
without real rows were added after three losses of the narrow model with 16 distractors had been seen, and `members` after the
fixed shares of `plain` and `distracted`, where the best share was larger with the better model.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
OUT = ROOT / "benchmarks" / "results" / "mismatch"
WIDTHS = {"narrow": [8, 8], "wide": [64, 64], "imagined": [8, 8]}
DISTRACTORS = (0, 16, 4, 1)  # in the order of their runs
LOSSES: dict[str, dict[str, Any]] = {
    "likelihood": {"prediction": "gaussian", "loss": "likelihood"},
    "squared": {"prediction": "deterministic", "loss": "likelihood"},
    "vagram": {"prediction": "gaussian", "loss": "vagram"},
    "itervaml": {"prediction": "gaussian", "loss": "itervaml"},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "narrow": {"model": {"hidden": WIDTHS["narrow"]}},
    "starved": {"model": {"epochs": 2, "refit_batches": 2}},
    "distracted": {"environment": {"distractors": 16}},
}
FIXED = {f"{round(100 * share)}": {"least": share, "most": share} for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
RULES = ("adaptive", "members", "both")
ADAPTIVE = {"least": 0.25, "most": 0.95}
BASE: dict[str, dict[str, Any]] = {
    "model": {"laplacian": "none", "hidden": WIDTHS["wide"]},
    "agent": {"updates_per_step": 8, "real_ratio": 0.0},
    "mixing": {"rule": "adaptive", **ADAPTIVE},
    "selection": {"choose": False},
    "evaluation": {"episodes": 20, "curve_episodes": 5},
}
MBPO: dict[str, dict[str, dict[str, Any]]] = {
    "squared": {},
    "vagram": {"model": {"loss": "vagram"}},
    "5": {"mixing": {"least": 0.05, "most": 0.05}},
    "95": {"mixing": {"least": 0.95, "most": 0.95}},
    "adaptive": {"mixing": {"least": 0.05, "most": 0.95}},
}
GPU_SEEDS = 256


class MBPOStudy(NamedTuple):
    """A task that MBPO learns."""

    preset: str
    distractors: int
    steps: int  # decisions after the random ones
    title: str


MBPO_STUDIES = {
    "swingup": MBPOStudy("swingup_mbpo", 16, 2_500, "cartpole-swingup"),
    "swingup4": MBPOStudy("swingup_mbpo", 4, 3_500, "cartpole-swingup"),
    "hopper": MBPOStudy("hopper_mbpo", 4, 4_000, "hopper"),
}
STUDIES = ("shares", "losses", *MBPO_STUDIES)


def config_of(*changes: dict[str, dict[str, Any]]) -> RunConfig:
    """The config of CartPole with other settings in its groups."""
    told = to_dict(load(ROOT / "configs" / "cartpole_interactive.yaml"))
    return _changed({**told, "steps": 1_500, "round_steps": 150}, BASE, *changes)


def _changed(told: dict[str, Any], *changes: dict[str, dict[str, Any]]) -> RunConfig:
    told = dict(told)
    for change in changes:
        for group, settings in change.items():
            told[group] = {**told[group], **settings}
    return from_dict(told)


def arms(study: str) -> dict[str, RunConfig]:
    """The configs of a study by name."""
    if study in MBPO_STUDIES:
        return dict(_mbpo(MBPO_STUDIES[study]))
    return dict({"losses": _losses, "shares": _shares}[study]())


def _losses() -> Iterator[tuple[str, RunConfig]]:
    for (width, hidden), count, (loss, model) in itertools.product(WIDTHS.items(), DISTRACTORS, LOSSES.items()):
        if width == "narrow" or count in (0, 16):
            share = 0.0 if width == "imagined" else 0.25
            mixing = {"least": share, "most": share}
            change = {"model": {"hidden": hidden, **model}, "environment": {"distractors": count}, "mixing": mixing}
            yield f"{width}_{count}_{loss}", config_of(change)


def _shares() -> Iterator[tuple[str, RunConfig]]:
    rule = {"cap": 10, "controller": {"kind": "model_share", "longest": 10}}
    for setting, change in SETTINGS.items():
        for share, mixing in FIXED.items():
            yield f"{setting}_{share}", config_of(change, {"mixing": mixing})
        yield f"{setting}_adaptive", config_of(change)
        yield f"{setting}_members", config_of(change, {"mixing": {"measure": "members"}})
        yield f"{setting}_both", config_of(change, {"imagination": rule})


def _mbpo(study: MBPOStudy) -> Iterator[tuple[str, RunConfig]]:
    told = {**to_dict(load(ROOT / "configs" / f"{study.preset}.yaml")), "steps": study.steps}
    base: dict[str, dict[str, Any]] = {
        "environment": {"distractors": study.distractors},
        "model": {"hidden": [16, 16], "refit_passes": 1, "patience": None},
        "mixing": {"rule": "adaptive", "least": 0.5, "most": 0.5},
    }
    for name, change in MBPO.items():
        yield name, _changed(told, base, change)


def keep(run: Run) -> dict[str, Any]:
    """What is kept of an arm besides what every study keeps."""
    metrics = run.result.metrics
    return {
        "model_share": np.round(np.asarray(metrics.model_share, np.float64), 4).tolist(),  # [seeds, rounds]
        "holdout_mse": np.asarray(metrics.refit.holdout_mse, np.float64)[:, -1].mean(axis=-1).tolist(),  # [seeds]
        "depth_by_round": np.asarray(metrics.lanes.depth, np.float64).mean(axis=(0, 2)).tolist(),
    }


def stage_train(studies: Sequence[str], names: Sequence[str], seeds: int, out: Path) -> None:
    """Train the arms that are not on file."""
    arm_by_arm.train({study: arms(study) for study in studies}, names, seeds, out, keep, indent=None)


def returns_of(found: dict[str, Any], name: str) -> np.ndarray:
    """[seeds] returns of an arm."""
    return np.asarray(found[name]["returns"], np.float64)


def compared(one: np.ndarray, other: np.ndarray) -> tuple[statistics.Estimate, float]:
    """The IQM of paired differences [seeds], and the p-value of their signed ranks."""
    difference = one - other
    p = 1.0 if not difference.any() else float(scipy.stats.wilcoxon(difference).pvalue)
    return statistics.estimate(difference), p


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979)."""
    order, largest, corrected = np.argsort(p), 0.0, [0.0] * len(p)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def table_of_losses(found: dict[str, Any]) -> None:
    """Print returns by loss, and what value-aware losses are ahead of the likelihood by."""
    table = Table("model", "distractors", *LOSSES, title="return by the model's loss: IQM, 95 %")
    differences: list[tuple[str, statistics.Estimate, float]] = []
    for width, count in itertools.product(WIDTHS, sorted(DISTRACTORS)):
        names = {loss: f"losses_{width}_{count}_{loss}" for loss in LOSSES}
        if not all(name in found for name in names.values()):
            continue
        table.add_row(width, str(count), *(str(statistics.estimate(returns_of(found, name))) for name in names.values()))
        plain = returns_of(found, names["likelihood"])
        differences += [
            (f"{width}, {count} distractors: {loss}", *compared(returns_of(found, name), plain))
            for loss, name in names.items()
            if loss != "likelihood"
        ]
    Console().print(table)
    for (name, estimate, _), p in zip(differences, holm([p for _, _, p in differences]), strict=True):
        print(f"{name} less likelihood: {estimate}, corrected p {p:.3g}")


def table_of_shares(found: dict[str, Any]) -> None:
    """Print returns by real share, and how the rules compare with the best and the worst fixed one."""
    shares = [*FIXED, *RULES]
    there = [name for name in SETTINGS if all(f"shares_{name}_{share}" in found for share in shares)]
    table = Table("share, %", *there, title="return by real share: IQM, 95 %")
    for share in shares:
        table.add_row(share, *(str(statistics.estimate(returns_of(found, f"shares_{name}_{share}"))) for name in there))
    rounds = [np.asarray(found[f"shares_{name}_adaptive"]["model_share"]).mean(axis=0) for name in there]
    table.add_row("model's share", *(f"{each[0]:.2f} to {each[-1]:.2f}" for each in rounds))
    Console().print(table)
    rows: list[tuple[str, str, str, statistics.Estimate, float]] = []
    for name in there:
        returns = {share: returns_of(found, f"shares_{name}_{share}") for share in shares}
        iqm = {share: statistics.interquartile_mean(returns[share]) for share in FIXED}
        ends = {"best": max(FIXED, key=iqm.__getitem__), "worst": min(FIXED, key=iqm.__getitem__)}
        for rule, (which, share) in itertools.product(RULES, ends.items()):
            label = f"{name}: {rule} less the {which} fixed share ({share} %)"
            rows.append((which, rule, label, *compared(returns[rule], returns[share])))
    for which, rule in itertools.product(("best", "worst"), RULES):
        here = [row for row in rows if row[:2] == (which, rule)]
        for (_, _, name, estimate, _), p in zip(here, holm([row[-1] for row in here]), strict=True):
            print(f"{name}: {estimate}, corrected p {p:.3g}")


def table_of_mbpo(found: dict[str, Any], study: str) -> None:
    """Print returns of MBPO, and what arms are ahead of the squared error with half real rows by, and of others."""
    here = {name: returns_of(found, f"{study}_{name}") for name in MBPO if f"{study}_{name}" in found}
    if set(here) < set(MBPO):
        return
    told_of = MBPO_STUDIES[study]
    table = Table("arm", "return", "model's share", title=f"{told_of.title}, {told_of.distractors} distractors: IQM, 95 %")
    for name, returns in here.items():
        share = np.asarray(found[f"{study}_{name}"]["model_share"]).mean(axis=0)
        table.add_row(name, str(statistics.estimate(returns)), f"{share[0]:.2f} to {share[-1]:.2f}")
    Console().print(table)
    pairs = [(name, "squared") for name in MBPO if name != "squared"] + [("adaptive", "5"), ("adaptive", "95")]
    told = [compared(here[one], here[other]) for one, other in pairs]
    for (one, other), (estimate, _), p in zip(pairs, told, holm([p for _, p in told]), strict=True):
        print(f"{study}: {one} less {other}: {estimate}, corrected p {p:.3g}")


def table_of_ranks(found: dict[str, Any]) -> None:
    """Print how returns go with the model's error and with its share in the value's error, over all seeds of arms that differ in
    nothing but the loss or the share.
    """
    table = Table("group", "seeds", "with the squared error", "with the model's share", title="rank correlation with the return")
    groups = {f"losses_{width}_{count}_": list(LOSSES) for width, count in itertools.product(WIDTHS, DISTRACTORS)}
    groups |= {f"{study}_": list(MBPO) for study in MBPO_STUDIES}
    groups |= {f"shares_{setting}_": [*FIXED, *RULES] for setting in SETTINGS}
    for prefix, members in groups.items():
        here = [found[prefix + name] for name in members if prefix + name in found]
        if len(here) < len(members):
            continue
        returns = np.concatenate([told["returns"] for told in here])
        error = np.concatenate([told["holdout_mse"] for told in here])
        share = np.concatenate([np.asarray(told["model_share"])[:, -1] for told in here])
        cells = (f"{scipy.stats.spearmanr(each, returns).statistic:+.2f}" for each in (error, share))
        table.add_row(prefix.strip("_").replace("_", ", "), str(len(returns)), *cells)
    Console().print(table)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw returns by distractors for every loss, and by real share in every setting with the rule's beside them."""
    figure, axes = figures.new_figure(2)
    counts = [each for each in sorted(DISTRACTORS) if all(f"losses_narrow_{each}_{loss}" in found for loss in LOSSES)]
    for loss in LOSSES if counts else ():
        told = [statistics.estimate(returns_of(found, f"losses_narrow_{count}_{loss}")) for count in counts]
        _line(axes[0], range(len(counts)), told, loss)
    axes[0].set_xticks(range(len(counts)), [str(count) for count in counts])
    axes[0].set_xlabel("distractors, narrow model")
    places = [int(share) / 100 for share in FIXED]
    for setting in SETTINGS:
        files = [f"shares_{setting}_{share}" for share in FIXED]
        if all(name in found for name in files):
            colour = _line(axes[1], places, [statistics.estimate(returns_of(found, name)) for name in files], setting)
            for rule, marker in (("adaptive", "*"), ("both", "D")):
                if (name := f"shares_{setting}_{rule}") in found:
                    model = np.asarray(found[name]["model_share"]).mean()
                    share = ADAPTIVE["least"] + (ADAPTIVE["most"] - ADAPTIVE["least"]) * model
                    one = statistics.estimate(returns_of(found, name))
                    error = [[one.value - one.low], [one.high - one.value]]
                    axes[1].errorbar([share], [one.value], error, color=colour, marker=marker, markersize=8, linewidth=0.8)
    axes[1].set_xlabel("real share (stars: adaptive, diamonds: both)")
    for ax in axes:
        ax.set_ylabel("return: IQM, 95 %")
        if ax.lines:
            ax.legend(frameon=False, fontsize=7)
    figure.savefig(path)


def _line(ax: Any, places: Any, told: list[statistics.Estimate], label: str) -> Any:
    """A line of estimates with their intervals; its colour."""
    middle = [each.value for each in told]
    (line,) = ax.plot(places, middle, "o-", markersize=3, linewidth=1.4, label=label)
    ax.fill_between(
        places, [each.low for each in told], [each.high for each in told], color=line.get_color(), alpha=0.12, linewidth=0
    )
    return line.get_color()


def stage_table(out: Path) -> None:
    """Print what is on file, and draw it."""
    found = {path.stem: strict_json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*_*.json"))}
    table_of_losses(found)
    table_of_shares(found)
    for study in MBPO_STUDIES:
        table_of_mbpo(found, study)
    table_of_ranks(found)
    draw(found, out / "mismatch.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "table", "gpu"))
    parser.add_argument("studies", nargs="*", metavar="study", help=f"of {', '.join(STUDIES)}; all by default")
    parser.add_argument("--arms", nargs="*", default=())
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    for study in given.studies:
        if study not in STUDIES:
            parser.error(f"study: {study!r} is not known; it must be one of {', '.join(STUDIES)}")
    if given.stage == "table":
        stage_table(given.out)
    elif given.stage == "train":
        stage_train(given.studies or STUDIES, given.arms, given.seeds, given.out)
    else:
        place = given.out / "gpu"
        stage_train(["losses"], [f"{width}_16_{loss}" for width in WIDTHS for loss in LOSSES], GPU_SEEDS, place)
        stage_train(["shares"], (), GPU_SEEDS, place)
        stage_table(place)


if __name__ == "__main__":
    main()
