"""rejax's PPO, all seeds in one vmapped program, in the library's own simulators, for benchmarks/decoupled.py to show.

    python benchmarks/rivals/rejax_ppo.py pendulum swingup hopper
    python benchmarks/rivals/rejax_ppo.py hopper --seeds 8

The settings are those that rejax publishes as tuned for Pendulum-v1 and for Brax's hopper. The swing-up has hopper's with other
numbers (the discount, the learning rate, the minibatches, no entropy), the best of five that were tried on two other seeds. An
action of the swing-up is held for four steps, as everywhere. rejax sees one flag where an episode ends, so its targets do not
look past a time limit. Policies are judged as the library judges its own: greedy, by the mean of the action's distribution, on
first states that are drawn apart. Steps are those of the simulators. Writes benchmarks/results/decoupled/TASK_ppo.json, which
`decoupled.py table` reads.

rejax 0.1.3 needs distrax, and that a build of tensorflow-probability which knows the jax at hand (`tfp-nightly`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import environments, packages, statistics, strict_json
from mbrl_jax.config import EnvironmentConfig, load
from mbrl_jax.evaluation import play

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "benchmarks" / "results" / "decoupled"
PRECISION = "highest"
COMMON = {
    "num_epochs": 9,
    "num_minibatches": 2,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "vf_coef": 0.5,
    "normalize_observations": True,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pendulum": {
        **COMMON,
        "num_envs": 100,
        "num_steps": 100,
        "num_epochs": 10,
        "num_minibatches": 10,
        "learning_rate": 1e-3,
        "max_grad_norm": 10.0,
        "gamma": 0.995,
        "ent_coef": 0.0,
    },
    "swingup": {
        **COMMON,
        "num_envs": 32,
        "num_steps": 32,
        "num_minibatches": 4,
        "learning_rate": 5e-4,
        "max_grad_norm": 1.0,
        "gamma": 0.98,
        "ent_coef": 0.0,
    },
    "hopper": {
        **COMMON,
        "num_envs": 32,
        "num_steps": 32,
        "learning_rate": 2.5674e-4,
        "max_grad_norm": 1.0,
        "gamma": 0.995,
        "ent_coef": 0.01,
    },
}
ACTIVATION = {"pendulum": "swish", "swingup": "tanh", "hopper": "tanh"}
DECISIONS = {"pendulum": 300_000, "swingup": 614_400, "hopper": 819_200}  # actions in all
EVALUATIONS = 20


class Parameters(NamedTuple):
    """What rejax asks an environment's parameters for."""

    max_steps_in_episode: int


class InRejax:
    """A task of the library as rejax knows one: five results of a step, and a fresh episode after the end of one."""

    def __init__(self, task: environments.Environment) -> None:
        self.task = task
        self.default_params = Parameters(task.spec.time_limit)

    def __deepcopy__(self, memo: Any) -> "InRejax":
        return self

    def reset(self, key: jax.Array, parameters: Parameters) -> tuple[jax.Array, Any]:
        """(observation, state)"""
        state = self.task.draw_resets(key, ())
        return state.observation, state

    def step(self, key: jax.Array, state: Any, action: jax.Array, parameters: Parameters) -> tuple[Any, ...]:
        """(observation, state, reward, done, info)"""
        state, row = self.task.step(state, action, self.task.draw_resets(key, ()))
        return state.observation, state, row.reward, row.terminated | row.truncated, {}

    def action_space(self, parameters: Parameters) -> Any:
        """Every action of the library is of numbers from -1 to 1."""
        from gymnax.environments import spaces

        return spaces.Box(-1.0, 1.0, (self.task.spec.action_size,))

    def observation_space(self, parameters: Parameters) -> Any:
        """Without limits."""
        from gymnax.environments import spaces

        return spaces.Box(-jnp.inf, jnp.inf, (self.task.spec.observation_size,))


def returns_of(algorithm: Any, state: Any, task: environments.Environment, key: jax.Array, episodes: int) -> jax.Array:
    """[episodes] returns of greedy episodes."""

    def greedy(seen: jax.Array) -> jax.Array:
        seen = algorithm.normalize_obs(state.obs_rms_state, seen)
        mean = algorithm.actor.apply(state.actor_ts.params, seen, method="_action_dist").mean()
        return jnp.clip(mean, -1.0, 1.0)

    return play(task, greedy, task.draw_resets(key, (episodes,)))


def algorithm_of(name: str, task: environments.Environment, decisions: int, every: int) -> Any:
    """The PPO of rejax on a task, to be judged after every so many actions."""
    import rejax

    algorithm = rejax.get_algo("ppo").create(
        env=InRejax(task),
        agent_kwargs={"activation": ACTIVATION[name], "hidden_layer_sizes": (64, 64)},
        total_timesteps=decisions,
        eval_freq=every,
        skip_initial_evaluation=True,
        **SETTINGS[name],
    )
    return algorithm


def environment_of(name: str) -> tuple[environments.Environment, Any]:
    """A task, and the preset whose task it is."""
    preset: Any = load(ROOT / "configs" / f"{name}_dmo.yaml")
    config: EnvironmentConfig = preset.environment
    return environments.make_environment(config), preset


def iterations_of(name: str, seeds: int) -> tuple[Callable[[], None], int]:
    """What trains ``seeds`` agents for ten more iterations, and the steps of the simulators that these take."""
    task, preset = environment_of(name)
    iteration = SETTINGS[name]["num_envs"] * SETTINGS[name]["num_steps"]
    algorithm = algorithm_of(name, task, iteration, iteration)
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    held = [jax.jit(jax.vmap(algorithm.init_state))(keys)]

    def ten(state: Any) -> Any:
        return jax.lax.fori_loop(0, 10, lambda _, state: algorithm.train_iteration(state), state)

    advance = jax.jit(jax.vmap(ten))

    def go_on() -> None:
        with jax.default_matmul_precision(PRECISION):
            held[0] = jax.block_until_ready(advance(held[0]))

    return go_on, 10 * iteration * seeds * preset.environment.action_repeat


def train(name: str, seeds: int, first_seed: int) -> dict[str, Any]:
    """Train PPO on a task, and tell its curve and last returns in the layout of a study's arm."""
    task, preset = environment_of(name)
    judged = preset.evaluation
    settings, decisions = SETTINGS[name], DECISIONS[name]
    iteration = settings["num_envs"] * settings["num_steps"]
    every = iteration * max(1, round(decisions / EVALUATIONS / iteration))
    decisions = every * EVALUATIONS
    algorithm = algorithm_of(name, task, decisions, every)

    def curve(algorithm: Any, state: Any, key: jax.Array) -> jax.Array:
        return returns_of(algorithm, state, task, jax.random.fold_in(key, 1), judged.curve_episodes).mean()

    algorithm = algorithm.replace(eval_callback=curve)

    def whole(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        state, curves = algorithm.train(key)
        last = returns_of(algorithm, state, task, jax.random.fold_in(key, 2), judged.episodes)
        return curves, last.mean(), state.global_step

    keys = jax.vmap(jax.random.key)(np.arange(first_seed, first_seed + seeds))
    start = time.perf_counter()
    program = jax.jit(jax.vmap(whole)).lower(keys).compile()
    compiled = time.perf_counter()
    curves, returns, steps = jax.block_until_ready(program(keys))
    ended = time.perf_counter()
    if int(steps[0]) != decisions:
        raise SystemExit(f"rejax has taken {int(steps[0])} steps and not {decisions}")
    return {
        "task": name,
        "arm": "ppo",
        "steps": [preset.environment.action_repeat * every * (i + 1) for i in range(EVALUATIONS)],
        "curves": np.round(np.asarray(curves, np.float64), 1).tolist(),
        "returns": np.round(np.asarray(returns, np.float64), 2).tolist(),
        "settings": {**settings, "activation": ACTIVATION[name], "hidden_layer_sizes": [64, 64]},
        "seconds": {"compile": compiled - start, "run": ended - compiled},
        "versions": packages.versions(["jax", "rejax", "brax"]),
        "device": str(jax.devices()[0].device_kind),
        "precision": PRECISION,
        "git": packages.git_revision(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", PRECISION)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        told = train(name, given.seeds, given.first_seed)
        strict_json.write(given.out / f"{name}_ppo.json", told, indent=None)
        print(f"{name}_ppo: IQM {statistics.estimate(np.asarray(told['returns']))}, {told['seconds']['run']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
