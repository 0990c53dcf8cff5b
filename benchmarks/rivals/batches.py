"""The batched PyTorch rival (:mod:`batched`), at the number of seeds that suits it best."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from batched import Batched, Draws

from mbrl_jax.config import DynaQConfig, from_dict


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Compile for every number of seeds in question and tell each one's steps a second, by a shortened run and full episodes.

    The first request says which of them it is to be.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # it would go on eagerly
    config, device = from_dict(job["config"]), torch.device(job["device"])
    assert isinstance(config, DynaQConfig)
    epochs = min(2, config.model.epochs)
    short = dataclasses.replace(
        config, steps=min(2 * config.round_steps, config.steps), model=dataclasses.replace(config.model, epochs=epochs)
    )
    ready: dict[int, Batched] = {}
    rates: dict[int, float] = {}
    failed: dict[int, str] = {}
    compiling = 0.0

    def draws(settings: Any, seeds: int) -> Draws:
        return Draws(settings, seeds, job["number"], dtype=torch.float32, device=device)

    for seeds in job["candidates"]:
        made = Batched(short, draws(short, seeds), compiled=job["compiled"], device=device)
        start = time.perf_counter()
        try:
            made.train()
        except torch.OutOfMemoryError as error:
            failed[seeds] = str(error).splitlines()[0]
            break
        first = time.perf_counter() - start
        result = made.train()
        compiling += first - sum(made.seconds.values())
        fit = made.seconds["fit"] * config.model.epochs / epochs
        loop = made.seconds["train"] * config.steps / short.steps
        ends = config.steps / config.round_steps * made.longest_round_end(result)  # policies become good
        rates[seeds] = seeds * config.steps / (fit + loop + ends)
        # the same compiled functions do the whole run: only loops and random numbers depend on its length
        ready[seeds] = made
        made.config, made.draws = config, draws(config, seeds)

    def run(request: dict[str, Any]) -> dict[str, Any]:
        for seeds in [seeds for seeds in ready if seeds != request["seeds"]]:
            del ready[seeds]
        made = ready[request["seeds"]]
        result = made.train()
        return {
            "seconds": dict(made.seconds),
            "return_last": float(result["returns_last"].mean()),
            "return_chosen": float(result["returns_chosen"].mean()),
        }

    return {"rates": rates, "too_large": failed, "compile_seconds": compiling if job["compiled"] else 0.0}, run
