"""The CUDA engine against the plain path on one NVIDIA GPU: whether its numbers are right, and how long everything takes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --minutes 3 --parts numbers steps
    python benchmarks/gpu.py --dry-run --out somewhere

One command, at most --minutes. Programs are compiled side by side, in processes of their own that fill one cache; then they are
measured one after another. Each part is written as soon as it is done, so that what ran out of time is what a second call with
--resume begins with; a part that fails says so, and the others go on. The table comes last.

* numbers: the engine and the plain path from the same state, after 1, 20 and 100 steps at both precisions, the fit and the
  episodes; and the engine twice, which must give the same bits.
* steps: microseconds of a step of the main loop, of scoring with the curve, and of the fit, by the number of seeds.
* recipes: whole runs, after compilation; and what was learned, on the same seeds by both engines.
* starts: how long getting ready takes, with empty caches and from full ones.
* torch: the batched PyTorch rival, compiled.

--dry-run does all of it at tiny sizes on a CPU, with the kernels in the emulator: its figures mean nothing.
"""

import argparse
import dataclasses
import json
import os
import statistics as numbers
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax import statistics as over_seeds
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import Train, seed_keys
from mbrl_jax.config import DynaQConfig, from_dict, load, to_dict
from mbrl_jax.cuda.coverage import gpu_of
from mbrl_jax.cuda.emulation import Emulator
from mbrl_jax.cuda.engine import engine, engine_on
from mbrl_jax.engine import MakeEngine
from mbrl_jax.runs import execution, runner

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
PARTS = ("numbers", "steps", "recipes", "starts", "torch")
TINY = {  # what a dry run changes in the preset
    "random_transitions": 60,
    "steps": 4,
    "round_steps": 2,
    "metric_steps": 1,
    "environment": {"time_limit": 10},
    "model": {"members": 2, "hidden": [32, 32], "batch_size": 16, "epochs": 1, "laplacian_rows": 8},
    "imagination": {"lanes": 4, "steps": 2, "capacity": 32},
    "agent": {"hidden": [32, 32], "batch_size": 32},
    "selection": {"episodes": 2, "steps": 10},
    "evaluation": {"episodes": 2, "curve_episodes": 2},
}


Precision = Literal["default", "highest"]


class Plan(NamedTuple):
    """How much of everything is measured."""

    config: DynaQConfig
    make: MakeEngine
    precisions: tuple[Precision, ...]  # at which numbers are compared
    after: tuple[int, ...]  # and after how many steps
    compared: int  # seeds whose numbers are
    ours: tuple[int, ...]  # seeds of the engine's steps
    theirs: tuple[int, ...]  # seeds of the plain path's
    recipes: tuple[tuple[str, int], ...]  # engine and seeds of whole runs
    learned: int  # seeds whose returns are set side by side
    torch: dict[str, Any]
    repetitions: int


def full() -> Plan:
    """On a GPU."""
    config = load(ROOT / "configs" / "cartpole_batch.yaml")
    assert isinstance(config, DynaQConfig)
    return Plan(
        config,
        engine,
        precisions=("default", "highest"),
        after=(1, 20, 100),
        compared=8,
        ours=(1, 16, 64, 132, 256, 1024, 4096),
        theirs=(1, 64, 1024),
        recipes=(("cuda", 64), ("cuda", 1024), ("cuda", 256), ("xla", 256)),
        learned=256,
        torch={"device": "cuda", "compiled": True, "candidates": [1024], "threads": len(os.sched_getaffinity(0))},
        repetitions=5,
    )


def tiny() -> Plan:
    """On a CPU, to see that all of it works."""
    config = from_dict(_changed(to_dict(full().config), TINY))
    assert isinstance(config, DynaQConfig)
    return Plan(
        config,
        engine_on(Emulator(), gpu_of("90")),
        precisions=("highest",),
        after=(2,),
        compared=2,
        ours=(2,),
        theirs=(2,),
        recipes=(("cuda", 2), ("xla", 2)),
        learned=2,
        torch={"device": "cpu", "compiled": False, "candidates": [2], "threads": 1},
        repetitions=2,
    )


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _changed(content[name], value) if isinstance(value, dict) else value for name, value in changes.items()}
    return {**content, **nested}


# ----------------------------------------------------------------------------------------------------------------- programs


class Point(NamedTuple):
    """Programs of one engine, precision and number of seeds."""

    engine: str
    precision: Precision
    seeds: int
    steps: tuple[int, ...]  # of the main loop, each of them a program; besides, init, fit and close


def points(plan: Plan) -> list[Point]:
    """All that is compiled for the first two parts, the longest first."""
    whole = plan.config.round_steps
    compared = [Point(name, p, plan.compared, plan.after) for p in plan.precisions for name in ("xla", "cuda")]
    timed = [Point("xla", "default", seeds, (whole,)) for seeds in plan.theirs]
    timed += [Point("cuda", "default", seeds, (whole,)) for seeds in plan.ours]
    return compared + timed


class Programs:
    """The compiled functions of one point."""

    def __init__(self, plan: Plan, point: Point):
        """Compile them, or read them from the cache."""
        self.config = dataclasses.replace(plan.config, precision=point.precision)
        algorithm = dyna_q.make_train(self.config, engine=plan.make if point.engine == "cuda" else None)
        self.keys, axes = seed_keys(0, point.seeds), algorithm.axes
        self.init = self._compiled(lambda key: algorithm.init(key)[0], (0,), axes, False, self.keys)
        state = jax.eval_shape(jax.vmap(lambda key: algorithm.init(key)[0], out_axes=axes), self.keys)
        both = (axes, 0)
        self.fit = self._compiled(lambda state: algorithm.fit(state, self.config), (axes,), both, True, state)
        self.learn = {
            steps: self._compiled(self._learning(algorithm, steps), (axes,), both, True, state) for steps in point.steps
        }
        logs = jax.eval_shape(self._mapped(self._learning(algorithm, self.config.round_steps), (axes,), both), state)[1]
        close = lambda state, logs: algorithm.close(state, self.config, logs)  # noqa: E731
        self.close = self._compiled(close, (axes, 0), both, True, state, logs)
        self.logs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), logs)

    def _learning(self, algorithm: Train, steps: int) -> Callable[[Any], Any]:
        return lambda state: algorithm.learn(state, self.config, steps)

    @staticmethod
    def _mapped(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=in_axes, out_axes=out_axes)

    def _compiled(self, function: Callable[..., Any], in_axes: Any, out_axes: Any, donate: bool, *arguments: Any) -> Any:
        jitted = jax.jit(self._mapped(function, in_axes, out_axes), donate_argnums=0 if donate else ())
        return jitted.lower(*arguments).compile()


def compile_side_by_side(plan: Plan, given: argparse.Namespace, until: float) -> dict[str, Any]:
    """Fill the cache by a process for each point, as many at once as there are cores."""
    waiting, running, failed = points(plan)[: 1 if given.dry_run else None], list[tuple[Point, subprocess.Popen[str]]](), {}
    start, most = time.perf_counter(), max(1, len(os.sched_getaffinity(0)) - 1)
    while waiting or running:
        while waiting and len(running) < most:
            point = waiting.pop(0)
            running.append((point, _child(given, ["--compile", json.dumps(point)])))
        for point, process in list(running):
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                _, told = process.communicate()
                running.remove((point, process))
                if process.returncode != 0:
                    failed[str(point)] = told.strip().splitlines()[-1] if told.strip() else f"ended with {process.returncode}"
        if time.monotonic() > until:
            failed |= {str(point): "no time was left" for point in waiting}
            waiting = []
        time.sleep(0.05)
    return {"seconds": time.perf_counter() - start, "processes": most, "failed": failed}


def _child(given: argparse.Namespace, words: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *words, *(["--dry-run"] if given.dry_run else [])]
    surroundings = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(command, env=surroundings, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


# -------------------------------------------------------------------------------------------------------------------- parts


def compare_numbers(plan: Plan) -> Iterator[dict[str, Any]]:
    """How far the engine's numbers are from the plain path's, and whether a second run gives the same bits."""
    for precision in plan.precisions:
        plain, ours = (Programs(plan, Point(name, precision, plan.compared, plan.after)) for name in ("xla", "cuda"))

        def fitted(programs: Programs) -> Any:
            return programs.fit(plain.init(plain.keys))  # noqa: B023, called within this turn of the loop

        (start, log), (_, our_log) = fitted(plain), fitted(ours)
        yield {"what": "fit", "precision": precision, **_apart(start.model, fitted(ours)[0].model, plain.init(plain.keys).model)}
        yield {"what": "fit's errors", "precision": precision, **_apart(log, our_log)}
        for steps in plan.after:
            begin = jax.tree.map(np.asarray, jax.tree.map(_plain, fitted(plain)[0].agent.online))
            (state, told), (our_state, our_told) = plain.learn[steps](fitted(plain)[0]), ours.learn[steps](fitted(plain)[0])
            again, _ = ours.learn[steps](fitted(plain)[0])
            same = all(bool((a == b).all()) for a, b in zip(_leaves(our_state), _leaves(again), strict=True))
            for what, a, b, base in (
                ("parameters", state.agent.online, our_state.agent.online, begin),
                ("moments", state.agent.optimizer.mu, our_state.agent.optimizer.mu, None),
                ("imagined rows", state.imagined.rows, our_state.imagined.rows, None),
                ("loss", told[0].loss, our_told[0].loss, None),
            ):
                yield {"what": what, "precision": precision, "steps": steps, "same_bits": same, **_apart(a, b, base)}
        _, metrics = plain.close(fitted(plain)[0], plain.logs)
        _, our_metrics = ours.close(fitted(plain)[0], ours.logs)
        for what in ("score", "curve_return"):
            yield {"what": what, "precision": precision, **_apart(getattr(metrics, what), getattr(our_metrics, what))}


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if execution.is_key(leaf) else leaf


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(tree)]


def _apart(expected: Any, found: Any, base: Any = None) -> dict[str, float]:
    """The Euclidean distance of two trees over the norm of the first, or of its change from ``base``; the largest distance."""
    a, b = _vector(expected), _vector(found)
    size = float(np.linalg.norm(a if base is None else a - _vector(base)))
    return {"relative": float(np.linalg.norm(a - b)) / max(size, 1e-30), "largest": float(np.abs(a - b).max())}


def _vector(tree: Any) -> np.ndarray:
    return np.concatenate([leaf.astype(np.float64).ravel() for leaf in _leaves(tree)])


def time_steps(plan: Plan) -> Iterator[dict[str, Any]]:
    """Seconds of the loop's steps, of a round's end and of the fit; medians of repetitions."""
    whole = plan.config.round_steps
    for name, seeds in [*(("cuda", seeds) for seeds in plan.ours), *(("xla", seeds) for seeds in plan.theirs)]:
        programs = Programs(plan, Point(name, "default", seeds, (whole,)))
        state = programs.init(programs.keys)
        state, fit = _median(plan, programs.fit, state)
        state, learn = _median(plan, programs.learn[whole], state)
        _, close = _median(plan, partial(_closed, programs), state)
        row = {"fit_seconds": fit, "step_microseconds": 1e6 * learn / whole, "close_milliseconds": 1e3 * close}
        yield {"engine": name, "seeds": seeds, **row}


def _closed(programs: Programs, state: Any) -> tuple[Any, Any]:
    return programs.close(state, programs.logs)  # type: ignore[no-any-return]


def _median(plan: Plan, function: Callable[[Any], tuple[Any, Any]], state: Any) -> tuple[Any, float]:
    state, _ = jax.block_until_ready(function(state))
    spent = []
    for _ in range(plan.repetitions):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(function(state))
        spent.append(time.perf_counter() - start)
    return state, numbers.median(spent)


def run_recipes(plan: Plan) -> Iterator[dict[str, Any]]:
    """Whole runs as the command line makes them, and whether what they learn differs on the same seeds."""
    returns = {}
    for name, seeds in plan.recipes:
        run = runner.run(plan.config, seeds, engine=plan.make if name == "cuda" else "xla")
        outcome, seconds = run.result.outcome, run.seconds
        chosen = np.asarray(outcome.returns_chosen).mean(axis=1)  # of each seed
        if seeds == plan.learned:
            returns[name] = chosen
        yield {
            "engine": name,
            "seeds": seeds,
            "seconds": seconds.run,
            "train_seconds": seconds.train,
            "fit_seconds": seconds.fit,
            "compile_seconds": seconds.compile,
            "chosen_iqm": over_seeds.bootstrap(chosen).value,
            "frozen": int(np.asarray(outcome.frozen).sum()),
        }
    if len(returns) == 2:
        difference = over_seeds.paired_difference(returns["cuda"], returns["xla"])
        yield {"what": "chosen return, cuda - xla", "seeds": plan.learned, **difference._asdict()}


def time_starts(plan: Plan, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds until a run is ready, in a process with empty caches and in the next one."""
    seeds = plan.recipes[0][1]
    for name in ("cuda", "xla"):
        with tempfile.TemporaryDirectory() as folder:
            told: dict[str, Any] = {"engine": name, "seeds": seeds}
            for cache in ("cold", "second"):
                surroundings = os.environ | {"XDG_CACHE_HOME": folder, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
                command = [sys.executable, __file__, "--start", name, *(["--dry-run"] if given.dry_run else [])]
                start = time.perf_counter()
                done = subprocess.run(command, env=surroundings, check=False, capture_output=True, text=True)
                if done.returncode != 0:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
                told |= {f"{cache}_ready": float(done.stdout.split()[-1]), f"{cache}_in_all": time.perf_counter() - start}
            yield told


def get_ready(plan: Plan, name: str) -> None:
    """Compile all of a run, as the command line does, and print the seconds."""
    execution.use_compilation_cache()
    start = time.perf_counter()
    runner.prepare([plan.config], plan.recipes[0][1], engine=plan.make if name == "cuda" else "xla")
    print(time.perf_counter() - start)


def run_torch(plan: Plan, until: float) -> Iterator[dict[str, Any]]:
    """Steps a second of the batched PyTorch rival, by a shortened run."""
    job = {
        "module": "batches",
        "config": to_dict(plan.config),
        "core": None,
        "number": 0,
        "packages": ["torch"],
        **plan.torch,
    }
    command, words = [sys.executable, str(ROOT / "benchmarks" / "rivals" / "worker.py")], json.dumps(job) + "\n"
    left = max(1.0, until - time.monotonic())
    done = subprocess.run(command, input=words, check=False, capture_output=True, text=True, timeout=left)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    told = json.loads(done.stdout)
    for seeds, rate in told["rates"].items():
        yield {"seeds": int(seeds), "steps_per_second": rate, "compile_seconds": told["compile_seconds"], **told["versions"]}


# --------------------------------------------------------------------------------------------------------------- the whole


def measure(plan: Plan, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the parts that are asked for, each written as it ends."""
    until = time.monotonic() + 60 * given.minutes
    file = given.out / ("gpu_dry_run.json" if given.dry_run else "gpu.json")
    told: dict[str, Any] = {
        "stage": "gpu",
        "dry_run": given.dry_run,
        "config": to_dict(plan.config),
        "versions": packages.versions(execution.PACKAGES),
        "device": execution.device(),
        "git": packages.git_revision(),
        "parts": {},
    }
    if given.resume and file.exists():
        before = strict_json.loads(file.read_text(encoding="utf-8"))
        if all(
            before.get(name) == strict_json.loads(strict_json.dumps(told[name]))
            for name in ("dry_run", "config", "device", "git")
        ):
            told["parts"] = {name: part for name, part in before["parts"].items() if "failed" not in part}
    measures: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "numbers": lambda: compare_numbers(plan),
        "steps": lambda: time_steps(plan),
        "recipes": lambda: run_recipes(plan),
        "starts": lambda: time_starts(plan, given),
        "torch": lambda: run_torch(plan, until),
    }
    left = [name for name in given.parts if name not in told["parts"]]
    if {"numbers", "steps"} & set(left):
        told["compiling"] = compile_side_by_side(plan, given, until)
        console.print(f"compiled side by side in {told['compiling']['seconds']:.0f} s")
    for name in left:
        part: dict[str, Any] = {"rows": []}
        start = time.perf_counter()
        try:
            for row in measures[name]():
                part["rows"].append(row)
                if time.monotonic() > until:
                    raise TimeoutError(f"the {given.minutes:g} minutes were over")
        except Exception as error:  # one part must not cost the others
            part["failed"] = f"{type(error).__name__}: {error}"
            console.print(f"[red]{name} failed[/]: {part['failed']}", highlight=False)
            console.print("".join(traceback.format_exception(error)[-3:]), markup=False, highlight=False)
        told["parts"][name] = {**part, "seconds": time.perf_counter() - start}
        file.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write(file, told)
    return told


def show(told: dict[str, Any]) -> Table:
    """All rows of all parts in one table."""
    title = f"{told['device']}, {told['git']}" + (" (a dry run: these figures mean nothing)" if told["dry_run"] else "")
    table = Table("part", "of", "figures", title=title)
    for name, part in told["parts"].items():
        for row in part["rows"]:
            words = [str(value) for value in row.values() if isinstance(value, str)]
            counts = [
                f"{key} {value}" for key, value in row.items() if isinstance(value, int | bool) and not isinstance(value, str)
            ]
            figures = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
            table.add_row(name, ", ".join(words + counts), ", ".join(figures))
        if "failed" in part:
            table.add_row(name, "failed", part["failed"], style="red")
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether all parts came to their end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--resume", action="store_true", help="keep the parts of the result file that were measured here before")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU, the kernels in the emulator")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    plan = tiny() if given.dry_run else full()
    if given.dry_run:  # compiles fastest; nothing is measured
        jax.config.update("jax_disable_most_optimizations", True)
    if given.start is not None:
        get_ready(plan, given.start)
        return 0
    execution.use_compilation_cache()
    if given.compile is not None:
        name, precision, seeds, steps = json.loads(given.compile)
        Programs(plan, Point(name, precision, seeds, tuple(steps)))
        return 0
    console = Console()
    told = measure(plan, given, console)
    console.print(show(told))
    return int(any("failed" in part for part in told["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
