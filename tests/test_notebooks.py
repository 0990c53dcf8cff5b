"""The notebooks' scripts run, at a size of seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run_small(name, folder, **changes):
    """What the script prints, run in ``folder`` with other values for some of its constants."""
    source = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    for constant, value in changes.items():
        source, count = re.subn(rf"^{constant} = .*$", f"{constant} = {value!r}", source, flags=re.MULTILINE)
        assert count == 1, f"{name} has {constant} {count} times"
    script = folder / f"{name}.py"
    script.write_text(source, encoding="utf-8")
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_controller_is_written_and_compared_in_one_page(tmp_path):
    printed = run_small("write_a_horizon_controller", tmp_path, SEEDS=3, PRESET="smoke")
    assert re.search(r"^relative\(3\) +chosen +IQM [\d.]+ \[.*mean horizon [\d.]+$", printed, re.MULTILINE)
    assert re.search(r"^relative - fixed, last: -?[\d.]+ \[.*p = [\d.]+$", printed, re.MULTILINE)
    assert matplotlib.image.imread(tmp_path / "write_a_horizon_controller.png").std() > 0.05
