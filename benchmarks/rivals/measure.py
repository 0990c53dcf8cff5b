"""The library beside its rivals, in one run on one device: how many times as fast, with intervals.

    python benchmarks/rivals/measure.py
    python benchmarks/rivals/measure.py --seeds 64 --repetitions 5 --minutes 60 --only reference batched_compiled
    python benchmarks/rivals/measure.py --steps 500 --epochs 5     # both sides shortened alike

Every rival lives in a process of its own (those ``_per_core`` in one for each core), makes itself ready, and then waits. A
repetition runs the library and every rival one after another, while all others wait, and a rival's ratio is to the library in the
same repetition. Two rates are told, in steps of the main loop a second, all seeds together: over the whole recipe (collect, fit,
train, evaluate), and over the main loop alone with its rounds' ends. Compilation and warm-up are apart. The model-based rivals do
all of the preset ``cartpole_batch``, the model-free ones ``cartpole_interactive_model_free`` without its evaluation.

Everything but the library and PyTorch is optional: ``pip install -e '.[rivals]'``, or in a virtual environment of its own, named
by ``--python rejax=PATH`` for that rival. What is not installed is listed as such.

Writes benchmarks/results/speed/rivals.json after every measurement and prints the table of ratios.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, load, to_dict

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed" / "rivals.json"
PRESETS = {"model_based": "cartpole_batch", "model_free": "cartpole_interactive_model_free"}
INSTALL = {
    "torch": "pip install -e '.[torch]'",
    "rejax": "pip install -e '.[rivals]'  # or, in an environment of its own: pip install rejax==0.1.3",
    "sbx": "pip install -e '.[rivals]'  # or, in an environment of its own: pip install sbx-rl",
}
LANES = "does not log the lanes' figures"
REJAX = (
    "observations are not scaled",
    "a truncation ends the sum of rewards, and a minibatch's last next state is that after the reset",
    "half the squared loss",
    "minibatches without replacement",
    "no check for non-finite parameters, no log",
)
SBX = (
    "observations are not scaled",
    "the Huber loss, and the target is the maximum, not double",
    "gymnasium's simulator in numpy",
    "no check for non-finite parameters",
)


@dataclasses.dataclass(frozen=True)
class Rival:
    """What is measured."""

    says: str
    module: str
    arm: str = "model_based"
    needs: str | None = "torch"
    packages: tuple[str, ...] = ("torch", "gymnasium", "numpy")
    compiled: bool = False
    per_core: bool = False
    differs: tuple[str, ...] = ()


JAX = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
OURS = {"model_based": "mbrl_jax", "model_free": "mbrl_jax_model_free"}
RIVALS = {
    "mbrl_jax": Rival("this library, all seeds", "ours", needs=None, packages=JAX),
    "reference": Rival("PyTorch reference, eager, one seed", "references"),
    "reference_compiled": Rival("the same, compiled", "references", compiled=True),
    "reference_per_core": Rival("eager, one process a core", "references", per_core=True),
    "reference_compiled_per_core": Rival("compiled, one process a core", "references", compiled=True, per_core=True),
    "batched": Rival("PyTorch, seeds as one batch, eager", "batches", differs=(LANES,)),
    "batched_compiled": Rival("the same, compiled", "batches", compiled=True, differs=(LANES,)),
    "batched_compiled_per_core": Rival("compiled, one process a core", "batches", compiled=True, per_core=True, differs=(LANES,)),
    "mbrl_jax_model_free": Rival("this library, model-free, all seeds", "ours", "model_free", None, JAX),
    "rejax": Rival("rejax's DQN, all seeds vmapped", "rejax_dqn", "model_free", "rejax", ("rejax", *JAX), differs=REJAX),
    "rejax_per_core": Rival(
        "the same, one process a core", "rejax_dqn", "model_free", "rejax", ("rejax", *JAX), per_core=True, differs=REJAX
    ),
    "sbx": Rival("sbx's DQN, one seed", "sbx_dqn", "model_free", "sbx", ("sbx-rl", "jax", "jaxlib", "gymnasium"), differs=SBX),
}
PYTORCH = tuple(name for name, rival in RIVALS.items() if rival.needs == "torch")


# ------------------------------------------------------------------------------------------------------------------- processes


class Worker:
    """A process that is one rival, or one core's share of it."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [python, str(Path(__file__).with_name("worker.py"))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, text=True, env=dict(environment), **pipes)

    def send(self, content: Mapping[str, Any]) -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def receive(self) -> dict[str, Any]:
        """Wait for its answer.

        Raises:
          RuntimeError: it has ended, with the last lines that it printed.

        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.failure()
        content: dict[str, Any] = json.loads(line)
        return content

    def failure(self) -> RuntimeError:
        """What it ended with."""
        self.process.wait()
        self.log.seek(0)
        return RuntimeError("\n".join(self.log.read().strip().splitlines()[-15:]))

    def end(self) -> None:
        """Let it end, or make it."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()


class Contestant:
    """A rival with its processes, made ready one rival after another."""

    def __init__(self, name: str, given: argparse.Namespace, config: ModelFreeQConfig) -> None:
        self.name, self.rival, self.config = name, RIVALS[name], config
        self.told: dict[str, Any] = {"says": self.rival.says, "arm": self.rival.arm, "differs": list(self.rival.differs)}
        self.python = dict(given.python).get(self.rival.needs, sys.executable)
        self.workers: list[Worker] = []
        self.request: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []
        self.seeds = 0
        missing = self.missing(given.device)
        if missing:
            self.told["not_installed"] = missing
            return
        try:
            self.make_ready(given)
        except RuntimeError as error:
            self.fail(error)

    def missing(self, device: str) -> str | None:
        """The command that would install what is missing."""
        if self.rival.needs is None:
            return None
        probe = f"import {self.rival.needs}"
        if self.rival.needs == "torch" and device == "cuda":
            probe += "; assert torch.cuda.is_available()"
        done = subprocess.run([self.python, "-c", probe], capture_output=True, env=environment(device))
        return None if done.returncode == 0 else INSTALL[self.rival.needs]

    def make_ready(self, given: argparse.Namespace) -> None:
        """Start its processes, and choose among numbers of seeds where there is a choice."""
        cores = sorted(os.sched_getaffinity(0))
        processes = len(cores) if self.rival.per_core else 1
        # with one process a core the batches that a core's cache holds are in question, else those that keep the device busy
        batches = [4, 8, 16, 32] if self.rival.per_core else [16, 64]
        if given.device == "cuda":
            batches = [64, 256] if self.rival.per_core else [256, 1024, 4096]
        job = {
            "module": self.rival.module,
            "packages": self.rival.packages,
            "config": to_dict(self.config),
            "compiled": self.rival.compiled,
            "device": given.device,
            "seeds": -(-given.seeds // processes),
            "processes": processes,
            "candidates": batches if given.batches is None else given.batches,
        }
        pinned = self.rival.per_core and given.device == "cpu"
        environments = environment(given.device, threads=1 if self.rival.per_core else None)
        for number in range(processes):
            core, threads = (cores[number] if pinned else None), (1 if self.rival.per_core else len(cores))
            own = {**job, "number": number, "core": core, "threads": threads}
            self.workers.append(Worker(self.python, environments))
            self.workers[-1].send(own)
        ready = [worker.receive() for worker in self.workers]
        first = ready[0]
        self.told |= {"processes": processes, "threads_of_each": threads, "versions": first["versions"]}
        self.told["warm_up_seconds"] = max(one["warm_up_seconds"] for one in ready)
        if "compile_seconds" in first:
            self.told["compile_seconds"] = max(one["compile_seconds"] for one in ready)
        if "device" in first:
            self.told["device"] = first["device"]
        if "seeds" in first:
            each = int(first["seeds"])
        else:
            rates = {batch: sum(one["rates"][batch] for one in ready) for batch in first["rates"]}
            self.told |= {"steps_per_second_by_batch": rates, "too_large_batches": first["too_large"]}
            each = int(max(rates, key=lambda batch: rates[batch]))
            self.request = {"seeds": each}
        self.seeds = each * processes
        self.told |= {"seeds_of_a_process": each, "seeds": self.seeds}

    def measure(self, repetition: int) -> None:
        """Run once, if it can."""
        if not self.workers:
            return
        try:
            for worker in self.workers:
                worker.send({"go": repetition, **self.request})
            done = [worker.receive() for worker in self.workers]
        except RuntimeError as error:
            self.fail(error)
            return
        whole = max(sum(one["seconds"].values()) for one in done)
        loop = max(one["seconds"]["train"] for one in done)
        steps = self.seeds * self.config.steps
        seconds = {phase: max(one["seconds"][phase] for one in done) for phase in done[0]["seconds"]}
        run = {"seconds": seconds, "recipe_steps_per_second": steps / whole, "loop_steps_per_second": steps / loop}
        for name in ("compile_seconds", "return_last", "return_chosen"):
            if done[0].get(name) is not None:
                run[name] = sum(one[name] for one in done) / len(done)
        self.runs.append(run)

    def fail(self, error: RuntimeError) -> None:
        """Note what went wrong; it runs no more."""
        self.told["failed"] = str(error)
        self.end()

    def end(self) -> None:
        """Let it end."""
        for worker in self.workers:
            worker.end()
        self.workers = []


def environment(device: str, threads: int | None = None) -> dict[str, str]:
    """Variables of a rival's process: which device it sees, and its threads."""
    own = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONWARNINGS": "ignore"}
    if device == "cpu":
        own |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if threads is not None:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return own


# --------------------------------------------------------------------------------------------------------------------- figures


def ratios(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], rate: str) -> dict[str, Any]:
    """The median over repetitions of our rate over theirs in the same repetition, with its bootstrap interval."""
    each = [a[rate] / b[rate] for a, b in zip(ours, theirs, strict=False)]
    estimate = statistics.bootstrap(each, statistics.median)
    return {"value": estimate.value, "ci95": [estimate.low, estimate.high], "each": each}


def as_content(contestants: Mapping[str, Contestant], given: argparse.Namespace) -> dict[str, Any]:
    """What the file holds."""
    rivals: dict[str, Any] = {}
    for name, one in contestants.items():
        rivals[name] = {**one.told, "runs": one.runs}
        ours = contestants[OURS[one.rival.arm]]
        if one.runs and ours.runs and one is not ours:
            rivals[name]["times_as_fast"] = {
                "recipe": ratios(ours.runs, one.runs, "recipe_steps_per_second"),
                "loop": ratios(ours.runs, one.runs, "loop_steps_per_second"),
            }
    compared = [name for name in PYTORCH if "times_as_fast" in rivals.get(name, {})]
    best = {
        measure: min(compared, key=lambda name: rivals[name]["times_as_fast"][measure]["value"], default=None)
        for measure in ("recipe", "loop")
    }
    return {
        "stage": "rivals",
        "presets": PRESETS,
        "configs": {arm: to_dict(contestants[ours].config) for arm, ours in OURS.items() if ours in contestants},
        "shortened": {"steps": given.steps, "epochs": given.epochs},
        "seeds": given.seeds,
        "repetitions": max((len(one.runs) for one in contestants.values()), default=0),
        "rivals": rivals,
        "best_pytorch": best,
        "versions": packages.versions(("jax", "numpy")),
        "device": next((one.told["device"] for one in contestants.values() if "device" in one.told), given.device),
        "cores": len(os.sched_getaffinity(0)),
        "precision": "float32, matrix products in full",
        "git": packages.git_revision(),
    }


def as_table(content: Mapping[str, Any]) -> Table:
    title = (
        f"{content['device']}, {content['repetitions']} repetitions; best PyTorch variant: {content['best_pytorch']['recipe']}"
    )
    table = Table(title=title)
    for column in ("", "seeds", "recipe, steps/s", "times as fast", "main loop, steps/s", "times as fast", "ready in, s"):
        table.add_column(column, justify="left" if not column else "right")

    def rate(one: Mapping[str, Any], name: str) -> str:
        return f"{statistics.median(np.array([run[name] for run in one['runs']])):,.0f}"

    def ratio(one: Mapping[str, Any], measure: str) -> str:
        if "times_as_fast" not in one:
            return ""
        told = one["times_as_fast"][measure]
        return f"{told['value']:,.2f} [{told['ci95'][0]:,.2f}, {told['ci95'][1]:,.2f}]"

    for name, one in content["rivals"].items():
        if not one["runs"]:
            said = f"not installed: {one['not_installed']}" if "not_installed" in one else one.get("failed", "not run")
            table.add_row(f"{name}: {said.splitlines()[-1]}")
            continue
        of_recipe, of_loop = rate(one, "recipe_steps_per_second"), rate(one, "loop_steps_per_second")
        row = (str(one["seeds"]), of_recipe, ratio(one, "recipe"), of_loop, ratio(one, "loop"), f"{one['warm_up_seconds']:.0f}")
        table.add_row(f"{name}: {one['says']}", *row)
    return table


# ------------------------------------------------------------------------------------------------------------------------ main


def configs(given: argparse.Namespace) -> dict[str, ModelFreeQConfig]:
    """The work of each arm, the same for everybody in it."""

    def preset(arm: str) -> ModelFreeQConfig:
        config = load(ROOT / "configs" / f"{PRESETS[arm]}.yaml")
        assert isinstance(config, ModelFreeQConfig)
        return dataclasses.replace(config, precision="highest", steps=config.steps if given.steps is None else given.steps)

    based, free = preset("model_based"), preset("model_free")
    if given.epochs is not None:
        assert isinstance(based, DynaQConfig)
        based = dataclasses.replace(based, model=dataclasses.replace(based.model, epochs=given.epochs))
    # the rivals evaluate nothing; one episode at the end of the only round, and one of the final policy, are the least there is
    evaluation = dataclasses.replace(free.evaluation, episodes=1, curve_episodes=1)
    free = dataclasses.replace(free, round_steps=free.steps, evaluation=evaluation)
    return {"model_based": based, "model_free": free}


def chosen(only: Sequence[str] | None) -> list[str]:
    """The rivals that are asked for, in the order of :data:`RIVALS`, each arm with the library first.

    Raises:
      ConfigError: one is unknown.

    """
    names = list(RIVALS) if only is None else list(only)
    for name in names:
        if name not in RIVALS:
            raise ConfigError(f"only: {name!r} is no rival; it must be among {', '.join(RIVALS)}")
    wanted = set(names) | {OURS[RIVALS[name].arm] for name in names}
    return [name for name in RIVALS if name in wanted]


def interpreter(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or name not in INSTALL:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=PATH with a name among {', '.join(INSTALL)}")
    return name, path


def what_jax_sees() -> str:
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return "cuda" if done.stdout.strip() == "gpu" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=64, help="of the library, and of rejax")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--minutes", type=float, default=15, help="after which no further repetition is begun; there is always one"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(RIVALS))
    parser.add_argument("--steps", type=int, help="of the main loop, in place of the presets'")
    parser.add_argument("--epochs", type=int, help="of the model's fit, in place of the preset's")
    parser.add_argument("--batches", nargs="+", type=int, help="numbers of seeds that the batched PyTorch rivals try")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="what JAX sees unless it is given")
    parser.add_argument("--python", nargs="+", type=interpreter, default=[], metavar="NAME=PATH", help="interpreter of a rival")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    try:
        names, work = chosen(given.only), configs(given)
    except ConfigError as error:
        parser.error(str(error))
    given.device = given.device or what_jax_sees()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # not without the rivals' processes
    contestants: dict[str, Contestant] = {}
    try:
        for name in names:
            contestants[name] = Contestant(name, given, work[RIVALS[name].arm])
            told = {key: contestants[name].told.get(key) for key in ("warm_up_seconds", "seeds", "not_installed", "failed")}
            print(json.dumps({name: {key: value for key, value in told.items() if value is not None}}), flush=True)
        for repetition in range(given.repetitions):
            if repetition and time.monotonic() > until:
                break
            for name, one in contestants.items():
                one.measure(repetition)
                if one.workers:
                    print(json.dumps({"repetition": repetition, name: one.runs[-1]}), flush=True)
                content = as_content(contestants, given)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                strict_json.write(given.out, content)
    finally:
        for one in contestants.values():
            one.end()
    Console(width=160).print(as_table(content))


if __name__ == "__main__":
    main()
