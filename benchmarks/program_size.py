"""How large the programs of a run are: operations before the compiler, instructions and kernels after it, seconds to compile.

    python benchmarks/program_size.py
    python benchmarks/program_size.py --target h100

The programs are those that `mbrl-jax train` compiles. With `--target h100` they are compiled for an NVIDIA H100, which need not
be there: jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12 are enough. The compiler then chooses among kernels without
trying them. Seconds are those of all cores together, which a busy machine changes least, medians of several compilations.
Writes benchmarks/results/speed/program_size_TARGET.json and prints the table.
"""

import argparse
import importlib.util
import os
import re
import statistics as numbers
from pathlib import Path
from typing import Any

import jax
import numpy as np
from compiled import kernels, launches, loop_bodies, opcodes
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import keys_of
from mbrl_jax.config import RunConfig, load
from mbrl_jax.evaluation import BLOCK
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
PRESETS = ["cartpole_batch", "cartpole_best", "cartpole_interactive", "cartpole_pg"]
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84978434048
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
"""
"""What XLA's compiler must know of an H100, in the text form of its ``GpuTargetConfigProto``."""


def layout_of(target: str, seeds: int) -> execution.Layout:
    """Where the seeds are: on this machine's cores, or on an H100 that is described and not there.

    Raises:
      SystemExit: the packages that compile for an H100 are missing.

    """
    if target == "cpu":
        return execution.choose_layout(seeds)
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        raise SystemExit("--target h100: the compiler for NVIDIA GPUs is not there; pip install 'jax[cuda12]'")
    described = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    return execution.Layout(Mesh(np.array(described.devices[:1]), (execution.SEEDS,), axis_types=(AxisType.Auto,)), None)


def lowered(config: RunConfig, seeds: int, layout: execution.Layout) -> dict[str, execution.Lowered]:
    """The traced functions of a run of ``seeds`` seeds, ``advance`` for one round."""
    algorithm = algorithm_of(config).make_train(config)
    axes, count = algorithm.axes, layout.padded(seeds)
    hyper_axes = jax.tree.map(lambda number: None, config)
    keys = jax.eval_shape(lambda: keys_of(0, jax.numpy.arange(count)))

    def lower(name: str, first: Any, in_axes: Any, out_axes: Any) -> execution.Lowered:
        spread = execution.spread(getattr(algorithm, name), (in_axes, hyper_axes), out_axes, layout)
        return execution.lower(spread, layout.placed(first, in_axes), config, donate=(0,) if name in ("fit", "advance") else ())

    found = {"init": lower("init", keys, 0, (axes, 0))}
    state = found["init"].out[0]
    return found | {
        "fit": lower("fit", state, axes, (axes, 0)),
        "advance": lower("advance", state, axes, (axes, 0)),
        "finish": lower("finish", state, axes, 0),
    }


def measured(config: RunConfig, seeds: int, layout: execution.Layout, target: str, repetitions: int) -> list[dict[str, Any]]:
    """Sizes of each function, and the median seconds of ``repetitions`` compilations."""
    compiled: list[dict[str, tuple[float, float]]] = []
    rows = []
    for last in (repetition == repetitions - 1 for repetition in range(repetitions)):
        jax.clear_caches()
        compiled.append({})
        for name, stage in lowered(config, seeds, layout).items():
            start = os.times()
            program = stage.stage.compile(compiler_options=execution.COMPILER_OPTIONS.get(target))
            end = os.times()
            compiled[-1][name] = (stage.seconds, end.user + end.system - start.user - start.system)
            if last:
                rows.append({"function": name, **sizes(stage.stage.as_text(), program.as_text() or "", config, name)})
    for row in rows:
        traced, seconds = zip(*(each[row["function"]] for each in compiled), strict=True)
        row |= {"trace_s": numbers.median(traced), "compile_s": numbers.median(seconds), "compile_each_s": seconds}
    return rows


def sizes(before: str, after: str, config: RunConfig, name: str) -> dict[str, Any]:
    """What is counted in a program's text before and after the compiler."""
    found = {
        "operations": len(re.findall(r"stablehlo\.\w+", before)),
        "instructions": len(opcodes(after)),
        "kernels": launches(after),
    }
    if name != "advance":
        return found
    steps = {"main_loop": config.round_steps, "episodes": BLOCK}
    return found | {
        f"kernels_a_step_{what}": sorted(map(kernels, loop_bodies(after, n)), reverse=True) for what, n in steps.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--target", choices=["cpu", "h100"], default="cpu")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the file to write, if not the one under benchmarks/results")
    given = parser.parse_args()
    execution.use_all_cores()
    jax.config.update("jax_enable_compilation_cache", False)
    layout = layout_of(given.target, given.seeds)
    title = execution.device() if given.target == "cpu" else "for an H100"
    names = ("operations", "instructions", "kernels", "a step", "a step of episodes", "trace, s", "compile, s of all cores")
    table = Table("preset", "function", *names, title=title)
    rows = []
    for preset in given.presets:
        for row in measured(load(ROOT / "configs" / f"{preset}.yaml"), given.seeds, layout, given.target, given.repetitions):
            rows.append({"preset": preset, **row})
            counts = (f"{row[which]:,}" for which in ("operations", "instructions", "kernels"))
            steps = [row[key] for key in row if key.startswith("kernels_a_step")]
            seconds = (f"{row[which]:.2f}" for which in ("trace_s", "compile_s"))
            table.add_row(preset, row["function"], *counts, *map(str, steps or ("", "")), *seconds)
    content = {
        "stage": "program_size",
        "target": given.target,
        "seeds": given.seeds,
        "rows": rows,
        "versions": packages.versions(execution.PACKAGES),
        "compiled_on": execution.device(),
        "git": packages.git_revision(),
    }
    out = given.out or OUT / f"program_size_{given.target}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    strict_json.write(out, content)
    Console().print(table)


if __name__ == "__main__":
    main()
