from dataclasses import fields, replace

import jax
import matplotlib.image
import numpy as np
import pytest

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.runs import command_line, grid, runner

LENGTH, RATE = "imagination.controller_settings.length", "agent.learning_rate"


@pytest.fixture(scope="module")
def free(tiny):
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})


@pytest.fixture(scope="module")
def made(free):
    return grid.cells(free, grid.parse(["agent.batch-size=8,16", "agent.learning_rate=1e-3,1e-2"]))


@pytest.fixture(scope="module")
def runs(made):
    return grid.run(made, 2, base_seed=3)


def test_a_grid_is_every_combination_in_the_order_given(made):
    assert [cell.name for cell in made] == [
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
    original = runner.run_together

    def noted(configs, *arguments, **options):
        groups.append([config.agent.batch_size for config in configs])
        return original(configs, *arguments, **options)

    monkeypatch.setattr(runner, "run_together", noted)
    grid.run(made, 1)
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
    assert made[0].name == "agent.hidden=[8,8],agent.target=max,model.elites=None"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "grid: it is empty"),
        (["agent.learning_rate"], "grid: 'agent.learning_rate' must be a setting with its values"),
        (["agent.hidden=[8"], "must be a setting with its values"),
        (["agent.learning_rate="], r"agent.learning_rate: \[\] has no values"),
        (["agent.learning_rate=0.1", "agent.learning-rate=0.2"], "agent.learning_rate is given twice"),
        (["agent.learning_rate=0.1,1e-1"], "agent.learning_rate=0.1 is given twice"),
        (["agent.speed=1"], "agent.speed: there is no such setting"),
        (["agent=1"], "agent: it is a group of settings; name one of agent.hidden"),
        (["imagination.controller_settings.mark=1"], "mark: there is no such setting"),
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
    grid.draw(made, runs, tmp_path / "rows.png")
    one = [cell._replace(settings={RATE: cell.settings[RATE]}) for cell in made[:2]]
    grid.draw(one, runs[:2], tmp_path / "line.png")
    for name in ("rows", "line"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05


def test_a_grid_of_model_based_runs_is_swept_too(tiny):
    short = replace(tiny, steps=10)
    made = grid.cells(short, {LENGTH: [1, 2]})
    table = grid.as_table(made, grid.run(made, 1))
    assert [column.header for column in table.columns] == [LENGTH, "chosen", "last", "depth"]
    assert next(iter(table.columns[3].cells)) == "1.00"
