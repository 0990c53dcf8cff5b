"""The search for settings: batches of trials, trained by successive halving (``mbrl-jax tune``).

Its folder holds

* ``tune.json``: what was asked for, the best trial, and how many trials there are in each state;
* ``study.db``: the study as Optuna keeps it, in SQLite, unless another storage is named;
* ``trials.parquet``: a row for each trial: its settings, its value, and what it had reached at each rung;
* ``best.yaml``: the best trial's settings, a preset;
* ``importance.png`` and ``parallel.png``: which settings matter, and where the good trials lie;
* ``checkpoints``: the batch in progress as it was at its last rung. A search that goes on trains again what came after it.
"""

import contextlib
import math
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from mbrl_jax import statistics, strict_json
from mbrl_jax.config import ConfigError, RunConfig, save, with_settings
from mbrl_jax.config.grid import text_of
from mbrl_jax.runs import checkpoint, engines, interruption, results, runner, terminal
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.interruption import Interrupted
from mbrl_jax.runs.results import CHECKPOINTS
from mbrl_jax.statistics import interquartile_mean
from mbrl_jax.tuning import figures, halving, study
from mbrl_jax.tuning import space as spaces
from mbrl_jax.tuning.halving import Ended, Group, Machine
from mbrl_jax.tuning.study import STATES, Asked, Study

TABLE, BEST, TRIALS = "tune.json", "best.yaml", "trials.parquet"


def search(
    asked: Asked,
    out: Path,
    trials: int,
    *,
    batch: int = 64,
    storage: str | None = None,
    name: str = "tune",
    resume: bool = False,
    display: Display | None = None,
    devices: int | None = None,
    memory: int | None = None,
    engine: engines.Asked = "xla",
) -> dict[str, Any]:
    """Search until the study has ``trials`` trials; return the content of ``tune.json``.

    Args:
      asked: what is searched.
      out: a new folder, or with ``resume`` that of a search that was stopped.
      trials: of the whole study, those that were pruned or have failed included.
      batch: trials that are asked for and trained together.
      storage: URL of the study's database; none is SQLite in ``out``. Processes that name the same one share its study.
      name: of the study there.
      resume: go on, if there is something to go on with.
      display: shows progress; none is silent.
      devices: as of :func:`mbrl_jax.run`.
      memory: as there.
      engine: as there; where it covers a trial's settings is said once for each program.

    Raises:
      ConfigError: what was asked for cannot work, the study there is of something else, or the folder cannot be used.
      SystemExit: a signal asked for an end; the study and the batch at its last rung are kept.

    """
    study.check(asked, trials, batch, engine)
    show = Display.silent() if display is None else display
    with claimed(out, resume) as begun:
        worker = _worker(out, asked) if begun else uuid.uuid4().hex
        varied = spaces.traced(asked.config, asked.space)
        machine = Machine(asked.seeds, asked.base_seed, varied, show, devices, memory, engine)
        one = Search(asked, out, machine, Study(asked, out, worker, storage, name), worker)
        one.write()
        with interruption.watch(
            lambda: show.say("stops after the rounds in hand; Ctrl-C again stops at once"), show.leave
        ) as told:
            try:
                one.run(trials, batch, lambda: told.requested)
            except Interrupted as stopped:
                show.say(f"{stopped} of a batch; with --resume it goes on from its last rung, and all other trials are kept")
                raise SystemExit(130) from None
        results.draw_or_say(one.draw, show.say)
        return one.write()


def as_table(summary: Mapping[str, Any]) -> Table:
    """The best trial of a search for a terminal, a row for each setting."""
    best, counts = summary["best"], ", ".join(f"{count} {state}" for state, count in summary["trials"].items() if count)
    rows = []
    if best is not None:
        interval = f"[{best['ci95'][0]:.1f}, {best['ci95'][1]:.1f}]"
        rows = [
            ("value", f"{best['value']:.1f} {interval}"),
            *((path, text_of(value)) for path, value in best["settings"].items()),
        ]
    title = f"{counts}; no trial came to its end" if best is None else f"{counts}; best: trial {best['number']}"
    caption = "value: IQM over seeds with its 95 % bootstrap interval"
    return terminal.table(("setting", "best trial"), rows, title=title, caption=caption)


class Search:
    """A search in its folder."""

    def __init__(self, asked: Asked, out: Path, machine: Machine, found: Study, worker: str):
        """Of a study that is open; ``worker`` is the folder's mark in it."""
        self.asked, self.out, self.machine, self.study, self.worker = asked, out, machine, found, worker
        self.show = machine.show

    def run(self, trials: int, batch: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Train batch after batch until the study has ``trials`` trials. Raises Interrupted: ``stop`` asked for an end."""
        self.show.phase("training", total=trials, done=len(self.study.trials(*STATES[:3])))
        if left := self.study.left():
            self.train(left, stop)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)  # of a batch that had just ended
        while (missing := trials - len(self.study.trials())) > 0:
            self.train(self.study.ask(min(batch, missing)), stop)

    def train(self, numbers: Sequence[int], stop: Callable[[], bool] = lambda: False) -> None:
        """Train a batch of trials, pruning it at the rungs. Raises Interrupted: ``stop`` asked for an end."""
        configs, plan = self._configs(numbers), self.asked.plan
        groups, done = self._begin(configs)
        chunk = math.gcd(*np.diff((0, *plan)).tolist())
        for rung in (rung for rung in plan if rung > done):
            for group in list(groups):
                with self._losing(group, groups):
                    if not group.advance(rung - done, chunk, stop):
                        raise Interrupted(done)
            if rung < plan[-1]:
                groups = self._prune(groups, done, rung)
            done = rung
        for group in list(groups):
            with self._losing(group, groups):
                for number, ended in group.finish().items():
                    self._complete(number, ended)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        self.write()

    def write(self) -> dict[str, Any]:
        """Write the tables and the best settings; return the content of ``tune.json``."""
        finished = self.study.trials("complete")
        states = {state: len(self.study.trials(state)) for state in STATES}
        summary: dict[str, Any] = {"asked": self.asked.as_json(), "worker": self.worker, "trials": states, "best": None}
        if finished:
            best = max(finished, key=lambda trial: (trial.value, -trial.number))
            settings = self.study.settings(best)
            summary["best"] = {"number": best.number, "value": best.value, **best.user_attrs["ended"], "settings": settings}
            with results.new_file(self.out / BEST) as path:
                save(with_settings(self.asked.config, settings), path)
        with results.new_file(self.out / TRIALS) as path:
            pq.write_table(self._table(), path)
        with results.new_file(self.out / TABLE) as path:
            strict_json.write(path, summary)
        return summary

    def draw(self) -> None:
        """Draw the figures, if there are trials enough: all of them by what they had reached at the first rung."""
        first, reached = self.asked.plan[0], []
        for trial in self.study.trials("complete", "pruned"):
            value = trial.intermediate_values.get(first, trial.value)
            if value is not None and math.isfinite(value):
                reached.append((trial.params, float(value)))
        if len({value for _, value in reached}) < 2:
            self.show.say("no figures: they need two trials that differ")
            return
        label = f"return after round {first} of {self.asked.plan[-1]}, IQM over seeds"
        figures.draw_importance(self.study.importances(reached), self.out / "importance.png")
        figures.draw_parallel(self.asked.space, reached, label, self.out / "parallel.png")

    # -------------------------------------------------------------------------------------------------------------- pieces

    def _configs(self, numbers: Sequence[int]) -> dict[int, RunConfig]:
        """The config of each trial; those that cannot work have failed."""
        every, configs = self.study.trials(), dict[int, RunConfig]()
        for number in numbers:
            try:
                configs[number] = with_settings(self.asked.config, self.study.settings(every[number]))
                runner.check([configs[number]], engine=self.machine.engine)
            except ConfigError as error:
                configs.pop(number, None)
                self.study.fail([number], error)
                self.show.advance("")
                refused = error
        if not configs and not self.study.trials("complete", "pruned"):
            raise refused  # most likely nothing in the space can work
        return configs

    def _begin(self, configs: Mapping[int, RunConfig]) -> tuple[list[Group], int]:
        """The batch as it was at its last rung, or as it begins; and the rounds that are done."""
        rounds = checkpoint.rounds(self.out / CHECKPOINTS)
        if not rounds:
            return halving.groups(self.machine, configs), 0
        found, groups = checkpoint.read(self.out / CHECKPOINTS, rounds[-1]), []
        for place, numbers in enumerate(found.about["groups"]):
            inside = {name.partition("/")[2]: leaf for name, leaf in found.arrays.items() if name.startswith(f"{place}/")}
            group = Group(self.machine, {number: configs.get(number, self.asked.config) for number in numbers}, inside)
            group.keep(configs)
            groups += [group] if group.configs else []
        return groups, found.round

    @contextlib.contextmanager
    def _losing(self, group: Group, groups: list[Group]) -> Any:
        """Let an error cost the trials of a group and no others; where it is the first that happens, raise it."""
        try:
            yield
        except (ConfigError, RuntimeError) as error:  # RuntimeError: of the compiler and the devices
            groups.remove(group)
            self.study.fail(group.configs, error)
            if not self.study.trials("complete", "pruned"):
                raise
            self.show.say(f"{len(group.configs)} trials failed: {error!r}; the others go on")

    def _prune(self, groups: Sequence[Group], before: int, rung: int) -> list[Group]:
        """Compare the batch at a rung, end the trials that do not go on, and save the others; return their groups."""
        reached = {number: self._value(curve, before, rung) for group in groups for number, curve in group.curve.items()}
        going = halving.survivors(reached, self.study.report(reached, rung), self.asked.factor)
        self.study.prune(reached.keys() - set(going))
        for group in groups:
            group.keep(going)
        left = [group for group in groups if group.configs]
        arrays = {f"{place}/{name}": leaf for place, group in enumerate(left) for name, leaf in group.arrays().items()}
        checkpoint.write(self.out / CHECKPOINTS, rung, arrays, {"groups": [list(group.configs) for group in left]}, keep=1)
        best = max(reached.values(), default=math.nan)
        self.show.say(
            f"round {rung} of {self.asked.plan[-1]}: {len(going)} of {len(reached)} trials go on, the best at {best:.4g}"
        )
        for _ in range(len(reached) - len(going)):
            self.show.advance(f"best {best:.4g}")
        return left

    def _complete(self, number: int, ended: Ended) -> None:
        returns = ended.returns if self.asked.measure == "final" else ended.curve.mean(axis=1)
        told = statistics.estimate(returns)
        self.study.complete(number, told.value, ci95=[told.low, told.high], returns=returns.tolist(), frozen=ended.frozen)
        self.show.advance(f"trial {number}: {told.value:.4g}")

    def _value(self, curve: np.ndarray, before: int, rung: int) -> float:
        """What a trial with returns [seeds, rounds] has reached at a rung: NaN if a return is not finite."""
        since = before if self.asked.measure == "final" else 0
        per_seed = curve[:, since:rung].mean(axis=1, dtype=np.float64)
        return float(interquartile_mean(per_seed)) if np.all(np.isfinite(per_seed)) else math.nan

    def _table(self) -> pa.Table:
        """A row for each trial."""
        rows = []
        for trial in self.study.trials():
            settings = {
                path: str(value) if isinstance(value, list) else value for path, value in self.study.settings(trial).items()
            }
            reached = {f"round_{rung}": trial.intermediate_values.get(rung) for rung in self.asked.plan[:-1]}
            told = {"ci95_low": None, "ci95_high": None} | dict(
                zip(("ci95_low", "ci95_high"), trial.user_attrs.get("ended", {}).get("ci95", ()), strict=False)
            )
            row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value, **told, **reached, **settings}
            rows.append({**row, "error": trial.user_attrs.get("error")})
        return pa.Table.from_pylist(rows) if rows else pa.table({"trial": pa.array([], pa.int64())})


def _worker(out: Path, asked: Asked) -> str:
    """The mark of the search in a folder. Raises ConfigError: it cannot be read, or is of something else."""
    try:
        found = strict_json.loads((out / TABLE).read_text(encoding="utf-8"))
        worker, theirs = str(found["worker"]), found["asked"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"out: {str(out / TABLE)!r} holds no search that could go on: {error}") from error
    study.check_same(theirs, asked, repr(str(out)))
    return worker
