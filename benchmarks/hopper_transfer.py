"""Does a surrogate of the hopper transfer? Models learned on Brax's hopper drive decoupled gradients on other hoppers.

    python benchmarks/hopper_transfer.py train                   # every arm that is not on file yet
    python benchmarks/hopper_transfer.py train mass_2_frozen
    python benchmarks/hopper_transfer.py errors                  # of the hopper's own surrogate on every body, see below
    python benchmarks/hopper_transfer.py table
    python benchmarks/hopper_transfer.py gpu                     # all arms, 64 seeds each, for a GPU

The task is hopper_dmo, in the spring physics, with half of the preset's steps. The masses of all links, or the damping of all
joints, are those of the hopper times 0.5 or 2 (`environment.physics`; the lengths of brax's bodies are fixed). On each body the
surrogate is `new`, learned from nothing there, or `frozen`, that which the same seed learned on the hopper itself (`own_new`).
An arm is trained in a folder of its own under --work and goes on there after a kill; when it is done it is written to
benchmarks/results/transfer/hopper/ARM.json. Seed i has the same random numbers in all arms.

The dynamics are no function of the observation, so that a surrogate's Jacobian can be held against the simulator's along actions
alone: d(next observation)/d(action), in the task's units, at states that a policy visits. Told are the size of the difference
over that of the true one, and the cosine between the two, which does not see a wrong scale. `errors` holds the surrogates of
`own_new` against every body, at states that their own policies visit there.

Written down before the runs, on 2026-11-29:

(a) A frozen surrogate ends lower than a new one at half and at twice the masses, and not at half and at twice the damping.
(b) At twice the masses a frozen surrogate's Jacobian is off by about its own size, as a force moves a mass of 2 half as far, and
    its cosine stays what it is on the hopper itself.

Written down on 2026-11-29, when half the masses and twice the damping were on file, where frozen surrogates were ahead:

(c) On the hopper itself a frozen surrogate ends higher than a new one. It does not change while the policy and the critic learn.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arm_by_arm
import decoupled_gradients
import jax
import jax.numpy as jnp
import numpy as np
import surrogate_transfer
from jax import Array
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.algorithms import windows
from mbrl_jax.algorithms.phases import world_of
from mbrl_jax.config import DMOConfig, PhysicsConfig, load
from mbrl_jax.environments import Environment, draw_actions, make_environment
from mbrl_jax.runs import execution, results
from mbrl_jax.runs.folder import is_finished
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "transfer" / "hopper"
SOURCE = "own_new"
STEPS = 204_800  # of the simulators, after the random ones
ROWS = 512  # states at which Jacobians are compared
Factors = dict[str, float]
BODIES: dict[str, Factors] = {
    "own": {},
    **{f"{name}_{factor:g}": {name: factor} for name in ("mass", "damping") for factor in (2.0, 0.5)},
}
FITS = {"new": "all", "frozen": "none"}  # what fits change
ARMS = tuple(f"{body}_{start}" for body in BODIES for start in FITS)


def config_of(arm: str) -> DMOConfig:
    """The settings of an arm."""
    base: Any = load(ROOT / "configs" / "hopper_dmo.yaml")
    body, _, start = arm.rpartition("_")
    physics: Any = PhysicsConfig
    return dataclasses.replace(  # type: ignore[no-any-return]
        base,
        steps=STEPS,
        environment=dataclasses.replace(base.environment, physics=physics(**BODIES[body])),
        model=dataclasses.replace(base.model, fits=FITS[start]),
    )


def alike(found: Array, true: Array) -> tuple[Array, Array]:
    """The size of the difference of two stacks of Jacobians over that of the true one, and the cosine between them."""
    size, own = jnp.sqrt(jnp.sum(jnp.square(true))), jnp.sqrt(jnp.sum(jnp.square(found)))
    return jnp.sqrt(jnp.sum(jnp.square(found - true))) / size, jnp.sum(found * true) / (size * own)


def action_jacobians(config: DMOConfig, task: Environment, actor: Any, model: Any, key: Array) -> tuple[Array, Array]:
    """d(next observation)/d(action) [ROWS, D, A], in the task's units, of a surrogate and of the simulator, where a policy acts.

    Args:
      config: of the surrogate.
      task: what moves.
      actor: the policy.
      model: the surrogate's parameters.
      key: consumed.

    """
    learner, world, spec = PolicyGradient(config.agent, task.spec), world_of(config, task), task.spec
    key_visit, key_rows, key_act = jax.random.split(key, 3)
    visited = decoupled_gradients.visited(config, task, actor, key_visit)
    rows = jax.random.randint(key_rows, (ROWS,), 0, visited.observation.shape[0])
    states = jax.tree.map(lambda leaf: leaf[rows], visited)
    draws = jax.random.uniform(key_act, (ROWS,)), draw_actions(spec, key_act, (ROWS,))
    action = learner.act(actor, states.observation, *draws)

    def true(state: Any, action: Array) -> Array:
        return task.step(state, action, state)[1].next_observation

    def learned(observation: Array, action: Array) -> Array:
        return windows.members_mean(world, model, observation[None], action[None])[0][0]

    units = 1 / jnp.asarray(spec.observation_scale)[None, :, None]
    found = jax.vmap(jax.jacfwd(learned, argnums=1))(states.observation, action)
    return found * units, jax.vmap(jax.jacfwd(true, argnums=1))(states, action) * units


def errors_on(config: DMOConfig, body: Factors, run: Run) -> list[list[float]]:
    """[seeds, 2] how a run's surrogates differ from a body: the size of the difference, and the cosine."""
    physics: Any = PhysicsConfig
    task = make_environment(dataclasses.replace(config.environment, physics=physics(**body)))
    seeds, told = len(run.result.outcome.returns_last), []
    keys = surrogate_transfer.path_keys(run, seeds)
    measure = jax.jit(lambda actor, model, key: alike(*action_jacobians(config, task, actor, model, key)))
    for seed in range(seeds):
        pair = jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], (run.result.outcome.last, run.result.outcome.model))
        told.append([float(f"{float(each):.4g}") for each in measure(*pair, keys[seed])])
    return told


def stage_train(arms: Sequence[str], seeds: int, out: Path, work: Path) -> None:
    """Train the arms that are not on file, and before a frozen one that whose surrogate it begins with."""
    execution.use_compilation_cache()
    out.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        if arm.endswith("_frozen") and not is_finished(work / SOURCE):
            _train(SOURCE, seeds, out, work)
        if not (out / f"{arm}.json").exists():
            _train(arm, seeds, out, work)


def _train(arm: str, seeds: int, out: Path, work: Path) -> None:
    began, start = time.perf_counter(), work / SOURCE if arm.endswith("_frozen") else None
    run = arm_by_arm.kept_in(work / arm, config_of(arm), seeds, start, "hopper_transfer.py")
    strict_json.write(out / f"{arm}.json", arm_by_arm.kept_of(run, "hopper", arm, {}), indent=None)
    told = statistics.estimate(results.per_seed(run.result.outcome.returns_last))
    print(f"{arm}: IQM {told}, {time.perf_counter() - began:.0f} s", flush=True)


def stage_errors(out: Path, work: Path) -> None:
    """Hold the hopper's own surrogates against every body."""
    if not is_finished(work / SOURCE):
        raise SystemExit(f"{work / SOURCE}: there is no finished run; train {SOURCE} first")
    execution.use_compilation_cache()
    run, config = results.read(work / SOURCE), config_of(SOURCE)
    told = {}
    for name, body in BODIES.items():
        told[name] = errors_on(config, body, run)
        print(f"{name}: difference and cosine {np.median(told[name], axis=0)}", flush=True)
    made = {"versions": packages.versions([*execution.PACKAGES, "brax"]), "device": execution.device()}
    content = {"errors": told, **made, "precision": config.precision, "git": packages.git_revision()}
    strict_json.write(out / "errors.json", content, indent=None)


def stage_table(out: Path) -> None:
    """Print what is on file."""
    found = {arm: strict_json.loads((out / f"{arm}.json").read_text("utf-8")) for arm in ARMS if (out / f"{arm}.json").exists()}
    table = Table(
        "arm", "seeds", "IQM, 95 %", "mean of the curve", "less new", "curve less new", title="hopper_dmo, other bodies"
    )
    for arm, told in found.items():
        returns, curve = np.asarray(told["returns"]), np.asarray(told["curves"]).mean(axis=1)
        new, paired = found.get(arm.replace("_frozen", "_new")), ("", "")
        if arm.endswith("_frozen") and new is not None:
            differences = returns - np.asarray(new["returns"]), curve - np.asarray(new["curves"]).mean(axis=1)
            paired = tuple(str(statistics.estimate(each)) for each in differences)  # type: ignore[assignment]
        table.add_row(arm, str(len(returns)), str(statistics.estimate(returns)), str(statistics.estimate(curve)), *paired)
    Console(width=140).print(table)
    if (out / "errors.json").exists():
        table = Table("body", "difference, %", "cosine, %", title="the hopper's own surrogate, d(next observation)/d(action)")
        for name, errors in strict_json.loads((out / "errors.json").read_text("utf-8"))["errors"].items():
            table.add_row(name, *(str(statistics.estimate(100 * each)) for each in np.asarray(errors, np.float64).T))
        Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "errors", "table", "gpu"))
    parser.add_argument("arms", nargs="*", metavar="arm", help=f"of {', '.join(ARMS)}; all by default")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "hopper_transfer", help="where runs are kept")
    given = parser.parse_intermixed_args()
    for arm in given.arms:
        if arm not in ARMS:
            parser.error(f"arm: {arm!r} is not known; it must be one of {', '.join(ARMS)}")
    if given.stage == "train":
        stage_train(given.arms or ARMS, given.seeds, given.out, given.work)
    elif given.stage == "errors":
        stage_errors(given.out, given.work)
    elif given.stage == "gpu":
        stage_train(given.arms or ARMS, 64, given.out / "gpu", given.work / "gpu")
        stage_errors(given.out / "gpu", given.work / "gpu")
        stage_table(given.out / "gpu")
    else:
        stage_table(given.out)


if __name__ == "__main__":
    main()
