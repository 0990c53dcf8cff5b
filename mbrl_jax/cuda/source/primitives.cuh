// What the kernels ask of the machine: barriers, warp operations, tensor-core products of half-precision numbers, fast functions.
//
// With -DEMU every one of them has a counterpart that runs on a CPU (emulator.h), so that all other files are the same for both.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;

#ifdef EMU
#include "emulator.h"
#define DEV static inline
#define DEVICE_METHOD inline
#define UNROLL
#else
#define DEV __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#endif

constexpr int WARP = 32;
constexpr float SMALLEST = 1.17549435e-38f;  // positive normal float

#ifdef EMU
// ------------------------------------------------------------------------------------------------------------- on a CPU
DEV void sync_block() { emu::wait_on(emu::barriers[0], emu::thread_count); }
DEV int any_in_block(int x) {
  emu::barriers[0].value |= x;
  emu::wait_on(emu::barriers[0], emu::thread_count);
  return emu::barriers[0].last;
}
DEV void sync_some(int threads) { emu::wait_on(emu::barriers[1], threads); }
DEV void sync_warp() { emu::ballot(true); }
DEV u32 pack(float low, float high) { return emu::to_half(low) | (u32)emu::to_half(high) << 16; }
DEV float low_of(u32 x) { return emu::from_half(x & 0xFFFF); }
DEV float high_of(u32 x) { return emu::from_half(x >> 16); }
DEV u32 pack_relu(float low, float high) { return pack(low > 0 ? low : 0, high > 0 ? high : 0); }
DEV u32 mask_positive(u32 x) { return (low_of(x) > 0 ? 0xFFFF : 0) | (high_of(x) > 0 ? 0xFFFF0000 : 0); }
DEV void mma_16x8x16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  emu::multiply(c, a, b, 16);
}
DEV void mma_16x8x8(float* c, u32 a0, u32 a1, u32 b0) {
  const u32 a[2] = {a0, a1};
  emu::multiply(c, a, &b0, 8);
}
DEV u32 transpose_8x8(u32 a) { return emu::transpose(a); }
DEV void load_transposed(u32 offset, u32* r) { emu::load_transposed(offset, r); }
DEV u32 shuffle(u32 x, int lane) { return emu::shuffle(x, lane); }
DEV int shuffle(int x, int lane) { return (int)emu::shuffle((u32)x, lane); }
DEV float shuffle(float x, int lane) { return emu::as_float(emu::shuffle(emu::as_bits(x), lane)); }
DEV float shuffle_xor(float x, int mask) { return shuffle(x, emu::lane() ^ mask); }
DEV int shuffle_xor(int x, int mask) { return shuffle(x, emu::lane() ^ mask); }
DEV bool any_in_warp(bool p) { return emu::ballot(p) != 0; }
DEV void copy_async(u32 offset, const void* from) { memcpy(shared_memory + offset, from, 4); }
DEV void copy_async_16(u32 offset, const void* from) {
  emu::misaligned |= offset % 16 != 0 || (uintptr_t)from % 16 != 0;
  memcpy(shared_memory + offset, from, 16);
}
DEV void wait_for_copies() {}
DEV void prefetch(const void*) {}
DEV float fast_exp(float x) { return expf(x); }
DEV float fast_log(float x) { return logf(x); }
DEV float fast_sqrt(float x) { return sqrtf(x); }
DEV float fast_reciprocal(float x) { return 1 / x; }
DEV bool is_finite(float x) { return std::isfinite(x); }
#else
// ------------------------------------------------------------------------------------------------------------- on a GPU
extern __shared__ __align__(1024) char shared_memory[];

/// All threads of the block.
DEV void sync_block() { __syncthreads(); }
/// The same; whether x is not 0 in any of them.
DEV int any_in_block(int x) { return __syncthreads_or(x); }
/// The first `threads` threads of the block, a multiple of a warp.
DEV void sync_some(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }
DEV void sync_warp() { __syncwarp(); }
/// Two numbers in half precision, rounded to nearest.
DEV u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEV float low_of(u32 x) {
  float r;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(r) : "r"(x));
  return r;
}
DEV float high_of(u32 x) {
  float r;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(r) : "r"(x));
  return r;
}
/// pack, with 0 for what is negative.
DEV u32 pack_relu(float low, float high) {
  u32 r;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
/// All bits of a half where it is positive.
DEV u32 mask_positive(u32 x) {
  u32 r;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(0u));
  return r;
}
/// c [16][8] += a [16][16] b [16][8].
DEV void mma_16x8x16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
/// c [16][8] += a [16][8] b [8][8].
DEV void mma_16x8x8(float* c, u32 a0, u32 a1, u32 b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
/// An 8 x 8 matrix, two halves of a row in each thread, transposed.
DEV u32 transpose_8x8(u32 a) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(a));
  return r;
}
/// Four 8 x 8 matrices of shared memory, transposed; thread l gives the address of row l % 8 of matrix l / 8.
DEV void load_transposed(u32 offset, u32* r) {
  const u32 address = (u32)__cvta_generic_to_shared(shared_memory) + offset;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DEV u32 shuffle(u32 x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
DEV int shuffle(int x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
DEV float shuffle(float x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
DEV float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
DEV int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
DEV bool any_in_warp(bool p) { return __any_sync(0xFFFFFFFFu, p); }
/// 4 bytes of global memory to shared memory, there after wait_for_copies and a barrier.
DEV void copy_async(u32 offset, const void* from) {
  const u32 to = (u32)__cvta_generic_to_shared(shared_memory) + offset;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
/// 16 bytes, of aligned addresses.
DEV void copy_async_16(u32 offset, const void* from) {
  const u32 to = (u32)__cvta_generic_to_shared(shared_memory) + offset;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEV void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
DEV void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// To 2 units in the last place or so.
DEV float fast_exp(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x * 1.4426950408889634f));
  return r;
}
DEV float fast_log(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r * 0.6931471805599453f;
}
DEV float fast_sqrt(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEV float fast_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEV bool is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }
#endif

/// The next offset that is a multiple of 128 bytes.
__device__ constexpr u32 aligned(u32 x) { return (x + 127) / 128 * 128; }
/// What lies at an offset of shared memory.
template <class V> DEV V& at(u32 offset) {
#ifdef EMU
  emu::misaligned |= offset % sizeof(V) != 0;
#endif
  return *(V*)(shared_memory + offset);
}

DEV float divide(float a, float b) { return a * fast_reciprocal(b); }
DEV float sigmoid(float x) { return fast_reciprocal(1 + fast_exp(-x)); }
/// log(1 + e^x).
DEV float softplus(float x) { return fmaxf(x, 0.0f) + fast_log(1 + fast_exp(-fabsf(x))); }
/// The sum of x over the 8 rows of a warp's operand: over threads of the same lane % 4.
DEV float sum_rows(float x) {
  x += shuffle_xor(x, 4), x += shuffle_xor(x, 8), x += shuffle_xor(x, 16);
  return x;
}
/// The sum of x over the four threads that share a row.
DEV float sum_row_threads(float x) {
  x += shuffle_xor(x, 1), x += shuffle_xor(x, 2);
  return x;
}
