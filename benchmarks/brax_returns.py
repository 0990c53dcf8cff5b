"""Random returns of brax's tasks through this library, beside those of brax's own environments and wrappers.

    python benchmarks/brax_returns.py            # about six minutes on two cores, most of it compilation

Both play episodes of at most 200 steps from drawn first states with actions drawn uniformly; brax's own by
`EpisodeWrapper`, without its automatic reset, as that goes on from one stored state. The seeds differ, so the means agree
within their 95 % intervals. Writes benchmarks/results/parity/brax.json and prints a table.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import environments, packages, strict_json
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import brax as ours
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "parity" / "brax.json"
STEPS, EPISODES = 200, 64
OPTIONS = {"xla_backend_optimization_level": 1}  # compiles in a fraction of the time


def play_ours(name: str, key: jax.Array) -> np.ndarray:
    """[episodes] returns of the first episode of each lane, through the library's environment."""
    config: Any = EnvironmentConfig
    task = environments.make_environment(config(name=name, time_limit=STEPS))

    def episodes(key: jax.Array) -> jax.Array:
        key_reset, key_action = jax.random.split(key)
        first = task.draw_resets(key_reset, (EPISODES,))
        actions = environments.draw_actions(task.spec, key_action, (STEPS, EPISODES))

        def step(carry: Any, action: jax.Array) -> Any:
            state, going_on = carry
            state, row = jax.vmap(task.step)(state, action, first)
            return (state, going_on & ~(row.terminated | row.truncated)), jnp.where(going_on, row.reward, 0.0)

        _, rewards = jax.lax.scan(step, (first, jnp.ones(EPISODES, bool)), actions)
        return rewards.sum(axis=0)

    return np.asarray(jax.jit(episodes, compiler_options=OPTIONS)(key), np.float64)


def play_theirs(name: str, backend: str, key: jax.Array) -> np.ndarray:
    """[episodes] the same by brax's own environment, wrapped by brax's time limit."""
    with ours._physics():
        from brax import envs

        task = envs.create(name, episode_length=STEPS, auto_reset=False, backend=backend)

    def episodes(key: jax.Array) -> jax.Array:
        key_reset, key_action = jax.random.split(key)
        first = jax.vmap(task.reset)(jax.random.split(key_reset, EPISODES))
        actions = jax.random.uniform(key_action, (STEPS, EPISODES, task.action_size), minval=-1.0, maxval=1.0)

        def step(carry: Any, action: jax.Array) -> Any:
            state, going_on = carry
            state = jax.vmap(task.step)(state, action)
            return (state, going_on & (state.done == 0)), jnp.where(going_on, state.reward, 0.0)

        _, rewards = jax.lax.scan(step, (first, jnp.ones(EPISODES, bool)), actions)
        return rewards.sum(axis=0)

    with ours._physics():
        return np.asarray(jax.jit(episodes, compiler_options=OPTIONS)(key), np.float64)


def mean_of(returns: np.ndarray) -> dict[str, float]:
    """The mean and half its 95 % interval."""
    return {"mean": float(returns.mean()), "half_width": float(1.96 * returns.std(ddof=1) / np.sqrt(len(returns)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tasks", nargs="+", default=list(ours.TASKS))
    parser.add_argument("--backends", nargs="+", default=list(ours.BACKENDS))
    given = parser.parse_args()
    done = strict_json.loads(given.out.read_text(encoding="utf-8"))["rows"] if given.out.exists() else []
    rows = [row for row in done if row["task"] not in given.tasks or row["backend"] not in given.backends]
    for backend in given.backends:
        for name in given.tasks:
            full = f"brax/{name}" + ("" if backend == ours.BACKENDS[0] else f"-{backend}")
            start = time.perf_counter()
            one, other = play_ours(full, jax.random.key(0)), play_theirs(name, backend, jax.random.key(1))
            difference = float(one.mean() - other.mean())
            spread = float(np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)))
            agrees = abs(difference) <= max(1.96 * spread, 1e-9)
            row = {"task": name, "backend": backend, "ours": mean_of(one), "brax": mean_of(other), "agrees": agrees}
            rows.append({**row, "difference": difference, "half_width": 1.96 * spread, "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
            content = {
                "stage": "brax_returns",
                "episodes": EPISODES,
                "steps": STEPS,
                "rows": rows,
                "precision": "highest within the physics",
                "versions": packages.versions((*execution.PACKAGES, "brax", "mujoco")),
                "device": execution.device(),
                "git": packages.git_revision(),
            }
            given.out.parent.mkdir(parents=True, exist_ok=True)
            strict_json.write(given.out, content)
    table = Table("task", "backend", "this library", "brax", "difference", title=f"mean return of {EPISODES} random episodes")
    for row in rows:
        means = (f"{row[who]['mean']:.2f} ± {row[who]['half_width']:.2f}" for who in ("ours", "brax"))
        table.add_row(row["task"], row["backend"], *means, f"{row['difference']:.2f} ± {row['half_width']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
