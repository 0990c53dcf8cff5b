"""The library's PyTorch reference, one seed on one thread."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mbrl_jax import reference_run
from mbrl_jax.config import ModelFreeQConfig, from_dict


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Eager, or with its hot functions compiled: then a round is run before every run, and its seconds are told apart."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # it would go on eagerly
    config = from_dict(job["config"])
    assert isinstance(config, ModelFreeQConfig)

    def run(request: dict[str, Any]) -> dict[str, Any]:
        torch.compiler.reset()  # every run has networks of its own, and compiling for them has a limit
        number = request["go"] * job["processes"] + job["number"]
        result, told = reference_run.train(config, 0, number, job["compiled"], job["device"])
        seconds = told._asdict()
        outcome = result.outcome
        return {
            "compile_seconds": seconds.pop("compile"),
            "seconds": seconds,
            "return_last": float(np.mean(outcome.returns_last)),
            "return_chosen": None if outcome.returns_chosen is None else float(np.mean(outcome.returns_chosen)),
        }

    return {"seeds": 1}, run
