"""What a run leaves in its folder: the settings, a summary, the metrics, and the policies.

* ``config.yaml``: the settings, which :func:`mbrl_jax.config.load` reads back;
* ``summary.json``: the figures (:func:`summarise`);
* ``metrics.parquet``: every metric in one tidy table (:mod:`mbrl_jax.runs.metrics`), for pandas, polars and the like;
* ``policies.npz``: network parameters ``[seeds, ...]`` under ``last/…`` and, with a model, ``chosen/…``;
* ``model.npz``, with a model: the parameters that it imagined with at the end, ``[seeds, ...]``, of an ensemble
  :class:`mbrl_jax.model.ensemble.Members`;
* ``outcome.npz``: returns of the final episodes ``[seeds, n]`` and what else there is to a seed's end;
* ``held_out.npz``, with a model of logged transitions: its errors on held-out episodes,
  :class:`mbrl_jax.imagination.validation.HeldOut`, ``[seeds, ...]``;
* ``transitions.parquet``, if they are recorded: all real transitions of all seeds (:mod:`mbrl_jax.runs.transitions`);
* ``diagnosis.npz``, if it was asked for: :class:`mbrl_jax.imagination.diagnosis.Diagnosis`, ``[seeds, ...]``.

:func:`read` makes the run of them again. ``summary.json`` is written last: where it is, the rest is whole.
"""

import contextlib
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax import packages, statistics, strict_json, trees
from mbrl_jax.algorithms.registry import algorithm_of, world_of
from mbrl_jax.algorithms.training import Outcome, Result
from mbrl_jax.config import ConfigError, RunConfig, algorithm_name, expand, load, save, to_dict
from mbrl_jax.environments import Environment, environment_of, success_marks
from mbrl_jax.imagination.diagnosis import ByDepth, Diagnosis, ErrorMap
from mbrl_jax.imagination.validation import LEVELS, HeldOut
from mbrl_jax.packages import version_of
from mbrl_jax.runs import engines, metrics
from mbrl_jax.runs.run import Backend, Run, Seconds, diverged_model_seeds, frozen_seeds

FORMAT = 1
RUN, CHECKPOINTS, SHARDS = "run.json", "checkpoints", "shards"
Draw = Callable[[Run, Path], None]  # draws a run into its folder
NO_REAL_RETURN = "no real return was measured: every return is of episodes that the model imagined"
OUTCOME = ("returns_last", "returns_chosen", "frozen", "updates")  # of what outcome.npz holds


def per_seed(returns: Any) -> np.ndarray:
    """[seeds] mean returns of episodes [seeds, n]."""
    return np.asarray(returns, np.float64).mean(axis=1)


def summarise(run: Run) -> dict[str, Any]:
    """The figures of a run, as the fields of ``summary.json``.

    ``return_last`` and ``return_chosen`` hold one number a seed, the mean of its evaluation episodes; what the model-free arm
    cannot have (a chosen policy) is null, and so is a number that is not finite. Where ``evaluated_in`` is the model, these are
    imagined episodes, no real return was measured, and no marks are asked. Rates are over the training phase, without
    compilation.
    """
    config, outcome = run.config, run.result.outcome
    last = per_seed(outcome.returns_last)
    chosen = None if outcome.returns_chosen is None else per_seed(outcome.returns_chosen)
    arms = {"last": last, "chosen": chosen}
    seeds = len(last)
    imagined = config.steps * config.imagined_per_step

    def for_each(statistic: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        return {arm: None if scores is None else statistic(scores[counted(scores)]) for arm, scores in arms.items()}

    def counted(scores: np.ndarray) -> np.ndarray:
        """All seeds but those that a failed simulator has left without a return."""
        failed = np.isin(np.arange(seeds), list(run.failures))
        return ~failed | np.isfinite(scores)

    def share_at_least(mark: float) -> Callable[[np.ndarray], float]:
        return lambda scores: float(statistics.fraction_at_least(mark)(scores))

    collected = np.asarray(run.result.collected)
    imagining = config.evaluation.where == "model"
    marks = () if imagining else success_marks(config.environment.name)
    return {
        "config": to_dict(config),
        "algorithm": algorithm_name(config),
        "protocol": config.protocol,
        "seeds": seeds,
        "base_seed": run.base_seed,
        "first_seed": run.first_seed,
        "frozen_seeds": frozen_seeds(outcome),
        "diverged_model_seeds": diverged_model_seeds(outcome),
        "failed_simulators": {str(run.first_seed + place): text for place, text in run.failures.items()},
        "real_transitions": config.real_transitions,
        "imagined_transitions": imagined,
        "updates": config.updates,
        "random_return": None if np.all(np.isnan(collected)) else float(np.nanmean(collected)),
        "data": None if config.data is None else {"files": list(config.data), "held_out": summarise_held_out(outcome.held_out)},
        "evaluated_in": config.evaluation.where,
        "note": NO_REAL_RETURN if imagining else None,
        "imagined_by_member": by_member(outcome) if imagining else None,
        "return_last": last.tolist(),
        "return_chosen": None if chosen is None else chosen.tolist(),
        "iqm": for_each(lambda scores: statistics.estimate(scores).as_json()),
        "fraction_at_least": {str(mark): for_each(share_at_least(mark)) for mark in marks},
        "seconds": {
            "compile": run.seconds.compile,
            "run": run.seconds.run,
            "phases": {name: getattr(run.seconds, name) for name in run.seconds._fields if name != "compile"},
        },
        "real_steps_per_second": seeds * config.steps / run.seconds.train,
        "imagined_transitions_per_second": seeds * imagined / run.seconds.train,
        "bytes_per_seed": {"state": run.state_bytes_per_seed, "temporary": run.temporary_bytes_per_seed},
        "backend": run.backend.name,
        "versions": packages.versions(run.backend.packages),
        "device": run.backend.device,
        "precision": run.backend.precision,
        "engine": engines.as_json(run.backend.engine),
        "git": packages.git_revision(),
    }


def by_member(outcome: Outcome) -> dict[str, Any] | None:
    """Mean imagined returns over seeds in each of M members, for each policy [M], from the lowest; none if members are unknown.

    A policy that only some members are pleased with is one that their errors may have made.
    """
    if outcome.held_out is None:
        return None
    members = np.asarray(outcome.held_out.error).shape[1]

    def told(returns: Any) -> list[float] | None:
        if returns is None:
            return None
        each = np.asarray(returns, np.float64)
        return np.sort(each.reshape(len(each), members, -1).mean(axis=2), axis=1).mean(axis=0).tolist()

    return {"last": told(outcome.returns_last), "chosen": told(outcome.returns_chosen)}


def summarise_held_out(measured: HeldOut | None) -> dict[str, Any] | None:
    """Means over seeds and members of the model's errors on held-out episodes; a number that nothing tells is null."""
    if measured is None:
        return None

    def mean(values: Any) -> Any:
        each = np.asarray(values, np.float64)
        return np.where(np.isfinite(each), each, np.nan).mean(axis=tuple(range(each.ndim - 1))).tolist()

    coverage = None if measured.coverage is None else dict(zip(map(str, LEVELS), mean(measured.coverage), strict=True))
    return {
        "error_after_steps": mean(measured.error),
        "still_after_steps": mean(measured.still),
        "coverage": coverage,
        "reward_error": float(np.mean(mean(measured.reward_error))),
        "missed_terminations": float(np.mean(mean(measured.missed))),
        "false_terminations": float(np.mean(mean(measured.false_alarms))),
    }


def write(run: Run, folder: Path, draw: Draw | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write the results into an existing folder and draw them; return the summary, which is written last.

    A figure that cannot be drawn is reported by ``say``; the results are there without it.

    Raises OSError: something cannot be written.
    """
    summary = summarise(run)
    outcome = run.result.outcome
    arrays = {
        "policies.npz": {"last": outcome.last, "chosen": outcome.chosen},
        "model.npz": outcome.model,
        "outcome.npz": {name: getattr(outcome, name) for name in OUTCOME},
        "held_out.npz": outcome.held_out,
        "diagnosis.npz": run.diagnosis,
    }
    with new_file(folder / "config.yaml") as path:
        save(run.config, path)
    with new_file(folder / "metrics.parquet") as path:
        metrics.write(path, metrics.as_table(run.config, run.result.collected, run.result.fit, run.result.metrics))
    for name, tree in arrays.items():
        if tree is not None:
            with new_file(folder / name) as path, path.open("wb") as file:
                np.savez_compressed(file, **typing.cast(Any, trees.flatten(tree)))
    if draw is not None:
        draw_or_say(lambda: draw(run, folder), say)
    write_json(folder / "summary.json", summary)
    return summary


def draw_or_say(draw: Callable[[], None], say: Callable[[str], None]) -> None:
    """Draw figures; where that fails say so and go on, unless the disk is at fault."""
    try:
        draw()
    except OSError:
        raise
    except Exception as error:
        say(f"the figures could not be drawn ({type(error).__name__}: {error}); the results are kept without them")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` in one step, once what was written is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.new")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step, as :func:`new_file`. Raises OSError: it cannot be written."""
    with new_file(path) as temporary:
        strict_json.write(temporary, content)


def read(folder: str | Path, *, environment: Environment | None = None) -> Run:
    """A finished run, from its folder.

    Args:
      folder: the run's.
      environment: the one that it was trained in, where its name is not known.

    Raises:
      ConfigError: the folder holds none, or something in it cannot be read.

    """
    folder = expand(folder, "folder")
    summary, config = read_summary(folder), read_config(folder)
    task = environment_of(config.environment, environment)
    arrays = {name: trees.nest(load_arrays(folder / f"{name}.npz")) for name in ("policies", "outcome")}
    try:
        collected, fit, measured = metrics.read(folder / "metrics.parquet", config)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder / 'metrics.parquet'}: it cannot be read: {error}") from error
    model = diagnosis = held_out = None
    if (folder / "model.npz").exists():
        found = trees.nest(load_arrays(folder / "model.npz"))
        try:
            model = trees.like(model_template(config, task), found)
        except ValueError as error:
            raise ConfigError(f"{folder / 'model.npz'}: {error}; it was written for other settings") from error
    if (folder / "diagnosis.npz").exists():
        found = trees.nest(load_arrays(folder / "diagnosis.npz"))
        diagnosis = Diagnosis(ByDepth(**found["by_depth"]), ErrorMap(**found["map"]))
    if (folder / "held_out.npz").exists():
        found = load_arrays(folder / "held_out.npz")
        held_out = HeldOut(**{name: found.get(name) for name in HeldOut._fields})  # type: ignore[arg-type]
    template = algorithm_of(config).params(config, task)
    last, chosen = (filled(template, arrays["policies"].get(name)) for name in ("last", "chosen"))
    ended: dict[str, Any] = {name: arrays["outcome"].get(name) for name in OUTCOME}
    outcome = Outcome(last=last, chosen=chosen, model=model, held_out=held_out, **ended)
    try:
        packages = tuple(name for name in summary["versions"] if name not in ("python", "mbrl-jax"))
        return Run(
            config,
            summary["base_seed"],
            Result(outcome, collected, fit, measured),
            Seconds(summary["seconds"]["compile"], **summary["seconds"]["phases"]),
            Backend(
                summary["backend"], summary["device"], summary["precision"], packages, engines.from_json(summary.get("engine"))
            ),
            summary["bytes_per_seed"]["state"],
            summary["bytes_per_seed"]["temporary"],
            diagnosis,
            summary.get("first_seed", 0),
            failures={int(number) - summary["first_seed"]: text for number, text in summary.get("failed_simulators", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / 'summary.json'}: it is not as a run writes it: {error!r}") from error


def written_by(content: Mapping[str, Any]) -> str:
    """Which version wrote a file that this one cannot use."""
    version = content.get("versions", {}).get("mbrl-jax", "another version")
    return f"it was written by mbrl-jax {version}, this is {version_of('mbrl-jax')}"


def read_config(folder: Path) -> RunConfig:
    """The settings of a finished run. Raises ConfigError: they cannot be read, or this version does not know them."""
    try:
        return load(folder / "config.yaml")
    except ConfigError as error:
        told = f"; {written_by(read_summary(folder))}" if (folder / "summary.json").exists() else ""
        raise ConfigError(f"{folder / 'config.yaml'}: {error}{told}") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """The figures of a finished run. Raises ConfigError: the folder holds none, or they cannot be read."""
    path = folder / "summary.json"
    try:
        summary: dict[str, Any] = strict_json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{str(folder)!r}: there is no finished run; a folder of one has a summary.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    return summary


def model_template(config: RunConfig, task: Environment) -> Any:
    """Shapes and dtypes of the parameters that the world model imagines with."""
    world = world_of(config, task)
    return jax.eval_shape(lambda key: world.acting(world.init(key)), jax.random.key(0))


def filled(template: Any, nested: Any) -> Any:
    """A tree like ``template`` of stored arrays; none where nothing is stored."""
    try:
        return None if nested is None else trees.like(template, nested)
    except ValueError as error:
        raise ConfigError(f"policies.npz: {error}; it was written for other settings") from error


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json``: what was asked for. Raises ConfigError: it is not there, cannot be read, or has another format."""
    try:
        content: dict[str, Any] = strict_json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"out: {str(folder)!r} holds no run that could go on; a folder of one has a {RUN}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / RUN}: it cannot be read: {error}") from error
    if content.get("format") != FORMAT:
        told = written_by(content)
        raise ConfigError(f"{folder / RUN}: format {content.get('format')!r} is not known; this version reads {FORMAT}; {told}")
    return content


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Raises ConfigError: it cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except trees.DAMAGED as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
