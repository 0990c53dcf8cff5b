"""The three gradients of decoupled backpropagation side by side: norm, variance, bias, growth of errors, seconds and memory.

    python benchmarks/decoupled_gradients.py pendulum swingup
    python benchmarks/decoupled_gradients.py hopper --seeds 2 --estimates 32

Policies are saved along the training of the presets pendulum_dmo, swingup_dmo and hopper_dmo. At each of them a gradient is
estimated from N simulators and H steps, begun in states of the policy's own episodes, with the critic's value at the end:
decoupled, along imagined paths, and through the simulator (true). Estimates of the same number have the same states and the same
random numbers, so that what differs between them is where states and Jacobians come from.

Of M estimates: the norm of their mean, their total variance over its square, the squared bias of their mean against the true
gradient of the same H over that gradient's square, without what the variance adds to it, and the cosine of their mean to it. The
true one is the mean of 2 M others. Biases are corrected for noise, and so can come out below 0 where there is nothing to see.

By depth: the relative error of the model's Jacobian products ds[t]/ds[0] along paths of the simulator, in the task's units and
along the directions that states can take. Of the hopper, whose dynamics are no function of the observation, there is none.

Seconds are of the compiled gradient of one window, medians of repetitions that go round all of them; memory is what XLA sets
aside for it.

Writes benchmarks/results/decoupled/gradients_TASK.json and a figure, and prints tables.
"""

import argparse
import dataclasses
import statistics as stats
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from mbrl_jax import draws as draws_
from mbrl_jax import packages, strict_json
from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.algorithms import dmo, windows
from mbrl_jax.algorithms.phases import world_of
from mbrl_jax.algorithms.training import keys_of
from mbrl_jax.config import DMOConfig, load
from mbrl_jax.environments import Environment, EnvironmentState, draw_actions, make_environment
from mbrl_jax.imagination.horizon import make_controller
from mbrl_jax.model import jacobians
from mbrl_jax.report import figures
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "decoupled"
GRADIENTS = ("decoupled", "imagined", "true")
HORIZONS = (4, 8, 16, 32)
SHARES = (0.1, 0.3, 1.0)  # of training, after which policies are looked at
BASE_SEED = 5  # of policies that no other study has
STARTS = 64  # episodes that states are taken from
REPETITIONS = 9
COLOURS = {"decoupled": "#0b6e4f", "imagined": "#b0413e", "true": "#5b5f97"}
Estimate = Callable[[Any, Array], Array]  # (subject, key) -> [parameters]


class Subject(NamedTuple):
    """A policy at a point of its training, and what goes with it."""

    actor: Any
    critic: Any
    model: Any  # the world model's parameters
    visited: EnvironmentState  # [S, ...] the simulators of its own episodes before each step


def subjects(config: DMOConfig, task: Environment, seeds: int) -> list[tuple[float, int, Subject]]:
    """Policies along training, with the share of it and the seed."""
    train, world = dmo.make_train(config), world_of(config, task)
    keys = keys_of(BASE_SEED, jnp.arange(seeds))
    state, _ = jax.jit(jax.vmap(train.init, out_axes=(train.axes, 0)))(keys)
    state, _ = jax.jit(jax.vmap(train.fit, in_axes=(train.axes, None), out_axes=(train.axes, 0)))(state, config)
    advance = jax.jit(jax.vmap(train.advance, in_axes=(train.axes, None), out_axes=(train.axes, 0)))
    visit, found = jax.jit(partial(visited, config, task)), []
    wanted = {round(share * train.rounds): share for share in SHARES}
    for done in range(1, max(wanted) + 1):
        state, _ = advance(state, config)
        for seed in range(seeds if done in wanted else 0):
            agent, model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (state.agent, state.model))
            pool = visit(agent.online.actor, jax.random.fold_in(keys[seed], done))
            subject = Subject(agent.online.actor, agent.target.critic, world.acting(model), pool)
            found.append((wanted[done], seed, subject))
    return found


def visited(config: DMOConfig, task: Environment, actor: Any, key: Array) -> EnvironmentState:
    """[S] the simulators of episodes by the policy as it explores, before each step but the last H ones."""
    learner, limit = PolicyGradient(config.agent, task.spec), task.spec.time_limit
    keys = jax.random.split(key, 3)
    drawn = draws_.uniform(keys[0], (limit, STARTS)), draw_actions(task.spec, keys[1], (limit, STARTS))

    def step(state: EnvironmentState, drawn: Any) -> tuple[EnvironmentState, EnvironmentState]:
        action = learner.act(actor, state.observation, *drawn)
        return jax.vmap(task.step)(state, action, state)[0], state

    _, states = jax.lax.scan(step, task.draw_resets(keys[2], (STARTS,)), drawn)
    return jax.tree.map(lambda leaf: leaf[: limit - max(HORIZONS)].reshape(-1, *leaf.shape[2:]), states)


def estimator(config: DMOConfig, task: Environment, gradient: Any, horizon: int) -> Estimate:
    """One estimate, by ascent."""
    config = dataclasses.replace(config, gradient=gradient, window_steps=horizon, probes=1)
    learner, world = PolicyGradient(config.agent, task.spec), world_of(config, task)
    controller = make_controller("fixed", {"length": float(horizon)})

    def estimate(subject: Subject, key: Array) -> Array:
        key_start, key_draws = jax.random.split(key)
        count = jax.tree.leaves(subject.visited)[0].shape[0]
        start = jax.random.randint(key_start, (config.copies,), 0, count)
        episode = jax.tree.map(lambda leaf: leaf[start], subject.visited)
        drawn = windows.draw(config, task, key_draws, 1)
        now = jax.tree.map(lambda leaf: leaf[0], drawn._replace(pool=None))._replace(pool=drawn.pool)

        def objective(actor: Any) -> Array:
            policy, begun = partial(learner.relaxed, actor), (episode, ())
            zero = jnp.zeros((), jnp.int32)
            _, window = windows.unroll(config, task, world, subject.model, controller, policy, begun, zero, jnp.zeros(()), now)
            value = learner.values(subject.critic, window.path.next_observation)
            return windows.objective(window.path, value, config.agent.discount)

        return ravel_pytree(jax.grad(objective)(subject.actor))[0]

    return estimate


def growth(config: DMOConfig, task: Environment, subject: Subject, key: Array) -> Array:
    """[H] the mean relative error of the model's Jacobian products along paths of the simulator, by depth."""
    learner, world, dynamics = PolicyGradient(config.agent, task.spec), world_of(config, task), task.dynamics
    assert dynamics is not None, f"{task.spec.name}: dynamics are known"
    size, spec = task.spec.observation_size, task.spec
    keys = jax.random.split(key, 3)
    count = jax.tree.leaves(subject.visited)[0].shape[0]
    start = jax.random.randint(keys[0], (STARTS,), 0, count)
    shape = (max(HORIZONS), STARTS)
    drawn = draws_.uniform(keys[1], shape), draw_actions(spec, keys[2], shape)
    product = partial(jnp.matmul, precision="highest")

    def step(carry: Any, drawn: Any) -> tuple[Any, Array]:
        state, model, true = carry
        s = state.observation
        action = learner.act(subject.actor, s, *drawn)
        of_model = jnp.mean(jacobians.members_jacobians(world, subject.model, s, action), axis=0)
        of_task = jacobians.jacobian(lambda x: dynamics(x[..., :size], x[..., size:]), jnp.concatenate([s, action], axis=-1))
        model, true = (
            product(jacobians.in_task_units(spec, each, s)[..., :size], before)
            for each, before in ((of_model, model), (of_task, true))
        )
        after, _ = jax.vmap(task.step)(state, action, state)
        return (after, model, true), jnp.median(jacobians.relative_error(model, true))

    state = jax.tree.map(lambda leaf: leaf[start], subject.visited)
    begin = jnp.broadcast_to(jnp.eye(size)[None], (STARTS, size, size))
    return jax.lax.scan(step, (state, begin, begin), drawn)[1]


def measures(estimates: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """What M estimates [M, parameters] are like, beside two independent halves [2, parameters] of the true gradient."""
    estimates, true = estimates.astype(np.float64), true.astype(np.float64)
    mean, truth, count = estimates.mean(axis=0), true.mean(axis=0), len(estimates)
    variance = float(np.square(estimates - mean).sum() / (count - 1))
    size = float(true[0] @ true[1])  # the squared norm of the true gradient, without what its own variance adds
    bias = float((mean - true[0]) @ (mean - true[1])) - variance / count  # likewise
    norm2 = max(float(mean @ mean) - variance / count, 0.0)
    cosine = float(mean @ truth) / max(float(np.linalg.norm(mean) * np.linalg.norm(truth)), 1e-30)
    told = {
        "norm": norm2**0.5,
        "relative_variance": variance / max(norm2, 1e-30),
        "relative_bias2": bias / size,
        "cosine": cosine,
    }
    return {name: float(f"{value:.5g}") for name, value in told.items()}


def measure(task_name: str, seeds: int, count: int) -> dict[str, Any]:
    """All gradients of a task, at all its policies."""
    config: Any = load(ROOT / "configs" / f"{task_name}_dmo.yaml")
    task, began = make_environment(config.environment), time.perf_counter()
    console = Console()

    def note(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - began:6.0f} s  {task_name}: {text}")

    note("training")
    found = subjects(config, task, seeds)
    programs, costs = {}, []
    keys = jax.random.split(jax.random.key(BASE_SEED), 3 * count)
    for horizon in HORIZONS:
        for gradient in GRADIENTS:
            one = jax.jit(estimator(config, task, gradient, horizon)).lower(found[0][2], keys[0]).compile()
            programs[gradient, horizon] = one
            memory: Any = one.memory_analysis()
            costs.append({"gradient": gradient, "horizon": horizon, "temporary_bytes": int(memory.temp_size_in_bytes)})
        note(f"compiled for H = {horizon}")
    points, depths = [], []
    grow = jax.jit(partial(growth, config, task))
    for share, seed, subject in found:
        if task.dynamics is not None:
            error = np.round(np.asarray(grow(subject, keys[0]), np.float64), 5).tolist()
            depths.append({"share": share, "seed": seed, "error": error})
        for horizon in HORIZONS:
            where = {"share": share, "seed": seed, "horizon": horizon}
            other = np.stack([np.asarray(programs["true", horizon](subject, key)) for key in keys[count:]])
            halves = other.reshape(2, count, -1).mean(axis=1)
            for gradient in GRADIENTS:
                estimates = np.stack([np.asarray(programs[gradient, horizon](subject, key)) for key in keys[:count]])
                points.append({**where, "gradient": gradient, **measures(estimates, halves)})
        note(f"{share:.0%} of training, seed {seed}")
    seconds: dict[Any, list[float]] = {place: [] for place in programs}
    for _ in range(REPETITIONS):
        for place, one in programs.items():
            begun = time.perf_counter()
            one(found[0][2], keys[0]).block_until_ready()
            seconds[place].append(time.perf_counter() - begun)
    for cost in costs:
        cost["seconds"] = float(f"{stats.median(seconds[cost['gradient'], cost['horizon']]):.4g}")
    return {
        "preset": f"{task_name}_dmo",
        "seeds": seeds,
        "estimates": count,
        "copies": config.copies,
        "points": points,
        "growth": depths,
        "costs": costs,
        "versions": packages.versions(("jax", "gymnax", "brax")),
        "device": jax.devices()[0].device_kind,
        "precision": config.precision,
        "git": packages.git_revision(),
    }


NAMES = ("norm", "relative_variance", "relative_bias2", "cosine")


def column(told: dict[str, Any], name: str, **which: Any) -> np.ndarray:
    """A measure at the points that fit."""
    return np.array([point[name] for point in told["points"] if all(point[key] == value for key, value in which.items())])


def table_of(task_name: str, told: dict[str, Any]) -> Table:
    """Medians over policies."""
    count = len(SHARES) * told["seeds"]
    title = f"{told['preset']}: medians over {count} policies; of a window of {told['copies']} x H steps"
    labels = ("norm", "variance / norm²", "bias² / |true|²", "cosine to true")
    table = Table("H", "gradient", *labels, "time / decoupled", "temporary kB", title=title)
    costs = {(cost["gradient"], cost["horizon"]): cost for cost in told["costs"]}
    for horizon in HORIZONS:
        for gradient in GRADIENTS:
            values = (f"{np.median(column(told, name, gradient=gradient, horizon=horizon)):.3g}" for name in NAMES)
            cost = costs[gradient, horizon]
            ratio = cost["seconds"] / costs["decoupled", horizon]["seconds"]
            table.add_row(str(horizon), gradient, *values, f"{ratio:.2f}", f"{cost['temporary_bytes'] / 1e3:,.0f}")
    return table


def draw(told: dict[str, Any], path: Path) -> None:
    """Measures against H, and the error of the model's products against depth."""
    figure, axes = figures.new_figure(4 if told["growth"] else 3)
    for ax, name, label in zip(axes[:3], NAMES[1:], ("variance / norm²", "bias² / |true|²", "cosine to true"), strict=True):
        for gradient in GRADIENTS:
            quartiles = [np.percentile(column(told, name, gradient=gradient, horizon=h), (25, 50, 75)) for h in HORIZONS]
            low, middle, high = np.array(quartiles).T
            ax.plot(HORIZONS, middle, color=COLOURS[gradient], marker="o", markersize=3, label=gradient)
            ax.fill_between(HORIZONS, low, high, color=COLOURS[gradient], alpha=0.15, linewidth=0)
        ax.set_xscale("log")
        ax.set_xticks(HORIZONS, [str(h) for h in HORIZONS])
        ax.minorticks_off()
        ax.set_xlabel("H")
        ax.set_ylabel(label)
        if name == "relative_variance":
            ax.set_yscale("log")
    axes[0].legend(frameon=False, fontsize=7)
    for ax in axes[3:]:
        for share, shade in zip(SHARES, ("0.7", "0.4", "0.0"), strict=True):
            errors = np.median([each["error"] for each in told["growth"] if each["share"] == share], axis=0)
            ax.plot(np.arange(1, len(errors) + 1), errors, color=shade, label=f"{share:.0%} of training")
        ax.set_yscale("log")
        ax.set_xlabel("depth")
        ax.set_ylabel("relative error of ds[t]/ds[0]")
        ax.legend(frameon=False, fontsize=7)
    figure.suptitle(f"{told['preset']}: medians over policies, with quartiles", fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=("pendulum", "swingup", "hopper"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--estimates", type=int, default=128, help="M, of each kind")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--draw-again", action="store_true", help="print and draw what is on file, and measure nothing")
    given = parser.parse_args()
    execution.use_all_cores()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        path = given.out / f"gradients_{name}.json"
        if not given.draw_again:
            strict_json.write(path, measure(name, given.seeds, given.estimates), indent=None)
        told = strict_json.loads(path.read_text(encoding="utf-8"))
        Console(width=140).print(table_of(name, told))
        draw(told, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
