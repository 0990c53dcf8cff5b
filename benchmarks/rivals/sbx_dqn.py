"""sbx's DQN: JAX updates in a Python loop over gymnasium, one seed, at the model-free arm's settings."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
from sbx import DQN


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Compile in a short run."""
    jax.config.update("jax_default_matmul_precision", "highest")
    config, agent = job["config"], job["config"]["agent"]
    steps = config["random_transitions"] + config["steps"]

    def learn(seed: int, steps: int, random: int) -> DQN:
        model = DQN(
            "MlpPolicy",
            gymnasium.make(config["environment"]["name"]),
            learning_rate=agent["learning_rate"],
            buffer_size=config["random_transitions"] + config["steps"],
            learning_starts=random,
            batch_size=agent["batch_size"],
            tau=agent["target_rate"],
            gamma=agent["discount"],
            target_update_interval=1,
            exploration_fraction=1.0,
            exploration_initial_eps=config["exploration"]["start"],
            exploration_final_eps=config["exploration"]["end"],
            train_freq=1,
            gradient_steps=agent["updates_per_step"],
            policy_kwargs={"net_arch": list(agent["hidden"])},
            seed=seed,
        )
        return model.learn(steps)

    start = time.perf_counter()
    learn(0, 600, 500)
    warm_up = time.perf_counter() - start

    def run(request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        model = learn(request["go"], steps, config["random_transitions"])
        jax.block_until_ready(model.policy.qf_state.params)
        seconds = time.perf_counter() - start
        assert model.num_timesteps == steps
        return {"seconds": {"train": seconds}}

    return {"seeds": 1, "compile_seconds": warm_up}, run
