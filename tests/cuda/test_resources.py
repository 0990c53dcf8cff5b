"""The kernels assemble for every kind of GPU, and take no more of it than is on record."""

import json

import pytest
from resources import CASES, RECORDED, ROOM, resources_of

from mbrl_jax.cuda import nvrtc

RECORD = json.loads(RECORDED.read_text())
LARGEST_STACK = 320  # bytes of a thread; what does not fit into registers costs time at every step


def test_the_record_is_of_these_kernels():
    assert set(RECORD["kernels"]) == set(CASES)
    for name, (_, sizes, architecture) in CASES.items():
        assert RECORD["kernels"][name]["shared_bytes"] == sizes.shared_bytes <= ROOM[architecture], name


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_takes_what_is_on_record(name):
    compiler = nvrtc.newest()
    found, recorded = resources_of(*CASES[name], compiler), RECORD["kernels"][name]
    assert found["registers"] * found["threads"] <= 65_536
    assert found["stack"] <= LARGEST_STACK
    if list(compiler.version) == RECORD["nvrtc"]:
        assert found == recorded, "run `python tests/cuda/resources.py` where this is meant"
