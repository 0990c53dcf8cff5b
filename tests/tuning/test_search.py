"""The study, its folder and its order of things, on trials whose returns are a formula; the command on a real run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import sqlalchemy
import yaml

from mbrl_jax import command_line, strict_json
from mbrl_jax.config import ConfigError, ModelFreeQConfig, load, with_settings
from mbrl_jax.engine import Engine
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.interruption import Interrupted
from mbrl_jax.tuning import halving, search, study
from mbrl_jax.tuning import space as spaces
from mbrl_jax.tuning.halving import Ended
from mbrl_jax.tuning.search import Search
from mbrl_jax.tuning.study import Asked, Study

SPACE = {"agent.learning_rate": {"float": [1e-5, 1e-1], "log": True}, "agent.hidden": {"choice": [[8], [4]]}}
CONFIG = ModelFreeQConfig(steps=20, round_steps=1, random_transitions=10, metric_steps=1)


def asked(**changes):
    return Asked(CONFIG, spaces.parse(SPACE, CONFIG), range(3))._replace(**changes)


def quality(config):
    """At most 0, at a learning rate of 1e-3."""
    return -abs(math.log10(config.agent.learning_rate / 1e-3))


class Formula:
    """A group whose trials earn their quality in every round, and as much in the end."""

    trained: list = []  # noqa: RUF012, rounds by trials, of all groups

    def __init__(self, machine, configs, found=None):
        self.configs, self.seeds = dict(configs), len(machine.seeds)
        self._arrays = found

    @property
    def curve(self):
        return dict(zip(self.configs, self._arrays["own/curve"], strict=True))

    def arrays(self):
        return self._arrays

    def advance(self, rounds, chunk, stop):
        assert rounds % chunk == 0
        if stop():
            return False
        Formula.trained.append((rounds, list(self.configs)))
        made = np.array([np.full((self.seeds, rounds), self.returns(config)) for config in self.configs.values()])
        past = [] if self._arrays is None else [self._arrays["own/curve"]]
        self._arrays = {"own/curve": np.concatenate([*past, made], axis=2)}
        return True

    def returns(self, config):
        return quality(config)

    def keep(self, numbers):
        kept = [place for place, number in enumerate(self.configs) if number in numbers]
        self.configs = {number: config for number, config in self.configs.items() if number in numbers}
        self._arrays = {"own/curve": self._arrays["own/curve"][kept]}

    def finish(self):
        return {n: Ended(self.curve[n], np.full(self.seeds, self.returns(config)), 0) for n, config in self.configs.items()}


def use(monkeypatch, group):
    """Have trials trained by such a group, all of a batch together."""
    Formula.trained = []
    monkeypatch.setattr(halving, "groups", lambda machine, configs: [group(machine, configs)] if configs else [])
    monkeypatch.setattr(search, "Group", group)


@pytest.fixture(autouse=True, scope="module")
def _without_waiting_for_the_disk():
    """Have SQLite go on before what it wrote is on the disk, which is most of the time that these tests would take."""

    def quick(connection, _):
        connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", quick)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", quick)


@pytest.fixture(autouse=True)
def _by_formula(monkeypatch):
    use(monkeypatch, Formula)


def rows(out):
    return pq.read_table(out / "trials.parquet").to_pylist()


def test_a_search_prunes_at_the_rungs_and_finds_the_best_settings(tmp_path):
    out = tmp_path / "out"
    summary = search.search(asked(), out, 18, batch=18)
    assert [(rounds, len(numbers)) for rounds, numbers in Formula.trained] == [(2, 18), (5, 6), (13, 2)]
    assert summary["trials"] == {"complete": 2, "pruned": 16, "fail": 0, "running": 0}
    told = rows(out)
    values = {row["trial"]: quality(with_settings(CONFIG, {"agent.learning_rate": row["agent.learning_rate"]})) for row in told}
    best = sorted(values, key=values.get, reverse=True)
    assert {row["trial"] for row in told if row["state"] == "complete"} == set(best[:2])
    assert {row["trial"] for row in told if row["round_7"] is not None} == set(best[:6])
    assert [row["round_2"] for row in told] == pytest.approx([values[row["trial"]] for row in told])
    assert summary["best"]["number"] == best[0]
    assert summary["best"]["value"] == pytest.approx(values[best[0]])
    assert load(out / "best.yaml").agent.learning_rate == told[best[0]]["agent.learning_rate"]
    assert list(load(out / "best.yaml").agent.hidden) == yaml.safe_load(told[best[0]]["agent.hidden"])
    assert strict_json.loads((out / "tune.json").read_text()) == summary
    assert (out / "importance.png").stat().st_size > 5_000
    assert (out / "parallel.png").stat().st_size > 5_000
    assert {path.name for path in out.iterdir()} == {
        *("tune.json", "study.db", "trials.parquet", "best.yaml", "importance.png", "parallel.png")
    }


def test_a_later_batch_competes_with_the_earlier_ones_and_has_one_survivor_at_least(tmp_path):
    search.search(asked(sampler="random"), tmp_path / "out", 18, batch=9)
    told = rows(tmp_path / "out")
    order = sorted(told, key=lambda row: row["round_2"], reverse=True)
    second = {row["trial"] for row in told[9:] if row["round_7"] is not None}
    assert second in (
        {row["trial"] for row in order[:6] if row["trial"] >= 9},
        {max(told[9:], key=lambda row: row["round_2"])["trial"]},
    )


def test_an_importance_is_that_of_all_trials_at_the_first_rung(tmp_path):
    one = Search(asked(), tmp_path, halving.Machine(range(3), 0, (), search.Display.silent()), Study(asked(), tmp_path, "w"), "w")
    one.run(40, 40)
    reached = [(trial.params, trial.intermediate_values[2]) for trial in one.study.trials("complete", "pruned")]
    assert len(reached) == 40
    importances = one.study.importances(reached)
    assert importances["agent.learning_rate"] > 0.9
    assert sum(importances.values()) == pytest.approx(1)


def test_every_batch_is_drawn_anew_and_follows_from_the_seed(tmp_path):
    def rates(name, **changes):
        found = searching(tmp_path / name, sampler="random", **changes).study
        numbers = [found.ask(3), found.ask(3)]
        trials = found.trials("running")
        assert [trial.number for trial in trials] == [*numbers[0], *numbers[1]]
        return [trial.params["agent.learning_rate"] for trial in trials]

    first = rates("first")
    assert len(set(first)) == 6
    assert rates("again") == first
    assert not set(rates("other", base_seed=1)) & set(first)


def stopping(after):
    """A request to stop that comes after so many looks."""
    looks = iter(range(1_000))
    return lambda: next(looks) >= after


def searching(out, worker="w", **changes):
    out.mkdir(exist_ok=True)
    what = asked(**changes)
    return Search(what, out, halving.Machine(range(3), 0, (), search.Display.silent()), Study(what, out, worker), worker)


def test_a_search_that_was_stopped_goes_on_from_the_last_rung_as_if_it_had_not_been(tmp_path):
    whole = searching(tmp_path / "whole")
    whole.run(18, 9)
    unbroken, Formula.trained = Formula.trained, []
    with pytest.raises(Interrupted, match="after round 7"):
        searching(tmp_path / "broken").run(18, 9, stopping(2))
    assert checkpoint.rounds(tmp_path / "broken" / "checkpoints") == [7]
    again = searching(tmp_path / "broken")
    assert len(again.study.left()) == 1
    again.run(18, 9)
    assert Formula.trained == unbroken
    assert not (tmp_path / "broken" / "checkpoints").exists()
    again.write(), whole.write()
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_batch_that_was_stopped_before_its_first_rung_begins_again(tmp_path):
    with pytest.raises(Interrupted, match="after round 0"):
        searching(tmp_path / "out").run(9, 9, stopping(0))
    again = searching(tmp_path / "out")
    again.run(9, 9)
    assert Formula.trained[0] == (2, list(range(9)))
    assert len(again.study.trials()) == 9


def test_a_search_killed_while_it_pruned_comes_to_the_same(tmp_path, monkeypatch):
    whole = searching(tmp_path / "whole")
    whole.run(9, 9)
    broken = searching(tmp_path / "broken")

    def killed(numbers):
        told = sorted(numbers)[: len(numbers) // 2]
        Study.prune(broken.study, told)
        raise KeyboardInterrupt

    monkeypatch.setattr(broken.study, "prune", killed)
    with pytest.raises(KeyboardInterrupt):
        broken.run(9, 9)
    again = searching(tmp_path / "broken")
    again.run(9, 9)
    again.write(), whole.write()
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_search_goes_on_beyond_the_trials_that_were_asked_for_first(tmp_path):
    search.search(asked(), tmp_path / "out", 5, batch=5)
    summary = search.search(asked(), tmp_path / "out", 9, batch=5, resume=True)
    assert sum(summary["trials"].values()) == 9
    assert Formula.trained[-1][1][-1] >= 5


def test_two_folders_may_share_a_study_and_train_their_own_trials(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = search.search(asked(), tmp_path / "one", 6, batch=6, storage=url, name="both")
    second = search.search(asked(), tmp_path / "two", 12, batch=6, storage=url, name="both")
    assert first["worker"] != second["worker"]
    assert sum(second["trials"].values()) == 12
    assert not (tmp_path / "one" / "study.db").exists()
    workers = [trial.user_attrs["worker"] for trial in optuna.load_study(study_name="both", storage=url).trials]
    assert workers == [first["worker"]] * 6 + [second["worker"]] * 6
    with pytest.raises(ConfigError, match=r"factor: 2.0 does not fit; the study 'both' in .* has 3.0"):
        search.search(asked(factor=2.0), tmp_path / "three", 12, storage=url, name="both")
    assert not (tmp_path / "three").exists()


def test_a_trial_that_the_engine_does_not_cover_fails_and_costs_no_other_one(tmp_path, tiny):
    def engine(config, task):
        if config.agent.hidden == (4,):
            raise ConfigError("agent.hidden: (4,) does not fit; it must be (8,)")
        return Engine("mine")

    machines = []

    class Seen(Formula):
        def __init__(self, machine, configs, found=None):
            machines.append(machine)
            super().__init__(machine, configs, found)

    config = replace(tiny, steps=20, round_steps=1, metric_steps=1)
    what = Asked(config, spaces.parse(SPACE, config), range(3))
    with pytest.MonkeyPatch.context() as patch:
        use(patch, Seen)
        search.search(what, tmp_path / "out", 12, batch=12, engine=engine)
    assert {row["state"] for row in rows(tmp_path / "out") if row["agent.hidden"] == "[4]"} == {"fail"}
    assert "complete" in {row["state"] for row in rows(tmp_path / "out") if row["agent.hidden"] == "[8]"}
    assert {machine.engine for machine in machines} == {engine}


def test_an_engine_that_does_not_cover_the_search_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ConfigError, match="engine: 'cuda' does not fit the algorithm 'model_free_q'"):
        search.search(asked(), tmp_path / "out", 2, engine="cuda")
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_work_together_fail_and_cost_no_other_trial(tmp_path, monkeypatch):
    original = with_settings

    def put(config, values):
        if values["agent.hidden"] == [4]:
            raise ConfigError("agent.hidden: [4] does not fit")
        return original(config, values)

    monkeypatch.setattr(search, "with_settings", put)
    summary = search.search(asked(rungs=0), tmp_path / "out", 12, batch=12)
    told = rows(tmp_path / "out")
    assert {row["state"] for row in told if row["agent.hidden"] == "[4]"} == {"fail"}
    assert {row["error"] for row in told if row["state"] == "fail"} == {"ConfigError: agent.hidden: [4] does not fit"}
    assert 0 < summary["trials"]["fail"] < 12 == sum(summary["trials"].values())


def test_where_nothing_can_work_the_first_reason_is_raised(tmp_path):
    class Broken(Formula):
        def advance(self, rounds, chunk, stop):
            raise RuntimeError("no device")

    with pytest.MonkeyPatch.context() as patch:
        use(patch, Broken)
        with pytest.raises(RuntimeError, match="no device"):
            search.search(asked(), tmp_path / "out", 4)
    assert {row["state"] for row in rows_of(tmp_path / "out")} == {"fail"}


def rows_of(out):
    """The trials as the database has them: nothing else was written after the error."""
    return [
        {"state": trial.state.name.lower()}
        for trial in optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}").trials
    ]


def test_returns_that_are_not_finite_are_the_worst_and_no_result(tmp_path):
    class Diverging(Formula):
        def returns(self, config):
            return math.nan if config.agent.learning_rate > 1e-3 else quality(config)

    with pytest.MonkeyPatch.context() as patch:
        use(patch, Diverging)
        search.search(asked(rungs=1), tmp_path / "out", 12)
        told = rows(tmp_path / "out")
        assert all(row["agent.learning_rate"] <= 1e-3 for row in told if row["state"] == "complete")
        assert any(row["agent.learning_rate"] > 1e-3 for row in told)
        only = asked(rungs=0, space=spaces.parse({"agent.learning_rate": {"float": [0.01, 0.1]}}, CONFIG))
        assert search.search(only, tmp_path / "none", 3)["best"] is None
        assert {row["state"] for row in rows(tmp_path / "none")} == {"fail"}


def test_the_measure_of_a_trial_is_its_final_return_or_the_mean_of_its_curve(tmp_path):
    class Late(Formula):
        def finish(self):
            return {n: Ended(np.tile(np.arange(20.0), (3, 1)), np.array([7.0, 8.0, 9.0]), 0) for n in self.configs}

    with pytest.MonkeyPatch.context() as patch:
        use(patch, Late)
        final = search.search(asked(rungs=0), tmp_path / "final", 1)["best"]
        curve = search.search(asked(rungs=0, measure="curve"), tmp_path / "curve", 1)["best"]
    assert (final["value"], final["returns"]) == (8.0, [7.0, 8.0, 9.0])
    assert (curve["value"], curve["returns"]) == (9.5, [9.5, 9.5, 9.5])
    one = searching(tmp_path / "rung")
    line = np.tile(np.arange(20.0), (3, 1))
    assert one._value(line, 2, 7) == 4.0  # the rounds since the rung before
    assert one.asked.measure == "final"
    assert searching(tmp_path / "all", measure="curve")._value(line, 2, 7) == 3.0


@pytest.mark.parametrize(
    ("changes", "numbers", "message"),
    [
        ({"rungs": -1}, {}, "rungs: -1 is out of range"),
        ({"rungs": 5}, {}, "rungs: 5 do not fit into 20 rounds"),
        ({"factor": 1.0}, {}, "factor: 1.0 is out of range; it must be above 1"),
        ({"factor": math.inf}, {}, "factor: inf is out of range"),
        ({"seeds": range(0)}, {}, "seeds"),
        ({}, {"trials": 0}, "trials: 0 is out of range; it must be at least 1"),
        ({}, {"batch": 0}, "batch: 0 is out of range"),
        ({}, {"storage": "sqlite:////no/such/folder/x.db"}, "storage: .* cannot be opened"),
        ({}, {"storage": "nonsense"}, "storage: .* cannot be opened"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_anything_is_left(tmp_path, changes, numbers, message):
    with pytest.raises(ConfigError, match=message):
        search.search(asked(**changes), tmp_path / "out", **{"trials": 4, **numbers})
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_folder_that_is_there_is_left_as_it_is_and_goes_on_with_the_same_search_only(tmp_path):
    out = tmp_path / "out"
    search.search(asked(), out, 3)
    with pytest.raises(ConfigError, match="exists already"):
        search.search(asked(), out, 3)
    with pytest.raises(ConfigError, match=r"base_seed: 1 does not fit; .* has 0"):
        search.search(asked(base_seed=1), out, 3, resume=True)
    (out / "tune.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no search that could go on"):
        search.search(asked(), out, 3, resume=True)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"install the extra `mbrl-jax\[tune\]`"):
        study.check(asked(), 1, 1)


def test_the_command_says_what_is_best_and_how_to_measure_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["tune", "cartpole_batch_model_free", "--space", "space.yaml", "--trials", "6", "--seeds", "2:4", "--out", "out"]
    command_line.main([*words, "--rungs", "1", "--seed", "5", "--measure", "curve"])
    told = capsys.readouterr().out
    assert "1 complete" in told or "2 complete" in told
    assert "mbrl-jax train out/best.yaml --seeds 64 --seed 6 --out DIR" in told
    content = json.loads(Path("out/tune.json").read_text())
    assert content["asked"]["seeds"] == [2, 4]
    assert content["asked"]["measure"] == "curve"
    with pytest.raises(SystemExit):
        command_line.main([*words, "--devices", "none"])
    assert "devices: 'none' does not fit" in capsys.readouterr().err
