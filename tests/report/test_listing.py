import io
import json
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from mbrl_jax import command_line
from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.report import listing
from mbrl_jax.runs import folder as run_folder
from mbrl_jax.runs import results, runner
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.interruption import Interrupted, Interruption
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A finished run, one that was stopped, and one that nobody can read."""
    root = tmp_path_factory.mktemp("runs")
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    (root / "sweep" / "one").mkdir(parents=True)
    results.write(runner.run(free, 3), root / "sweep" / "one")
    asked = Asked(replace(free, agent=replace(free.agent, learning_rate=0.5)), 2, 7, False)
    stop = Interruption()
    stop.requested = True
    program = runner.prepare([asked.config], 2, base_seed=7)
    with run_folder.opened(root / "stopped", asked, "the command", every=0.0, keep=1) as kept, pytest.raises(Interrupted):
        train(program, Batch(0, 2), callbacks=[kept.lines, kept.checkpoints], interruption=stop)
    shutil.copytree(root / "sweep" / "one", root / "broken")
    (root / "broken" / "summary.json").write_text("nothing of ours")
    shutil.copytree(root / "sweep" / "one", root / "strange")
    summary = json.loads((root / "strange" / "summary.json").read_text())
    (root / "strange" / "summary.json").write_text(json.dumps({**summary, "frozen_seeds": 3}))
    return root


def test_runs_are_found_with_how_far_they_are_and_what_they_reached(folder):
    runs = {run.name: run for run in listing.find(folder)}
    assert set(runs) == {"sweep/one", "stopped", "broken", "strange"}
    finished, stopped = runs["sweep/one"], runs["stopped"]
    summary = results.read_summary(folder / "sweep" / "one")
    assert (finished.state, finished.last.value, finished.chosen) == ("finished", summary["iqm"]["last"]["value"], None)
    assert (stopped.state, stopped.last) == ("round 1 of 2", None)
    assert stopped.note.startswith("IQM ")
    assert (runs["broken"].state, runs["broken"].last) == ("unreadable", None)
    assert "summary.json: it cannot be read" in runs["broken"].note
    assert runs["strange"].state == "unreadable"


def test_links_to_runs_and_to_folders_of_runs_are_followed(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "best").symlink_to(folder / "sweep" / "one")
    (tmp_path / "links" / "all").symlink_to(folder)
    assert [run.name for run in listing.find(tmp_path / "links")] == [
        *("all/broken", "all/stopped", "all/strange", "all/sweep/one")  # once
    ]
    (tmp_path / "links" / "all").unlink()
    (tmp_path / "itself").symlink_to(tmp_path / "links")
    assert [run.name for run in listing.find(tmp_path / "itself")] == ["best"]


def test_links_in_a_circle_end_and_runs_go_by_the_path_with_the_fewest_of_them(folder, tmp_path):
    shutil.copytree(folder / "sweep", tmp_path / "middle" / "sweep")
    (tmp_path / "middle" / "sweep" / "up").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "middle")
    (tmp_path / "b").symlink_to(tmp_path / "b")
    assert [run.name for run in listing.find(tmp_path)] == ["middle/sweep/one"]


def test_names_are_no_markup(folder, tmp_path, capsys):
    names = ["a[/b]", "lr[best]", "lr[red]"]
    for name in names:
        shutil.copytree(folder / "sweep" / "one", tmp_path / name)
    command_line.main(["runs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_only_the_settings_in_which_they_differ_are_shown(folder):
    table = listing.as_table(listing.find(folder))
    columns = [column.header for column in table.columns]
    assert columns == ["run", "state", "agent.learning_rate", "seeds", "seed", "chosen", "last", "note"]
    with io.StringIO() as file:
        Console(width=200, file=file).print(table)
        text = file.getvalue()
    assert "0.5" in text
    assert "round 1 of 2" in text


@pytest.mark.parametrize(("name", "message"), [("nowhere", "is no folder"), ("sweep/one/../empty", "there are no runs")])
def test_a_folder_without_runs_is_refused(folder, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        listing.find(tmp_path / ("empty" if "empty" in name else name))
