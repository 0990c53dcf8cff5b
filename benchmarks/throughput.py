"""How much work a second, by the number of seeds, and how far that is from the least time that the arithmetic takes.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --presets cartpole_batch cartpole_best --seeds 1 4 16 64 256 1024 4096 --minutes 8

For each preset and number of seeds, until the time or the memory ends: seconds of compiling (cold, and once more from the
persistent cache), of the first call and of the steady state of every phase, medians and spreads of repetitions whose results are
waited for; real steps, imagined transitions and updates a second; seconds of the whole recipe for a thousand seeds; bytes;
kernels in the compiled step; and the floor: floating-point operations counted from the shapes over the rate that XLA reaches here
on one large matrix product, measured in the same run. A number of seeds that runs out of memory is noted and ends its preset.

Writes benchmarks/results/speed/throughput.json and throughput.png, after every point.
"""

import argparse
import itertools
import json
import re
import statistics as numbers
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import DynaQConfig, ModelFreeQConfig, load
from mbrl_jax.environment import make_environment
from mbrl_jax.runs import execution, figures, results, runner

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
NO_KERNELS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota")


def preset(name: str) -> ModelFreeQConfig:
    return load(ROOT / "configs" / f"{name}.yaml")


# --------------------------------------------------------------------------------------------------------- what is to be done


def matrix_sizes(widths: Sequence[int]) -> int:
    """Multiply-adds of one row through a perceptron."""
    return sum(a * b for a, b in itertools.pairwise(widths))


def operations(config: ModelFreeQConfig) -> dict[str, float]:
    """Floating-point operations of the matrix products of one seed: of a step of the main loop, and of a step of the first fit.

    A multiply-add counts 2; a backward pass 2 forward passes, less the first layer's input gradient. What is not a matrix product
    (activations, Adam, the environment, random numbers) is left out, and so are the episodes at a round's end that score and
    judge the policy, which take as long as the policy lasts: the floor is a lower bound.
    """
    spec = make_environment(config.environment).spec
    agent = config.agent
    values = (spec.observation_size, *agent.hidden, spec.action_count)
    forward = 2 * matrix_sizes(values)
    backward = 2 * forward - 2 * values[0] * values[1]
    passes = {"max": 1, "double": 2}.get(agent.target, 2)  # of the next states
    update = agent.members * agent.batch_size * (passes * forward + forward + backward)
    step, fit = float(agent.updates_per_step * update), 0.0
    if config.protocol == "interactive":
        step += agent.members * forward  # one real action
    if isinstance(config, DynaQConfig):
        model, imagination = config.model, config.imagination
        outputs = spec.observation_size * (2 if model.kind == "gaussian" else 1)
        inputs = spec.observation_size + spec.action_count
        dynamics = (inputs, *model.hidden, outputs)
        predict = 2 * matrix_sizes(dynamics)
        step += imagination.lanes * imagination.steps * (predict + agent.members * forward)
        fit = model.members * model.batch_size * (3 * predict - 2 * dynamics[0] * dynamics[1])
    return {"step": step, "fit_step": fit}


def matrix_rate(seconds: float = 2.0) -> float:
    """Floating-point operations a second that XLA reaches on all local devices together, each on a large product of its own."""
    size = 1024 if jax.local_devices()[0].platform == "cpu" else 8192
    layout = execution.choose_layout(len(jax.local_devices()))
    a = layout.place(jnp.ones((layout.mesh.size, size, size), jnp.float32))
    product = jax.jit(execution.spread(lambda x: x @ x / size, (0,), 0, layout))
    jax.block_until_ready(product(a))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        best = max(best, 2 * size**3 * layout.mesh.size / (time.perf_counter() - start))
    return best


def kernels_of_a_step(program: str, steps: int) -> int | None:
    """Instructions that become kernels in the body of the loop over ``steps`` real steps, none if that loop is not found."""
    bodies: dict[str, int] = {}
    name = None
    for line in program.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            name, bodies[head.group(1)] = head.group(1), 0
        elif name and (instruction := re.match(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(", line)):
            bodies[name] += instruction.group(1) not in NO_KERNELS
    loops = re.findall(rf'body=%?([\w.\-]+).*"known_trip_count":\{{"n":"{steps}"\}}', program)
    return max((bodies[loop] for loop in loops if loop in bodies), default=None)


# ---------------------------------------------------------------------------------------------------------------- one point


class Point:
    """A preset with a number of seeds, compiled and timed phase by phase."""

    def __init__(self, config: ModelFreeQConfig, seeds: int, repetitions: int):
        self.config, self.seeds, self.repetitions = config, seeds, repetitions
        self.algorithm, self.layout = runner.make_train(config), execution.choose_layout(seeds)
        self.padded = self.layout.padded(seeds)
        self.shared = jax.tree.map(lambda _: None, config)
        self.told: dict[str, Any] = {"seeds": seeds, "compile": {}, "from_cache": {}, "first": {}, "steady": {}}
        self.temporary = 0

    def measure(self) -> dict[str, Any]:
        """Everything about it."""
        axes = self.algorithm.axes
        keys = self.layout.place(seed_keys(0, self.padded))
        init = self.compiled("collect", self.algorithm.init, 0, (axes, 0), keys)
        (state, _), _ = self.timed("collect", lambda: init.call(keys, self.config))
        state_bytes = execution.bytes_per_seed(axes, state, self.padded)
        fit = self.compiled("fit", self.algorithm.fit, axes, (axes, 0), state)
        (state, _), _ = self.timed("fit", lambda: fit.call(state, self.config), again=isinstance(self.config, DynaQConfig))
        advance = self.compiled("round", self.algorithm.advance, axes, (axes, 0), state)
        (state, _), steady = self.timed("round", lambda: advance.call(state, self.config))
        finish = self.compiled("evaluate", self.algorithm.finish, axes, 0, state)
        self.timed("evaluate", lambda: finish.call(state, self.config))
        return {
            **self.told,
            **self.rates(steady),
            "kernels_per_step": kernels_of_a_step(advance.call.as_text(), self.config.round_steps),
        } | {
            "bytes_per_seed": {"state": state_bytes, "temporary": self.temporary},
            "peak_bytes": self.peak(),
        }

    def compiled(self, phase: str, function: Callable[..., Any], in_axes: Any, out_axes: Any, first: Any) -> execution.Compiled:
        """Compile cold, then again from the persistent cache."""
        spread = execution.spread(function, (in_axes, self.shared), out_axes, self.layout)
        cold = execution.compile_(spread, first, self.config)
        self.told["compile"][phase] = cold.seconds
        jax.clear_caches()
        spread = execution.spread(function, (in_axes, self.shared), out_axes, self.layout)
        warm = execution.compile_(spread, first, self.config)
        self.told["from_cache"][phase] = warm.seconds
        self.temporary = max(self.temporary, warm.temporary_bytes * self.layout.mesh.size // self.padded)
        return warm

    def timed(self, phase: str, call: Callable[[], Any], again: bool = True) -> tuple[Any, list[float]]:
        """The result of a call that is repeated, the first apart."""
        seconds = []
        for _ in range(1 + (self.repetitions if again else 0)):
            start = time.perf_counter()
            result = jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
        self.told["first"][phase] = seconds[0]
        steady = seconds[1:] or seconds
        self.told["steady"][phase] = {"median": numbers.median(steady), "least": min(steady), "most": max(steady)}
        return result, steady

    def rates(self, steady: Sequence[float]) -> dict[str, float]:
        """Rates of the main loop, and the whole recipe."""
        config, round_seconds = self.config, numbers.median(steady)
        steps = self.seeds * config.round_steps / round_seconds
        imagined = config.imagination.lanes * config.imagination.steps if isinstance(config, DynaQConfig) else 0
        phases = {name: each["median"] for name, each in self.told["steady"].items()}
        whole = phases["collect"] + phases["fit"] + self.algorithm.rounds * phases["round"] + phases["evaluate"]
        return {
            "real_steps_per_second": steps,
            "imagined_transitions_per_second": steps * imagined,
            "updates_per_second": steps * config.agent.updates_per_step,
            "recipe_seconds": whole,
            "recipe_seconds_per_thousand_seeds": 1000 * whole / self.seeds,
            "step_operations": operations(config)["step"],
        }

    def peak(self) -> int | None:
        """Bytes that the devices have held at once, where they tell."""
        told = [device.memory_stats() for device in jax.local_devices()]
        return sum(each["peak_bytes_in_use"] for each in told if each) if all(told) else None


# ------------------------------------------------------------------------------------------------------------------ the sweep


def measure(name: str, seeds: int, repetitions: int, rate: float) -> dict[str, Any]:
    point = Point(preset(name), seeds, repetitions).measure()
    floor = rate / point["step_operations"]
    return {"preset": name, **point, "floor_steps_per_second": floor, "share_of_floor": point["real_steps_per_second"] / floor}


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    figure, (ax,) = figures.new_figure(1)
    colours = list(figures.COLOURS.values())
    for colour, name in zip(colours, dict.fromkeys(point["preset"] for point in points), strict=False):
        mine = [point for point in points if point["preset"] == name and "failed" not in point]
        if not mine:
            continue
        x = [point["seeds"] for point in mine]
        ax.plot(
            x, [point["real_steps_per_second"] for point in mine], "o-", color=colour, label=name, linewidth=1.4, markersize=3.5
        )
        floor = [point["floor_steps_per_second"] for point in mine]
        ax.plot(x, floor, color=colour, linestyle=":", linewidth=1.0, label=f"floor of {name}")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("seeds")
    ax.set_ylabel("real steps a second, all seeds together")
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(path)


def as_table(points: Sequence[dict[str, Any]], rate: float) -> Table:
    table = Table(title=f"{execution.device()}: {rate / 1e9:,.0f} GFLOP/s on a large product")
    columns = (
        "preset",
        "seeds",
        "compile, s",
        "cached, s",
        "steps/s",
        "imagined/s",
        "recipe, s",
        "s per 1,000 seeds",
        "kernels",
        "of floor",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for point in points:
        if "failed" in point:
            table.add_row(point["preset"], str(point["seeds"]), point["failed"])
            continue
        table.add_row(
            point["preset"],
            str(point["seeds"]),
            f"{sum(point['compile'].values()):.1f}",
            f"{sum(point['from_cache'].values()):.1f}",
            f"{point['real_steps_per_second']:,.0f}",
            f"{point['imagined_transitions_per_second']:,.0f}",
            f"{point['recipe_seconds']:.1f}",
            f"{point['recipe_seconds_per_thousand_seeds']:,.0f}",
            str(point["kernels_per_step"]),
            f"{point['share_of_floor']:.0%}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cartpole_batch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=20, help="after which no further point is begun")
    given = parser.parse_args()
    execution.use_all_cores()
    cache = tempfile.mkdtemp()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    until, rate, points = time.monotonic() + 60 * given.minutes, matrix_rate(), []
    for name in given.presets:
        for seeds in given.seeds:
            if time.monotonic() > until:
                break
            try:
                points.append(measure(name, seeds, given.repetitions, rate))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                points.append({"preset": name, "seeds": seeds, "failed": "out of memory"})
            content = {
                "stage": "throughput",
                "matrix_operations_per_second": rate,
                "points": points,
                "repetitions": given.repetitions,
                "versions": results.versions(runner.PACKAGES),
                "device": execution.device(),
                "precision": "float32",
                "git": results.git_revision(),
            }
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / "throughput.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draw(points, OUT / "throughput.png")
            print(json.dumps({"preset": name, "seeds": seeds, "steps/s": points[-1].get("real_steps_per_second")}), flush=True)
            if "failed" in points[-1]:
                break
    Console(width=160).print(as_table(points, rate))


if __name__ == "__main__":
    main()
