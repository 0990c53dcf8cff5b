"""What a run leaves in its folder: the settings, a summary, the metrics, and the policies.

* ``config.yaml``: the settings, which :func:`mbrl_jax.config.load` reads back;
* ``summary.json``: the figures (:func:`summarise`);
* ``metrics.npz``: every metric, arrays ``[seeds, rounds, ...]`` under their path in the algorithm's ``Metrics``;
* ``policies.npz``: network parameters ``[seeds, ...]`` under ``last/…`` and, with a model, ``chosen/…``;
* ``diagnosis.npz``, if it was asked for: :class:`mbrl_jax.imagination.diagnosis.Diagnosis`, ``[seeds, ...]``.
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax import statistics
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, algorithm_name, load, save, to_dict
from mbrl_jax.runs.runner import Run, frozen_seeds
from mbrl_jax.statistics import SUCCESS_MARKS


def make_folder(path: str | Path) -> Path:
    """A new folder for results; an empty one will do.

    Raises:
      ConfigError: something is there already, or the folder cannot be made.

    """
    folder = Path(path)
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return folder
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"out: {str(folder)!r} exists already and is left as it is; name a new folder") from None
    except OSError as error:
        raise ConfigError(f"out: {str(folder)!r} cannot be made: {error}") from error
    return folder


def per_seed(returns: Any) -> np.ndarray:
    """[seeds] mean returns of episodes [seeds, n]."""
    return np.asarray(returns, np.float64).mean(axis=1)


def summarise(run: Run) -> dict[str, Any]:
    """The figures of a run, as the fields of ``summary.json``.

    ``return_last`` and ``return_chosen`` hold one number a seed, the mean of its evaluation episodes; what the model-free arm
    cannot have (a chosen policy) is null. Rates are over the training phase, without compilation.
    """
    config, outcome = run.config, run.result.outcome
    last = per_seed(outcome.returns_last)
    chosen = None if outcome.returns_chosen is None else per_seed(outcome.returns_chosen)
    arms = {"last": last, "chosen": chosen}
    seeds = len(last)
    imagined = 0
    if isinstance(config, DynaQConfig):
        imagined = config.steps * config.imagination.lanes * config.imagination.steps

    def for_each(statistic: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        return {arm: None if scores is None else statistic(scores) for arm, scores in arms.items()}

    def interval(scores: np.ndarray) -> dict[str, Any]:
        estimate = statistics.bootstrap(scores)
        return {"value": estimate.value, "ci95": [estimate.low, estimate.high]}

    def share_at_least(mark: float) -> Callable[[np.ndarray], float]:
        return lambda scores: float(statistics.fraction_at_least(mark)(scores))

    collected = np.asarray(run.result.collected)
    return {
        "config": to_dict(config),
        "algorithm": algorithm_name(config),
        "protocol": config.protocol,
        "seeds": seeds,
        "base_seed": run.base_seed,
        "frozen_seeds": frozen_seeds(outcome),
        "real_transitions": config.real_transitions,
        "imagined_transitions": imagined,
        "updates": config.steps * config.agent.updates_per_step,
        "random_return": None if np.all(np.isnan(collected)) else float(np.nanmean(collected)),
        "return_last": last.tolist(),
        "return_chosen": None if chosen is None else chosen.tolist(),
        "iqm": for_each(interval),
        "fraction_at_least": {str(mark): for_each(share_at_least(mark)) for mark in SUCCESS_MARKS},
        "seconds": {
            "compile": run.seconds.compile,
            "run": run.seconds.run,
            "phases": {name: getattr(run.seconds, name) for name in run.seconds._fields if name != "compile"},
        },
        "real_steps_per_second": seeds * config.steps / run.seconds.train,
        "imagined_transitions_per_second": seeds * imagined / run.seconds.train,
        "bytes_per_seed": {"state": run.state_bytes_per_seed, "temporary": run.temporary_bytes_per_seed},
        "backend": run.backend.name,
        "versions": versions(run.backend.packages),
        "device": run.backend.device,
        "precision": run.backend.precision,
        "git": git_revision(),
    }


def write(run: Run, folder: Path) -> dict[str, Any]:
    """Write everything but the figures into an existing folder; returns the summary."""
    summary = summarise(run)
    save(run.config, folder / "config.yaml")
    _save_arrays(folder / "metrics.npz", flatten({"round": run.result.metrics, "fit": run.result.fit}))
    outcome = run.result.outcome
    _save_arrays(folder / "policies.npz", flatten({"last": outcome.last, "chosen": outcome.chosen}))
    if run.diagnosis is not None:
        _save_arrays(folder / "diagnosis.npz", flatten(run.diagnosis))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def load_policies(folder: str | Path) -> tuple[ModelFreeQConfig, dict[str, Any]]:
    """The settings of a run and its policies, ``last`` and perhaps ``chosen``, as parameters [seeds, ...].

    Raises:
      ConfigError: the folder does not hold a run.

    """
    folder = Path(folder)
    config = load(folder / "config.yaml")
    try:
        with np.load(folder / "policies.npz", allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'policies.npz'}: it cannot be read: {error}") from error
    policies: dict[str, Any] = {}
    for path, array in arrays.items():
        *inner, leaf = path.split("/")
        place = policies
        for name in inner:
            place = place.setdefault(name, {})
        place[leaf] = array
    return config, policies


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their path, names joined by slashes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of what a figure depends on: Python, this library and ``packages``."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("mbrl-jax", *packages)}}


def git_revision() -> str | None:
    """The revision of the source, with ``+changes`` if files other than results differ from it; none outside a checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a checkout of this source, not one that an installation lies in
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
