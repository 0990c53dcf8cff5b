"""The examples run from the checkout as they are, at a size of seconds."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
from processes import environment

from mbrl_jax.config import load, save

ROOT = Path(__file__).parents[1]
SMALL = {  # what makes each of them small
    "many_seeds": "--config configs/smoke.yaml --seeds 3 --out {folder}/returns.png",
    "own_controller": "--config configs/smoke.yaml --seeds 3 --share {share}",
    "continual": "--config {folder}/batch.yaml --seeds 2 --transitions 300 --episodes 2 --steps 20 --out {folder}/continual",
}


def run(name, **values):
    command = [sys.executable, f"examples/{name}.py", *SMALL[name].format(**values).split()]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SMALL)


def test_many_seeds_are_trained_and_plotted(tmp_path):
    assert re.fullmatch(r"IQM of 3 seeds: [\d.]+ \[.*\]\n", run("many_seeds", folder=tmp_path))
    assert matplotlib.image.imread(tmp_path / "returns.png").std() > 0.05


def test_what_comes_back_from_reality_is_learned_from_and_served(tmp_path):
    config = load(ROOT / "configs" / "smoke.yaml")
    save(dataclasses.replace(config, protocol="batch"), tmp_path / "batch.yaml")
    lines = run("continual", folder=tmp_path).splitlines()
    sealed = next(line for line in lines if line.endswith("episodes"))
    assert int(sealed.split()[0]) >= 300
    assert "serves 2" in lines
    assert [line.split("mean return")[0].strip() for line in lines[-3:]] == [
        "the motor it knows",
        "the reversed motor",
        "the reversed motor, trained again",
    ]
    assert all(1 <= float(line.split()[-1]) <= 20 for line in lines[-3:])


def test_a_controller_of_ones_own_decides_how_long_rollouts_are():
    fixed, vote, difference = run("own_controller", share=1.1).splitlines()  # more than all members never agree
    pattern = r"(\w+) +IQM [\d.]+ \[.*\], mean horizon ([\d.]+)"
    horizons = {found[1]: found[2] for line in (fixed, vote) if (found := re.fullmatch(pattern, line))}
    assert horizons["vote"] == "1.0"
    assert float(horizons["fixed"]) > 1.5
    assert re.fullmatch(r"vote - fixed: -?[\d.]+ \[.*\]", difference)
