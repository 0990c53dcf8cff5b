"""What the reference's tests share."""

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the reference is written in PyTorch: pip install 'mbrl-jax[torch]'")
torch.set_num_threads(1)

from mbrl_jax.config import DynaQConfig, ModelFreeQConfig  # noqa: E402


def change(config: Any, group: str, **settings: Any) -> Any:
    """``config`` with other settings in one of its groups."""
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **settings)})


@pytest.fixture
def baseline(tiny: DynaQConfig) -> ModelFreeQConfig:
    """The model-free half of ``tiny``."""
    return ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in dataclasses.fields(ModelFreeQConfig)})
