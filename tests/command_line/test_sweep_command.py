import errno
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError, ModelFreeQConfig, grid, save
from mbrl_jax.report import sweep_figures
from mbrl_jax.runs import results, runner, sweep

LENGTH, RATE = "imagination.controller.length", "agent.learning_rate"


@pytest.fixture(scope="module")
def free(tiny):
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


@pytest.fixture(scope="module")
def made(free):
    return grid.cells(free, grid.parse(["agent.batch-size=8,16", "agent.learning_rate=1e-3,1e-2"]))


@pytest.fixture(scope="module")
def runs(made):
    runs = dict(sweep.run(made, 2, base_seed=3))
    return [runs[place] for place in range(4)]


def test_a_grid_is_every_combination_in_the_order_given(made):
    assert [cell.label for cell in made] == [
        "agent.batch_size=8,agent.learning_rate=0.001",
        "agent.batch_size=8,agent.learning_rate=0.01",
        "agent.batch_size=16,agent.learning_rate=0.001",
        "agent.batch_size=16,agent.learning_rate=0.01",
    ]
    assert [(cell.config.agent.batch_size, cell.config.agent.learning_rate) for cell in made] == [
        (8, 1e-3),
        (8, 1e-2),
        (16, 1e-3),
        (16, 1e-2),
    ]


def test_every_combination_has_the_numbers_of_a_run_of_its_own(made, runs):
    for cell, each in zip(made, runs, strict=True):
        assert each.config == cell.config
        alone = runner.run(cell.config, 2, base_seed=3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), each.result, alone.result)


def test_what_differs_in_traced_settings_alone_is_one_program(made, free, monkeypatch):
    groups = []
    original = runner.run_all

    def noted(configs, *arguments, **options):
        groups.append([config.agent.batch_size for config in configs])
        return original(configs, *arguments, **options)

    monkeypatch.setattr(runner, "run_all", noted)
    list(sweep.run(made, 1))
    assert groups == [[8, 8], [16, 16]]


@pytest.mark.parametrize(
    ("word", "path", "values"),
    [
        ("agent.learning_rate=1e-4,0.5", RATE, ["1e-4", 0.5]),
        ("agent.hidden=[8,8],[16]", "agent.hidden", [[8, 8], [16]]),
        ("agent.target=max,double", "agent.target", ["max", "double"]),
        ("model.elites=null,1", "model.elites", [None, 1]),
    ],
)
def test_values_are_read_as_in_a_preset(word, path, values):
    assert grid.parse([word]) == {path: values}


def test_static_settings_of_every_type_are_put_in(tiny):
    made = grid.cells(tiny, grid.parse(["agent.hidden=[8,8],[16]", "agent.target=max,double", "model.elites=null,1"]))
    assert len(made) == 8
    assert {(cell.config.agent.hidden, cell.config.agent.target, cell.config.model.elites) for cell in made} == {
        (hidden, target, elites) for hidden in ((8, 8), (16,)) for target in ("max", "double") for elites in (None, 1)
    }
    assert made[0].label == "agent.hidden=[8,8],agent.target=max,model.elites=None"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "grid: it is empty"),
        (["agent.learning_rate"], "grid: 'agent.learning_rate' must be a setting with its values"),
        (["agent.hidden=[8"], "must be a setting with its values"),
        (["agent.hidden={a: 1, a: 2}"], "grid: 'agent.hidden={a: 1, a: 2}': a: it is given twice, in line 1"),
        (["agent.learning_rate="], r"agent.learning_rate: \[\] has no values"),
        (["agent.learning_rate=0.1", "agent.learning-rate=0.2"], "agent.learning_rate is given twice"),
        (["agent.learning_rate=0.1,1e-1"], "agent.learning_rate=0.1 is given twice"),
        (["agent.speed=1"], "agent.speed: there is no such setting"),
        (["agent=1"], "agent: it is a group of settings; name one of agent.kind, agent.hidden"),
        (["imagination.controller.mark=1"], "mark: there is no such setting"),
        (["agent.learning_rate=0.1,two"], "agent.learning_rate: 'two' must be a number"),
        (["agent.learning_rate=-1"], "agent.learning_rate: -1.0 is out of range"),
        ([LENGTH + "=0"], "length: 0.0 is out of range"),
    ],
)
def test_what_is_no_grid_is_refused_in_the_command_and_makes_no_folder(tmp_path, capsys, words, message):
    flags = [part for word in words for part in ("--grid", word)]
    with pytest.raises(SystemExit):
        command_line.main(["sweep", "smoke", *flags, "--seeds", "1", "--out", str(tmp_path / "new")])
    said = capsys.readouterr().err
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(said)
    assert not (tmp_path / "new").exists()


def test_the_figure_is_a_curve_over_one_number_and_rows_over_more(made, runs, tmp_path):
    sweep_figures.draw(made, runs, tmp_path / "rows.png")
    one = [cell._replace(settings={RATE: cell.settings[RATE]}) for cell in made[:2]]
    sweep_figures.draw(one, runs[:2], tmp_path / "line.png")
    for name in ("rows", "line"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05


def test_a_grid_of_model_based_runs_is_swept_too(tiny):
    short = replace(tiny, steps=10)
    made = grid.cells(short, {LENGTH: [1, 2]})
    table = sweep_figures.as_table(made, [run for _, run in sweep.run(made, 1)])
    assert [column.header for column in table.columns] == [LENGTH, "chosen", "last", "depth"]
    assert next(iter(table.columns[3].cells)).plain == "1.00"


LONG = [
    f"{path}={value}"
    for path, value in {
        "agent.learning_rate": 0.00031415926535,
        "agent.learning_rate_decay": 0.12345678901,
        "agent.discount": 0.98765432101,
        "agent.target_rate": 0.01234567890,
        "agent.huber_delta": 1.23456789012,
        "agent.target_quantile": 0.25123456789,
        "agent.target_beta": 1.00123456789,
        "exploration.start": 0.20123456789,
        "exploration.end": 0.02123456789,
        "environment.observation_noise": 0.00123456789,
    }.items()
]


def command(free, words, folder, *more):
    config = folder.with_suffix(".yaml")
    save(free, config)
    grid = [word for one in words for word in ("--grid", one)]
    command_line.main(["sweep", str(config), *grid, "--seeds", "1", "--out", str(folder), *more])


def swept(free, folder, monkeypatch, words, *more, fail=()):
    """``sweep`` on the command's own function; training the groups whose number is in ``fail`` raises, the n-th call being n."""
    original, calls = runner.run_all, []

    def run_all(configs, *arguments, **options):
        calls.append(len(configs))
        if len(calls) - 1 in fail:
            raise RuntimeError("the device is lost")
        return original(configs, *arguments, **options)

    monkeypatch.setattr(runner, "run_all", run_all)
    try:
        command(free, words, folder, *more)
    finally:
        monkeypatch.setattr(runner, "run_all", original)
    return calls


def test_a_combination_whose_settings_fill_a_line_is_written(free, tmp_path, monkeypatch):
    swept(free, tmp_path / "out", monkeypatch, LONG)
    (entry,) = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(",".join(LONG)) > 255
    assert (entry["name"], entry["state"]) == ("0", "finished")
    assert entry["settings"]["agent.discount"] == 0.98765432101
    assert results.read(tmp_path / "out" / "0").config.agent.discount == 0.98765432101


def test_a_combination_that_fails_costs_only_itself_and_a_resumed_sweep_trains_it_alone(free, tmp_path, monkeypatch, capsys):
    words, out = ["agent.batch_size=8,16,32"], tmp_path / "out"
    with pytest.raises(SystemExit, match="1"):
        swept(free, out, monkeypatch, words, fail=[1])
    assert [entry["state"] for entry in json.loads((out / "sweep.json").read_text())] == ["finished", "failed", "finished"]
    said = capsys.readouterr().out
    assert "2 of 3 combinations" in said
    assert "failed: 1, agent.batch_size=16: RuntimeError: the device is lost" in said
    kept = [(out / name / "outcome.npz").read_bytes() for name in ("0", "2")]

    assert swept(free, out, monkeypatch, words, "--resume") == [1]
    assert [entry["state"] for entry in json.loads((out / "sweep.json").read_text())] == ["finished"] * 3
    assert [(out / name / "outcome.npz").read_bytes() for name in ("0", "2")] == kept
    assert swept(free, out, monkeypatch, words, "--resume") == []
    with pytest.raises(SystemExit, match="2"):
        swept(free, out, monkeypatch, ["agent.batch_size=8,16"], "--resume")
    assert "asked for with another grid" in capsys.readouterr().err


def test_a_combination_is_on_the_disk_before_the_next_begins(free, tmp_path, monkeypatch):
    there, original = [], runner.train

    def train(program, batch, **options):
        there.append(sorted(path.parent.name for path in (tmp_path / "out").glob("*/summary.json")))
        return original(program, batch, **options)

    monkeypatch.setattr(runner, "train", train)
    swept(free, tmp_path / "out", monkeypatch, ["agent.batch_size=8,16"])
    assert there == [[], ["0"]]


def test_a_folder_that_cannot_be_made_is_found_out_before_training(free, tmp_path, monkeypatch, capsys):
    original = Path.mkdir

    def mkdir(self, *arguments, **options):
        if self.name == "out":
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(runner, "run_all", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="2"):
        command(free, ["agent.batch_size=8,16"], tmp_path / "out")
    assert re.search("out: .* cannot be made: .*File name too long", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_was_killed_while_its_first_combination_was_written_goes_on(free, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    words, out = ["agent.batch_size=8"], tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(results, "write", kill)
        with pytest.raises(Killed):
            command(free, words, out)
    command(free, words, out, "--resume")
    assert [entry["state"] for entry in json.loads((out / "sweep.json").read_text())] == ["finished"]


def test_some_combinations_are_trained_by_number_and_joined_to_the_whole_sweep(free, tmp_path, monkeypatch, capsys):
    words = ["agent.batch_size=8,16", "agent.learning_rate=1e-3,1e-2"]
    command(free, words, tmp_path / "all")
    command(free, words, tmp_path / "a", "--combinations", "0:2,3")
    capsys.readouterr()

    def join(name, *shards):
        command_line.main(["join", str(tmp_path / name), *(str(tmp_path / shard) for shard in shards)])

    for given, message in ((("a",), "the combinations 2 are missing"), (("a", "a"), "combination 0 is in")):
        with pytest.raises(SystemExit):
            join("joined", *given)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(free, words, tmp_path / "b", "--combinations", "4")
    assert "combinations: [4] does not fit; there are the numbers 0 to 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(free, words, tmp_path / "b", "--combinations", "0:2147483648")
    assert "combinations: [0, 1, 2, 3, 4] does not fit; there are the numbers 0 to 3" in capsys.readouterr().err
    command(free, words, tmp_path / "b", "--combinations", "2")
    join("joined", "b", "a")
    entries = [json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("all", "joined")]
    for ours, theirs in zip(*entries, strict=True):
        assert {name: ours[name] for name in ("name", "settings", "state")} == {
            name: theirs[name] for name in ("name", "settings", "state")
        }
        found = [results.read(tmp_path / folder / ours["name"]).result for folder in ("all", "joined")]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
