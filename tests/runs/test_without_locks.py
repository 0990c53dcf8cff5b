import os
import subprocess
import sys

import pytest

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import claims

WITHOUT = """
import sys
sys.modules["fcntl"] = None  # as on Windows, where it cannot be imported
import mbrl_jax
from mbrl_jax import command_line
train = ["train", "smoke", "--seeds", "1", "--out", sys.argv[1]]
compare = ["compare", "--protocol", "batch", "--seeds", "1", "--out", sys.argv[1]]
for words in (["train", "smoke", "--help"], train, [*train, "--resume"], compare, ["runs", "."]):
    try:
        command_line.main(words)
    except SystemExit as stopped:
        print("status", stopped.code)
"""


def test_without_fcntl_everything_imports_and_what_needs_locks_is_refused_in_a_sentence(tmp_path):
    words = [sys.executable, "-c", WITHOUT, str(tmp_path / "run")]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 0", *(["status 2"] * 4)], (
        done.stderr
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith("mbrl-jax: ")]
    refused = "mbrl-jax: out: this system has no file locks (fcntl), which a run's folder needs; Linux and macOS have them"
    assert [line.startswith(refused) for line in complaints] == [True, True, True, False]
    assert "there are no runs" in complaints[3]
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_none_they_are_asked_for_in_vain(monkeypatch):
    monkeypatch.setattr(claims, "HAS_LOCKS", False)
    with pytest.raises(ConfigError, match="no file locks"):
        claims.require_locks()
