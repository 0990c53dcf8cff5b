"""How much work a second, by the number of seeds, and how far that is from the least time that the work could take here.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --presets cartpole_batch cartpole_best --seeds 1 4 16 64 256 1024 4096 --minutes 25

For each preset, precision and number of seeds, until the time or the memory ends: two processes, one after the other, get ready
to train as the command line does, the first with empty caches. Then the whole recipe is run phase by phase: first calls apart,
the one-time phases repeated, and all rounds of the main loop one after another, as policies that last longer take longer to
judge. Where the rounds would take longer than --round-seconds only the first of them are run, and the point says how many. A
number of seeds that runs out of memory is noted and ends its row of points.

The floor is the larger of two times: floating-point operations of the matrix products, counted from the shapes, over the rate
that XLA reaches here on one large product; and the bytes that must pass between memory and the cores in each step, over the rate
of one large copy. Both rates are measured in the same run. Episodes count with the steps that they really had.

Writes benchmarks/results/speed/throughput.json and throughput.png, after every point.
"""

import argparse
import dataclasses
import itertools
import json
import statistics as numbers
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compiled
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from start import starts

from mbrl_jax import packages, strict_json
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import DynaQConfig, ModelFreeQConfig, from_dict, holdout_stride, load, to_dict
from mbrl_jax.config.files import parse
from mbrl_jax.environments import make_environment
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, runner

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
STEPS_AS_RETURN = ("CartPole-v1",)  # tasks with a reward of 1 a step: there the mean return is the mean length of an episode
RTX_4090 = {
    "operations_per_second": 82.6e12,
    "bytes_per_second": 1.008e12,
}  # its data sheet: float32 without tensor cores; memory


def preset(name: str, precision: str, changes: Sequence[str]) -> ModelFreeQConfig:
    """A shipped preset with some settings changed, each as ``path=value``."""
    content = to_dict(load(ROOT / "configs" / f"{name}.yaml"))
    for change in [f"precision={precision}", *changes]:
        path, _, value = change.partition("=")
        *groups, last = path.split(".")
        place = content
        for group in groups:
            place = place[group]
        place[last] = parse(value)
    config = from_dict(content)
    assert isinstance(config, ModelFreeQConfig), f"{name}: the floor is counted for Q-learning, with a model or without"
    return config


# --------------------------------------------------------------------------------------------------------- what is to be done


def multiply_adds(widths: Sequence[int]) -> int:
    """Of one row through a perceptron."""
    return sum(a * b for a, b in itertools.pairwise(widths))


def parameters(widths: Sequence[int]) -> int:
    """Numbers in a perceptron."""
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


@dataclasses.dataclass
class Work:
    """What the method asks for, of one seed, whoever computes it.

    A multiply-add counts 2 operations; a backward pass 2 forward passes, less the first layer's input gradient. What is not a
    matrix product (activations, Adam, the environment, random numbers) is left out, so the operations are a lower bound. The
    bytes of a step are those of float32 parameters, moments, minibatch and imagined rows, each read or written once.
    """

    step: float  # operations of a step of the main loop, without the episodes at a round's end
    fit_step: float  # of a step of the model's descent
    fit_steps: int  # before the main loop
    refit_steps: int  # after each round
    imagined_step: float  # of a step of an episode that the model plays
    real_step: float  # of a step of a greedy real episode
    step_bytes: float

    @classmethod
    def of(cls, config: ModelFreeQConfig) -> "Work":
        """What a config asks for."""
        spec = make_environment(config.environment).spec
        agent, row = config.agent, 4 * (2 * spec.observation_size + 5)  # s, s', action, reward, terminated, weight, depth
        values = (spec.observation_size, *agent.hidden, spec.action_count)
        forward = 2 * multiply_adds(values)
        backward = 2 * forward - 2 * values[0] * values[1]
        passes = {"max": 1, "double": 2}.get(agent.target, 2)  # of the next states
        step = float(agent.updates_per_step * agent.members * agent.batch_size * ((passes + 1) * forward + backward))
        moved = agent.updates_per_step * (4 * 7 * agent.members * parameters(values) + agent.batch_size * row)
        if config.protocol == "interactive":
            step += agent.members * forward  # one real action
        if not isinstance(config, DynaQConfig):
            return cls(step, 0.0, 0, 0, 0.0, agent.members * forward, moved)
        model, imagination = config.model, config.imagination
        inputs = spec.observation_size + (1 if spec.action_count == 2 else spec.action_count)
        targets = spec.observation_size + (model.reward == "learned")
        outputs = targets * (2 if model.prediction == "gaussian" else 1) + (model.termination == "learned")
        dynamics = (inputs, *model.hidden, outputs)
        predict = 2 * multiply_adds(dynamics)
        rows = imagination.lanes * imagination.steps
        step += rows * (predict + agent.members * forward)
        moved += rows * row + 4 * model.members * parameters(dynamics)
        first = 2 * dynamics[0] * dynamics[1]
        fit_step = float(model.members * model.batch_size * (3 * predict - first))
        if model.laplacian != "none":  # value, slopes and curvature of some rows, forward and backward
            directions = spec.observation_size if model.laplacian in ("auto", "exact") else model.laplacian_probes
            penalised = model.laplacian_rows or model.batch_size
            fit_step += 3 * model.members * penalised * (directions + 2) * (predict - first)
        held_out = config.real_transitions // holdout_stride(config)
        batches = (config.random_transitions - held_out) // model.batch_size
        interactive = config.protocol == "interactive"
        refits = model.refit_batches if interactive else 0
        return cls(step, fit_step, model.epochs * batches, refits, predict + forward, forward, moved)

    def of_rounds(self, config: ModelFreeQConfig, metrics: Any) -> np.ndarray:
        """Operations of each of the rounds that ``metrics`` [seeds, rounds] tell of, all seeds together, episodes included."""
        rounds = metrics.curve_return.shape[1]
        done = np.full(
            rounds, metrics.curve_return.shape[0] * (config.round_steps * self.step + self.refit_steps * self.fit_step)
        )
        if config.environment.name in STEPS_AS_RETURN:
            done = done + config.evaluation.curve_episodes * self.real_step * metrics.curve_return.sum(axis=0)
            if isinstance(config, DynaQConfig):
                done = done + config.selection.episodes * self.imagined_step * metrics.score.sum(axis=0)
        return done


def best_rate(work: float, call: Callable[[], Any], seconds: float = 2.0) -> float:
    """``work`` over the least time of a call that is repeated for some seconds."""
    jax.block_until_ready(call())
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(call())
        best = max(best, work / (time.perf_counter() - start))
    return best


def rates(precision: str) -> dict[str, float]:
    """What XLA reaches on all local devices together: one large matrix product each, and one large copy each."""
    devices = len(jax.local_devices())
    layout, on_cpu = execution.choose_layout(devices), jax.local_devices()[0].platform == "cpu"
    size, length = (1024, 2**24) if on_cpu else (8192, 2**28)
    with jax.default_matmul_precision(None if precision == "default" else precision):
        product = jax.jit(execution.spread(lambda x: x @ x / size, (0,), 0, layout))
        a = layout.place(jnp.ones((devices, size, size), jnp.float32))
        operations = best_rate(2.0 * size**3 * devices, lambda: product(a))
    copy = jax.jit(execution.spread(lambda x: x + 1, (0,), 0, layout))
    b = layout.place(jnp.ones((devices, length), jnp.float32))
    return {"operations_per_second": operations, "bytes_per_second": best_rate(8.0 * length * devices, lambda: copy(b))}


# ---------------------------------------------------------------------------------------------------------------- one point


class Point:
    """A preset with a number of seeds, compiled and timed phase by phase."""

    def __init__(self, config: ModelFreeQConfig, seeds: int, repetitions: int, round_seconds: float):
        self.config, self.seeds, self.repetitions, self.round_seconds = config, seeds, repetitions, round_seconds
        self.algorithm, self.layout = runner.make_train(config), execution.choose_layout(seeds)
        self.padded = self.layout.padded(seeds)
        self.shared = jax.tree.map(lambda _: None, config)
        self.told: dict[str, Any] = {"seeds": seeds, **starts(config, seeds), "first": {}, "steady": {}}
        self.temporary = 0

    def measure(self, reached: dict[str, float], profile: bool) -> dict[str, Any]:
        """Everything about it, with the floor that the rates ``reached`` imply."""
        axes, config = self.algorithm.axes, self.config
        keys = self.layout.place(seed_keys(0, self.padded))
        init = self.compiled(self.algorithm.init, 0, (axes, 0), keys)
        state, _ = self.timed("collect", lambda: init.call(keys, config))
        state_bytes = execution.bytes_per_seed(axes, state, self.padded)
        fit = self.compiled(self.algorithm.fit, axes, (axes, 0), state)
        state, _ = self.timed("fit", lambda: fit.call(state, config), again=isinstance(config, DynaQConfig))
        advance = self.compiled(self.algorithm.advance, axes, (axes, 0), state)
        self.told["kernels_per_step"] = compiled.kernels(compiled.loop_body(advance.call.as_text() or "", config.round_steps))
        if profile:
            self.told["launched_per_step"] = launched(lambda: advance.call(state, config)) / config.round_steps
        state, metrics, seconds = self.rounds(advance.call, state)
        finish = self.compiled(self.algorithm.finish, axes, 0, state)
        self.timed("evaluate", lambda: finish.call(state, config))
        memory = {"state": state_bytes, "temporary": self.temporary}
        return {**self.told, **self.summary(metrics, seconds, reached), "bytes_per_seed": memory, "peak_bytes": self.peak()}

    def compiled(self, function: Callable[..., Any], in_axes: Any, out_axes: Any, first: Any) -> execution.Compiled:
        """A function of one seed for all."""
        spread = execution.spread(function, (in_axes, self.shared), out_axes, self.layout)
        made = execution.lower(spread, first, self.config).compile()
        self.temporary = max(self.temporary, made.temporary_bytes * self.layout.mesh.size // self.padded)
        return made

    def timed(self, phase: str, call: Callable[[], Any], again: bool = True) -> Any:
        """The result of a call that is repeated, the first apart."""
        seconds = []
        for _ in range(1 + (self.repetitions if again else 0)):
            start = time.perf_counter()
            result = jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
        self.told["first"][phase] = seconds[0]
        self.told["steady"][phase] = spread_of(seconds[1:] or seconds)
        return result

    def rounds(self, advance: Callable[..., Any], state: Any) -> tuple[Any, Any, np.ndarray]:
        """All rounds, or as many as the time allows, at least 3: the state, metrics [seeds, rounds] and seconds [rounds]."""
        start = time.perf_counter()
        jax.block_until_ready(advance(state, self.config))
        self.told["first"]["round"] = time.perf_counter() - start
        seconds: list[float] = []
        measured = []
        while len(seconds) < self.algorithm.rounds and (len(seconds) < 3 or sum(seconds) < self.round_seconds):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(advance(state, self.config))
            seconds.append(time.perf_counter() - start)
            measured.append(jax.tree.map(np.asarray, metrics))
        self.told["rounds_run"], self.told["rounds"] = len(seconds), self.algorithm.rounds
        self.told["steady"]["round"] = spread_of(seconds)
        return state, jax.tree.map(lambda *parts: np.stack(parts, axis=1), *measured), np.array(seconds)

    def summary(self, metrics: Any, seconds: np.ndarray, reached: dict[str, float]) -> dict[str, Any]:
        """Rates of the main loop and of the whole recipe, and the floor of each."""
        config, work = self.config, Work.of(self.config)
        phases = {name: each["median"] for name, each in self.told["steady"].items()}
        loop = float(seconds.sum())
        steps = self.seeds * config.round_steps * len(seconds)
        imagined = config.imagination.lanes * config.imagination.steps if isinstance(config, DynaQConfig) else 0
        whole = phases["collect"] + phases["fit"] + loop * self.algorithm.rounds / len(seconds) + phases["evaluate"]
        operations = float(work.of_rounds(config, jax.tree.map(lambda leaf: leaf[: self.seeds], metrics)).sum())
        fit = float(self.seeds * work.fit_steps * work.fit_step)
        in_all = fit + operations * self.algorithm.rounds / len(seconds)
        moved = steps * work.step_bytes

        def floor(per_second: dict[str, float]) -> tuple[float, float]:
            """Seconds of the rounds that were run, and of the whole recipe."""
            by_bytes, scale = moved / per_second["bytes_per_second"], self.algorithm.rounds / len(seconds)
            rate = per_second["operations_per_second"]
            return max(operations / rate, by_bytes), max(in_all / rate, by_bytes * scale)

        (loop_floor, recipe_floor), (_, estimate) = floor(reached), floor(RTX_4090)
        all_steps = self.seeds * config.round_steps * self.algorithm.rounds
        return {
            "real_steps_per_second": steps / loop,
            "imagined_transitions_per_second": steps * imagined / loop,
            "updates_per_second": steps * config.agent.updates_per_step / loop,
            "recipe_seconds": whole,
            "recipe_steps_per_second": all_steps / whole,
            "recipe_seconds_per_thousand_seeds": 1000 * whole / self.seeds,
            "operations_per_step": operations / steps,
            "recipe_operations_per_step": in_all / all_steps,
            "bytes_per_step": work.step_bytes,
            "floor_steps_per_second": steps / loop_floor,
            "share_of_floor": loop_floor / loop,
            "recipe_floor_seconds": recipe_floor,
            "recipe_share_of_floor": recipe_floor / whole,
            "rtx_4090_floor_seconds_estimate": estimate,
        }

    def peak(self) -> int | None:
        """Bytes that the devices have held at once, where they tell; on a CPU the most that the process has held so far."""
        told = [device.memory_stats() for device in jax.local_devices()]
        if all(told):
            return sum(each["peak_bytes_in_use"] for each in told if each)
        status = Path("/proc/self/status")
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
        return 1024 * int(lines[0].split()[1]) if lines else None


def spread_of(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": numbers.median(seconds), "least": min(seconds), "most": max(seconds)}


def launched(call: Callable[[], Any]) -> int:
    """Kernels that an accelerator ran in one call, from a profile of it."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        streams = [line for plane in profile.planes if "GPU" in plane.name for line in plane.lines if "Stream" in line.name]
        return sum(1 for line in streams for _ in line.events)


# ------------------------------------------------------------------------------------------------------------------ the sweep


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Seeds against throughput of the whole recipe, with the floor."""
    figure, (ax,) = figures.new_figure(1)
    rows = dict.fromkeys((point["preset"], point["precision"]) for point in points)
    for colour, (name, precision) in zip(itertools.cycle(figures.COLOURS.values()), rows, strict=False):
        mine = [p for p in points if (p["preset"], p["precision"]) == (name, precision) and "failed" not in p]
        if not mine:
            continue
        label = name if precision == "default" else f"{name}, {precision}"
        x = [point["seeds"] for point in mine]
        y = [point["recipe_steps_per_second"] for point in mine]
        floor = [point["recipe_steps_per_second"] / point["recipe_share_of_floor"] for point in mine]
        ax.plot(x, y, "o-", color=colour, label=label, linewidth=1.4, markersize=3.5)
        ax.plot(x, floor, color=colour, linestyle=":", linewidth=1.2, label=f"{label}: floor")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    seeds = sorted({point["seeds"] for point in points})
    ax.set_xticks(seeds, [f"{count:,}" for count in seeds])
    low, high = ax.get_ylim()
    rungs = [m * 10**e for e in range(2, 9) for m in (1, 2, 5) if low <= m * 10**e <= high]
    ax.set_yticks(rungs, [f"{rung:,}" for rung in rungs])
    ax.minorticks_off()
    ax.set_xlabel("seeds")
    ax.set_ylabel("real steps a second, all seeds together")
    ax.set_title("the whole recipe", fontsize=9)
    ax.legend(frameon=False, fontsize=7)
    figure.savefig(path)


COLUMNS = (
    *("preset", "precision", "seeds", "compile, s", "cached, s", "second start, s", "steps/s", "of floor", "imagined/s"),
    *("recipe, s", "recipe steps/s", "of floor", "s per 1,000 seeds", "kernels"),
)


def as_table(points: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for point in points:
        head = (point["preset"], point["precision"], str(point["seeds"]))
        if "failed" in point:
            table.add_row(*head, point["failed"])
            continue
        table.add_row(
            *head,
            *(f"{point[name]:.1f}" for name in ("compile", "from_cache", "second_start")),
            f"{point['real_steps_per_second']:,.0f}",
            f"{point['share_of_floor']:.0%}",
            f"{point['imagined_transitions_per_second']:,.0f}",
            f"{point['recipe_seconds']:.1f}",
            f"{point['recipe_steps_per_second']:,.0f}",
            f"{point['recipe_share_of_floor']:.0%}",
            f"{point['recipe_seconds_per_thousand_seeds']:,.0f}",
            f"{point['kernels_per_step']:g}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["cartpole_batch"])
    parser.add_argument("--precisions", nargs="+", default=["default"], choices=["default", "highest"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="settings in place of the presets'")
    parser.add_argument("--repetitions", type=int, default=3, help="of the phases that a run has once")
    parser.add_argument("--round-seconds", type=float, default=120, help="after which no further round of a point is run")
    parser.add_argument("--minutes", type=float, default=20, help="after which no further point is begun")
    parser.add_argument("--out", type=Path, default=OUT / "throughput.json")
    given = parser.parse_args()
    execution.use_all_cores()
    until = time.monotonic() + 60 * given.minutes
    on_gpu = jax.local_devices()[0].platform == "gpu"
    reached, points = {precision: rates(precision) for precision in given.precisions}, []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, precision in itertools.product(given.presets, given.precisions):
        config = preset(name, precision, given.set)
        for seeds in given.seeds:
            if time.monotonic() > until:
                break
            point: dict[str, Any] = {"preset": name, "precision": precision, "seeds": seeds}
            try:
                made = Point(config, seeds, given.repetitions, given.round_seconds)
                point |= made.measure(reached[precision], profile=on_gpu)
            except RuntimeError as error:  # JAX's own, or of a process that got ready
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                point["failed"] = "out of memory"
            points.append(point)
            content = {
                "stage": "throughput",
                "settings": given.set,
                "reached": reached,
                "rtx_4090": {**RTX_4090, "note": "an estimate from its data sheet: nothing was run on one"},
                "points": points,
                "repetitions": given.repetitions,
                "compiler_options": execution.COMPILER_OPTIONS.get(jax.local_devices()[0].platform, {}),
                "versions": packages.versions(execution.PACKAGES),
                "device": execution.device(),
                "git": packages.git_revision(),
            }
            strict_json.write(given.out, content)
            if any("failed" not in each for each in points):
                draw(points, given.out.with_suffix(".png"))
            print(json.dumps({key: point.get(key) for key in ("preset", "seeds", "recipe_seconds", "failed")}), flush=True)
            if "failed" in point:
                break
    tera = ", ".join(f"{name}: {each['operations_per_second'] / 1e9:,.0f} GFLOP/s" for name, each in reached.items())
    Console(width=200).print(as_table(points, f"{execution.device()}; a large product, {tera}"))


if __name__ == "__main__":
    main()
