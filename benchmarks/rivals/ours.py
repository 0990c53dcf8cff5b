"""The library itself, as ``mbrl-jax train`` runs it."""

import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mbrl_jax.config import from_dict
from mbrl_jax.runs import execution, runner


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """All seeds in one program; the first repetition compiles it, later ones read it from a cache of their own."""
    if job["device"] == "cpu":
        execution.use_all_cores()
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = from_dict(job["config"])

    def run(request: dict[str, Any]) -> dict[str, Any]:
        done = runner.run(config, job["seeds"], base_seed=request["go"])
        outcome, seconds = done.result.outcome, done.seconds._asdict()
        return {
            "compile_seconds": seconds.pop("compile"),
            "seconds": seconds,
            "return_last": float(np.mean(outcome.returns_last)),
            "return_chosen": None if outcome.returns_chosen is None else float(np.mean(outcome.returns_chosen)),
        }

    return {"device": execution.device(), "seeds": job["seeds"]}, run
