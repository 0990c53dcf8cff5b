"""The arms of a study: trained one after another, each written to a file of its own, and none that is on file trained again; and
rounds of an arm to be timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import keys_of
from mbrl_jax.config import RunConfig, to_dict
from mbrl_jax.runs import execution, keeping, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked, is_finished
from mbrl_jax.runs.run import Run

Key = TypeVar("Key", int, str)
Keep = Callable[[Run], dict[str, Any]]  # what a study keeps of an arm besides `kept_of`


def kept_of(run: Run, task: str, arm: str, more: dict[str, Any]) -> dict[str, Any]:
    """What stays of an arm: its learning curve by steps of the simulator, its last returns, ``more``, and how it was run."""
    summary, config = results.summarise(run), run.config
    rounds = np.arange(1, config.steps // config.round_steps + 1)
    steps = config.environment.action_repeat * (config.random_transitions + rounds * config.round_steps)
    return {
        "task": task,
        "arm": arm,
        "steps": steps.tolist(),
        "curves": np.round(np.asarray(run.result.metrics.curve_return, np.float64), 1).tolist(),  # [seeds, rounds]
        "returns": results.per_seed(run.result.outcome.returns_last).tolist(),
        **more,
        "config": to_dict(config),
        **{name: summary[name] for name in ("frozen_seeds", "seconds", "versions", "device", "precision")},
        "git": packages.git_revision(),
    }


def train(
    studies: Mapping[str, Mapping[str, RunConfig]],
    names: Sequence[str],
    seeds: int | range,
    out: Path,
    keep: Keep,
    indent: int | None = 1,
) -> None:
    """Train the arms that are not on file.

    Args:
      studies: the configs of every task by the arm's name.
      names: of the arms; none is all of them.
      seeds: of each, how many or a range of their numbers.
      out: the folder of the files ``TASK_ARM.json``.
      keep: what else is kept of a run.
      indent: of the files.

    """
    execution.use_compilation_cache()
    out.mkdir(parents=True, exist_ok=True)
    for task, configs in studies.items():
        for arm in names or configs:
            if arm not in configs:
                raise SystemExit(f"--arms: {arm!r} is not known; it must be one of {', '.join(configs)}")
            place = out / f"{task}_{arm}.json"
            if place.exists():
                continue
            began = time.perf_counter()
            with Display.standard(place.stem) as display:
                run = runner.run(configs[arm], seeds, display=display)
            strict_json.write(place, kept_of(run, task, arm, keep(run)), indent=indent)
            told = statistics.estimate(results.per_seed(run.result.outcome.returns_last))
            print(f"{place.stem}: IQM {told}, {time.perf_counter() - began:.0f} s", flush=True)


def kept_in(folder: Path, config: RunConfig, seeds: int, start: Path | None, script: str) -> Run:
    """The run of an arm that has a folder of its own: read there if it is finished, else trained, or gone on with after a kill.

    Args:
      folder: the run's.
      config: its settings.
      seeds: how many.
      start: the folder of a finished run whose world models it begins with.
      script: the name of the study.

    """
    if is_finished(folder):  # killed between a run's end and its file
        return results.read(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Display.standard(folder.name) as display:
        return keeping.keep(Asked(config, seeds, 0, False), folder, keeping.Keeping(resume=True, start=start), script, display)


def rounds_of(config: RunConfig, seeds: int) -> tuple[Callable[[], None], int]:
    """What trains ``seeds`` agents for one more round, and the steps of the simulators that this takes."""
    train = algorithm_of(config).make_train(config)
    axes = train.axes
    held: list[Any] = [jax.jit(jax.vmap(train.init, out_axes=(axes, 0)))(keys_of(0, jnp.arange(seeds)))[0]]
    held[0], _ = jax.jit(jax.vmap(train.fit, in_axes=(axes, None), out_axes=(axes, 0)))(held[0], config)
    advance = jax.jit(jax.vmap(train.advance, in_axes=(axes, None), out_axes=(axes, 0)))

    def go_on() -> None:
        held[0], _ = jax.block_until_ready(advance(held[0], config))

    return go_on, seeds * config.round_steps * config.environment.action_repeat


def timed(calls: Mapping[Key, Callable[[], None]], repetitions: int = 3) -> dict[Key, list[float]]:
    """Seconds [repetitions] of each call, all of them in turn, after one round of calls that compile."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for repetition in range(1 + repetitions):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if repetition:
                seconds[key].append(time.perf_counter() - start)
    return seconds
