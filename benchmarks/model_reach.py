"""How far from the data a model still predicts: one-step errors along CartPole's track, by how observations enter the network.

    python benchmarks/model_reach.py [--seeds 32]

A random policy's 5,000 transitions stay near the middle. Members are fitted to them with the settings of cartpole_best, once with
inputs standardised by the data and once divided by the task's own scale, with and without weight decay, and asked about states at
other places of the track. The true dynamics do not depend on the place. Writes benchmarks/results/learning/reach.json, prints a
table.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import dyna_q, packages, seed_keys, statistics, strict_json
from mbrl_jax.algorithms.registry import world_of
from mbrl_jax.config import DynaQConfig, load
from mbrl_jax.environments import Environment, EnvironmentState, make_environment
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
PLACES = {"|x| < 0.2": (0.0, 0.2), "0.5 to 1.2": (0.5, 1.2), "1.5 to 2.3": (1.5, 2.3)}  # metres
STATES = 2_000
VARIANTS: dict[str, dict[str, Any]] = {
    "by the data": {"input_scale": "data", "weight_decay": 0.0},
    "by the data, weight decay 0.01": {"input_scale": "data", "weight_decay": 0.01},
    "by the task": {"input_scale": "task", "weight_decay": 0.0},
    "by the task, weight decay 0.01": {"input_scale": "task", "weight_decay": 0.01},
}


def states_at(low: float, high: float) -> jax.Array:
    """[STATES, 4] observations with x so far from the middle, on either side, and other axes such as random data have."""
    rng = np.random.default_rng(0)
    x = rng.uniform(low, high, STATES) * rng.choice([-1, 1], STATES)
    others = (rng.uniform(-size, size, STATES) for size in (0.5, 0.12, 1.0))
    return jnp.asarray(np.stack([x, *others], axis=1), jnp.float32)


def true_step(environment: Environment, observation: jax.Array, action: jax.Array) -> jax.Array:
    """[STATES, 4] where the simulator goes."""
    drawn = environment.draw_resets(jax.random.key(0), (STATES,))
    names = ("x", "x_dot", "theta", "theta_dot")
    inner = drawn.inner.replace(**{name: observation[:, i] for i, name in enumerate(names)})
    start = EnvironmentState(inner, observation)
    return jax.vmap(environment.step)(start, action, start)[1].next_observation


def errors(config: DynaQConfig, seeds: int) -> np.ndarray:
    """[seeds, places] error of the members' mean changes over the size of the true ones, root mean squares, worst axis."""
    environment = make_environment(config.environment)
    action = jnp.asarray(np.random.default_rng(1).integers(0, environment.spec.action_count, STATES), jnp.int32)
    places = [states_at(*place) for place in PLACES.values()]
    truth = [true_step(environment, place, action) for place in places]
    algorithm = dyna_q.make_train(config)
    world = world_of(config, environment)
    assert world.belief is not None, "it is asked about states of its own"
    at = world.belief

    def one(key: jax.Array) -> jax.Array:
        state, _ = algorithm.fit(algorithm.init(key)[0], config)
        members = world.acting(state.model)
        found = []
        for observation, after in zip(places, truth, strict=True):
            asked = jnp.broadcast_to(observation[None], (world.spec.members, *observation.shape))
            actions = jnp.broadcast_to(action[None], asked.shape[:-1])
            imagined = world.features(world.expect(members, at(asked), actions).belief)
            error = jnp.sqrt(jnp.mean(jnp.square(imagined - after[None]), axis=(0, 1)))
            found.append(jnp.max(error / jnp.sqrt(jnp.mean(jnp.square(after - observation), axis=0))))
        return jnp.stack(found)

    layout = execution.choose_layout(seeds)
    each = execution.lower(execution.spread(one, (0,), 0, layout), layout.place(seed_keys(0, layout.padded(seeds)))).compile()
    return np.asarray(each.call(layout.place(seed_keys(0, layout.padded(seeds)))))[:seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning")
    given = parser.parse_args()
    execution.use_all_cores()
    preset = load(ROOT / "configs" / "cartpole_best.yaml")
    assert isinstance(preset, DynaQConfig)
    table = Table("observations are divided", *PLACES, title="error of one step over the size of the step, worst axis")
    rows = []
    for name, settings in VARIANTS.items():
        found = errors(dataclasses.replace(preset, model=dataclasses.replace(preset.model, **settings)), given.seeds)
        told = {place: statistics.bootstrap(found[:, i]) for i, place in enumerate(PLACES)}
        rows.append({"inputs": name, **settings, "iqm_low_high": {place: list(x) for place, x in told.items()}})
        table.add_row(name, *(f"{x.value:.4f} [{x.low:.4f}, {x.high:.4f}]" for x in told.values()))
    content = {"stage": "reach", "seeds": given.seeds, "rows": rows, "versions": packages.versions(execution.PACKAGES)}
    content |= {"device": execution.device(), "precision": f"float32, matrix products {preset.precision}"}
    content |= {"git": packages.git_revision()}
    given.out.mkdir(parents=True, exist_ok=True)
    strict_json.write(given.out / "reach.json", content)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
