// A member's own rows of a minibatch, forwards and backwards by the likelihood; the sizes and the shared memory of a fit.
//
// Sizes by -D with MBRL_ before each: TERMS, OBSERVATION, ACTIONS, M_WIDTH1, M_WIDTH2, MEMBERS, BATCH, ROWS of the table, STRIDE:
// every how manieth row is held out, LAPLACIAN: rows of the penalty, 0 without it.
#pragma once
#define MBRL_TASK 0
#define MBRL_Q_WIDTH1 32
#define MBRL_Q_WIDTH2 32
#include "adam.cuh"
#include "world.cuh"

constexpr int BATCH = MBRL_BATCH, TABLE_ROWS = MBRL_ROWS, HELD_OUT_EVERY = MBRL_STRIDE, LAPLACIAN = MBRL_LAPLACIAN;
constexpr int WARPS = 8, THREADS = WARPS * WARP;
constexpr int KINDS = OBSERVATION + 2, VALUE = 0, SECOND = KINDS - 1;  // kinds 1 to OBSERVATION: slopes
static_assert(LAPLACIAN == 0 || KINDS <= WARPS, "the penalty has a warp for each observation axis and two more");
constexpr int PASS_ROWS = 16 * WARPS, PASSES = (BATCH + PASS_ROWS - 1) / PASS_ROWS, LAPLACIAN_PASSES = (LAPLACIAN + 15) / 16;
constexpr int TABLE_WIDTH = Member::INPUTS + OBSERVATION + 1;  // inputs, targets, terminated
constexpr float SHARE = 1.0f / 16;
using Mine = Share<Member, WARPS, PASS_ROWS>;
using State = Owned<Mine, 0, false>;

constexpr u32 SUMS = KINDS * Member::WIDTH2 * 16 * 4, GIVEN = 2 * TERMS * WARP * 4, PARTS = WARPS * Mine::PART * 4;
constexpr u32 COUPLING = LAPLACIAN ? SUMS + GIVEN : 0;
constexpr u32 O_IMAGE = 0, O_BACK2 = aligned(O_IMAGE + MEMBER_SIZE), O_BACK3 = aligned(O_BACK2 + Member::PLANE2 * TERMS),
              O_H = aligned(O_BACK3 + Member::PLANE3_BACK * 2 * TERMS), O_Z = O_H + Mine::SIZE_H,
              O_PARTS = aligned(O_Z + Mine::SIZE_Z), SHARED_BYTES = O_PARTS + (PARTS > COUPLING ? PARTS : COUPLING);
constexpr u32 O_SUMS = O_PARTS, O_GIVEN = O_SUMS + SUMS;  // of the penalty, where partial sums come later

/// SiLU's value and its first three derivatives.
struct Silu {
  float value, first, second, third;
  __device__ __forceinline__ explicit Silu(float z) {
    const float s = sigmoid(z), s1 = s * (1 - s), s2 = s1 * (1 - 2 * s), s3 = s2 * (1 - 2 * s) - 2 * s1 * s1;
    value = z * s, first = s + z * s1, second = 2 * s1 + z * s2, third = 3 * s2 + z * s3;
  }
};

struct FitRows {
  const float* table;
  const int* batches;  // of this member: [BATCH] of every [MEMBERS][BATCH]
  int thread, warp, lane, g, t;
  u32 zero;
  float decay, laplacian_weight;
  int next[PASSES + LAPLACIAN_PASSES];  // this lane's row of the next minibatch in each pass
  float loss, squares;                  // so far: this thread's share of the losses, and of the sums of squared kernels
  State state;
  Partial<Mine> partial;

  DEVICE_METHOD void fetch_rows(int batch) {
    UNROLL for (int p = 0; p < PASSES + LAPLACIAN_PASSES; p++) {
      const int row = p < PASSES ? p * PASS_ROWS + warp * 16 + (lane & 15) : (p - PASSES) * 16 + (lane & 15);
      next[p] = batches[(size_t)batch * MEMBERS * BATCH + (row < BATCH ? row : 0)];
    }
  }
  /// What has been fetched for this lane in a pass; by comparisons, as registers cannot be indexed.
  DEVICE_METHOD int fetched(int pass) const {
    int row = 0;
    UNROLL for (int p = 0; p < PASSES + LAPLACIAN_PASSES; p++) row = p == pass ? next[p] : row;
    return row;
  }
  /// Row `number` of the training rows, which skip the held-out ones.
  DEVICE_METHOD const float* training_row(int number) const {
    return table + (size_t)(number + number / (HELD_OUT_EVERY - 1)) * TABLE_WIDTH;
  }
  DEVICE_METHOD void inputs_of(const float* const* rows, u32 (&X)[Member::CHUNKS][2 * TERMS]) const {
    pack_inputs<Member>(t, [&](int half, int chunk, int k, int i) {
      return i < Member::INPUTS ? rows[half][i] : i == Member::INPUTS ? 1.0f : 0.0f;
    }, X);
  }
  DEVICE_METHOD float2 bound(int which) const { return at<const float2>(O_IMAGE + AT_BOUNDS + which * 32 + t * 8); }

  // ------------------------------------------------------------------------------------------------ likelihood
  /// A row's squared error and twice its negative log-likelihood at this thread's axis k, and the gradients of the latter's half
  /// with respect to the mean and to the raw log-variance.
  DEVICE_METHOD void judge(float mean, float raw, float target, int k, float& square, float& likelihood, float& by_mean,
                           float& by_raw) const {
    const float minimum = k ? bound(0).y : bound(0).x, maximum = k ? bound(1).y : bound(1).x;
    const float below = maximum - raw, bent = maximum - softplus(below), above = bent - minimum;
    const float log_variance = minimum + softplus(above), precision = fast_exp(-log_variance), error = mean - target;
    square = error * error, likelihood = square * precision + log_variance;
    by_mean = error * precision, by_raw = 0.5f * (1 - square * precision) * sigmoid(above) * sigmoid(below);
  }
  static DEVICE_METHOD u32 part_of(int warp) { return O_PARTS + warp * (Mine::PART * 4); }
  /// Take this warp's 16 rows of a pass forwards and backwards.
  DEVICE_METHOD void learn_rows(int pass) {
    const int row0 = 16 * warp;
    u32 X[1][Member::CHUNKS][2 * TERMS], XT[Member::CHUNKS][2 * TERMS], H2[1][Member::WIDTH2 / 8][2 * TERMS];
    u32 slope2[Member::WIDTH2 / 8][2 * TERMS], Q[2][2 * TERMS];
    const float* rows[2];
    UNROLL for (int half = 0; half < 2; half++) rows[half] = training_row(shuffle(fetched(pass), 8 * half + g));
    inputs_of(rows, X[0]);
    UNROLL for (int c = 0; c < Member::CHUNKS; c++) transpose_operand<TERMS>(X[0][c], XT[c]);
    {
      u32 H1[1][Member::WIDTH1 / 8][2 * TERMS];
      first_layer<Member, 1, SILU, false>(O_IMAGE, X, lane, H1);
      UNROLL for (int J = 0; J < Member::WIDTH1 / 32; J++) {
        u32 o[4][2 * TERMS];
        UNROLL for (int h = 0; h < 4; h++) UNROLL for (int j = 0; j < 2 * TERMS; j++) o[h][j] = H1[0][4 * J + h][j];
        exchange<TERMS, Member::WIDTH1>(O_H, Mine::PLANE_H, row0, J, g, t, o, zero);
      }
      hidden_layer<TERMS, Member::WIDTH1, Member::WIDTH2, 1, true>(
          O_IMAGE + Member::AT_KERNEL2, O_IMAGE + Member::AT_BIAS2, H1, g, t, [&](int J, float (&c)[1][4][4]) {
            UNROLL for (int h = 0; h < 4; h++) {
              float value[4], first[4];
              UNROLL for (int i = 0; i < 4; i++) {
                const Silu f(c[0][h][i]);
                value[i] = f.value, first[i] = f.first;
              }
              pack_operand<TERMS>(value, H2[0][4 * J + h]), pack_operand<TERMS>(first, slope2[4 * J + h]);
            }
          });
    }
    {
      float mean[1][4], raw[1][4];
      last_layer<Member, 1>(O_IMAGE, 0, H2, g, t, mean), last_layer<Member, 1>(O_IMAGE, 1, H2, g, t, raw);
      UNROLL for (int i = 0; i < 4; i++) {
        const int half = i >> 1, k = i & 1;
        const bool here = 2 * t + k < OBSERVATION && pass * PASS_ROWS + row0 + 8 * half + g < BATCH;
        const float target = here ? rows[half][Member::INPUTS + 2 * t + k] : 0.0f;
        float square, likelihood, by_mean, by_raw;
        const u32 bias = O_IMAGE + Member::AT_BIAS3 + (2 * t + k) * 4;
        judge(mean[0][i] + at<const float>(bias), raw[0][i] + at<const float>(bias + 32), target, k, square, likelihood, by_mean,
              by_raw);
        loss += here ? 0.5f * likelihood / BATCH : 0.0f;
        mean[0][i] = here ? SHARE * by_mean : 0.0f, raw[0][i] = here ? SHARE * by_raw : 0.0f;
        partial.slopes[0][k] += mean[0][i], partial.slopes[1][k] += raw[0][i];
      }
      pack_operand<TERMS>(mean[0], Q[0]), pack_operand<TERMS>(raw[0], Q[1]);
    }
    partial.add_last(H2[0], Q);
    if (pass + 1 == PASSES) partial.write_last(part_of(warp), lane);  // early: their registers are needed
    u32 Z[1][Member::WIDTH2 / 8][2 * TERMS];
    UNROLL for (int J = 0; J < Member::WIDTH2 / 32; J++) {
      u32 o[4][2 * TERMS];
      float c[4][4];
      UNROLL for (int h = 0; h < 4; h++) UNROLL for (int i = 0; i < 4; i++) c[h][i] = 0.0f;
      UNROLL for (int q = 0; q < 2; q++) {
        u32 b[4][TERMS];
        read_kernel3_back<Member>(O_BACK3, q, J, g, t, b);
        UNROLL for (int h = 0; h < 4; h++) multiply8<TERMS>(c[h], Q[q], b[h]);
      }
      UNROLL for (int h = 0; h < 4; h++) {
        float slope[4];
        unpack_operand<TERMS>(slope2[4 * J + h], slope);
        UNROLL for (int i = 0; i < 4; i++) c[h][i] *= slope[i];
        pack_operand<TERMS>(c[h], o[h]);
        UNROLL for (int j = 0; j < 2 * TERMS; j++) Z[0][4 * J + h][j] = o[h][j];
      }
      exchange<TERMS, Member::WIDTH2>(O_Z, Mine::PLANE_Z, row0, J, g, t, o, zero);
    }
    hidden_layer<TERMS, Member::WIDTH2, Member::WIDTH1, 1, false>(O_BACK2, 0, Z, g, t, [&](int J, float (&c)[1][4][4]) {
      u32 o[4][2 * TERMS];
      float z[4][4];
      first_layer_sums<Member>(O_IMAGE, X[0], J, lane, z);
      UNROLL for (int h = 0; h < 4; h++) {
        UNROLL for (int i = 0; i < 4; i++) c[0][h][i] *= Silu(z[h][i]).first;
        pack_operand<TERMS>(c[0][h], o[h]);
      }
      partial.add_first(J, o, XT);
    });
  }
};
