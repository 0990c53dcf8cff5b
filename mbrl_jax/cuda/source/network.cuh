// A network of two hidden layers: its sizes, how its weights lie in shared memory, and its forward pass on tensor cores.
//
// Rows of a batch go through in tiles of 16. In a tile, thread (g = lane / 4, t = lane % 4) holds rows g and g + 8, and of each 8
// columns the columns 2t and 2t + 1: this is how the tensor core hands out sums, and how it takes its left operand. So that the
// sums of one layer are at once the operand of the next, column 2a + e of tile 4J + h stands for unit 32J + 8a + 2h + e. A thread
// then holds 8 successive units of each 32, which are one 16-byte access.
//
// A weight matrix lies as [out][in] in half precision, for the way back as [in][out]. The 16-byte pieces of its rows are permuted
// by `swizzle`, so that no two threads of an access meet in a bank.
//
// TERMS is the precision of products: 1 rounds operands to half precision; 2 adds what the rounding left as a second half, and
// makes three products of the four, which is about float32. Sums are float32 in both.
#pragma once
#include "primitives.cuh"

/// Sizes of a network, places of its parameters in a flat array, and offsets (bytes) of its image in shared memory.
///
/// INPUTS numbers go in, beside a constant 1 that carries the first bias. TILES groups of ROWS numbers come out, ROWS at most 8.
template <int INPUTS_, int WIDTH1_, int WIDTH2_, int ROWS_, int TILES_, int TERMS_> struct Network {
  static constexpr int INPUTS = INPUTS_, WIDTH1 = WIDTH1_, WIDTH2 = WIDTH2_, ROWS = ROWS_, TILES = TILES_, TERMS = TERMS_;
  static constexpr int OUTPUTS = ROWS * TILES, CHUNKS = (INPUTS + 1 + 7) / 8;  // of 8 inputs
  static_assert(WIDTH1 % 32 == 0 && WIDTH2 % 32 == 0, "widths are multiples of 32");
  static_assert(ROWS <= 8 && CHUNKS <= 2, "at most 8 numbers in a group of outputs, and 15 inputs");
  // flat: kernels [in][out], each followed by its bias
  static constexpr int KERNEL1 = 0, BIAS1 = KERNEL1 + INPUTS * WIDTH1, KERNEL2 = BIAS1 + WIDTH1,
                       BIAS2 = KERNEL2 + WIDTH1 * WIDTH2, KERNEL3 = BIAS2 + WIDTH2, BIAS3 = KERNEL3 + WIDTH2 * OUTPUTS,
                       PARAMETERS = BIAS3 + OUTPUTS;
  // bytes of one term of each matrix; the second term follows the first
  static constexpr u32 PLANE1 = CHUNKS * WIDTH1 * 16, PLANE2 = WIDTH1 * WIDTH2 * 2, PLANE3 = OUTPUTS * WIDTH2 * 2;
  static constexpr u32 AT_KERNEL2 = 0, AT_KERNEL1 = AT_KERNEL2 + PLANE2 * TERMS, AT_KERNEL3 = AT_KERNEL1 + PLANE1 * TERMS,
                       AT_BIAS2 = AT_KERNEL3 + PLANE3 * TERMS, AT_BIAS3 = AT_BIAS2 + WIDTH2 * 8, SIZE = AT_BIAS3 + TILES * 32;
  static_assert(AT_KERNEL3 % 16 == 0 && AT_BIAS2 % 16 == 0 && SIZE % 16 == 0, "alignment");
  // the last kernel for the way back: thread pairs of outputs that are there, and bytes of a term of one group of outputs
  static constexpr int PAIRS = (ROWS + 1) / 2;
  static constexpr u32 PLANE3_BACK = WIDTH2 * PAIRS * 4;
};

/// Which place in its row the 16-byte piece 0 of row n takes, of rows of WIDTH halves.
template <int WIDTH> __device__ constexpr u32 swizzle(u32 n) {
  return WIDTH % 64 == 0 ? ((n & 1) << 2 | (n >> 1 & 3)) : (n >> 1 & 3);
}
/// The unit that column g of tile q stands for.
DEV int unit_of(int q, int g) { return 32 * (q >> 2) + 8 * (g >> 1) + 2 * (q & 3) + (g & 1); }

// ----------------------------------------------------------------------------------------------------- writing parameters
template <int TERMS> DEV void put(u32 offset, u32 plane, float x) {
  const u32 first = pack(x, 0.0f);
  at<u16>(offset) = (u16)first;
  if (TERMS == 2) at<u16>(offset + plane) = (u16)pack(x - low_of(first), 0.0f);
}
/// Element k of row n of a matrix [rows][WIDTH].
template <int TERMS, int WIDTH> DEV void put_in_row(u32 base, u32 plane, int n, int k, float x) {
  put<TERMS>(base + n * (WIDTH * 2) + (((k >> 3) ^ swizzle<WIDTH>(n)) << 4) + (k & 7) * 2, plane, x);
}
/// The first kernel's weight from input i to unit c, in the order in which threads read them.
template <class N> DEV void put_kernel1(u32 image, int i, int c, float x) {
  const int g = (c >> 3 & 3) * 2 + (c & 1), h = c >> 1 & 3, lane = g * 4 + (i >> 1 & 3);
  const u32 place = (i >> 3) * (N::WIDTH1 * 16) + ((c >> 5) * 32 + lane) * 16 + h * 4 + (i & 1) * 2;
  put<N::TERMS>(image + N::AT_KERNEL1 + place, N::PLANE1, x);
}
/// The second bias of unit c, twice, as a thread's sums of two rows begin with it.
template <class N> DEV void put_bias2(u32 image, int c, float x) {
  const u32 place = image + N::AT_BIAS2 + (((c >> 5) * 4 + (c >> 1 & 3)) * 4 + (c >> 3 & 3)) * 16 + (c & 1) * 4;
  at<float>(place) = x, at<float>(place + 8) = x;
}
/// The last kernel's weight from unit c to output o.
template <class N> DEV void put_kernel3(u32 image, int c, int o, float x) {
  const u32 group = o / N::ROWS * (N::ROWS * N::WIDTH2 * 2);
  put_in_row<N::TERMS, N::WIDTH2>(image + N::AT_KERNEL3 + group, N::PLANE3, o % N::ROWS, c, x);
}
/// The last kernel's weight from unit c to output `row` of a group, for the way back.
template <class N> DEV void put_kernel3_back(u32 base, int c, int group, int row, float x) {
  const int g = (c >> 3 & 3) * 2 + (c & 1), h = c >> 1 & 3;
  const u32 place = group * N::PLANE3_BACK + (((c >> 5) * 8 + g) * N::PAIRS + (row >> 1)) * 16 + h * 4 + (row & 1) * 2;
  put<N::TERMS>(base + place, N::TILES * N::PLANE3_BACK, x);
}
template <class N> DEV void put_bias3(u32 image, int o, float x) {
  at<float>(image + N::AT_BIAS3 + (o / N::ROWS * 8 + o % N::ROWS) * 4) = x;
}
/// Parameter i of the flat array, wherever it belongs in an image for the forward pass.
template <class N> DEV void put_parameter(u32 image, int i, float x) {
  if (i < N::KERNEL2) {
    put_kernel1<N>(image, i / N::WIDTH1, i % N::WIDTH1, x);
  } else if (i < N::BIAS2) {
    const int in = (i - N::KERNEL2) / N::WIDTH2, out = (i - N::KERNEL2) % N::WIDTH2;
    put_in_row<N::TERMS, N::WIDTH1>(image + N::AT_KERNEL2, N::PLANE2, out, in, x);
  } else if (i < N::KERNEL3) {
    put_bias2<N>(image, i - N::BIAS2, x);
  } else if (i < N::BIAS3) {
    put_kernel3<N>(image, (i - N::KERNEL3) / N::OUTPUTS, (i - N::KERNEL3) % N::OUTPUTS, x);
  } else {
    put_bias3<N>(image, i - N::BIAS3, x);
  }
}
/// A whole image from flat parameters, by `threads` threads of which this is number `thread`.
template <class N> DEV void load_image(u32 image, const float* parameters, int thread, int threads) {
  for (int i = thread; i < N::PARAMETERS; i += threads) put_parameter<N>(image, i, parameters[i]);
  const int spare = N::CHUNKS * 8 - N::INPUTS - 1;  // inputs that are not there
  for (int i = thread; i < spare * N::WIDTH1; i += threads)
    put_kernel1<N>(image, N::INPUTS + 1 + i / N::WIDTH1, i % N::WIDTH1, 0.0f);
  for (int i = thread; i < N::TILES * 8; i += threads)
    if (i % 8 >= N::ROWS) at<float>(image + N::AT_BIAS3 + i * 4) = 0.0f;
}

// -------------------------------------------------------------------------------------------------------------- operands
// A left operand of 16 rows x 8 columns: registers [0] rows g, [1] rows g + 8; [2], [3] their second terms. A right operand of
// 8 rows x 8 columns: [0], and [1] its second term.

/// Sums c of rows g (c[0], c[1]) and g + 8 (c[2], c[3]) as an operand.
template <int TERMS> DEV void pack_operand(const float* c, u32* a) {
  a[0] = pack(c[0], c[1]), a[1] = pack(c[2], c[3]);
  if (TERMS == 2) {
    a[2 * (TERMS - 1)] = pack(c[0] - low_of(a[0]), c[1] - high_of(a[0]));
    a[2 * TERMS - 1] = pack(c[2] - low_of(a[1]), c[3] - high_of(a[1]));
  }
}
/// The numbers of an operand: rows g (c[0], c[1]) and g + 8 (c[2], c[3]).
template <int TERMS> DEV void unpack_operand(const u32* a, float* c) {
  UNROLL for (int i = 0; i < 2; i++) {
    c[2 * i] = low_of(a[i]), c[2 * i + 1] = high_of(a[i]);
    if (TERMS == 2) c[2 * i] += low_of(a[2 * (TERMS - 1) + i]), c[2 * i + 1] += high_of(a[2 * (TERMS - 1) + i]);
  }
}
enum Activation { RELU, SILU };
/// The same after an activation. With HALF, rows g + 8 count for nothing and are 0.
template <int TERMS, Activation ACTIVATION, bool HALF> DEV void pack_activated(const float* c, u32* a) {
  if (ACTIVATION == RELU && TERMS == 1) {
    a[0] = pack_relu(c[0], c[1]), a[1] = HALF ? 0 : pack_relu(c[2], c[3]);
    return;
  }
  float x[4];
  UNROLL for (int i = 0; i < 4; i++)
    x[i] = HALF && i > 1 ? 0.0f : ACTIVATION == RELU ? fmaxf(c[i], 0.0f) : c[i] * sigmoid(c[i]);
  pack_operand<TERMS>(x, a);
}
/// c += a b over 16 columns of a: a0, b0 stand for 8 of them and a1, b1 for 8.
template <int TERMS> DEV void multiply16(float* c, const u32* a0, const u32* a1, const u32* b0, const u32* b1) {
  if (TERMS == 2) {  // what is small first
    constexpr int i2 = 2 * (TERMS - 1), i3 = 2 * TERMS - 1, j1 = TERMS - 1;
    mma_16x8x16(c, a0[i2], a0[i3], a1[i2], a1[i3], b0[0], b1[0]);
    mma_16x8x16(c, a0[0], a0[1], a1[0], a1[1], b0[j1], b1[j1]);
  }
  mma_16x8x16(c, a0[0], a0[1], a1[0], a1[1], b0[0], b1[0]);
}
/// The same over 8.
template <int TERMS> DEV void multiply8(float* c, const u32* a, const u32* b) {
  if (TERMS == 2) {
    mma_16x8x8(c, a[2 * (TERMS - 1)], a[2 * TERMS - 1], b[0]);
    mma_16x8x8(c, a[0], a[1], b[TERMS - 1]);
  }
  mma_16x8x8(c, a[0], a[1], b[0]);
}
/// Four right operands that lie in 16 successive bytes.
template <int TERMS> DEV void read_four(u32 offset, u32 plane, u32 (&b)[4][TERMS]) {
  UNROLL for (int i = 0; i < TERMS; i++) {
    const uint4 v = at<const uint4>(offset + i * plane);
    b[0][i] = v.x, b[1][i] = v.y, b[2][i] = v.z, b[3][i] = v.w;
  }
}
/// The right operands of outputs 4J + h and inputs 32P to 32P + 31 of a matrix [out][IN].
template <int TERMS, int IN> DEV void read_weights(u32 base, u32 plane, int J, int h, int P, int g, int t, u32 (&b)[4][TERMS]) {
  // row 32J + 2h + 8(g / 2) + g % 2, piece (4P + t) ^ swizzle(row); what depends on the thread is the same for all J, h, P
  constexpr bool WIDE = IN % 64 == 0;
  const u32 mine = (8 * (g >> 1) + (g & 1)) * (IN * 2) + ((WIDE ? t ^ (g & 1) << 2 : t) << 4);
  const u32 fixed = base + (32 * J + 2 * h) * (IN * 2) + (WIDE ? (P >> 1) * 128 : P * 64);
  read_four<TERMS>(fixed + (mine ^ ((WIDE ? 4 * (P & 1) ^ h : h) << 4)), plane, b);
}

// ---------------------------------------------------------------------------------------------------------------- layers
/// A hidden layer: for each half J of 32 units, finish(J, its sums). TILES tiles of 16 rows; BIASED begins with the bias.
template <int TERMS, int IN, int OUT, int TILES, bool BIASED, class F>
DEV void hidden_layer(u32 weights, u32 bias, const u32 (&A)[TILES][IN / 8][2 * TERMS], int g, int t, F finish) {
  UNROLL for (int J = 0; J < OUT / 32; J++) {
    float c[TILES][4][4];
    UNROLL for (int h = 0; h < 4; h++) {
      float4 b = {0.0f, 0.0f, 0.0f, 0.0f};
      if (BIASED) b = at<const float4>(bias + ((J * 4 + h) * 4 + t) * 16);
      UNROLL for (int i = 0; i < TILES; i++) c[i][h][0] = b.x, c[i][h][1] = b.y, c[i][h][2] = b.z, c[i][h][3] = b.w;
    }
    UNROLL for (int P = 0; P < IN / 32; P++) {
      u32 b[4][4][TERMS];
      UNROLL for (int h = 0; h < 4; h++) read_weights<TERMS, IN>(weights, IN * OUT * 2, J, h, P, g, t, b[h]);
      UNROLL for (int k = 0; k < 4; k += 2)
        UNROLL for (int h = 0; h < 4; h++)
          UNROLL for (int i = 0; i < TILES; i++)
            multiply16<TERMS>(c[i][h], A[i][4 * P + k], A[i][4 * P + k + 1], b[h][k], b[h][k + 1]);
    }
    finish(J, c);
  }
}
/// The sums of the first layer's tile 4J + h for each h, of one tile of rows.
template <class N>
DEV void first_layer_sums(u32 image, const u32 (&X)[N::CHUNKS][2 * N::TERMS], int J, int lane, float (&c)[4][4]) {
  UNROLL for (int h = 0; h < 4; h++) UNROLL for (int k = 0; k < 4; k++) c[h][k] = 0.0f;
  UNROLL for (int chunk = 0; chunk < N::CHUNKS; chunk++) {
    u32 b[4][N::TERMS];
    read_four<N::TERMS>(image + N::AT_KERNEL1 + chunk * (N::WIDTH1 * 16) + (J * 32 + lane) * 16, N::PLANE1, b);
    UNROLL for (int h = 0; h < 4; h++) multiply8<N::TERMS>(c[h], X[chunk], b[h]);
  }
}
template <class N, int TILES, Activation ACTIVATION, bool HALF>
DEV void first_layer(u32 image, const u32 (&X)[TILES][N::CHUNKS][2 * N::TERMS], int lane,
                     u32 (&O)[TILES][N::WIDTH1 / 8][2 * N::TERMS]) {
  UNROLL for (int J = 0; J < N::WIDTH1 / 32; J++)
    UNROLL for (int i = 0; i < TILES; i++) {
      float c[4][4];
      first_layer_sums<N>(image, X[i], J, lane, c);
      UNROLL for (int h = 0; h < 4; h++) pack_activated<N::TERMS, ACTIVATION, HALF>(c[h], O[i][4 * J + h]);
    }
}
/// Group `group` of the outputs, without their bias: c[i][0], c[i][1] are outputs 2t and 2t + 1 of row g of tile i.
template <class N, int TILES>
DEV void last_layer(u32 image, int group, const u32 (&A)[TILES][N::WIDTH2 / 8][2 * N::TERMS], int g, int t,
                    float (&c)[TILES][4]) {
  const u32 row = image + N::AT_KERNEL3 + group * (N::ROWS * N::WIDTH2 * 2) + g * (N::WIDTH2 * 2);
  float d[TILES][4];
  UNROLL for (int i = 0; i < TILES; i++) UNROLL for (int k = 0; k < 4; k++) c[i][k] = d[i][k] = 0.0f;
  UNROLL for (int P = 0; P < N::WIDTH2 / 32; P++) {
    u32 b[4][N::TERMS];
    if (g < N::ROWS) {
      read_four<N::TERMS>(row + (((4 * P + t) ^ swizzle<N::WIDTH2>(g)) << 4), N::PLANE3, b);
    } else {
      UNROLL for (int k = 0; k < 4; k++) UNROLL for (int j = 0; j < N::TERMS; j++) b[k][j] = 0;
    }
    UNROLL for (int i = 0; i < TILES; i++) multiply16<N::TERMS>(c[i], A[i][4 * P], A[i][4 * P + 1], b[0], b[1]);
    UNROLL for (int i = 0; i < TILES; i++) multiply16<N::TERMS>(d[i], A[i][4 * P + 2], A[i][4 * P + 3], b[2], b[3]);
  }
  UNROLL for (int i = 0; i < TILES; i++) UNROLL for (int k = 0; k < 4; k++) c[i][k] += d[i][k];
}
/// The activation of a hidden layer's sums, as the `finish` of hidden_layer.
template <class N, int TILES, Activation ACTIVATION, bool HALF> struct Activate {
  u32 (&O)[TILES][N::WIDTH2 / 8][2 * N::TERMS];
  DEVICE_METHOD void operator()(int J, float (&c)[TILES][4][4]) const {
    UNROLL for (int h = 0; h < 4; h++)
      UNROLL for (int i = 0; i < TILES; i++) pack_activated<N::TERMS, ACTIVATION, HALF>(c[i][h], O[i][4 * J + h]);
  }
};
/// The whole network of one tile of rows: group k of the outputs, with their bias, in c[k].
template <class N, Activation ACTIVATION, bool HALF>
DEV void forward(u32 image, const u32 (&X)[1][N::CHUNKS][2 * N::TERMS], int lane, float (&c)[N::TILES][4]) {
  const int g = lane >> 2, t = lane & 3;
  u32 H1[1][N::WIDTH1 / 8][2 * N::TERMS], H2[1][N::WIDTH2 / 8][2 * N::TERMS];
  first_layer<N, 1, ACTIVATION, HALF>(image, X, lane, H1);
  hidden_layer<N::TERMS, N::WIDTH1, N::WIDTH2, 1, true>(
      image + N::AT_KERNEL2, image + N::AT_BIAS2, H1, g, t, Activate<N, 1, ACTIVATION, HALF>{H2});
  UNROLL for (int k = 0; k < N::TILES; k++) {
    float y[1][4];
    last_layer<N, 1>(image, k, H2, g, t, y);
    const float2 bias = at<const float2>(image + N::AT_BIAS3 + (k * 8 + 2 * t) * 4);
    UNROLL for (int i = 0; i < 4; i++) c[k][i] = y[0][i] + (i & 1 ? bias.y : bias.x);
  }
}
/// The operand of a row's inputs: those of rows g and g + 8 by value(half, chunk, k, i):
/// half 0 or 1, and number k of the two that this thread holds of a chunk, which is input i.
template <class N, class F> DEV void pack_inputs(int t, F value, u32 (&X)[N::CHUNKS][2 * N::TERMS]) {
  UNROLL for (int chunk = 0; chunk < N::CHUNKS; chunk++) {
    float x[4];
    UNROLL for (int k = 0; k < 4; k++) x[k] = value(k >> 1, chunk, k & 1, 8 * chunk + 2 * t + (k & 1));
    pack_operand<N::TERMS>(x, X[chunk]);
  }
}
