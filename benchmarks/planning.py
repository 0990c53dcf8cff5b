"""Planning, and continuous actions, over seeds; and how fast planning is.

    python benchmarks/planning.py cartpole pendulum_planner pendulum_policy
    python benchmarks/planning.py speed

cartpole          CartPole-v1 by the planner of configs/cartpole_mpc.yaml, 500 real transitions in all, and its curve beside
                  that of Dyna-Q, which benchmarks/learning.py wrote
pendulum_planner  Pendulum-v1 by the planner of configs/pendulum_mpc.yaml, 3,000 real transitions in all
pendulum_policy   Pendulum-v1 by the pathwise policy gradient of configs/pendulum_pg.yaml, 5,000 real transitions
speed             model steps a second of one plan, and of many at once, as a ratio to the PyTorch planner of the same method,
                  measured in turns

Each writes a JSON file and most a figure into benchmarks/results/planning/, and prints a line.
"""

import argparse
import json
import statistics as numbers
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.algorithms import mpc
from mbrl_jax.config import MPCConfig, RunConfig, load
from mbrl_jax.environments import make_environment
from mbrl_jax.replay import make_replay
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "planning"
DYNA_Q = ROOT / "benchmarks" / "results" / "learning" / "interactive.json"
LEARNING = {"cartpole": ("cartpole_mpc", 64), "pendulum_planner": ("pendulum_mpc", 32), "pendulum_policy": ("pendulum_pg", 32)}
MANY = 64  # plans at once
REPETITIONS, SECONDS = 7, 2.0  # of a measurement of speed


def learn(stage: str, seeds: int | None, out: Path) -> None:
    """Train a stage's preset, and write and print what came of it."""
    name, default = LEARNING[stage]
    config = load(ROOT / "configs" / f"{name}.yaml")
    with Display.standard(name) as display:
        run = runner.run(config, default if seeds is None else seeds, display=display)
    arms = {"last": results.per_seed(run.result.outcome.returns_last)}
    if run.result.outcome.returns_chosen is not None:
        arms["chosen"] = results.per_seed(run.result.outcome.returns_chosen)
    told: dict[str, Any] = {}
    for arm, returns in arms.items():
        middle, iqm = statistics.bootstrap(returns, statistics.median), statistics.bootstrap(returns)
        told[arm] = {"median": middle._asdict(), "iqm": iqm._asdict()}
        Console(width=140).print(
            f"{name}, {len(returns)} seeds, {config.real_transitions:,} real transitions, {arm}: median {middle}, IQM {iqm}"
        )
    curve = np.asarray(run.result.metrics.curve_return, np.float64)
    content = {
        "preset": name,
        **told,
        "curve": {"step": steps_of(config), "return": curve.tolist()},
        "summary": results.summarise(run),
    }
    strict_json.write(out / f"{stage}.json", content)
    if stage == "cartpole":
        draw_beside_dyna_q(content, out / f"{stage}.png")
    else:
        figures.draw_run(run, out / f"{stage}.png")


def steps_of(config: RunConfig) -> list[int]:
    """Real transitions at the ends of the rounds of an agent that acts while it learns."""
    return [config.random_transitions + done * config.round_steps for done in range(1, config.steps // config.round_steps + 1)]


def draw_beside_dyna_q(content: dict[str, Any], path: Path) -> None:
    """The planner's curve against real transitions beside that of Dyna-Q, and its final returns."""
    figure, axes = figures.new_figure(2)
    planner, curve = figures.COLOURS["chosen"], np.array(content["curve"]["return"])
    figures.draw_band(axes[0], np.array(content["curve"]["step"]), curve, "planner (MPPI)", planner)
    told = json.loads(DYNA_Q.read_text(encoding="utf-8"))
    dyna, random = told["learning_curves"]["model_based"], told["model_based"]["config"]["random_transitions"]
    transitions = random + np.array(dyna["step"])
    for arm, colour in (("chosen", figures.COLOURS["baseline"]), ("last", figures.COLOURS["last"])):
        middle, low, high = np.array(dyna[f"{arm}_iqm_low_high"])
        axes[0].plot(transitions, middle, color=colour, label=f"Dyna-Q, {arm} policy", linewidth=1.6)
        axes[0].fill_between(transitions, low, high, color=colour, alpha=0.18, linewidth=0)
    axes[0].set_xscale("log")
    axes[0].set_xticks([250, 500, 1_000, 2_000, 5_000], ["250", "500", "1,000", "2,000", "5,000"])
    axes[0].minorticks_off()
    axes[0].set_ylim(0, 510)
    axes[0].set_xlabel("real transitions")
    axes[0].set_ylabel("return, IQM over seeds")
    returns = np.array(content["summary"]["return_last"])
    figures.draw_profile(axes[1], {f"planner, {content['curve']['step'][-1]} transitions": (returns, planner)}, "CartPole-v1")
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    figure.suptitle(f"CartPole-v1, interactive, {len(returns)} seeds, 95 % intervals", fontsize=9)
    figure.savefig(path)


# --------------------------------------------------------------------------------------------------------------------- speed


def measure_speed(out: Path) -> None:
    """Plan from states of the real replay, by the library and by the reference, in turns."""
    import torch

    from mbrl_jax.reference import planning as reference
    from mbrl_jax.reference import weights
    from mbrl_jax.reference.environment import make_task
    from mbrl_jax.reference.model import ensemble as reference_ensemble
    from mbrl_jax.reference.networks import hot

    config = load(ROOT / "configs" / "cartpole_mpc.yaml")
    assert isinstance(config, MPCConfig)
    task = make_environment(config.environment)
    planner, train = mpc.planner_of(config, task), mpc.make_train(config)
    state, _ = jax.jit(train.init)(jax.random.key(0))
    state, _ = jax.jit(train.fit)(state, config)
    members = planner.world.acting(state.model)
    states = make_replay(task.spec, config.real_transitions).contents(state.real)[0].observation[:MANY]
    drawn = planner.draw(jax.random.key(1), (MANY,))
    plans = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (MANY, *leaf.shape)), planner.init())

    def one(plan: Any, observation: Any, drawn: Any) -> Any:
        return planner.plan(members, plan, observation, drawn)[:2]

    first = jax.tree.map(lambda leaf: leaf[0], (plans, states, drawn))
    alone, layout = jax.jit(one), execution.choose_layout(MANY)
    everywhere = jax.tree.map(layout.place, (plans, states, drawn))
    spread = execution.spread(lambda given, _: one(*given), (0, None), 0, layout)
    together = execution.lower(spread, everywhere, 0.0).compile().call

    # the same model, in the same precision
    learned = reference_ensemble.Ensemble(config.model, make_task(task.spec.name), config.model.members)
    learned.load_state_dict(weights.ensemble_to_torch(members.params, *members.bounds))
    told = reference_ensemble.Normaliser(*(torch.from_numpy(np.array(x)) for x in members.normaliser))
    world = reference_ensemble.World(learned, told)
    theirs = reference.blank(config.planning, task.spec.action_count, continuous=False, dtype=torch.float32)
    particles = first[2].particles
    uniform, noise = (torch.from_numpy(np.array(x)) for x in (first[2].candidates, particles.model.noise))
    deal = torch.zeros(0) if particles.deal is None else torch.from_numpy(np.array(particles.deal))
    begin = torch.from_numpy(np.array(first[1]))

    def plan_in_torch(returns: Any) -> Callable[[], Any]:
        def call() -> Any:
            reference.returns = returns
            return reference.plan(config.planning, world, theirs, begin, uniform, deal.long(), noise)

        return call

    eager = reference.returns
    arms: dict[str, tuple[int, Callable[[], Any]]] = {
        "one plan": (1, lambda: jax.block_until_ready(alone(*first))),
        f"{MANY} plans": (MANY, lambda: jax.block_until_ready(together(everywhere, 0.0))),
        "PyTorch, eager": (1, plan_in_torch(eager)),
        "PyTorch, compiled": (1, plan_in_torch(hot(eager, True, torch.device("cpu")))),
    }
    planning = config.planning
    per_plan = planner.iterations * planning.candidates * planning.horizon * planning.particles
    rates: dict[str, list[float]] = {name: [] for name in arms}
    first_call = {}
    for name, (_, call) in arms.items():
        began = time.perf_counter()
        call()
        first_call[name] = time.perf_counter() - began
        call()
    for _ in range(REPETITIONS):
        for name, (count, call) in arms.items():
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < SECONDS:
                call()
                done += count
            rates[name].append(done * per_plan / (time.perf_counter() - began))
    reference.returns = eager
    ratios = {
        f"{ours} / {other}": numbers.median(a / b for a, b in zip(rates[ours], rates[other], strict=True))
        for ours in list(arms)[:2]
        for other in list(arms)[2:]
    }
    for name, found in rates.items():
        Console(width=140).print(
            f"{name}: {numbers.median(found):,.0f} candidates x particles x steps a second, first call {first_call[name]:.1f} s"
        )
    for name, ratio in ratios.items():
        Console(width=140).print(f"{name}: {ratio:.1f}")
    content = {
        "preset": "cartpole_mpc",
        "model_steps_per_plan": per_plan,
        "model_steps_per_second": rates,
        "first_call_seconds": first_call,
        "median_ratios": ratios,
        "threads": {"torch": torch.get_num_threads()},
        "versions": packages.versions(("jax", "jaxlib", "torch")),
        "device": jax.devices()[0].device_kind,
        "precision": "float32",
        "git": packages.git_revision(),
    }
    strict_json.write(out / "speed.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*LEARNING, "speed"])
    parser.add_argument("--seeds", type=int, help="in place of the stage's own number")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--draw-again", action="store_true", help="draw the cartpole stage from its file, and measure nothing")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    if flags.draw_again:
        content = json.loads((flags.out / "cartpole.json").read_text(encoding="utf-8"))
        draw_beside_dyna_q(content, flags.out / "cartpole.png")
        return
    execution.use_all_cores()
    for stage in flags.stages:
        if stage == "speed":
            measure_speed(flags.out)
        else:
            learn(stage, flags.seeds, flags.out)


if __name__ == "__main__":
    main()
