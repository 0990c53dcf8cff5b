"""Parity: the JAX code against the PyTorch reference, in float64, on inputs drawn anew in every run from a printed seed.

A parity test takes ``rng`` and ``agree`` as plain arguments, so that the suite's own tests can call it with a fault planted.
"""

import os
import secrets
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
    """The test's own random numbers. A failing test prints the seed; ``PARITY_SEED=…`` repeats it."""
    seed = int(os.environ.setdefault("PARITY_SEED", str(secrets.randbits(32))))
    print(f"PARITY_SEED={seed}")
    return np.random.default_rng([seed, *request.node.name.encode()])


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Iterator[Agreement]:
    """Compares, and reports how closely the two sides agreed."""
    agreement = Agreement(Path(request.node.path).stem.removeprefix("test_"))
    yield agreement
    request.node.user_properties += [("agreement", tuple(entry)) for entry in agreement.entries]
