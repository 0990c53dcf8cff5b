"""Shards of a run or of a sweep on other machines, by an engine that is there: SLURM (by submitit) or Ray.

A job is a command ``mbrl-jax … --resume`` on one shard. One that dies is submitted again, and goes on from its last checkpoint.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mbrl_jax import config as settings
from mbrl_jax.config import ConfigError
from mbrl_jax.config.files import parse as parse_yaml
from mbrl_jax.config.grid import groups
from mbrl_jax.runs import folder, interruption, keeping, results, shards, sweep
from mbrl_jax.runs.callbacks import require
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.keeping import Keeping
from mbrl_jax.runs.results import CHECKPOINTS, SHARDS, Draw
from mbrl_jax.runs.run import Run

GLANCE = 0.5  # seconds between two looks at the jobs
BAD_INPUT = 2  # the exit status of a command that would be refused again
RETRIES = 3
Work = Callable[[list[str]], int]  # runs `mbrl-jax` with these words in a job's process; its exit status


class Launcher(NamedTuple):
    """Which engine runs the shards, and how."""

    engine: str  # slurm or ray
    shards: int
    work: Work
    retries: int = RETRIES  # of each shard
    options: Sequence[str] = ()  # NAME=VALUE, for submitit's executor or Ray's remote function


class Job(NamedTuple):
    """A submitted shard."""

    ended: Callable[[], int | str | None]  # none while it works; then its exit status, or how it died
    cancel: Callable[[], None]


Submit = Callable[[list[str]], Job]


def train(asked: Asked, out: Path, keep: Keeping, command: str, launcher: Launcher, display: Display, draw: Draw) -> Run:
    """Train the seeds of a run in shards, and join them.

    Raises ConfigError: what was asked for cannot work, the engine is not there, or a shard failed.
    """
    if keep.tensorboard or keep.wandb is not None or keep.resume_from is not None:
        raise ConfigError("launcher: it does not fit with --tensorboard, --wandb or --resume-from, which follow one process")
    keeping.check(asked, keep)
    if not 1 <= launcher.shards <= asked.seeds:
        raise ConfigError(
            f"shards: {launcher.shards} is out of range; for {asked.seeds} seeds it must be from 1 to {asked.seeds}"
        )
    submit = engine(launcher, out)

    with keeping.taken(asked, out, keep.resume, display) as begun:
        if not begun:
            folder.begin(out, asked, command, -(-asked.seeds // launcher.shards))
        elif (out / CHECKPOINTS).exists():
            raise ConfigError(f"launcher: the run in {str(out)!r} was begun by one process; go on with it without a launcher")
        start = ["train", str(_saved(asked.config, out)), "--seed", str(asked.base_seed), "--resume"]
        start += ["--checkpoint-every", str(keep.every), "--checkpoints", str(keep.keep)]
        start += _machine(keep.memory, keep.devices) + (["--diagnose"] if asked.diagnose else [])
        start += [] if keep.engine == "xla" else ["--engine", keep.engine]
        start += [] if keep.record == "auto" else ["--record-transitions", keep.record]
        jobs = {
            place: [*start, "--seeds", f"{shard.first}:{shard.numbers.stop}", "--out", str(place.resolve())]
            for place, shard in shards.left(out, asked).items()
        }
        run_all(jobs, submit, launcher, display.say)
        return shards.finish(out, asked, shards.again(command, keep.resume), draw, display.say)


def train_sweep(
    table: sweep.Table,
    grid: Sequence[str],
    launcher: Launcher,
    resume: bool,
    memory: int | None,
    devices: int | None,
    say: Callable[[str], None],
) -> None:
    """Train the combinations of a sweep in shards, those that compile together in as few as can be, and join them.

    Raises ConfigError: as :func:`train`, or the folder cannot be used.
    """
    submit = engine(launcher, table.folder)
    with table.opened(resume) as left:
        if not left:
            return
        table.write()
        programs = [[place for place in group if place in table.places] for group in groups(table.made)]
        start = ["sweep", str(_saved(table.config, table.folder)), "--seed", str(table.seed), "--resume"]
        start += _machine(memory, devices)
        start += ["--seeds", f"{table.seeds.start}:{table.seeds.stop}", *(word for one in grid for word in ("--grid", one))]
        jobs = {}
        for number, piece in enumerate(_pieces(programs, launcher.shards)):
            place = table.folder / SHARDS / f"{number:04d}"
            jobs[place] = [*start, "--combinations", ",".join(map(str, piece)), "--out", str(place.resolve())]
        run_all({place: words for place, words in jobs.items() if not _is_swept(place)}, submit, launcher, say)
        table.join(list(jobs))
    shards.remove(table.folder)


def run_all(jobs: Mapping[Path, list[str]], submit: Submit, launcher: Launcher, say: Callable[[str], None]) -> None:
    """Run a command for each shard; one that dies is submitted again, up to ``launcher.retries`` times.

    Raises ConfigError: a shard failed too often, or was refused. The others have come to their end.
    """
    running, left, failures = {place: submit(words) for place, words in jobs.items()}, dict.fromkeys(jobs, launcher.retries), []

    def cancel() -> None:
        for job in running.values():
            with contextlib.suppress(Exception):  # it may have ended by itself
                job.cancel()

    with interruption.on_leaving(cancel), contextlib.ExitStack() as leaving:
        leaving.callback(cancel)
        say(f"{len(jobs)} shards are submitted to {launcher.engine}")
        while running:
            for place, job in list(running.items()):
                ended = job.ended()
                if ended is None:
                    continue
                del running[place]
                told = f"shard {place.name} ended with {f'status {ended}' if isinstance(ended, int) else ended}"
                if ended == 0:
                    say(f"shard {place.name} is done")
                elif ended == BAD_INPUT or not left[place]:
                    failures.append(told)
                else:
                    left[place] -= 1
                    say(f"{told}; it is submitted again")
                    running[place] = submit(jobs[place])
            if running:
                time.sleep(GLANCE)
    if failures:
        raise ConfigError(f"launcher: {'; '.join(failures)}. What is done is kept; to go on give the same command with --resume")


def engine(launcher: Launcher, out: Path) -> Submit:
    """What submits commands.

    Raises ConfigError: the engine's package is not installed, the engine is not there, or it does not know an option.
    """
    options: dict[str, Any] = {}
    for word in launcher.options:
        name, equals, value = word.partition("=")
        try:
            options[name] = parse_yaml(value)
        except yaml.YAMLError:
            equals = ""
        if not name or not equals:
            raise ConfigError(f"launcher_option: {word!r} does not fit; it must be NAME=VALUE, as in timeout_min=240")
    if launcher.retries < 0:
        raise ConfigError(f"retries: {launcher.retries} is out of range; it must be at least 0")
    return {"slurm": _slurm, "ray": _ray}[launcher.engine](launcher.work, options, out)


def _slurm(work: Callable[[list[str]], int], options: dict[str, Any], out: Path) -> Submit:
    require("submitit", "slurm")
    import submitit

    @functools.cache
    def executor(folder: Path) -> Any:
        made = submitit.AutoExecutor(folder=folder, cluster=options.get("cluster", "slurm"))
        made.update_parameters(name="mbrl-jax", **{name: value for name, value in options.items() if name != "cluster"})
        return made

    try:
        with tempfile.TemporaryDirectory() as elsewhere:  # an executor makes its folder
            executor(Path(elsewhere))
    except (NameError, RuntimeError, TypeError, ValueError) as error:  # NameError is what it raises for an unknown option
        raise ConfigError(f"launcher: slurm cannot be used: {error}") from error

    def submit(words: list[str]) -> Job:
        job = executor(out.resolve() / SHARDS / "jobs").submit(work, words)

        def ended() -> int | str | None:
            if not job.done():
                return None
            try:
                status: int = job.result()
            except Exception as error:
                return f"{type(error).__name__}, see {job.paths.stderr}"
            return status

        return Job(ended, job.cancel)

    return submit


def _ray(work: Callable[[list[str]], int], options: dict[str, Any], out: Path) -> Submit:
    require("ray", "ray")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False)  # the cluster that RAY_ADDRESS names or this machine belongs to, else this machine
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"launcher: ray cannot be used: {error}") from error
    try:
        remote = ray.remote(max_retries=0, max_calls=1, **options)(work)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"launcher_option: {error}") from error

    def submit(words: list[str]) -> Job:
        reference = remote.remote(words)

        def ended() -> int | str | None:
            if not ray.wait([reference], timeout=0)[0]:
                return None
            try:
                status: int = ray.get(reference)
            except ray.exceptions.RayError as error:
                return f"{type(error).__name__}"
            return status

        return Job(ended, lambda: ray.cancel(reference, force=True))

    return submit


def _saved(config: settings.RunConfig, out: Path) -> Path:
    """The file of the settings that all jobs read."""
    (out / SHARDS).mkdir(exist_ok=True)
    path = out.resolve() / SHARDS / "config.yaml"
    with results.new_file(path) as place:
        settings.save(config, place)
    return path


def _machine(memory: int | None, devices: int | None) -> list[str]:
    words = [] if memory is None else ["--memory", str(memory / 1e9)]
    return words + ([] if devices is None else ["--devices", str(devices)])


def _pieces(groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The combinations in ``count`` pieces: whole groups where there are enough of them, else halves of the largest."""
    pieces = [list(group) for group in groups if group]
    while len(pieces) < count and max(map(len, pieces)) > 1:
        largest = pieces.pop(max(range(len(pieces)), key=lambda place: len(pieces[place])))
        pieces += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    while len(pieces) > count:
        pieces.sort(key=len, reverse=True)
        last = pieces.pop()
        pieces[-1] = sorted(pieces[-1] + last)
    return sorted(pieces)


def _is_swept(place: Path) -> bool:
    """Whether all combinations of a shard are finished."""
    return (place / sweep.TABLE).exists() and all(one["state"] == "finished" for one in sweep.read_table(place).values())
