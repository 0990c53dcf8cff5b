// Runs a kernel on a CPU, one block after another, to test it without a GPU.
//
// Every thread is a fiber with a stack of its own; fibers switch at barriers and at warp operations. Warps run in order or, if
// asked, in reverse order: results that depend on it lack a barrier. Shared memory begins as NaN, so that a read of what was
// never written shows. Products are summed in double precision and rounded once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};

namespace emu {

constexpr size_t MOST_SHARED_BYTES = 1024 * 1024, STACK_BYTES = 256 * 1024;

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  int value = 0, last = 0;  // or'ed together by those who wait
};
struct Warp {
  u32 data[2][32][8];  // what lanes exchange; two, as some lanes read one exchange while others write the next
  Barrier barrier;
};
struct Fiber {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  std::vector<char> stack;
  bool done = false;
  unsigned thread = 0, exchanges = 0;
  const unsigned* waits_for = nullptr;
  unsigned generation = 0;
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Barrier barriers[2];
inline Fiber* current;
inline Index block_index;
inline char* memory;
inline std::function<void()> body;
inline int thread_count;
inline bool misaligned;  // an access that a GPU refuses has been seen

// ------------------------------------------------------------------------------------------------------------- switching
#ifdef __x86_64__
inline void* scheduler;
extern "C" void mbrl_switch_stack(void** save, void* load);
asm(R"(
.text
.weak mbrl_switch_stack
.type mbrl_switch_stack, @function
mbrl_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size mbrl_switch_stack, .-mbrl_switch_stack
)");
inline void leave() { mbrl_switch_stack(&current->stack_pointer, scheduler); }
inline void enter(Fiber& fiber) { mbrl_switch_stack(&scheduler, fiber.stack_pointer); }
inline void prepare(Fiber& fiber, void (*entry)()) {
  const uintptr_t top = ((uintptr_t)fiber.stack.data() + fiber.stack.size()) & ~(uintptr_t)63;
  void** stack = (void**)(top - 64);
  for (int i = 0; i < 8; i++) stack[i] = nullptr;
  stack[6] = (void*)entry;  // where the first switch returns to
  fiber.stack_pointer = stack;
}
#else
inline ucontext_t scheduler;
inline void leave() { swapcontext(&current->context, &scheduler); }
inline void enter(Fiber& fiber) { swapcontext(&scheduler, &fiber.context); }
inline void prepare(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
#endif

inline void wait_on(Barrier& barrier, int count) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0, barrier.last = barrier.value, barrier.value = 0, barrier.generation++;
    return;
  }
  current->waits_for = &barrier.generation, current->generation = generation;
  leave();
}

inline void run_fiber() {
  body();
  current->done = true;
  for (;;) leave();
}

/// Run one block; return 0, or 1 where its threads wait for each other for ever, or 2 where it asks for too much memory.
inline int run_block(int threads, size_t shared_bytes, unsigned block, bool backwards, std::function<void()> kernel) {
  if (shared_bytes > MOST_SHARED_BYTES) return 2;
  body = std::move(kernel), block_index.x = block, thread_count = threads;
  static char* own = (char*)aligned_alloc(1024, MOST_SHARED_BYTES);
  memory = own;
  memset(memory, 0xFF, shared_bytes);
  const int count = threads / 32;
  fibers.resize(threads), warps.assign(count, Warp());
  for (Barrier& barrier : barriers) barrier = Barrier();
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.stack.resize(STACK_BYTES);
    fiber.done = false, fiber.thread = i, fiber.exchanges = 0, fiber.waits_for = nullptr;
    prepare(fiber, run_fiber);
  }
  for (int left = threads; left;) {
    bool moved = false;
    for (int i = 0; i < count; i++) {
      const int warp = backwards ? count - 1 - i : i;
      for (bool again = true; again;) {
        again = false;
        for (int lane = 0; lane < 32; lane++) {
          Fiber& fiber = fibers[warp * 32 + lane];
          if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.generation)) continue;
          fiber.waits_for = nullptr, current = &fiber;
          enter(fiber);
          again = moved = true;
          if (fiber.done) left--;
        }
      }
    }
    if (!moved && left) return 1;
  }
  return 0;
}

/// Run `blocks` blocks of a kernel on pointers in the order of its parameters.
template <class... A, size_t... I>
int run_kernel(void (*kernel)(A...), int threads, size_t shared_bytes, int blocks, bool backwards, void** pointers,
               std::index_sequence<I...>) {
  for (int block = 0; block < blocks; block++) {
    const int status = run_block(threads, shared_bytes, block, backwards, [=] { kernel((A)pointers[I]...); });
    if (status) return status;
    if (misaligned) return 3;
  }
  return 0;
}
template <class... A>
int run_kernel(void (*kernel)(A...), int threads, size_t shared_bytes, int blocks, bool backwards, void** pointers) {
  return run_kernel(kernel, threads, shared_bytes, blocks, backwards, pointers, std::index_sequence_for<A...>());
}

// ------------------------------------------------------------------------------------------------------- warp operations
inline int lane() { return current->thread % 32; }
inline u32 (*exchange(const u32* in, int count))[8] {
  Warp& warp = warps[current->thread / 32];
  u32(*slot)[8] = warp.data[current->exchanges++ & 1];
  memcpy(slot[lane()], in, count * 4);
  wait_on(warp.barrier, 32);
  return slot;
}
inline float as_float(u32 x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline u32 as_bits(float x) {
  u32 u;
  memcpy(&u, &x, 4);
  return u;
}
/// Half precision without the compiler's help, which not every machine gives. Denormal numbers are kept.
inline float half_value(uint16_t x) {
  const int exponent = x >> 10 & 31, digits = x & 1023;
  float size = ldexpf((float)(exponent ? 1024 + digits : digits), (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = digits ? NAN : INFINITY;
  return x >> 15 ? -size : size;
}
inline const float* half_values() {
  static const std::vector<float> all = [] {
    std::vector<float> values(1 << 16);
    for (int i = 0; i < 1 << 16; i++) values[i] = half_value((uint16_t)i);
    return values;
  }();
  return all.data();
}
inline const float* const halves = half_values();
inline float from_half(uint16_t x) { return halves[x]; }
/// Rounded to nearest, ties to even.
inline uint16_t to_half(float x) {
  const u32 bits = as_bits(x), size = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
  if (size >= 0x7F800000) return sign | (size > 0x7F800000 ? 0x7E00 : 0x7C00);
  if (size >= 0x477FF000) return sign | 0x7C00;  // 65520 and above
  if (size < 0x38800000) {                       // below 2^-14: a denormal number, of multiples of 2^-24
    const float scaled = as_float(size) * 16777216.0f;
    return sign | (uint16_t)lrintf(scaled);
  }
  return sign | (uint16_t)((size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13);
}
/// c [16][8] += a [16][depth] b [depth][8]; depth / 4 registers of a and depth / 8 of b in each thread.
inline void multiply(float* c, const u32* a, const u32* b, int depth) {
  u32 in[6];
  const int of_a = depth / 4, of_b = depth / 8;
  memcpy(in, a, of_a * 4), memcpy(in + of_a, b, of_b * 4);
  auto all = exchange(in, of_a + of_b);
  const int g = lane() / 4, t = lane() % 4;
  float rows[2][16], columns[2][16];
  for (int k = 0; k < depth; k += 2)
    for (int i = 0; i < 2; i++) {
      const u32 x = all[g * 4 + k % 8 / 2][k / 8 * 2 + i], y = all[(2 * t + i) * 4 + k % 8 / 2][of_a + k / 8];
      rows[i][k] = from_half(x & 0xFFFF), rows[i][k + 1] = from_half(x >> 16);
      columns[i][k] = from_half(y & 0xFFFF), columns[i][k + 1] = from_half(y >> 16);
    }
  for (int i = 0; i < 4; i++) {
    double sum = c[i];
    for (int k = 0; k < depth; k++) sum += (double)rows[i / 2][k] * columns[i & 1][k];
    c[i] = (float)sum;
  }
}
inline u32 transpose(u32 a) {
  auto all = exchange(&a, 1);
  const int g = lane() / 4, t = lane() % 4;
  auto element = [&](int row, int column) { return all[row * 4 + column / 2][0] >> column % 2 * 16 & 0xFFFF; };
  return element(2 * t, g) | element(2 * t + 1, g) << 16;
}
inline void load_transposed(u32 offset, u32* r) {
  auto all = exchange(&offset, 1);
  const int g = lane() / 4, t = lane() % 4;
  for (int m = 0; m < 4; m++) {
    uint16_t low, high;
    memcpy(&low, memory + all[m * 8 + 2 * t][0] + 2 * g, 2), memcpy(&high, memory + all[m * 8 + 2 * t + 1][0] + 2 * g, 2);
    r[m] = low | (u32)high << 16;
  }
}
inline u32 shuffle(u32 x, int from) {
  auto all = exchange(&x, 1);
  return all[from & 31][0];
}
inline u32 ballot(bool p) {
  const u32 x = p;
  auto all = exchange(&x, 1);
  u32 r = 0;
  for (int i = 0; i < 32; i++) r |= all[i][0] << i;
  return r;
}

}  // namespace emu

#define threadIdx (Index{emu::current->thread})
#define blockIdx emu::block_index
#define shared_memory emu::memory
