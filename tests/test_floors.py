"""The script that reads the import graph finds every kind of arrow that the design forbids, and the package has none."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "floors.py"


@pytest.fixture(scope="module")
def floors():
    spec = importlib.util.spec_from_file_location("floors", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def violations(floors, tmp_path):
    """``(exceptions=(), **sources) -> sentences`` for a package of these modules; two underscores in a name are a dot."""

    def find(exceptions=(), **sources):
        for name, source in sources.items():
            path = tmp_path / "mbrl_jax" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, tmp_path / "mbrl_jax"):
                (folder / "__init__.py").touch()
            path.write_text(source, encoding="utf-8")
        return floors.violations(*floors.read(tmp_path / "mbrl_jax"), frozenset(exceptions))

    return find


def test_the_package_imports_downward_only_and_without_circles():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "algorithms" in done.stdout


def test_arrows_downward_and_along_a_floor_are_allowed(violations):
    assert violations(runs__runner="import mbrl_jax.config.files", config__files="", agents__q="import jax") == []
    assert (
        violations(imagination__outcomes="from mbrl_jax.agents import q", agents__q="from mbrl_jax import draws", draws="") == []
    )


@pytest.mark.parametrize(
    "source",
    [
        "from mbrl_jax.runs import runner",
        "from mbrl_jax.runs.runner import Run",
        "import mbrl_jax.runs.runner",
        "from ..runs import runner",
        "from ..runs.runner import Run",
        "def late():\n    from mbrl_jax.runs.runner import Run",
        "if TYPE_CHECKING:\n    from mbrl_jax.runs.runner import Run",
    ],
)
def test_an_upward_arrow_is_found_however_it_is_written(violations, source):
    assert violations(algorithms__dyna=source, runs__runner="") == ["algorithms.dyna imports runs.runner, which is above it"]


def test_the_public_names_are_above_every_room_but_the_command_line(violations):
    assert violations(runs__runner="import mbrl_jax", command_line__main="import mbrl_jax") == [
        "runs.runner imports __init__, which is above it"
    ]


def test_modules_that_import_each_other_are_found_over_any_number_of_steps(violations):
    found = violations(runs__a="from mbrl_jax.runs import b", runs__b="from mbrl_jax.runs import c", runs__c="from . import a")
    assert found == ["modules import each other: runs.a, runs.b, runs.c"]


def test_rooms_that_import_each_other_are_found_where_no_two_modules_do(violations):
    found = violations(
        agents__a="from mbrl_jax.imagination import a",
        imagination__a="",
        imagination__b="from mbrl_jax.agents import b",
        agents__b="",
    )
    assert found == ["rooms import each other: agents, imagination"]


def test_torch_and_its_twin_are_for_the_reference_alone(violations):
    assert violations(
        model__losses="import torch.nn",
        reference_run="def run():\n    import torch\n    from mbrl_jax.reference import loop",
        runs__runner="from mbrl_jax.reference import loop",
        reference__loop="from torch import nn",
    ) == ["runs.runner imports reference.loop, the PyTorch twin", "model.losses imports torch"]


def test_a_module_without_a_floor_is_refused(violations):
    (found,) = violations(attic="")
    assert found.startswith("attic has no floor")


def test_an_exception_holds_for_one_arrow_and_must_go_with_it(violations):
    allowed = {("model.a", "runs.b")}
    assert violations(allowed, model__a="import mbrl_jax.runs.b", runs__b="") == []
    assert violations(allowed, model__a="") == ["model.a no longer imports runs.b: delete the exception"]


def test_a_violation_ends_the_script_with_status_1(tmp_path):
    (tmp_path / "attic.py").touch()
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "attic has no floor" in done.stdout
