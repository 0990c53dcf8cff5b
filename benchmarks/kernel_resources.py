"""What the fused kernel takes of a GPU, and what it reads and writes beside the plain path, without a GPU.

    pip install triton
    python benchmarks/kernel_resources.py
    python benchmarks/kernel_resources.py --preset cartpole_best --architectures 80 89 90

The round of a preset is lowered for CUDA as JAX does it on a GPU, and the Triton program in it is compiled to machine code by
Triton's own compiler and NVIDIA's assembler, which come with that package. They are not the versions inside jaxlib, so the
figures may differ a little from what a GPU gets: registers of a thread and its stack, where they are spilled to, shared memory of
a program, and whether that fits what the architecture grants one. Bytes are counted from shapes.

Writes benchmarks/results/speed/kernel_resources.json.
"""

import argparse
import dataclasses
import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax._src.interpreters.mlir import make_ir_context
from jax._src.lib.mlir import ir  # type: ignore[attr-defined]
from jax._src.lib.triton import dialect  # type: ignore[attr-defined]
from rich.console import Console
from rich.table import Table

from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import DynaQConfig, load
from mbrl_jax.environment import make_environment
from mbrl_jax.kernels import steps
from mbrl_jax.kernels.learner import BLOCK
from mbrl_jax.replay import width

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed"
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes that one program may have (CUDA's manual)
NAMES = {80: "A100", 86: "RTX 3090", 89: "RTX 4090", 90: "H100"}


def triton_program(config: DynaQConfig) -> tuple[str, int]:
    """The Triton program of a round as text, and its warps."""
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        train = dyna_q.make_train(dataclasses.replace(config, kernels="pallas"))
    state = jax.eval_shape(jax.vmap(lambda key: train.init(key)[0], out_axes=train.axes), seed_keys(0, 2))
    advance = jax.jit(jax.vmap(lambda state: train.advance(state, config), in_axes=(train.axes,), out_axes=(train.axes, 0)))
    module = advance.trace(state).lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    (call,) = (op for op in operations(module.operation) if "triton" in str(op.attributes.get("call_target_name", "")))
    attributes: Any = ir.DictAttr(call.attributes["mhlo.backend_config"])
    told = {each.name: each.attr for each in attributes}
    with make_ir_context() as context:
        dialect.register_dialect(context)
        program = ir.Module.parse(ir.StringAttr(told["ir"]).value_bytes, context).operation.get_asm()
    return str(program), ir.IntegerAttr(told["num_warps"]).value


def operations(operation: Any) -> Any:
    for region in operation.regions:
        for block in region:
            for inner in block:
                if inner.operation.name == "stablehlo.custom_call":
                    yield inner.operation
                yield from operations(inner.operation)


def resources(program: str, architecture: int, warps: int) -> dict[str, Any]:
    """What the compiled program takes."""
    import triton
    from triton.backends.compiler import GPUTarget

    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder, "round.ttir"), Path(folder, "round.cubin")
        source.write_text(program, encoding="utf-8")
        options = {"num_warps": warps, "num_stages": 1}
        compiled = triton.compile(str(source), target=GPUTarget("cuda", architecture, 32), options=options)
        code.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        told = subprocess.run([tool, "-res-usage", code], check=True, capture_output=True, text=True).stdout
    found = [re.search(rf"{name}:(\d+)", told.split("Function")[1]) for name in ("REG", "STACK")]
    registers, stack = (int(each.group(1)) for each in found if each)
    shared = compiled.metadata.shared
    return {
        "architecture": architecture,
        "card": NAMES[architecture],
        "registers": registers,
        "stack_bytes_per_thread": stack,
        "shared_bytes": shared,
        "shared_bytes_granted": SHARED[architecture],
        "fits": shared <= SHARED[architecture],
    }


def traffic(config: DynaQConfig) -> dict[str, int]:
    """Bytes of a real step of one seed that its arrays come to, float32.

    ``plain`` counts what the kernels of the plain path read and write, as if every dense layer with its nonlinearity were a
    single one and Adam another: XLA has more, so it is a lower bound. ``fused`` counts what the fused kernel is given, gathers
    from the replay and writes for each step, and what it reads and writes once a round, over the round's steps. It goes back to
    its ``networks``, members included, for every block of rows, but they are one seed's, so that caches hold them.
    """
    spec = make_environment(config.environment).spec
    agent, model, lanes = config.agent, config.model, config.imagination
    d, row, batch = spec.observation_size, width(spec.observation_size), agent.batch_size
    values = (d, *agent.hidden, spec.action_count)
    inputs = d + (1 if spec.action_count == 2 else spec.action_count)
    dynamics = (inputs, *model.hidden, 2 * d)
    numbers = {name: sum(a * b + b for a, b in itertools.pairwise(w)) for name, w in (("q", values), ("m", dynamics))}
    members = model.members * numbers["m"]
    pairs, k = lanes.lanes * lanes.steps, lanes.lanes

    def layers(widths: tuple[int, ...], rows: int) -> int:
        return sum(rows * (a + b) for a, b in itertools.pairwise(widths))

    forward = layers(values, batch)
    weights = (3 + 2 if agent.target == "double" else 2 + 2) * numbers["q"]  # forwards, and a product each for two slopes
    adam = (4 + 1 + 4) * numbers["q"]  # four sets and the gradient in, four sets out
    update = (3 if agent.target == "double" else 2) * forward + 2 * forward + weights + adam + 3 * batch * row
    imagined = lanes.steps * (layers(values, k) + layers(dynamics, k) + numbers["q"] + members) + 2 * pairs * row
    given = pairs * (d + 2 + d) + batch * agent.updates_per_step + 3 * agent.updates_per_step
    once = 2 * 4 * numbers["q"] + members + 4 * k * d
    per_step = given + pairs * (row + 1) + agent.updates_per_step * (batch * row + 2)
    return {
        "plain": 4 * (agent.updates_per_step * update + imagined + given),
        "fused": 4 * (per_step + once // config.round_steps),
        "networks": 4 * (4 * numbers["q"] + members),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cartpole_batch")
    parser.add_argument("--architectures", nargs="+", type=int, default=[89, 90], choices=sorted(SHARED))
    parser.add_argument("--precisions", nargs="+", default=["default", "highest"])
    parser.add_argument("--warps", nargs="+", type=int, default=[steps.WARPS])
    given = parser.parse_args()
    config = load(ROOT / "configs" / f"{given.preset}.yaml")
    assert isinstance(config, DynaQConfig)
    found = []
    for precision in given.precisions:
        program, _ = triton_program(dataclasses.replace(config, precision=precision))
        for architecture in given.architectures:
            for warps in given.warps:
                found.append({"precision": precision, "warps": warps, **resources(program, architecture, warps)})
                print(json.dumps(found[-1]), flush=True)
    content = {"stage": "kernel_resources", "preset": given.preset, "block": BLOCK, "bytes": traffic(config), "compiled": found}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "kernel_resources.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"one program of {given.preset}; bytes of a seed's real step: {content['bytes']}")
    for column in ("card", "precision", "warps", "registers", "stack, bytes a thread", "shared, bytes", "granted"):
        table.add_column(column, justify="right")
    for each in found:
        keys = ("card", "precision", "warps", "registers", "stack_bytes_per_thread", "shared_bytes", "shared_bytes_granted")
        table.add_row(*(str(each[key]) for key in keys))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
