"""rejax's DQN, a relative of purejaxrl's, with all seeds in one vmapped program, at the model-free arm's settings."""

import time
from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import rejax


class FiveResults:
    """gymnax 1.x tells termination and truncation apart, in six results; rejax knows five."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):  # asked while it is being copied
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, *arguments: Any) -> tuple[Any, ...]:
        """(observation, state, reward, done, info)"""
        observation, state, reward, terminated, truncated, info = self.env.step(*arguments)
        return observation, state, reward, terminated | truncated, info


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Compile the whole run."""
    jax.config.update("jax_default_matmul_precision", "highest")
    config, agent = job["config"], job["config"]["agent"]
    env, parameters = gymnax.make(config["environment"]["name"])
    steps = config["random_transitions"] + config["steps"]
    if tuple(agent["hidden"]) != (64, 64):
        raise ValueError(f"agent.hidden: {agent['hidden']!r} does not fit rejax 0.1.3, whose Q-networks are (64, 64)")
    algorithm = rejax.get_algo("dqn").create(
        env=FiveResults(env),
        env_params=parameters,
        agent_kwargs={"activation": "relu"},
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        fill_buffer=config["random_transitions"] - 1,
        buffer_size=steps,
        batch_size=agent["batch_size"],
        learning_rate=agent["learning_rate"],
        gamma=agent["discount"],
        polyak=1 - agent["target_rate"],
        target_update_freq=1,
        ddqn=agent["target"] == "double",
        eps_start=config["exploration"]["start"],
        eps_end=config["exploration"]["end"],
        exploration_fraction=1.0,
        num_envs=1,
        num_epochs=agent["updates_per_step"],
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: jnp.zeros(()))  # no evaluation
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), job["seeds"])
    train = jax.jit(jax.vmap(lambda key: algorithm.train(key)[0])).lower(keys).compile()
    compiling = time.perf_counter() - start

    def run(request: dict[str, Any]) -> dict[str, Any]:
        keys = jax.random.split(jax.random.key(request["go"] * job["processes"] + job["number"]), job["seeds"])
        start = time.perf_counter()
        state = jax.block_until_ready(train(keys))
        seconds = time.perf_counter() - start
        assert int(state.global_step[0]) == steps
        return {"seconds": {"train": seconds}}

    return {"seeds": job["seeds"], "compile_seconds": compiling}, run
