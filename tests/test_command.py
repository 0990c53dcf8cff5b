"""``mbrl-jax`` as a person starts it, where something about the system is unlike others."""

import contextlib
import io
import os
import subprocess
import sys

import pytest
from processes import FORKS

from mbrl_jax import command_line

COMMANDS = ("train", "join", "sweep", "compare", "runs", "report", "evaluate", "reference")
NOBODY = """
import os, pwd, sys
def unknown(*_):
    raise KeyError("uid not found")
pwd.getpwuid = unknown
from mbrl_jax import command
command.main()
"""


def without_a_reader(words, errors):
    """The command with a standard output whose reader has left; what it says on standard error goes to a file."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(errors, "w") as file, open(writer, "w") as sys.stdout, contextlib.redirect_stderr(file):
        command_line.main(words)


def started(words, **settings):
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu", **settings}, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_whose_reader_has_left_ends_in_silence(tmp_path, command):
    preset = ["smoke"] if command in ("train", "sweep", "reference") else []
    words = [*([] if command is None else [command]), *preset, "--help"]
    process = FORKS.Process(target=without_a_reader, args=(words, tmp_path / "errors"))
    process.start()
    process.join()
    assert process.exitcode == 141, (tmp_path / "errors").read_text()
    assert (tmp_path / "errors").read_text() == ""


def test_so_it_does_in_a_shell():
    program = f"{sys.executable} -m mbrl_jax.command train smoke --help"
    status, _, said = started(["bash", "-c", f"set -o pipefail; {program} | true"])
    assert (status, said) == (141, "")


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_is_printed_in_whatever_encoding(monkeypatch, command, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    preset = ["smoke"] if command in ("train", "sweep", "reference") else []
    with pytest.raises(SystemExit) as stopped:
        command_line.main([*([] if command is None else [command]), *preset, "--help"])
    assert stopped.value.code == 0
    printed = written.getvalue().decode(encoding)
    assert "usage: mbrl-jax" in printed
    assert "\\u" not in printed


def test_what_is_refused_is_said_in_whatever_encoding(tmp_path):
    words = [sys.executable, "-m", "mbrl_jax.command", "runs", str(tmp_path / "ö[/b]…")]
    status, _, said = started(words, PYTHONIOENCODING="ascii")
    assert (status, said.splitlines()) == (2, [said.rstrip()])
    assert r"\xf6[/b]..." in said


def test_without_a_home_folder_a_command_works_and_says_in_a_line_that_nothing_compiled_is_kept(tmp_path):
    unknown = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    settings = {name: value for name, value in os.environ.items() if name not in unknown}
    words = [sys.executable, "-c", NOBODY, "runs", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("mbrl-jax: the home folder is not known, so nothing that is compiled is kept")
    assert "there are no runs" in second
