"""Whatever is written as JSON is JSON to every reader."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mbrl_jax import report, strict_json
from mbrl_jax.config import ModelFreeQConfig, grid
from mbrl_jax.report import comparison, listing, markup, overview, sweep_figures
from mbrl_jax.runs import callbacks, folder, results, runner
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.interruption import Interrupted, Interruption
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train

ROOT = Path(__file__).parents[1]
BAD = (float("nan"), float("inf"), -float("inf"), np.float64("nan"))


def strictly(text):
    """JSON text read by a reader that knows the standard and no more."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bad", BAD)
def test_a_number_that_is_not_finite_is_null_wherever_it_stands(bad):
    content = {"a": bad, "b": [1.5, bad, {"c": (bad, 2)}], "d": None, "e": "NaN", "f": True, "g": np.float64(0.1)}
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": None, "e": "NaN", "f": True, "g": 0.1}
    assert strictly(strict_json.dumps(content)) == expected
    assert json.dumps(expected, indent=1) == strict_json.dumps(content, indent=1)


def test_what_earlier_versions_wrote_bare_is_read_as_none():
    assert strict_json.loads('{"a": NaN, "b": [Infinity, -Infinity, 1.0]}') == {"a": None, "b": [None, None, 1.0]}
    with pytest.raises(ValueError, match="Expecting value"):
        strict_json.loads('{"a": nan}')


def test_every_json_file_of_the_library_and_its_benchmarks_is_written_here():
    elsewhere = re.compile(r"json\.dump\(|write_(?:text|bytes)\(\s*json\.")
    sources = [path for folder in ("mbrl_jax", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 80
    assert [path.name for path in sources if elsewhere.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").rglob("*.json")), ids=lambda path: path.stem)
def test_every_result_on_file_is_json(path):
    strictly(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def diverged(tiny, tmp_path_factory):
    """A run whose learner goes non-finite at once, stopped after its first round and then finished: both folders."""
    root = tmp_path_factory.mktemp("diverged")
    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    asked = Asked(replace(free, agent=replace(free.agent, learning_rate=1e38)), 2, 7, False)
    stop = Interruption()
    stop.requested = True
    program = runner.prepare([asked.config], 2, base_seed=7)
    for name in ("stopped", "finished"):
        with folder.opened(root / name, asked, "the command", every=0.0, keep=1) as kept:
            followers = [kept.lines, kept.checkpoints]
            if name == "stopped":
                with pytest.raises(Interrupted):
                    train(program, Batch(0, 2), callbacks=followers, interruption=stop)
            else:
                run = train(program, Batch(0, 2), callbacks=followers)
    results.write(run, root / "finished")
    return root, run


def test_every_json_file_that_a_diverged_run_leaves_can_be_read_by_anybody(diverged):
    root, _ = diverged
    files = [path for path in root.rglob("*") if path.suffix in (".json", ".jsonl") and "arrays" not in path.parts]
    assert {path.name for path in files} == {"run.json", "summary.json", "metrics.jsonl", "manifest.json"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strictly(line)
    lines = callbacks.read_lines(root / "finished" / "metrics.jsonl")
    assert lines[-1]["values"]["update.loss"] is None
    assert lines[-1]["frozen"] == 2


def test_a_line_is_taken_over_as_null_when_a_run_goes_on_where_an_earlier_version_wrote_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1, "values": {"score": NaN}, "saved": 0}\n', encoding="utf-8")
    callbacks.JsonLines(path, 1).close()
    assert strictly(path.read_text(encoding="utf-8"))["values"] == {"score": None}


def without_returns(run):
    """A run of which one seed's final returns are NaN."""
    returns = np.where(np.arange(len(run.result.outcome.returns_last))[:, None] == 0, np.nan, run.result.outcome.returns_last)
    return run._replace(result=run.result._replace(outcome=run.result.outcome._replace(returns_last=returns)))


def printed(table):
    with io.StringIO() as file:
        Console(width=300, file=file).print(table)
        return file.getvalue()


def test_returns_that_are_not_finite_are_null_in_a_summary_and_a_dash_where_runs_are_listed(diverged, tmp_path):
    _, run = diverged
    (tmp_path / "run").mkdir()
    results.write(without_returns(run), tmp_path / "run")
    summary = strictly((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["return_last"][0] is None
    assert np.isfinite(summary["return_last"][1])
    assert summary["iqm"] == {"last": {"value": None, "ci95": [None, None]}, "chosen": None}
    (listed,) = listing.find(tmp_path)
    assert np.isnan(listed.last).all()
    assert listed.chosen is None
    assert str(listed.last) == "-"
    assert "nan" not in printed(listing.as_table([listed]))
    assert overview._estimate(summary["iqm"]["last"]) == "-"
    assert "nan" not in printed(sweep_figures.as_table([grid.Cell({"steps": 20}, run.config)], [without_returns(run)]))


def test_a_round_without_a_finite_return_is_listed_as_such(diverged, tmp_path):
    root, _ = diverged
    path = root / "stopped" / "metrics.jsonl"
    line = callbacks.read_lines(path)[-1]
    line["values"]["curve_return"] = None
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((root / "stopped" / name).read_bytes())
    (tmp_path / "metrics.jsonl").write_text(strict_json.dumps(line) + "\n", encoding="utf-8")
    (listed,) = listing.find(tmp_path)
    assert (listed.state, listed.note) == ("round 1 of 2", "no finite return by its curve")


def test_a_comparison_with_returns_that_are_not_finite_is_json_and_a_table_of_dashes(diverged):
    _, run = diverged
    outcome = run.result.outcome._replace(returns_chosen=run.result.outcome.returns_last)
    chosen = run._replace(result=run.result._replace(outcome=outcome))
    measured = comparison.compare(chosen, without_returns(run))
    told = strictly(strict_json.dumps(comparison.as_json(measured)))["arms"]
    assert told["model-free, last"]["mean"] == {"value": None, "ci95": [None, None]}
    assert told["model-based, chosen"]["paired_difference"]["mean"]["value"] is None
    assert told["model-based, chosen"]["mean"]["value"] > 0
    assert "nan" not in printed(comparison.as_table(measured, "both"))


def test_what_a_page_draws_is_json_and_closes_no_script():
    text = markup.as_json({"real": [[float("nan"), 1.0]], "said": "</script>"})
    assert "</" not in text
    assert strictly(text) == {"real": [[None, 1.0]], "said": "</script>"}


def test_the_report_of_a_diverged_run_holds_json(diverged, tmp_path):
    root, _ = diverged
    report.write([root / "finished"], tmp_path / "report.html")
    scripts = re.findall(
        r'<script type="application/json">(.*?)</script>', (tmp_path / "report.html").read_text(encoding="utf-8")
    )
    assert scripts
    for script in scripts:
        strictly(script)
