"""Where a latent belief leaves the truth, and whether the filter notices that the physics have changed.

    python benchmarks/latent_study.py train cartpole --arms dreamer --work WORK
    python benchmarks/latent_drift.py WORK

Every seed's last policy of the arm `dreamer` of benchmarks/latent_study.py plays CartPole-v1 by positions. Half-way through an
episode, at step 250, the pole's mass changes, or it does not.

* depth: the four measures of drift along open loops, by depth, at the policy's own states;
* alarm: the mark is set on episodes with the usual pole, so that one step in a thousand exceeds it; on other episodes with the
  usual pole it says how often it is exceeded for nothing, and with a heavier one how soon it is after the change.

What is printed is written to benchmarks/results/latent/drift.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json, trees
from mbrl_jax.algorithms import dreamer
from mbrl_jax.config import DreamerConfig, load
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination import drift
from mbrl_jax.model.rssm import RSSM
from mbrl_jax.replay import Rows
from mbrl_jax.runs import execution, results

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "latent" / "drift.json"
STEPS, CHANGE = 500, 250  # of an episode, and where the pole's mass changes
MASSES = (2.0, 4.0, 8.0)  # times the usual one
WINDOWS = (1, 5, 25)  # steps that a surprise is averaged over
RATE = 1e-3  # of steps that exceed the mark on the episodes that it is set on
SOON = 25  # steps within which a change should be noticed
WARM, DEPTH, STARTS = 10, 50, 8  # of open loops: steps that the filter sees, steps without it, and loops of an episode
REPORTED = (1, 2, 5, 10, 20, 50)


class Played(NamedTuple):
    """Episodes [STEPS, n] of one seed."""

    rows: Rows
    first: Array  # bool
    alive: Array  # bool, the episode had not terminated before this step


def play(config: DreamerConfig, params: Any, key: Array, mass: Array, episodes: int) -> Played:
    """Play the policy; from step 250 on the pole has ``mass`` [] times its usual mass."""
    task = make_environment(config.environment)
    policy = dreamer.policy_of(config, task)
    simulator, usual = gymnax.make(config.environment.name)
    pole = usual.masspole * mass
    heavier = {"masspole": pole, "total_mass": usual.masscart + pole, "polemass_length": pole * usual.length}
    places = jnp.asarray(task.spec.observed)

    def step(carry: Any, time: Array) -> tuple[Any, Any]:
        inner, seen, memory, alive = carry
        memory, action = policy.act(params, memory, seen)
        now = {name: jnp.where(time < CHANGE, getattr(usual, name), value) for name, value in heavier.items()}
        with jax.numpy_dtype_promotion("standard"):
            each = jax.vmap(lambda state, action: simulator.step_env(key, state, action, usual.replace(**now)))
            observation, inner, reward, ended, _ = each(inner, action)
        after = observation[:, places]
        depth = jnp.broadcast_to(time, alive.shape)
        rows = Rows(seen, after, action, reward.astype(after.dtype), ended, alive.astype(after.dtype), depth)
        return (inner, after, memory, alive & ~ended), (rows, alive)

    start = task.draw_resets(key, (episodes,))
    begin = (start.inner.inner, start.observation, policy.begin(params, key, episodes), jnp.ones(episodes, bool))
    _, (rows, alive) = jax.lax.scan(step, begin, jnp.arange(STEPS, dtype=jnp.int32))
    return Played(rows, rows.depth == 0, alive)


def by_depth(rssm: RSSM, model: Any, played: Played) -> drift.Drift:
    """Open loops [DEPTH, STARTS * n] from evenly spread steps of episodes, against beliefs of the same policy."""
    length = WARM + DEPTH
    starts = np.linspace(0, CHANGE - length, STARTS).astype(int)

    def cut(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf[at : at + length] for at in starts], axis=1), tree)

    rows, alive = cut(played.rows), cut(played.alive)
    features, group = drift.real_features(rssm, model, *jax.tree.map(lambda leaf: leaf[:CHANGE:10], (played.rows, played.first)))
    first = jnp.zeros(alive.shape, bool)
    told = drift.along(rssm, model, drift.bank_of(features, group), rows, first, WARM)
    return told._replace(valid=alive[WARM:])


def measure(config: DreamerConfig, model: Any, policies: Any, episodes: int) -> tuple[drift.Drift, Array, Array]:
    """Of every seed: open loops, surprises [seeds, 2 + masses, STEPS, n] and whether the episodes went on so far."""
    rssm = RSSM(config.model, make_environment(config.environment).spec)
    masses = jnp.asarray((1.0, 1.0, *MASSES))

    def one(model: Any, params: Any, number: Array) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(11), number), len(MASSES) + 2)
        played = jax.vmap(lambda key, mass: play(config, params, key, mass, episodes))(keys, masses)
        surprises = jax.vmap(lambda each: drift.surprise(rssm, model, each.rows, each.first))(played)
        return by_depth(rssm, model, jax.tree.map(lambda leaf: leaf[0], played)), surprises, played.alive

    seeds = jnp.arange(len(jax.tree.leaves(policies)[0]))
    return jax.jit(lambda *each: jax.lax.map(lambda now: one(*now), each))(model, policies, seeds)  # type: ignore[no-any-return]


def alarms(surprises: np.ndarray, alive: np.ndarray, window: int) -> list[dict[str, Any]]:
    """How often the alarm is raised for nothing, and how soon it is after a change, for each mass."""
    first = np.zeros(surprises.shape[2:], bool)
    first[0] = True
    smooth = np.asarray(jax.vmap(jax.vmap(lambda each: drift.smoothed(each, jnp.asarray(first), window)))(jnp.asarray(surprises)))
    marks = [np.quantile(smooth[seed, 0][alive[seed, 0]], 1 - RATE) for seed in range(len(smooth))]  # of each seed's own
    over = smooth > np.asarray(marks, np.float32)[:, None, None, None]
    told: list[dict[str, Any]] = [
        {"mass": 1.0, "window": window, "false_alarms_per_1000_steps": 1e3 * float(over[:, 1][alive[:, 1]].mean())}
    ]
    for place, mass in enumerate(MASSES, start=2):
        after, goes_on = over[:, place, CHANGE:], alive[:, place, CHANGE:]
        counted = goes_on[:, 0]  # episodes that had reached the change
        raised = after & goes_on
        delay = np.where(raised.any(1), raised.argmax(1) + 1, STEPS)[counted]
        middle = float(np.median(delay)) if len(delay) else STEPS
        told.append(
            {
                "mass": mass,
                "window": window,
                "episodes": int(counted.sum()),
                "within_25_steps": mean_of(delay <= SOON, delay > 0),
                "ever": mean_of(delay < STEPS, delay > 0),
                "median_delay": middle if middle < STEPS else None,
                "survived": mean_of(goes_on[:, -1], counted),
            }
        )
    return told


def mean_of(values: np.ndarray, counted: np.ndarray) -> float | None:
    """The mean of those values that are counted, none where there are none."""
    return float(values[counted].mean()) if counted.any() else None


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--episodes", type=int, default=16, help="of every seed and mass")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(words)
    execution.use_compilation_cache()
    config: Any = load(ROOT / "configs" / "cartpole_positions.yaml")
    task = make_environment(config.environment)
    templates = {"model": results.model_template(config, task), "policies": dreamer.params_of(config, task)}
    read = {
        name: trees.like(like, trees.nest(results.load_arrays(asked.work / f"{config.environment.name}_{name}.npz")))
        for name, like in templates.items()
    }
    told, surprises, alive = jax.tree.map(np.asarray, measure(config, read["model"], read["policies"], asked.episodes))
    depths = {
        name: [mean_of(leaf[:, depth - 1], told.valid[:, depth - 1]) for depth in REPORTED]
        for name, leaf in told._asdict().items()
        if name != "valid"
    }
    rows = [each for window in WINDOWS for each in alarms(surprises, alive, window)]
    shown = Table("depth", *(str(depth) for depth in REPORTED))
    for name, values in depths.items():
        shown.add_row(name, *("" if value is None else f"{value:.3g}" for value in values))
    names = list(dict.fromkeys(name for row in rows for name in row))
    raised = Table(*names)
    for row in rows:
        raised.add_row(*("" if row.get(name) is None else f"{row[name]:.4g}" for name in names))
    for each in (shown, raised):
        Console(width=150).print(each)
    content = {
        "depths": list(REPORTED),
        "drift": depths,
        "alarm": rows,
        "seeds": len(surprises),
        "episodes": asked.episodes,
        "versions": packages.versions(("jax", "flax", "gymnax", "numpy")),
        "device": jax.devices()[0].device_kind,
        "precision": config.precision,
        "git": packages.git_revision(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    strict_json.write(asked.out, content)


if __name__ == "__main__":
    main()
