import io
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.runs import listing, results, run_folder, runner
from mbrl_jax.runs.interruption import Interrupted, Interruption
from mbrl_jax.runs.run_folder import Asked


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
    with run_folder.create(root / "stopped", asked, "the command", (), 0.0, 1, print) as kept, pytest.raises(Interrupted):
        runner.run(asked.config, 2, base_seed=7, keeper=kept, interruption=stop)
    shutil.copytree(root / "sweep" / "one", root / "broken")
    (root / "broken" / "summary.json").write_text("nothing of ours")
    return root


def test_runs_are_found_with_how_far_they_are_and_what_they_reached(folder):
    runs = {run.name: run for run in listing.find(folder)}
    assert set(runs) == {"sweep/one", "stopped", "broken"}
    finished, stopped = runs["sweep/one"], runs["stopped"]
    summary = results.read_summary(folder / "sweep" / "one")
    assert (finished.state, finished.last.value, finished.chosen) == ("finished", summary["iqm"]["last"]["value"], None)
    assert (stopped.state, stopped.last) == ("round 1 of 2", None)
    assert stopped.note.startswith("IQM ")
    assert (runs["broken"].state, runs["broken"].last) == ("unreadable", None)
    assert "summary.json: it cannot be read" in runs["broken"].note


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
