"""Parity: the JAX code against the PyTorch reference, in float64, on random inputs.

The same inputs in every run, so that what passed passes again; ``PARITY_SEED=N`` draws others, as ``benchmarks/parity.py`` does.

A parity test takes ``rng`` and ``agree`` as plain arguments, so that the suite's own tests can call it with a fault planted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is held against PyTorch: pip install 'mbrl-jax[torch]'")
torch.set_num_threads(1)

from .agreement import Agreement, float64  # noqa: E402


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Every parity test computes in float64 with full-precision matrix products."""
    with float64():
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The test's own random numbers."""
    seed = int(os.environ.get("PARITY_SEED", "0"))
    return np.random.default_rng([seed, *request.node.name.encode()])


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Iterator[Agreement]:
    """Compares, and reports how closely the two sides agreed."""
    agreement = Agreement(Path(request.node.path).stem.removeprefix("test_"))
    yield agreement
    request.node.user_properties += [("agreement", tuple(entry)) for entry in agreement.entries]
