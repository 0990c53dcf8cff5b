"""``import mbrl_jax``: quick, and every public name there when it is used."""

import subprocess
import sys
import types

import pytest

import mbrl_jax


@pytest.mark.parametrize("name", mbrl_jax.__all__)
def test_a_public_name_is_what_its_module_defines(name):
    value = getattr(mbrl_jax, name)
    if isinstance(value, types.ModuleType):
        assert value.__name__ == f"mbrl_jax.algorithms.{name}"
    else:
        assert value.__name__ == {"load_run": "read"}.get(name, name)
        assert value.__module__.startswith("mbrl_jax.")
    assert getattr(mbrl_jax, name) is value
    assert name in dir(mbrl_jax)


def test_the_public_names_are_those_that_can_be_imported():
    assert sorted(mbrl_jax._MODULE_OF) == sorted(mbrl_jax.__all__)


def test_to_import_the_package_imports_no_jax():
    heavy = "{'jax', 'numpy', 'flax'} & set(sys.modules)"
    program = f"import sys, mbrl_jax; assert not {heavy}; mbrl_jax.run; assert {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_module_of_the_package_is_imported_when_it_is_named():
    program = "import mbrl_jax; assert mbrl_jax.config.EnvironmentConfig().name == 'CartPole-v1'; assert mbrl_jax.statistics.mean"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match=r"^module 'mbrl_jax' has no attribute 'no_such_name'$"):
        mbrl_jax.no_such_name  # noqa: B018
    assert not hasattr(mbrl_jax, "no_such_name")
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        from mbrl_jax import no_such_name  # noqa: F401
