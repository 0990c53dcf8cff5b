// Adam's step of the parameters that a thread owns, and where changed parameters go: into the images for the forward pass, and
// into the matrices for the way back.
#pragma once
#include "gradients.cuh"

/// The parameters that a thread owns with what goes with them: a column each for the parameter, its two moments and, with TARGET,
/// the target network's.
///
/// WHERE they are while the kernel runs: 0 in registers, 1 in shared memory, 2 in global memory (the second-level cache).
template <class S, int WHERE, bool TARGET> struct Owned {
  using N = typename S::N;
  static constexpr int COLUMNS = TARGET ? 4 : 3;
  static constexpr u32 SIZE = WHERE == 1 ? COLUMNS * S::SLOTS * S::THREADS * 4 : 0;
  float r[COLUMNS][WHERE == 0 ? S::SLOTS : 1];
  float* global[COLUMNS];  // parameters, first moments, second moments, target
  u32 shared;              // of this thread

  DEVICE_METHOD void get(int slot, int place, float (&x)[COLUMNS]) const {
    UNROLL for (int k = 0; k < COLUMNS; k++) {
      if (WHERE == 0) x[k] = r[k][WHERE == 0 ? slot : 0];
      else if (WHERE == 1) x[k] = at<float>(shared + (k * S::SLOTS + slot) * S::THREADS * 4);
      else x[k] = global[k][place];
    }
  }
  DEVICE_METHOD void set(int slot, int place, const float (&x)[COLUMNS]) {
    UNROLL for (int k = 0; k < COLUMNS; k++) {
      if (WHERE == 0) r[k][WHERE == 0 ? slot : 0] = x[k];
      else if (WHERE == 1) at<float>(shared + (k * S::SLOTS + slot) * S::THREADS * 4) = x[k];
      else global[k][place] = x[k];
    }
  }
  /// Two successive parameters.
  DEVICE_METHOD void get_pair(int slot, int place, float (&x)[2][COLUMNS]) const {
    if (WHERE == 2 && N::PARAMETERS % 2 == 0) {
      UNROLL for (int k = 0; k < COLUMNS; k++) {
        const float2 v = *(const float2*)(global[k] + place);
        x[0][k] = v.x, x[1][k] = v.y;
      }
    } else {
      get(slot, place, x[0]), get(slot + 1, place + 1, x[1]);
    }
  }
  DEVICE_METHOD void set_pair(int slot, int place, const float (&x)[2][COLUMNS]) {
    if (WHERE == 2 && N::PARAMETERS % 2 == 0) {
      UNROLL for (int k = 0; k < COLUMNS; k++) *(float2*)(global[k] + place) = float2{x[0][k], x[1][k]};
    } else {
      set(slot, place, x[0]), set(slot + 1, place + 1, x[1]);
    }
  }
  /// Every slot of this thread: visit(slot, its place in the flat parameters).
  template <class F> DEVICE_METHOD void each(int thread, F visit) const {
    const int warp = thread / WARP, g = (thread & 31) >> 2, t = thread & 3;
    UNROLL for (int p = 0; p < S::PER_WARP; p++) {
      const int piece = warp + p * S::WARPS;
      if (piece < S::PIECES) {
        UNROLL for (int s = 0; s < 16; s++)
          visit(p * S::OF_PIECE + s, N::KERNEL2 + S::input_of(piece, s, g) * N::WIDTH2 + S::output_of(piece, s, t));
        UNROLL for (int k = 0; k < S::BIAS_TILES; k++)
          if (S::has_bias(piece, g)) visit(p * S::OF_PIECE + 16 + k, N::BIAS2 + S::bias_unit(piece, k, g, t));
      }
    }
    UNROLL for (int k = 0; k < S::PER_THREAD; k++)
      if (thread + k * S::THREADS < S::SMALL) visit(S::PER_WARP * S::OF_PIECE + k, S::place_of_small(thread + k * S::THREADS));
  }
  DEVICE_METHOD void load(int thread) {
    if (WHERE == 2) return;
    each(thread, [&](int slot, int place) {
      float x[COLUMNS];
      UNROLL for (int k = 0; k < COLUMNS; k++) x[k] = global[k][place];
      set(slot, place, x);
    });
  }
  DEVICE_METHOD void store(int thread) {
    if (WHERE == 2) return;
    each(thread, [&](int slot, int place) {
      float x[COLUMNS];
      get(slot, place, x);
      UNROLL for (int k = 0; k < COLUMNS; k++) global[k][place] = x[k];
    });
  }
};
/// One step of Adam (Kingma & Ba 2015) of one parameter: x is the parameter, its moments and perhaps the target's parameter.
///
/// `rate` is the learning rate over 1 - b1^n, `correction` 1 over 1 - b2^n; the target takes the share `follow` of the parameter.
template <int COLUMNS> DEV void adam(float gradient, float (&x)[COLUMNS], float rate, float correction, float follow) {
  x[1] = 0.9f * x[1] + 0.1f * gradient;
  x[2] = 0.999f * x[2] + 0.001f * (gradient * gradient);
  x[0] -= divide(rate * x[1], fast_sqrt(x[2] * correction) + 1e-8f);
  if (COLUMNS == 4) x[COLUMNS - 1] += follow * (x[0] - x[COLUMNS - 1]);
}
/// Two weights of the second kernel, from input `in` to outputs 8 tile + 2t and the next, into an image for the forward pass and,
/// with BACK, into the matrix for the way back. `in` & 7 is g: the 8 x 8 weights of a warp are transposed on the way.
template <class N, bool BACK> DEV void put_pair2(u32 image, u32 back, int in, int tile, int g, int t, float x, float y) {
  const u32 place = in * (N::WIDTH2 * 2) + ((tile ^ swizzle<N::WIDTH2>(g)) << 4) + t * 4;
  const u32 ahead = image + N::AT_KERNEL2 + (8 * tile + g) * (N::WIDTH1 * 2) + (((in >> 3) ^ swizzle<N::WIDTH1>(g)) << 4) + t * 4;
  const u32 first = pack(x, y);
  if (BACK) at<u32>(back + place) = first;
  at<u32>(ahead) = transpose_8x8(first);
  if (N::TERMS == 2) {
    const u32 second = pack(x - low_of(first), y - high_of(first));
    if (BACK) at<u32>(back + N::PLANE2 + place) = second;
    at<u32>(ahead + N::PLANE2) = transpose_8x8(second);
  }
}
/// A small parameter or a second bias, wherever it belongs.
template <class N, bool BACK> DEV void put_small(u32 image, u32 back3, int place, float x) {
  if (place < N::KERNEL2) {
    put_kernel1<N>(image, place / N::WIDTH1, place % N::WIDTH1, x);
  } else if (place < N::KERNEL3) {
    put_bias2<N>(image, place - N::BIAS2, x);
  } else if (place < N::BIAS3) {
    const int c = (place - N::KERNEL3) / N::OUTPUTS, o = (place - N::KERNEL3) % N::OUTPUTS;
    put_kernel3<N>(image, c, o, x);
    if (BACK) put_kernel3_back<N>(back3, c, o / N::ROWS, o % N::ROWS, x);
  } else {
    put_bias3<N>(image, place - N::BIAS3, x);
  }
}
/// The matrices for the way back, from flat parameters.
template <class N> DEV void load_back(u32 back2, u32 back3, const float* parameters, int thread, int threads) {
  for (int i = thread; i < N::WIDTH1 * N::WIDTH2; i += threads)
    put_in_row<N::TERMS, N::WIDTH2>(back2, N::PLANE2, i / N::WIDTH2, i % N::WIDTH2, parameters[N::KERNEL2 + i]);
  for (int i = thread; i < N::WIDTH2 * N::TILES * N::PAIRS * 2; i += threads) {  // outputs that are not there too
    const int c = i / (N::TILES * N::PAIRS * 2), q = i / (N::PAIRS * 2) % N::TILES, row = i % (N::PAIRS * 2);
    put_kernel3_back<N>(back3, c, q, row, row < N::ROWS ? parameters[N::KERNEL3 + c * N::OUTPUTS + q * N::ROWS + row] : 0.0f);
  }
}
