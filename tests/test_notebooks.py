"""The notebooks' scripts run, at a size of seconds."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from processes import environment

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run_small(name, folder, **changes):
    """What the script prints, run in ``folder`` with other values for some of its constants."""
    source = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    for constant, value in changes.items():
        source, count = re.subn(rf"^{constant} = .*$", f"{constant} = {value!r}", source, flags=re.MULTILINE)
        assert count == 1, f"{name} has {constant} {count} times"
    script = folder / f"{name}.py"
    script.write_text(source, encoding="utf-8")
    command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True).stdout


def cells_of_script(name):
    """The (kind, text) of the cells of a script in percent format, its header left out."""
    cells = []
    for line in (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("# %%"):
            cells.append(("markdown" if line == "# %% [markdown]" else "code", []))
        elif cells:
            kind, lines = cells[-1]
            lines.append(re.sub("^# ?", "", line) if kind == "markdown" else line)
    return [(kind, "\n".join(lines).strip()) for kind, lines in cells]


def cells_of_page(name):
    """The cells of a rendered page, as its JSON has them."""
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_a_controller_is_written_and_compared_in_one_page(tmp_path):
    printed = run_small("write_a_horizon_controller", tmp_path, SEEDS=3, PRESET="smoke")
    assert re.search(r"^relative\(3\) +chosen +IQM [\d.]+ \[.*mean horizon [\d.]+$", printed, re.MULTILINE)
    assert re.search(r"^relative - fixed, last: -?[\d.]+ \[.*p = [\d.]+$", printed, re.MULTILINE)
    assert matplotlib.image.imread(tmp_path / "write_a_horizon_controller.png").std() > 0.05


def test_the_tour_runs_from_random_pushes_to_the_comparison_and_writes_nothing(tmp_path):
    configs = NOTEBOOKS.parent / "configs"
    small = tmp_path / "small.yaml"
    small.write_text(f"base: {configs / 'smoke.yaml'}\nprotocol: batch\n", encoding="utf-8")
    baseline = tmp_path / "baseline.yaml"
    same = "environment: {time_limit: 50}\nrandom_transitions: 200\nsteps: 40\nround_steps: 20\nagent: {hidden: [16, 16]}\n"
    baseline.write_text(f"base: {configs / 'cartpole_batch_model_free.yaml'}\n{same}", encoding="utf-8")
    printed = run_small("dyna_cartpole", tmp_path, SEEDS=2, PRESET=small.name, BASELINE=baseline.name)
    assert re.search(r"^200 transitions; \d+ whole episodes", printed, re.MULTILINE)
    for arm in ("model-based, chosen", "model-based, last", "model-free, last"):
        assert re.search(rf"^{arm} +IQM [\d.]+ \[.*>= 195: +\d+%.*>= 475: +\d+%$", printed, re.MULTILINE)
    for policy in ("chosen", "last"):
        assert re.search(rf"^{policy} - model-free: -?[\d.]+ \[.*p = [\d.]+, better on \d+%", printed, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "baseline.yaml", "dyna_cartpole.py"}


def test_without_the_package_the_tour_says_how_to_install_it():
    first = next(text for kind, text in cells_of_script("dyna_cartpole") if kind == "code")
    with_nothing = [sys.executable, "-I", "-S", "-c", first]
    failed = subprocess.run(with_nothing, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "ModuleNotFoundError: mbrl_jax is not installed: set REPOSITORY to where you got this from" in failed.stderr


@pytest.mark.parametrize("name", ["dyna_cartpole"])
def test_a_rendered_page_is_its_script_run_once_from_top_to_bottom(name):
    page = cells_of_page(name)
    assert [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in page] == cells_of_script(name)
    code = [cell for cell in page if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}  # no error
    assert all(output["name"] == "stdout" for output in outputs if output["output_type"] == "stream")
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
