"""The examples run from the checkout as they are, at a size of seconds."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
from processes import environment

ROOT = Path(__file__).parents[1]
SMALL = {  # what makes each of them small
    "many_seeds": "--config configs/smoke.yaml --seeds 3 --out {folder}/returns.png",
    "own_controller": "--config configs/smoke.yaml --seeds 3 --share {share}",
}


def run(name, **values):
    command = [sys.executable, f"examples/{name}.py", *SMALL[name].format(**values).split()]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SMALL)


def test_many_seeds_are_trained_and_plotted(tmp_path):
    assert re.fullmatch(r"IQM of 3 seeds: [\d.]+ \[.*\]\n", run("many_seeds", folder=tmp_path))
    assert matplotlib.image.imread(tmp_path / "returns.png").std() > 0.05


def test_a_controller_of_ones_own_decides_how_long_rollouts_are():
    fixed, vote, difference = run("own_controller", share=1.1).splitlines()  # more than all members never agree
    pattern = r"(\w+) +IQM [\d.]+ \[.*\], mean horizon ([\d.]+)"
    horizons = {found[1]: found[2] for line in (fixed, vote) if (found := re.fullmatch(pattern, line))}
    assert horizons["vote"] == "1.0"
    assert float(horizons["fixed"]) > 1.5
    assert re.fullmatch(r"vote - fixed: -?[\d.]+ \[.*\]", difference)
