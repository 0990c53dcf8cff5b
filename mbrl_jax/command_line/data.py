"""``mbrl-jax data``: what there is in files of logged transitions, and how to make one."""

from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from mbrl_jax.config import ConfigError, EnvironmentConfig, check_seeds, check_whole, expand
from mbrl_jax.environments import Environment, make_environment
from mbrl_jax.environments.logged.audit import Audit
from mbrl_jax.environments.logged.columns import Column
from mbrl_jax.environments.logged.files import open_log
from mbrl_jax.environments.logged.findings import find
from mbrl_jax.environments.logged.writing import write_parquet
from mbrl_jax.runs import results, terminal

USAGE = """usage: mbrl-jax data check FILE [FILE …] [--environment NAME] [--figure FILE.png]
       mbrl-jax data collect ENV --transitions N --out FILE.parquet [--policy random|RUN] [--epsilon E] [--seed BASE]"""


def main(words: list[str]) -> None:
    """Run ``data check`` or ``data collect``.

    Raises:
      ConfigError: there is no such command, or its arguments cannot be.

    """
    commands = {"check": _check, "collect": _collect}
    if not words or words[0] not in commands:
        if words and words[0] in ("-h", "--help"):
            terminal.show(USAGE)
            return
        raise ConfigError(f"data: {words[0] if words else 'nothing'!r} is no command; it must be check or collect\n{USAGE}")
    commands[words[0]](words[1:])


def _check(words: list[str]) -> None:
    def flags(files: tyro.conf.Positional[tuple[str, ...]], environment: str | None = None, figure: Path | None = None) -> None:
        """Say what there is in files of logged transitions; exit with 1 where no training could be right.

        Args:
            files: Parquet, Arrow, NPZ or HDF5 files, or Minari datasets (minari:ID)
            environment: the task that they are of, to hold units, rewards and terminations against it
            figure: a new file to draw them into

        """
        if not files:
            raise ConfigError(f"data: no file is named; there must be one\n{USAGE}")
        task = None if environment is None else _task(environment)
        audit = Audit([open_log(path) for path in files], task)
        found = find(audit)
        terminal.show(terminal.table(("", ""), _overview(audit), title="what is there"))
        terminal.show(terminal.table(("", "lowest", "mean", "highest", "deviation"), _ranges(audit), title="ranges"))
        terminal.show(*(f"{finding.level}: {finding.text}" for finding in found))
        if figure is not None:
            from mbrl_jax.report import data_figures

            data_figures.draw_audit(audit, expand(figure, "figure"))
            terminal.show(f"drawn into {figure}")
        errors = sum(finding.level == "error" for finding in found)
        if errors:
            terminal.show(f"training could not be right: {errors} error{'s' if errors > 1 else ''}")
            raise SystemExit(1)
        terminal.show("training can begin")

    tyro.cli(flags, args=words, prog="mbrl-jax data check")


def _overview(audit: Audit) -> list[tuple[str, str]]:
    """What there is in all."""

    def spread(values: np.ndarray) -> str:
        low, middle, high = np.min(values), np.median(values), np.max(values)
        return f"{low:,.6g} to {high:,.6g}, median {middle:,.6g}"

    count, scale = audit.actions()
    actions = (
        f"{count} discrete" if count else f"{len(scale)} numbers, of magnitudes up to {', '.join(f'{each:g}' for each in scale)}"
    )
    finite = audit.returns[np.isfinite(audit.returns)]
    rows = [
        ("transitions", f"{audit.rows:,}"),
        ("episodes", f"{audit.episodes:,}"),
        ("steps of an episode", spread(audit.lengths)),
        ("return of an episode", spread(finite) if len(finite) else "none is finite"),
        ("terminated", f"{audit.terminated:,}"),
        ("truncated", f"{audit.truncated:,}"),
        ("observations", f"{len(audit.observation.low)} numbers"),
        ("actions", actions),
    ]
    if audit.action_counts is not None:
        rows.append(("each action was taken", ", ".join(f"{each:,}" for each in audit.action_counts)))
    return [*rows, ("repeated rows", f"{audit.duplicates:.2%}")]


def _ranges(audit: Audit) -> list[tuple[str, ...]]:
    """Of every axis."""

    def row(name: str, column: Column, axis: int) -> tuple[str, ...]:
        numbers = (column.low[axis], column.mean[axis], column.high[axis], column.std[axis])
        return (name, *(f"{each:.4g}" for each in numbers))

    rows = [row(f"observation {axis}", audit.observation, axis) for axis in range(len(audit.observation.low))]
    rows += [row(f"change {axis}", audit.step, axis) for axis in range(len(audit.step.low))]
    if audit.continuous:
        rows += [row(f"action {axis}", audit.action, axis) for axis in range(len(audit.action.low))]
    return [*rows, row("reward", audit.reward, 0)]


def _collect(words: list[str]) -> None:
    tyro.cli(collect, args=words, prog="mbrl-jax data collect")


def collect(
    env: tyro.conf.Positional[str],
    transitions: int,
    out: Path,
    policy: str = "random",
    policy_seed: int = 0,
    which: Literal["chosen", "last"] | None = None,
    epsilon: float = 0.0,
    seed: int = 0,
) -> None:
    """Make a file of logged transitions.

    Args:
      env: the environment's name
      transitions: how many
      out: a new Parquet file
      policy: random, or the folder of a run whose policy acts
      policy_seed: which of the run's seeds
      which: the run's chosen or its last policy; none takes the chosen one where there is one
      epsilon: share of random actions among the policy's
      seed: everything random follows from it

    Raises:
      ConfigError: an argument cannot be, or the run is of another task.

    """
    from mbrl_jax.serving import recording

    out = expand(out, "out")
    check_whole(transitions, "transitions")
    check_seeds(1, seed)
    if transitions < 1:
        raise ConfigError(f"transitions: {transitions!r} is out of range; it must be at least 1")
    if not 0 <= epsilon <= 1:
        raise ConfigError(f"epsilon: {epsilon!r} is out of range; it must be from 0 to 1")
    if out.suffix != ".parquet":
        raise ConfigError(f"out: {str(out)!r} does not fit; its name must end in .parquet")
    if out.exists():
        raise ConfigError(f"out: {str(out)!r} exists already and is left as it is; name a new file")
    task = _task(env)
    if not task.has_simulator or task.host is not None:
        raise ConfigError(
            f"env: {env!r} does not fit; it must be an environment that a device steps; a run in another one records its own"
        )
    playing, params = (None, None) if policy == "random" else _policy_of(policy, env, policy_seed, which)
    blocks = recording.record(task, playing, params, jax.random.key(seed, impl="threefry2x32"), transitions, epsilon)
    try:
        with results.new_file(out) as place:
            write_parquet(place, blocks, task.spec)
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error}") from error
    terminal.show(f"{transitions:,} transitions written to {out}")


def _task(name: str) -> Environment:
    make: Any = EnvironmentConfig
    return make_environment(make(name=name))


def _policy_of(folder: str, env: str, seed: int, which: str | None) -> tuple[Any, Any]:
    """The policy of one seed of a run, and its parameters."""
    from mbrl_jax.algorithms.registry import algorithm_of
    from mbrl_jax.serving.playing import load_policies

    config, policies = load_policies(folder)
    if config.environment.name != env:
        raise ConfigError(f"policy: {folder!r} does not fit; it was trained on {config.environment.name!r}, not on {env!r}")
    name = which or ("chosen" if "chosen" in policies else "last")
    if name not in policies:
        raise ConfigError(f"which: {name!r} does not fit; the run has the policies {', '.join(policies)}")
    seeds = len(jax.tree.leaves(policies[name])[0])
    if not 0 <= seed < seeds:
        raise ConfigError(f"policy_seed: {seed!r} is out of range; it must be from 0 to {seeds - 1}")
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[seed]), policies[name])
    return algorithm_of(config).policy(config, make_environment(config.environment)), params
