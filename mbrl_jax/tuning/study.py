"""What a search is of, and its study: the trials as Optuna keeps them."""

import importlib
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mbrl_jax import strict_json
from mbrl_jax.config import ConfigError, RunConfig, to_dict
from mbrl_jax.runs import engines, runner
from mbrl_jax.tuning import halving
from mbrl_jax.tuning import space as spaces
from mbrl_jax.tuning.space import Range, Space

DATABASE = "study.db"
STATES = ("complete", "pruned", "fail", "running")
Measure = Literal["final", "curve"]
Sampler = Literal["tpe", "random"]


class Asked(NamedTuple):
    """What a search is of. Processes that ask for the same may share a study."""

    config: RunConfig  # what all trials share
    space: Space
    seeds: range  # of each trial
    base_seed: int = 0
    rungs: int = 2  # at which trials are pruned
    factor: float = 3.0  # trials at a rung for each that goes on
    measure: Measure = "final"  # a trial's value: its final return, or the mean of its learning curve
    sampler: Sampler = "tpe"

    @property
    def plan(self) -> tuple[int, ...]:
        """The rounds after which trials are compared; the last is the run's end. Raises ConfigError: the run has too few."""
        return halving.rungs(self.config.steps // self.config.round_steps, self.rungs, self.factor)

    def as_json(self) -> dict[str, Any]:
        """As ``tune.json`` and the study hold it."""
        plain = {
            "config": to_dict(self.config),
            "space": spaces.as_json(self.space),
            "seeds": [self.seeds.start, self.seeds.stop],
        }
        content: dict[str, Any] = strict_json.loads(strict_json.dumps({**self._asdict(), **plain}))
        return content


def check(asked: Asked, trials: int, batch: int, engine: engines.Asked = "xla") -> None:
    """Refuse a search that cannot work.

    Raises:
      ConfigError: naming what is wrong and what would be right; or Optuna is not installed.

    """
    try:
        importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(f"tune: {error}; install the extra `mbrl-jax[tune]`") from error
    for name, value, least in (("trials", trials, 1), ("batch", batch, 1), ("rungs", asked.rungs, 0)):
        if value < least:
            raise ConfigError(f"{name}: {value!r} is out of range; it must be at least {least}")
    if not (math.isfinite(asked.factor) and asked.factor > 1):
        raise ConfigError(f"factor: {asked.factor!r} is out of range; it must be above 1")
    runner.seed_numbers(asked.seeds, asked.base_seed)
    runner.check([asked.config], engine=engine)
    halving.rungs(asked.config.steps // asked.config.round_steps, asked.rungs, asked.factor)


def check_same(found: Mapping[str, Any], asked: Asked, where: str) -> None:
    """Refuse to go on with a search of something else.

    Raises:
      ConfigError: naming all that differs.

    """
    ours = asked.as_json()
    differing = [
        f"{name}: {ours[name]!r} does not fit; {where} has {found.get(name)!r}" for name in ours if found.get(name) != ours[name]
    ]
    if differing:
        raise ConfigError("\n".join(differing))


class Study:
    """The trials of a search, in a database that several processes may share. Values are to be made large."""

    def __init__(self, asked: Asked, out: Path, worker: str, storage: str | None = None, name: str = "tune"):
        """Open the study, or create it.

        Args:
          asked: what the search is of.
          out: its folder.
          worker: marks the trials of this folder among those of others.
          storage: the database's URL; none is SQLite in ``out``.
          name: of the study in it.

        Raises:
          ConfigError: the database cannot be opened, or the study there is of something else.

        """
        import optuna
        import sqlalchemy

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self.asked, self._worker = optuna, asked, worker
        shown = DATABASE if storage is None else "the URL"  # which may hold a password
        try:
            own = sqlalchemy.engine.URL.create("sqlite", database=str(out.resolve() / DATABASE))
            url = own if storage is None else sqlalchemy.engine.make_url(storage)
            shown = url.render_as_string(hide_password=True)
            database = url.render_as_string(hide_password=False)
            self._study = optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)
            found = self._study.user_attrs.get("asked")
            if found is None:
                self._study.set_user_attr("asked", asked.as_json())
        except (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            raise ConfigError(f"storage: {shown!r} cannot be opened: {error}") from error
        if found is not None:
            check_same(found, asked, f"the study {name!r} in {shown!r}")

    def trials(self, *states: str) -> list[Any]:
        """All trials, or those in some of :data:`STATES`."""
        every = self._study.get_trials(deepcopy=False)
        return [trial for trial in every if not states or trial.state.name.lower() in states]

    def left(self) -> list[int]:
        """The trials of this folder that are not finished."""
        return [trial.number for trial in self.trials("running") if trial.user_attrs.get("worker") == self._worker]

    def ask(self, count: int) -> list[int]:
        """Ask for so many trials; what is asked follows from the trials so far, whether or not the search was interrupted."""
        every = self.trials()
        (seed,) = np.random.SeedSequence([self.asked.base_seed, len(every)]).generate_state(1)
        samplers = {"tpe": self._optuna.samplers.TPESampler, "random": self._optuna.samplers.RandomSampler}
        copy = self._optuna.create_study(direction="maximize", sampler=samplers[self.asked.sampler](seed=int(seed)))
        copy.add_trials(every)  # where sampling writes nothing to a disk
        distributions, before = self._distributions(), set(self.left())
        for _ in range(count):
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    state=self._optuna.trial.TrialState.RUNNING,
                    params=copy.ask(distributions).params,
                    distributions=distributions,
                    user_attrs={"worker": self._worker},
                )
            )
        return [number for number in self.left() if number not in before]

    def settings(self, trial: Any) -> dict[str, Any]:
        """The values of a trial by the path of the setting."""
        return {path: spaces.value_of(domain, trial.params[path]) for path, domain in self.asked.space.items()}

    def report(self, values: Mapping[int, float], rung: int) -> list[float]:
        """Note what the trials of a batch have reached at a rung; return what all others have reached there."""
        every = self.trials()
        for number, value in values.items():
            if rung not in every[number].intermediate_values:  # it is there if the search was killed right after
                self._optuna.Trial(self._study, every[number]._trial_id).report(value, rung)
        others = [trial.intermediate_values.get(rung) for trial in every if trial.number not in values]
        return [value for value in others if value is not None]

    def prune(self, numbers: Collection[int]) -> None:
        """End trials at the rung that they have reached."""
        for number in numbers:
            self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def complete(self, number: int, value: float, **notes: Any) -> None:
        """End a trial with its value; with one that is not finite it has failed."""
        self._note(number, "ended", strict_json.loads(strict_json.dumps(notes)))
        state = self._optuna.trial.TrialState
        self._study.tell(number, value if math.isfinite(value) else None, state.COMPLETE if math.isfinite(value) else state.FAIL)

    def fail(self, numbers: Collection[int], error: Exception) -> None:
        """End trials that an error has cost."""
        for number in numbers:
            self._note(number, "error", f"{type(error).__name__}: {error}")
            self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def importances(self, reached: Sequence[tuple[dict[str, Any], float]]) -> dict[str, float]:
        """The share of each setting in what trials (parameters, value) reached: PED-ANOVA (Watanabe et al. 2023)."""
        distributions = self._distributions()
        study = self._optuna.create_study(direction="maximize")
        for params, value in reached:
            study.add_trial(self._optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator()
        return dict(self._optuna.importance.get_param_importances(study, evaluator=evaluator))

    def _note(self, number: int, name: str, content: Any) -> None:
        self._optuna.Trial(self._study, self.trials()[number]._trial_id).set_user_attr(name, content)

    def _distributions(self) -> dict[str, Any]:
        """The space as Optuna has it."""
        distributions, found = self._optuna.distributions, dict[str, Any]()
        for path, domain in self.asked.space.items():
            if not isinstance(domain, Range):
                found[path] = distributions.CategoricalDistribution(domain.names)
            elif domain.kind == "int":
                step = int(domain.step or 1)
                found[path] = distributions.IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=step)
            else:
                found[path] = distributions.FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        return found
