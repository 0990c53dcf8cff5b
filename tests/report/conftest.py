"""What the report's tests share."""

import pytest

from mbrl_jax.config import DynaQConfig
from mbrl_jax.runs import runner
from mbrl_jax.runs.run import Run


@pytest.fixture(scope="session")
def dyna(tiny: DynaQConfig) -> Run:
    """A diagnosed run of four seeds."""
    return runner.run(tiny, 4, diagnose=True)
