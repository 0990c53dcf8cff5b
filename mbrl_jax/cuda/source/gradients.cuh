// The weight gradients of a network by all warps of a block, and which thread owns which parameters.
//
// A warp has its own rows of the minibatch. Of the first and the last layer it makes the weight gradients of these rows by
// itself, with operands transposed in registers; they are summed over warps in shared memory, as partial sums. For the hidden
// layer the units H1 and the gradients dZ2 of all rows lie in shared memory, the exchange, and each warp makes pieces of 32 x 16
// weights from all rows, in the registers of the threads that own these weights in Adam.
#pragma once
#include "network.cuh"

/// Which parameters a thread owns: of each of its warp's pieces 16 weights and what biases go with them, then small ones.
///
/// WARPS warps of the block own pieces. ROWS rows lie in the exchange at a time.
template <class N_, int WARPS_, int ROWS_> struct Share {
  using N = N_;
  static constexpr int WARPS = WARPS_, ROWS = ROWS_, THREADS = WARPS * WARP;
  static constexpr int ACROSS = N::WIDTH1 / 32, DOWN = N::WIDTH2 / 16, PIECES = ACROSS * DOWN;
  static constexpr int PER_WARP = (PIECES + WARPS - 1) / WARPS;
  static constexpr int BIAS_TILES = ACROSS > 1 ? 1 : 2;  // of the second bias, 8 units each, that go with a piece
  static constexpr int SMALL = N::KERNEL2 + N::PARAMETERS - N::KERNEL3, PER_THREAD = (SMALL + THREADS - 1) / THREADS;
  static constexpr int OF_PIECE = 16 + BIAS_TILES, SLOTS = PER_WARP * OF_PIECE + PER_THREAD;
  // the exchange: [ROWS][units] in half precision, bytes of one term
  static constexpr u32 PLANE_H = ROWS * N::WIDTH1 * 2, PLANE_Z = ROWS * N::WIDTH2 * 2;
  static constexpr u32 SIZE_H = PLANE_H * N::TERMS, SIZE_Z = PLANE_Z * N::TERMS;
  // partial sums of a warp, floats: the first kernel and bias [inputs + 1][width + 1], the last kernel and bias, four statistics
  static constexpr int PART_LAST = (N::INPUTS + 1) * (N::WIDTH1 + 1), PART_SLOPES = PART_LAST + N::WIDTH2 * N::OUTPUTS,
                       PART_TOLD = PART_SLOPES + N::OUTPUTS, PART = (PART_TOLD + 4 + 3) / 4 * 4;

  /// Small parameter number q: its place in the flat parameters, and among partial sums.
  static DEVICE_METHOD int place_of_small(int q) { return q < N::KERNEL2 ? q : q - N::KERNEL2 + N::KERNEL3; }
  static DEVICE_METHOD int part_of_small(int q) {
    return q < N::KERNEL2 ? q / N::WIDTH1 * (N::WIDTH1 + 1) + q % N::WIDTH1 : PART_LAST + q - N::KERNEL2;
  }
  /// Of slot s < 16 of a piece: input and output unit.
  static DEVICE_METHOD int input_of(int piece, int s, int g) {
    return 32 * (piece / DOWN) + 16 * (s >> 3) + 8 * (s >> 1 & 1) + g;
  }
  static DEVICE_METHOD int output_of(int piece, int s, int t) {
    return 16 * (piece % DOWN) + 8 * (s >> 2 & 1) + 2 * t + (s & 1);
  }
  /// Whether slot 16 + k of a piece is there in this thread, and the unit whose second bias it is.
  static DEVICE_METHOD bool has_bias(int piece, int g) { return g < 2 && piece / DOWN < (BIAS_TILES == 1 ? 2 : 1); }
  static DEVICE_METHOD int bias_unit(int piece, int k, int g, int t) {
    return 16 * (piece % DOWN) + 8 * (BIAS_TILES == 1 ? piece / DOWN : k) + 2 * t + (g & 1);
  }
};

// ----------------------------------------------------------------------------------------------------------- the exchange
/// Write the 8 units 32J + 8t and on of rows g and g + 8 of a tile that begins at row `row`.
///
/// What is or'ed with `zero`, a 0 that the compiler does not know, is a copy: it would otherwise keep every operand in the order
/// of registers of this store, and rebuild it for the products at four times the moves.
template <int TERMS, int WIDTH>
DEV void exchange(u32 base, u32 plane, int row, int J, int g, int t, const u32 (&o)[4][2 * TERMS], u32 zero) {
  UNROLL for (int j = 0; j < 2 * TERMS; j++) {
    const u32 place = base + (j >> 1) * plane + (row + 8 * (j & 1) + g) * (WIDTH * 2) + (((4 * J + t) ^ swizzle<WIDTH>(g)) << 4);
    at<uint4>(place) = uint4{o[0][j] | zero, o[1][j] | zero, o[2][j] | zero, o[3][j] | zero};
  }
}
/// The 8 units of rows g (half 0) or g + 8 (half 1), as they were written.
template <int WIDTH> DEV uint4 exchanged(u32 base, int row, int half, int J, int g, int t) {
  return at<const uint4>(base + (row + 8 * half + g) * (WIDTH * 2) + (((4 * J + t) ^ swizzle<WIDTH>(g)) << 4));
}

// ------------------------------------------------------------------------------------------------------- weight gradients
/// c [16 units][8] += a^T b over 16 rows: a0, a1 are operands of 8 units each; b has been transposed.
template <int TERMS> DEV void multiply_rows(float* c, const u32* a0, const u32* a1, const u32* b) {
  const u32 p[4] = {transpose_8x8(a0[0]), transpose_8x8(a1[0]), transpose_8x8(a0[1]), transpose_8x8(a1[1])};
  if (TERMS == 2) {
    constexpr int i2 = 2 * (TERMS - 1), i3 = 2 * TERMS - 1;
    const u32 q[4] = {transpose_8x8(a0[i2]), transpose_8x8(a1[i2]), transpose_8x8(a0[i3]), transpose_8x8(a1[i3])};
    mma_16x8x16(c, q[0], q[1], q[2], q[3], b[0], b[1]);
    mma_16x8x16(c, p[0], p[1], p[2], p[3], b[i2], b[i3]);
  }
  mma_16x8x16(c, p[0], p[1], p[2], p[3], b[0], b[1]);
}
template <int TERMS> DEV void transpose_operand(const u32* a, u32* b) {
  UNROLL for (int k = 0; k < 2 * TERMS; k++) b[k] = transpose_8x8(a[k]);
}
/// The gradients of a piece of the second kernel from the first `rows` rows of the exchange, added to d; and of its bias from the
/// first `biased` ones, added to b.
template <class S>
DEV void piece_gradient(u32 base_h, u32 base_z, int rows, int biased, int piece, int lane, float (&d)[2][2][4],
                        float (&b)[S::BIAS_TILES][4]) {
  using N = typename S::N;
  constexpr int TERMS = N::TERMS;
  constexpr u32 ROW_H = N::WIDTH1 * 2, ROW_Z = N::WIDTH2 * 2;
  const int across = piece / S::DOWN, down = piece % S::DOWN, matrix = lane >> 3, r = lane & 7;
  const u32 left0 = base_h + ((matrix >> 1) * 8 + r) * ROW_H + (((4 * across + (matrix & 1)) ^ swizzle<N::WIDTH1>(r)) << 4);
  const u32 left1 = base_h + ((matrix >> 1) * 8 + r) * ROW_H + (((4 * across + 2 + (matrix & 1)) ^ swizzle<N::WIDTH1>(r)) << 4);
  const u32 right = base_z + ((matrix & 1) * 8 + r) * ROW_Z + (((2 * down + (matrix >> 1)) ^ swizzle<N::WIDTH2>(r)) << 4);
  const u32 one = 0x3C003C00u;  // 1 in half precision, twice
#ifndef EMU
#pragma unroll 4
#endif
  for (int k = 0; k < rows / 16; k++) {
    u32 A[2][4], B[4];
    load_transposed(left0 + k * 16 * ROW_H, A[0]), load_transposed(left1 + k * 16 * ROW_H, A[1]);
    load_transposed(right + k * 16 * ROW_Z, B);
    if (TERMS == 2) {
      u32 C[2][4], D[4];
      load_transposed(left0 + S::PLANE_H + k * 16 * ROW_H, C[0]), load_transposed(left1 + S::PLANE_H + k * 16 * ROW_H, C[1]);
      load_transposed(right + S::PLANE_Z + k * 16 * ROW_Z, D);
      UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++) {
          mma_16x8x16(d[i][j], C[i][0], C[i][1], C[i][2], C[i][3], B[2 * j], B[2 * j + 1]);
          mma_16x8x16(d[i][j], A[i][0], A[i][1], A[i][2], A[i][3], D[2 * j], D[2 * j + 1]);
        }
      if (k * 16 < biased) UNROLL for (int j = 0; j < S::BIAS_TILES; j++) {
        const bool second = S::BIAS_TILES == 1 ? across == 1 : j == 1;
        mma_16x8x16(b[j], one, one, one, one, second ? D[2] : D[0], second ? D[3] : D[1]);
      }
    }
    UNROLL for (int i = 0; i < 2; i++)
      UNROLL for (int j = 0; j < 2; j++) mma_16x8x16(d[i][j], A[i][0], A[i][1], A[i][2], A[i][3], B[2 * j], B[2 * j + 1]);
    if (k * 16 < biased) UNROLL for (int j = 0; j < S::BIAS_TILES; j++) {
      const bool second = S::BIAS_TILES == 1 ? across == 1 : j == 1;
      mma_16x8x16(b[j], one, one, one, one, second ? B[2] : B[0], second ? B[3] : B[1]);
    }
  }
}
/// The gradients of a warp's pieces.
template <class S> struct Pieces {
  float d[S::PER_WARP][2][2][4];          // of slot s: [s / 8][s / 4 % 2][s % 4]
  float b[S::PER_WARP][S::BIAS_TILES][4];

  DEVICE_METHOD void clear() { multiply(0.0f, true); }
  /// All of them times x, or anew 0.
  DEVICE_METHOD void multiply(float x, bool anew = false) {
    UNROLL for (int p = 0; p < S::PER_WARP; p++)
      UNROLL for (int k = 0; k < 4; k++) {
        UNROLL for (int i = 0; i < 2; i++)
          UNROLL for (int j = 0; j < 2; j++) d[p][i][j][k] = anew ? 0.0f : d[p][i][j][k] * x;
        UNROLL for (int j = 0; j < S::BIAS_TILES; j++) b[p][j][k] = anew ? 0.0f : b[p][j][k] * x;
      }
  }
  /// Add those of the rows in the exchange, as piece_gradient has them.
  DEVICE_METHOD void add(u32 base_h, u32 base_z, int rows, int biased, int warp, int lane) {
    UNROLL for (int p = 0; p < S::PER_WARP; p++) {
      const int piece = warp + p * S::WARPS;
      if (piece < S::PIECES) piece_gradient<S>(base_h, base_z, rows, biased, piece, lane, d[p], b[p]);
    }
  }
  DEVICE_METHOD float weight(int p, int s) const { return d[p][s >> 3][s >> 2 & 1][s & 3]; }
  DEVICE_METHOD float bias(int p, int k, int g) const { return g ? b[p][k][1] : b[p][k][0]; }
  DEVICE_METHOD bool is_finite_everywhere() const {
    bool all = true;
    UNROLL for (int p = 0; p < S::PER_WARP; p++) {
      UNROLL for (int s = 0; s < 16; s++) all = all && is_finite(weight(p, s));
      UNROLL for (int j = 0; j < S::BIAS_TILES; j++) UNROLL for (int k = 0; k < 2; k++) all = all && is_finite(b[p][j][k]);
    }
    return all;
  }
};
/// A warp's partial sums of the first and the last layer, from the rows it has seen.
template <class S> struct Partial {
  using N = typename S::N;
  float first[N::CHUNKS][N::WIDTH1 / 16][4], last[N::TILES][N::WIDTH2 / 16][4], slopes[N::TILES][2], told[4];

  DEVICE_METHOD void clear() {
    UNROLL for (int q = 0; q < N::CHUNKS; q++)
      UNROLL for (int j = 0; j < N::WIDTH1 / 16; j++) UNROLL for (int k = 0; k < 4; k++) first[q][j][k] = 0.0f;
    UNROLL for (int q = 0; q < N::TILES; q++) {
      UNROLL for (int j = 0; j < N::WIDTH2 / 16; j++) UNROLL for (int k = 0; k < 4; k++) last[q][j][k] = 0.0f;
      slopes[q][0] = slopes[q][1] = 0.0f;
    }
    UNROLL for (int k = 0; k < 4; k++) told[k] = 0.0f;
  }
  /// The gradients so far times x.
  DEVICE_METHOD void multiply(float x) {
    UNROLL for (int k = 0; k < 4; k++) {
      UNROLL for (int q = 0; q < N::CHUNKS; q++) UNROLL for (int j = 0; j < N::WIDTH1 / 16; j++) first[q][j][k] *= x;
      UNROLL for (int q = 0; q < N::TILES; q++) UNROLL for (int j = 0; j < N::WIDTH2 / 16; j++) last[q][j][k] *= x;
    }
  }
  /// The last layer's, from its input H2 and the gradients Q of its outputs, of one tile of rows.
  DEVICE_METHOD void add_last(const u32 (&H2)[N::WIDTH2 / 8][2 * N::TERMS], const u32 (&Q)[N::TILES][2 * N::TERMS]) {
    UNROLL for (int q = 0; q < N::TILES; q++) {
      u32 b[2 * N::TERMS];
      transpose_operand<N::TERMS>(Q[q], b);
      UNROLL for (int j = 0; j < N::WIDTH2 / 16; j++) multiply_rows<N::TERMS>(last[q][j], H2[2 * j], H2[2 * j + 1], b);
    }
  }
  /// The first layer's, of the 32 units of half J, from the transposed inputs XT and their gradients z.
  DEVICE_METHOD void add_first(int J, const u32 (&z)[4][2 * N::TERMS], const u32 (&XT)[N::CHUNKS][2 * N::TERMS]) {
    UNROLL for (int q = 0; q < N::CHUNKS; q++)
      UNROLL for (int j = 0; j < 2; j++) multiply_rows<N::TERMS>(first[q][2 * J + j], z[2 * j], z[2 * j + 1], XT[q]);
  }
  /// Write the last layer's and what is told; `told` has been summed over the warp.
  DEVICE_METHOD void write_last(u32 part, int lane) const {
    const int g = lane >> 2, t = lane & 3;
    UNROLL for (int q = 0; q < N::TILES; q++)
      UNROLL for (int i = 0; i < 2; i++) {
        const bool here = 2 * t + i < N::ROWS;
        UNROLL for (int j = 0; j < N::WIDTH2 / 16; j++)
          UNROLL for (int k = 0; k < 2; k++)
            if (here) {
              const int place = S::PART_LAST + unit_of(2 * j + k, g) * N::OUTPUTS + q * N::ROWS + 2 * t + i;
              at<float>(part + place * 4) = last[q][j][2 * k + i];
            }
        const float sum = sum_rows(slopes[q][i]);
        if (g == 0 && here) at<float>(part + (S::PART_SLOPES + q * N::ROWS + 2 * t + i) * 4) = sum;
      }
    UNROLL for (int k = 0; k < 4; k++) if (lane == 0) at<float>(part + (S::PART_TOLD + k) * 4) = told[k];
  }
  DEVICE_METHOD void write_first(u32 part, int lane) const {
    const int g = lane >> 2, t = lane & 3;
    UNROLL for (int q = 0; q < N::CHUNKS; q++)
      UNROLL for (int j = 0; j < N::WIDTH1 / 16; j++)
        UNROLL for (int k = 0; k < 4; k++) {
          const int i = 8 * q + 2 * t + (k & 1);
          if (i <= N::INPUTS) at<float>(part + (i * (N::WIDTH1 + 1) + unit_of(2 * j + (k >> 1), g)) * 4) = first[q][j][k];
        }
  }
};
/// One operand of the last kernel for the way back: outputs of a group, and the units of half J.
template <class N> DEV void read_kernel3_back(u32 base, int group, int J, int g, int t, u32 (&b)[4][N::TERMS]) {
  if (t < N::PAIRS) {
    read_four<N::TERMS>(base + group * N::PLANE3_BACK + ((J * 8 + g) * N::PAIRS + t) * 16, N::TILES * N::PLANE3_BACK, b);
  } else {
    UNROLL for (int h = 0; h < 4; h++) UNROLL for (int k = 0; k < N::TERMS; k++) b[h][k] = 0;
  }
}
