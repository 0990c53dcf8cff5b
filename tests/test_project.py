"""The files about the project are what their readers and tools expect."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from mbrl_jax.algorithms import registry
from mbrl_jax.config import ALGORITHMS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def section(page, heading):
    """The text of a page below a heading, down to the next one of its level."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", read(page), re.MULTILINE | re.DOTALL)[1]


@pytest.mark.skipif(find_spec("cffconvert") is None, reason="pip install 'mbrl-jax[dev]'")
def test_the_citation_is_valid_against_the_schema_of_its_format(tmp_path):
    command = [str(Path(sys.executable).parent / "cffconvert"), "--validate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "valid according to schema version 1.2.0" in done.stdout
    (tmp_path / "CITATION.cff").write_text(read("CITATION.cff").replace("title:", "name:"), encoding="utf-8")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_the_citation_is_of_this_version_under_this_licence():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]


def test_the_changelog_has_what_is_not_released_first_and_only_the_kinds_of_change_that_its_form_has():
    headings = re.findall(r"^(##+) (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == ("##", "Unreleased")
    versions = [title for level, title in headings[1:] if level == "##"]
    assert all(re.fullmatch(r"\[?\d+\.\d+\.\d+\]? - \d{4}-\d{2}-\d{2}", version) for version in versions)
    kinds = {title for level, title in headings if level == "###"}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^\* ", section("CHANGELOG.md", "Unreleased"), re.MULTILINE)


def test_the_readme_leads_to_the_files_about_the_project():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        assert f"]({name})" in read("README.md")


def test_the_guide_for_contributors_has_every_room_on_the_floor_that_the_script_gives_it():
    floors = {}
    exec(re.search(r"^FLOORS.*?^\)$", read(".ci/floors.py"), re.MULTILINE | re.DOTALL)[0], floors)
    heights = {room: len(floors["FLOORS"]) - i for i, floor in enumerate(floors["FLOORS"]) for room in floor}
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", section("CONTRIBUTING.md", "The house"), re.MULTILINE)
    told = {}
    for height, rooms in rows:
        for path in re.findall("`([^`]+)`", rooms):
            assert (ROOT / "mbrl_jax" / path).exists(), path
            room = path.removesuffix("/").removesuffix(".py").replace("/", ".").replace("__init__", "")
            told[room] = int(height)
    assert told == {room: heights[room] for room in told}
    inside = [path for path in (ROOT / "mbrl_jax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in inside} - {"__init__"} <= set(told)


def test_the_names_that_a_contributor_is_sent_to_are_there():
    for path, names in {
        "mbrl_jax/environments/gymnax.py": ("_TASKS",),
        "mbrl_jax/imagination/horizon/__init__.py": ("CONTROLLERS", "def register"),
        "mbrl_jax/model/losses.py": ("def member_loss", "def register"),
        "mbrl_jax/model/protocol.py": ("class WorldModel",),
        "mbrl_jax/model/worlds.py": ("def register",),
        "mbrl_jax/agents/protocol.py": ("class Agent",),
        "mbrl_jax/agents/registry.py": ("def register",),
        "mbrl_jax/algorithms/columns.py": ("COLUMNS",),
        "mbrl_jax/config/model.py": ("class ModelConfig",),
        "mbrl_jax/config/algorithms.py": ("ALGORITHMS",),
        "mbrl_jax/algorithms/registry.py": ("ALGORITHMS", "class Algorithm"),
        "tests/conftest.py": ("def tiny",),
    }.items():
        assert f"]({path})" in read("CONTRIBUTING.md"), path
        for name in names:
            assert name.split()[-1] in read("CONTRIBUTING.md")
            assert name in read(path), f"{path} has no {name}"
    assert set(registry.ALGORITHMS) == set(ALGORITHMS.values())


def test_the_test_files_that_are_begun_first_are_there():
    names = ast.literal_eval(re.search(r"^LONG_FILES = (\(.*?^\))", read("tests/conftest.py"), re.MULTILINE | re.DOTALL)[1])
    assert len(set(names)) == len(names) > 5
    assert [name for name in names if not (ROOT / "tests" / name).exists()] == []
