"""A small kernel for the tests of what compiles and launches kernels: it adds to an array in place, and sums a second one."""

import jax.numpy as jnp

from mbrl_jax.cuda.compiling import Source
from mbrl_jax.cuda.launching import Kernel, Operand

N = 8
TEXT = """
#include "by.cuh"
#ifndef EMU
#define ENTRY extern "C" __global__ void
#else
#define ENTRY static void
#endif
// x += SCALE * rate; total = sum of y
ENTRY add(const float* x_in, const float* rate, const int* y, float* x, int* total
#ifdef EMU
          , int block, int thread
#endif
) {
#ifndef EMU
  const int block = blockIdx.x, thread = threadIdx.x;
#endif
  x[block * N + thread] += by(rate[block]);
  if (thread == 0) {
    int sum = 0;
    for (int i = 0; i < 3; i++) sum += y[block * 3 + i];
    total[block] = sum;
  }
}
#ifdef EMU
extern "C" int emulate_add(void** p, int blocks, int backwards) {
  for (int block = 0; block < blocks; block++)
    for (int i = 0; i < N; i++)
      add((float*)p[0], (float*)p[1], (int*)p[2], (float*)p[3], (int*)p[4], block, backwards ? N - 1 - i : i);
  return STATUS;
}
extern "C" unsigned shared_bytes() { return 4 * N; }
#endif
"""
HEADER = """#pragma once
#ifndef EMU
__device__ __forceinline__
#endif
float by(float rate) { return SCALE * rate; }
"""
SOURCE = Source("add.cu", TEXT, (("by.cuh", HEADER),))


def sample(scale: int = 2, status: int = 0) -> Kernel:
    return Kernel(
        name="add",
        source=SOURCE,
        macros=(("N", N), ("SCALE", scale), ("STATUS", status)),
        threads=N,
        shared_bytes=4 * N,
        operands=(
            Operand("x", (N,), jnp.float32, becomes=0),
            Operand("rate", (), jnp.float32),
            Operand("y", (3,), jnp.int32),
        ),
        results=(Operand("x", (N,), jnp.float32), Operand("total", (), jnp.int32)),
    )
