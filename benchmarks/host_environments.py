"""What environments on the host cost, and what is learned in them.

    python benchmarks/host_environments.py overhead cartpole pendulum hopper

overhead  the time of a real step of 16 seeds on gymnasium/CartPole-v1 beside that of the loop on the devices, and its parts
cartpole  a preset on gymnasium/CartPole-v1 beside CartPole-v1 of gymnax, 16 seeds
pendulum  gymnasium/InvertedPendulum-v5: its presets, 8 seeds
hopper    gymnasium/Hopper-v5 by planning, 2 seeds: that it learns, and what a step costs

Each writes a JSON file into benchmarks/results/host_environments/ and prints a table.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.config import RunConfig, load
from mbrl_jax.environments import Environment, host_environment, make_environment
from mbrl_jax.runs import execution, results, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.hosted import HostedProgram
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "host_environments"
ARMS = {  # of the comparison of CartPole
    "gymnasium": "gymnasium/CartPole-v1",
    "gymnax": "CartPole-v1",
    "known": "gymnasium/CartPole-v1, known reward and termination",
}
PACKAGES = ("jax", "jaxlib", "numpy", "gymnasium", "gymnax", "mujoco")


def preset(name: str, /, **environment: Any) -> Any:
    config = load(ROOT / "configs" / f"{name}.yaml")
    return dataclasses.replace(config, environment=dataclasses.replace(config.environment, **environment))


def run(name: str, config: RunConfig, seeds: int, environment: Environment | None = None) -> Run:
    with Display.standard(name) as display:
        return runner.run(config, seeds, display=display, environment=environment)


def write(stage: str, content: dict[str, Any]) -> None:
    """Write what a stage found, with what it depends on."""
    about = {"versions": packages.versions(PACKAGES), "git": packages.git_revision(), "device": execution.device()}
    OUT.mkdir(parents=True, exist_ok=True)
    strict_json.write(OUT / f"{stage}.json", {"stage": stage, **about, **content})


class Clock:
    """Seconds of wall clock and of this process's CPUs."""

    def __init__(self) -> None:
        self.begun = self.now()

    @staticmethod
    def now() -> np.ndarray:
        """[2] what the two say."""
        return np.array([time.perf_counter(), time.process_time()])

    def read(self) -> np.ndarray:
        """[2] since the clock was made."""
        return self.now() - self.begun


def stage_overhead(seeds: int, rounds: int) -> None:
    """Blocks of the host beside the same steps on the devices, by turns."""
    hosted = preset("cartpole_interactive", name="gymnasium/CartPole-v1")
    program = runner.prepare([hosted], seeds)
    assert isinstance(program, HostedProgram)
    devices = runner.prepare([preset("cartpole_interactive")], seeds)
    steps = hosted.round_steps
    axes, layout = devices.algorithm.axes, devices.layout

    def learn(state: Any, hyper: Any) -> Any:
        return devices.algorithm.learn(state, hyper, steps)

    spread = execution.spread(learn, (axes, devices.hyper_axes), (axes, 0), layout)
    state = layout.placed(devices.out("init")[0], axes)
    whole = execution.lower(spread, state, devices.hyper, donate=(0,)).compile()
    for each in (program, devices):
        each.call("init")
        each.call("fit")
    blocks = steps // program.block
    found: dict[str, list[np.ndarray]] = {"host": [], "devices": [], "acting": []}
    for _ in range(rounds + 1):  # the first is left out: what is made at its first use
        clock, acting = Clock(), np.zeros(2)
        for _ in range(blocks):
            inner = Clock()
            recorded = jax.block_until_ready(program.act())
            acting += inner.read()
            jax.block_until_ready(program.learn(*recorded))
        found["host"].append(clock.read())
        found["acting"].append(acting)
        clock = Clock()
        devices.state, logs = whole.call(devices.state, devices.hyper)
        jax.block_until_ready((devices.state, logs))
        found["devices"].append(clock.read())
    program.leave()
    milliseconds = {name: np.median(np.array(each[1:]), axis=0) * 1e3 / steps for name, each in found.items()}
    extra = np.median(np.array(found["host"][1:]) - np.array(found["devices"][1:]), axis=0) * 1e3 / steps
    table = Table("ms a real step of all seeds", "wall", "CPU", title=f"{seeds} seeds, blocks of {program.block} steps")
    rows = {
        "host: act, record and learn": milliseconds["host"],
        "of that, act and record": milliseconds["acting"],
        "devices: act and learn": milliseconds["devices"],
        "difference": extra,
    }
    for name, (wall, cpu) in rows.items():
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}")
    Console(width=140).print(table)
    told = {name: {"wall": float(wall), "cpu": float(cpu)} for name, (wall, cpu) in rows.items()}
    write("overhead", {"seeds": seeds, "rounds": rounds, "block_steps": program.block, "milliseconds_per_real_step": told})


def row(name: str, run: Run, which: str) -> tuple[list[str], dict[str, Any]]:
    """A line of the table, and the run's summary."""
    summary = results.summarise(run)
    iqm, seconds = summary["iqm"][which], run.seconds
    per_step = seconds.train / run.config.steps * 1e3
    scores = np.array(summary[f"return_{which}"])
    line = [
        name,
        f"{summary['real_transitions']:,}",
        str(statistics.Estimate(iqm["value"], *iqm["ci95"])),
        f"{scores.mean():.1f}",
    ]
    return [*line, f"{scores.min():.0f}", f"{seconds.run:.0f}", f"{per_step:.1f}"], {**summary, "judged": which}


def new_table(title: str) -> Table:
    return Table("", "real", "IQM", "mean", "worst seed", "s", "ms a step of all seeds", title=title)


def with_known_functions(config: RunConfig) -> Environment:
    """Gymnasium's CartPole-v1 with the reward, the termination and the scales that gymnax's has here."""
    known = make_environment(dataclasses.replace(config.environment, name="CartPole-v1"))
    return host_environment(
        lambda: gymnasium.make("CartPole-v1"),
        reward=known.reward,
        terminated=known.terminated,
        observation_scale=known.spec.observation_scale,
    )


def stage_cartpole(name_of_preset: str, seeds: int, arms: Sequence[str], steps: int | None, scored: int | None) -> None:
    """The same preset in gymnax and in Gymnasium, with so many steps and episodes that score a snapshot; none leaves its own.

    Arms that an earlier call measured are kept.
    """
    which = "last" if name_of_preset.endswith("model_free") else "chosen"
    table, path = new_table(f"CartPole-v1, {name_of_preset}, {seeds} seeds, {which} policies"), OUT / f"{name_of_preset}.json"
    told = strict_json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    evaluation = {"episodes": 20, "curve_episodes": 1}
    for arm in arms:
        config = preset(name_of_preset, name="CartPole-v1" if arm == "known" else ARMS[arm])
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **evaluation))
        config = config if steps is None else dataclasses.replace(config, steps=steps)
        if scored is not None:
            config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, episodes=scored))
        environment = with_known_functions(config) if arm == "known" else None
        line, told[ARMS[arm]] = row(ARMS[arm], run(ARMS[arm], config, seeds, environment), which)
        table.add_row(*line)
        write(name_of_preset, {"arms": told})
    Console(width=140).print(table)


def stage_pendulum(seeds: int) -> None:
    """The presets of the inverted pendulum."""
    table, told = new_table(f"gymnasium/InvertedPendulum-v5, {seeds} seeds, of 1,000"), {}
    for name, which in PENDULUM.items():
        line, told[name] = row(name, run(name, preset(name), seeds), which)
        table.add_row(*line)
        write("pendulum", {"presets": told})
    Console(width=140).print(table)


def stage_hopper(seeds: int) -> None:
    """Planning in Hopper with 1,500 real transitions, beside random actions."""
    config = preset("pendulum_mpc", name="gymnasium/Hopper-v5")
    config = dataclasses.replace(config, random_transitions=1_000, steps=500, round_steps=250)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, episodes=3, curve_episodes=1))
    line, told = row("mpc", run("hopper", config, seeds), "last")
    table = new_table(f"gymnasium/Hopper-v5, {seeds} seeds; random actions return {told['random_return']:.1f}")
    table.add_row(*line)
    task = make_environment(config.environment)
    write("hopper", {"run": told, "observation_scale": list(task.spec.observation_scale)})
    Console(width=140).print(table)


PENDULUM = {"inverted_pendulum_pg": "chosen"}
STAGES = ("overhead", "cartpole", "pendulum", "hopper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed (overhead)")
    parser.add_argument("--preset", default="cartpole_interactive", help="that is trained in both (cartpole)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=("gymnasium", "gymnax"), help="that are trained (cartpole)")
    parser.add_argument("--steps", type=int, help="of the main loop, in place of the preset's (cartpole)")
    parser.add_argument("--scored", type=int, help="imagined episodes that score a snapshot, in place of the preset's (cartpole)")
    arguments = parser.parse_args()
    execution.use_all_cores()
    execution.use_compilation_cache()
    if "overhead" in arguments.stages:
        stage_overhead(16, arguments.rounds)
    if "cartpole" in arguments.stages:
        stage_cartpole(arguments.preset, 16, arguments.arms, arguments.steps, arguments.scored)
    if "pendulum" in arguments.stages:
        stage_pendulum(8)
    if "hopper" in arguments.stages:
        stage_hopper(2)


if __name__ == "__main__":
    main()
