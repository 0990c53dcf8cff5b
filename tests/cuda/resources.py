"""Registers, spills and shared memory of the kernels, as the assembler tells them.

``python tests/cuda/resources.py`` records them.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

from mbrl_jax.cuda import nvrtc
from mbrl_jax.cuda.compiling import options_of, shipped
from mbrl_jax.cuda.sizes import FitSizes, RoundSizes, ScoreSizes, variants_of

RECORDED = Path(__file__).with_name("resources.json")
ROUND = RoundSizes(1, 4, 2, 0, 64, 64, 64, 64, 5, 25, 3, 256, 1, 20_000, 5_000, 1, 0, 0, 0, 0, 500)  # of cartpole_batch
SCORE = ScoreSizes(1, 4, 2, 0, 64, 64, 64, 64, 5, 50, 500, 10, 500)
FIT = FitSizes(1, 4, 2, 64, 64, 5, 256, 5_000, 10, 16)
ROOM = {"80": 163 * 1024, "89": 99 * 1024, "90": 227 * 1024, "120": 99 * 1024}  # bytes of shared memory that a block may have


def fitting(sizes, architecture):
    """The variant of a round that is taken there."""
    return next(variant for variant in variants_of(sizes) if variant.shared_bytes <= ROOM[architecture])


CASES = {
    "round, default, sm_90": ("round", fitting(ROUND, "90"), "90"),
    "round, highest, sm_90": ("round", fitting(dataclasses.replace(ROUND, terms=2), "90"), "90"),
    "round, interactive, sm_120": ("round", fitting(dataclasses.replace(ROUND, protocol=1), "120"), "120"),
    "score, default, sm_80": ("score", SCORE, "80"),
    "fit, default, sm_89": ("fit", FIT, "89"),
}


def resources_of(name, sizes, architecture, compiler):
    """Registers of a thread, bytes of its stack and of its spills; threads and bytes of shared memory of a block."""
    source = shipped(f"{name}.cu")
    options = [*options_of(sizes.macros, f"sm_{architecture}"), "--disable-warnings", "--ptxas-options=-v"]
    log = compiler.compile(source.text, source.name, dict(source.headers), options).log
    patterns = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    told = {what: int(re.search(pattern, log)[1]) for what, pattern in patterns.items()}
    return told | {"threads": sizes.threads, "shared_bytes": sizes.shared_bytes}


def record():
    """Write what the newest compiler makes of all cases."""
    compiler = nvrtc.newest()
    found = {name: resources_of(*case, compiler) for name, case in CASES.items()}
    RECORDED.write_text(json.dumps({"nvrtc": list(compiler.version), "kernels": found}, indent=1) + "\n")
    sys.stdout.write(RECORDED.read_text())


if __name__ == "__main__":
    record()
