// A fit of one member of the dynamics ensemble: n minibatches by Adam, then its errors on the rows held out. One block is one
// member of one seed.
//
// A minibatch goes forwards and backwards in passes, 16 rows a warp. The penalty on the Laplacian of the predicted means is a pass
// of its own before them. It carries, for 16 rows, the value, the slope along each observation axis and the sum of second
// derivatives side by side (the forward Laplacian, Li et al. 2023, arXiv:2307.08214); each of these kinds is a warp's tile, and
// like rows of a batch they go through the same products, forwards and backwards. With z, s_j, t the sums that enter a layer's
// nonlinearity f, and q the sum of s_j^2,
//   value h = f(z)    slope S_j = f'(z) s_j    second T = f''(z) q + f'(z) t
// so that the gradients with respect to z, s_j and t are
//   dz = dh f' + sum_j dS_j s_j f'' + dT (f''' q + f'' t)    ds_j = dS_j f' + 2 dT f'' s_j    dt = dT f'
//
// Gradients of the likelihood are carried in half precision as a sixteenth of a row's own, which keeps them in its range; those of
// the penalty as those of a row's sum of squares, whose weight the float32 sums are multiplied by when its passes are over.
//
// Sizes by -D with MBRL_ before each: TERMS, OBSERVATION, ACTIONS, M_WIDTH1, M_WIDTH2, MEMBERS, BATCH, ROWS of the table, STRIDE:
// every how manieth row is held out, LAPLACIAN: rows of the penalty, 0 without it.
#define MBRL_TASK 0
#define MBRL_Q_WIDTH1 32
#define MBRL_Q_WIDTH2 32
#include "learning.cuh"
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

constexpr u32 aligned(u32 x) { return (x + 127) / 128 * 128; }
constexpr u32 SUMS = KINDS * Member::WIDTH2 * 16 * 4, GIVEN = 2 * TERMS * WARP * 4, PARTS = WARPS * Mine::PART * 4;
constexpr u32 COUPLING = LAPLACIAN ? SUMS + GIVEN : 0;
constexpr u32 O_IMAGE = 0, O_BACK2 = aligned(O_IMAGE + MEMBER_SIZE), O_BACK3 = aligned(O_BACK2 + Member::PLANE2 * TERMS),
              O_H = aligned(O_BACK3 + Member::PLANE3_BACK * 2 * TERMS), O_Z = O_H + Mine::SIZE_H, O_PARTS = aligned(O_Z + Mine::SIZE_Z),
              SHARED_BYTES = O_PARTS + (PARTS > COUPLING ? PARTS : COUPLING);
constexpr u32 O_SUMS = O_PARTS, O_GIVEN = O_SUMS + SUMS;  // of the penalty, where partial sums come later

/// SiLU's value and its first three derivatives.
struct Silu {
  float value, first, second, third;
  __device__ __forceinline__ explicit Silu(float z) {
    const float s = sigmoid(z), s1 = s * (1 - s), s2 = s1 * (1 - 2 * s), s3 = s2 * (1 - 2 * s) - 2 * s1 * s1;
    value = z * s, first = s + z * s1, second = 2 * s1 + z * s2, third = 3 * s2 + z * s3;
  }
};

struct Fit {
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
  DEVICE_METHOD void judge(float mean, float raw, float target, int k, float& square, float& likelihood, float& by_mean, float& by_raw) const {
    const float minimum = k ? bound(0).y : bound(0).x, maximum = k ? bound(1).y : bound(1).x;
    const float below = maximum - raw, bent = maximum - softplus(below), above = bent - minimum;
    const float log_variance = minimum + softplus(above), precision = fast_exp(-log_variance), error = mean - target;
    square = error * error, likelihood = square * precision + log_variance;
    by_mean = error * precision, by_raw = 0.5f * (1 - square * precision) * sigmoid(above) * sigmoid(below);
  }
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
        judge(mean[0][i] + at<const float>(O_IMAGE + Member::AT_BIAS3 + (2 * t + k) * 4),
              raw[0][i] + at<const float>(O_IMAGE + Member::AT_BIAS3 + (8 + 2 * t + k) * 4), target, k, square, likelihood, by_mean, by_raw);
        loss += here ? 0.5f * likelihood / BATCH : 0.0f;
        mean[0][i] = here ? SHARE * by_mean : 0.0f, raw[0][i] = here ? SHARE * by_raw : 0.0f;
        partial.slopes[0][k] += mean[0][i], partial.slopes[1][k] += raw[0][i];
      }
      pack_operand<TERMS>(mean[0], Q[0]), pack_operand<TERMS>(raw[0], Q[1]);
    }
    partial.add_last(H2[0], Q);
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

  // ------------------------------------------------------------------------------------------------- Laplacian
  /// Every row's input is 1 along axis j and 0 elsewhere.
  DEVICE_METHOD void direction(int j, u32 (&X)[Member::CHUNKS][2 * TERMS]) const {
    pack_inputs<Member>(t, [&](int half, int chunk, int k, int i) { return i == j ? 1.0f : 0.0f; }, X);
  }
  /// s_j of the first layer for units of half J: the same in all rows.
  DEVICE_METHOD void first_slopes(int j, int J, float (&s)[4][4]) const {
    u32 X[Member::CHUNKS][2 * TERMS];
    direction(j, X);
    first_layer_sums<Member>(O_IMAGE, X, J, lane, s);
  }
  /// q of the first layer, the sum of the squares of its s_j.
  DEVICE_METHOD void first_squares(int J, float (&q)[4][4]) const {
    UNROLL for (int h = 0; h < 4; h++) UNROLL for (int i = 0; i < 4; i++) q[h][i] = 0.0f;
    for (int j = 0; j < OBSERVATION; j++) {
      float s[4][4];
      first_slopes(j, J, s);
      UNROLL for (int h = 0; h < 4; h++) UNROLL for (int i = 0; i < 4; i++) q[h][i] += s[h][i] * s[h][i];
    }
  }
  /// Sum number i of tile 4J + h of the second layer, of a kind; each thread finds the same rows and units there as in its own.
  DEVICE_METHOD float& sum_of(int kind, int J, int h, int i) const {
    return at<float>(O_SUMS + (((kind * (Member::WIDTH2 / 32) + J) * 16 + h * 4 + i) * WARP + lane) * 4);
  }
  DEVICE_METHOD float second_squares(int J, int h, int i) const {
    float q = 0;
    for (int j = 1; j <= OBSERVATION; j++) q += sum_of(j, J, h, i) * sum_of(j, J, h, i);
    return q;
  }
  /// The penalty on 16 rows; all warps come here, and those below KINDS have a tile.
  DEVICE_METHOD void penalise(int pass) {
    const int kind = warp, row0 = 16 * warp;
    const bool mine = kind < KINDS;
    u32 X[Member::CHUNKS][2 * TERMS];
    const float* rows[2];
    UNROLL for (int half = 0; half < 2; half++) rows[half] = training_row(shuffle(fetched(PASSES + pass), 8 * half + g));
    inputs_of(rows, X);
    if (mine) {
      u32 H1[1][Member::WIDTH1 / 8][2 * TERMS];
      UNROLL for (int J = 0; J < Member::WIDTH1 / 32; J++) {
        u32 o[4][2 * TERMS];
        float z[4][4], s[4][4];
        first_layer_sums<Member>(O_IMAGE, X, J, lane, z);
        if (kind == SECOND) first_squares(J, s);
        else first_slopes(kind - 1, J, s);
        UNROLL for (int h = 0; h < 4; h++) {
          float c[4];
          UNROLL for (int i = 0; i < 4; i++) {
            const Silu f(z[h][i]);
            c[i] = kind == VALUE ? f.value : kind == SECOND ? f.second * s[h][i] : f.first * s[h][i];
          }
          pack_operand<TERMS>(c, o[h]);
          UNROLL for (int j = 0; j < 2 * TERMS; j++) H1[0][4 * J + h][j] = o[h][j];
        }
        exchange<TERMS, Member::WIDTH1>(O_H, Mine::PLANE_H, row0, J, g, t, o, zero);
      }
      hidden_layer<TERMS, Member::WIDTH1, Member::WIDTH2, 1, true>(
          O_IMAGE + Member::AT_KERNEL2, O_IMAGE + Member::AT_BIAS2, H1, g, t, [&](int J, float (&c)[1][4][4]) {
            UNROLL for (int h = 0; h < 4; h++) {
              const float4 b = at<const float4>(O_IMAGE + Member::AT_BIAS2 + ((J * 4 + h) * 4 + t) * 16);
              const float bias[4] = {b.x, b.y, b.z, b.w};
              UNROLL for (int i = 0; i < 4; i++) sum_of(kind, J, h, i) = kind == VALUE ? c[0][h][i] : c[0][h][i] - bias[i];
            }
          });
    }
    sync_block();  // all kinds' sums
    if (kind == SECOND) {
      u32 T2[1][Member::WIDTH2 / 8][2 * TERMS], Q[2][2 * TERMS];
      UNROLL for (int J = 0; J < Member::WIDTH2 / 32; J++)
        UNROLL for (int h = 0; h < 4; h++) {
          float c[4];
          UNROLL for (int i = 0; i < 4; i++) {
            const Silu f(sum_of(VALUE, J, h, i));
            c[i] = f.second * second_squares(J, h, i) + f.first * sum_of(SECOND, J, h, i);
          }
          pack_operand<TERMS>(c, T2[0][4 * J + h]);
        }
      float curvature[1][4];
      last_layer<Member, 1>(O_IMAGE, 0, T2, g, t, curvature);
      UNROLL for (int i = 0; i < 4; i++) {
        const bool here = 2 * t + (i & 1) < OBSERVATION && pass * 16 + 8 * (i >> 1) + g < LAPLACIAN;
        const float x = here ? curvature[0][i] : 0.0f;
        loss += laplacian_weight * x * x / LAPLACIAN;
        curvature[0][i] = 2 * x;
      }
      pack_operand<TERMS>(curvature[0], Q[0]);
      UNROLL for (int j = 0; j < 2 * TERMS; j++) Q[1][j] = 0, at<u32>(O_GIVEN + (j * WARP + lane) * 4) = Q[0][j];
      partial.add_last(T2[0], Q);
    }
    sync_block();  // gradients of the curvatures
    if (mine) {
      u32 Q[2 * TERMS], Z[1][Member::WIDTH2 / 8][2 * TERMS];
      UNROLL for (int j = 0; j < 2 * TERMS; j++) Q[j] = at<const u32>(O_GIVEN + (j * WARP + lane) * 4);
      UNROLL for (int J = 0; J < Member::WIDTH2 / 32; J++) {
        u32 b[4][TERMS], o[4][2 * TERMS];
        read_kernel3_back<Member>(O_BACK3, 0, J, g, t, b);
        UNROLL for (int h = 0; h < 4; h++) {
          float c[4] = {0, 0, 0, 0};
          multiply8<TERMS>(c, Q, b[h]);
          UNROLL for (int i = 0; i < 4; i++) {
            const Silu f(sum_of(VALUE, J, h, i));
            c[i] *= kind == VALUE    ? f.third * second_squares(J, h, i) + f.second * sum_of(SECOND, J, h, i)
                    : kind == SECOND ? f.first
                                     : 2 * f.second * sum_of(kind, J, h, i);
          }
          pack_operand<TERMS>(c, o[h]);
          UNROLL for (int j = 0; j < 2 * TERMS; j++) Z[0][4 * J + h][j] = o[h][j];
        }
        exchange<TERMS, Member::WIDTH2>(O_Z, Mine::PLANE_Z, row0, J, g, t, o, zero);
      }
      hidden_layer<TERMS, Member::WIDTH2, Member::WIDTH1, 1, false>(O_BACK2, 0, Z, g, t, [&](int J, float (&c)[1][4][4]) {
        float z[4][4], s[4][4];
        first_layer_sums<Member>(O_IMAGE, X, J, lane, z);
        if (kind == SECOND) first_squares(J, s);
        else first_slopes(kind - 1, J, s);
        add_first(J, c[0], z, X, [&](const Silu& f, int h, int i) {  // to dz
          return kind == VALUE ? f.first : kind == SECOND ? f.third * s[h][i] : f.second * s[h][i];
        });
        u32 axis[Member::CHUNKS][2 * TERMS];
        if (kind != VALUE && kind != SECOND) {
          direction(kind - 1, axis);
          add_first(J, c[0], z, axis, [&](const Silu& f, int h, int i) { return f.first; });  // to ds_j
        }
        if (kind == SECOND) {
          for (int j = 0; j < OBSERVATION; j++) {
            first_slopes(j, J, s), direction(j, axis);
            add_first(J, c[0], z, axis, [&](const Silu& f, int h, int i) { return 2 * f.second * s[h][i]; });  // to ds_j
          }
        }
      });
    }
  }
  /// The first layer's gradients from those of a kind's units c times what factor says, for rows whose inputs are X.
  template <class F>
  DEVICE_METHOD void add_first(int J, const float (&c)[4][4], const float (&z)[4][4], const u32 (&X)[Member::CHUNKS][2 * TERMS], F factor) {
    u32 o[4][2 * TERMS], XT[Member::CHUNKS][2 * TERMS];
    UNROLL for (int h = 0; h < 4; h++) {
      float x[4];
      UNROLL for (int i = 0; i < 4; i++) x[i] = c[h][i] * factor(Silu(z[h][i]), h, i);
      pack_operand<TERMS>(x, o[h]);
    }
    UNROLL for (int q = 0; q < Member::CHUNKS; q++) transpose_operand<TERMS>(X[q], XT[q]);
    partial.add_first(J, o, XT);
  }

  // ------------------------------------------------------------------------------------------------------ Adam
  DEVICE_METHOD void change_one(float gradient, bool kernel, float (&x)[3], float rate, float correction) {
    if (kernel) squares += x[0] * x[0];
    adam(gradient * (1 / (SHARE * BATCH)) + (kernel ? decay * x[0] : 0.0f), x, rate, correction, 0.0f);
  }
  DEVICE_METHOD void change_small(int slot, int place, float gradient, float rate, float correction, bool rests) {
    float x[3];
    state.get(slot, place, x);
    const bool kernel = place < Member::BIAS1 || (place >= Member::KERNEL3 && place < Member::BIAS3);
    change_one(gradient, kernel, x, rate, correction);
    if (rests) return;
    state.set(slot, place, x);
    put_small<Member, true>(O_IMAGE, O_BACK3, place, x[0]);
  }
  /// All sums of gradients so far times a weight.
  DEVICE_METHOD void weigh(float (&d)[Mine::PER_WARP][2][2][4], float (&b)[Mine::PER_WARP][Mine::BIAS_TILES][4], float weight) {
    UNROLL for (int k = 0; k < 4; k++) {
      UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 2; j++) d[p][i][j][k] *= weight;
        UNROLL for (int j = 0; j < Mine::BIAS_TILES; j++) b[p][j][k] *= weight;
      }
      UNROLL for (int q = 0; q < Member::CHUNKS; q++) UNROLL for (int j = 0; j < Member::WIDTH1 / 16; j++) partial.first[q][j][k] *= weight;
      UNROLL for (int q = 0; q < Member::TILES; q++) UNROLL for (int j = 0; j < Member::WIDTH2 / 16; j++) partial.last[q][j][k] *= weight;
    }
  }
  /// One minibatch.
  DEVICE_METHOD void learn(int batch, int count, float rate, float correction, bool rests) {
    float d[Mine::PER_WARP][2][2][4], b[Mine::PER_WARP][Mine::BIAS_TILES][4];
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++) UNROLL for (int k = 0; k < 4; k++) d[p][i][j][k] = 0.0f;
      UNROLL for (int j = 0; j < Mine::BIAS_TILES; j++) UNROLL for (int k = 0; k < 4; k++) b[p][j][k] = 0.0f;
    }
    partial.clear();
#ifndef EMU
#pragma unroll 1
#endif
    for (int pass = -LAPLACIAN_PASSES; pass < PASSES; pass++) {
      if (pass < 0) penalise(pass + LAPLACIAN_PASSES);
      else learn_rows(pass);
      const u32 part = O_PARTS + warp * (Mine::PART * 4);
      if (pass + 1 == PASSES) partial.write_last(part, lane), partial.write_first(part, lane);
      sync_block();  // units and gradients of all rows, partial sums
      UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
        const int piece = warp + p * WARPS;
        if (piece >= Mine::PIECES) continue;
        if (pass < 0) piece_gradient<Mine>(O_H, O_Z, 16 * KINDS, 16, piece, lane, d[p], b[p]);  // the bias is the values' alone
        else piece_gradient<Mine>(O_H, O_Z, PASS_ROWS, PASS_ROWS, piece, lane, d[p], b[p]);
      }
      if (pass == -1) weigh(d, b, laplacian_weight * SHARE * BATCH / (LAPLACIAN ? LAPLACIAN : 1));
      if (pass + 1 < PASSES) sync_block();  // all have read the exchange
    }
    if (batch + 1 < count) fetch_rows(batch + 1);
    float small[Mine::PER_THREAD];
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
      const int q = thread + k * THREADS, place = Mine::part_of_small(q < Mine::SMALL ? q : 0);
      small[k] = 0.0f;
      UNROLL for (int w = 0; w < WARPS; w++) small[k] += at<const float>(O_PARTS + (w * Mine::PART + place) * 4);
    }
    sync_block();  // all have read the exchange and the partial sums
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      const int piece = warp + p * WARPS;
      if (piece >= Mine::PIECES) continue;
      UNROLL for (int s = 0; s < 16; s += 2) {
        const int in = Mine::input_of(piece, s, g), out = Mine::output_of(piece, s, t), slot = p * Mine::OF_PIECE + s;
        const int place = Member::KERNEL2 + in * Member::WIDTH2 + out;
        float x[2][3];
        state.get_pair(slot, place, x);
        UNROLL for (int e = 0; e < 2; e++) change_one(d[p][s >> 3][s >> 2 & 1][(s & 2) + e], true, x[e], rate, correction);
        if (rests) continue;
        put_pair2<Member, true>(O_IMAGE, O_BACK2, in, out >> 3, g, t, x[0][0], x[1][0]);
        state.set_pair(slot, place, x);
      }
      UNROLL for (int k = 0; k < Mine::BIAS_TILES; k++)
        if (Mine::has_bias(piece, g))
          change_small(p * Mine::OF_PIECE + 16 + k, Member::BIAS2 + Mine::bias_unit(piece, k, g, t), g ? b[p][k][1] : b[p][k][0], rate, correction, rests);
    }
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
      const int q = thread + k * THREADS;
      if (q < Mine::SMALL)
        change_small(Mine::PER_WARP * Mine::OF_PIECE + k, Mine::place_of_small(q), small[k], rate, correction, rests);
    }
    sync_block();  // weights
  }

  // --------------------------------------------------------------------------------------------------- holdout
  /// Sums over the held-out rows that hold data: squared errors, twice the negative log-likelihoods, and how many rows.
  DEVICE_METHOD void hold_out(int size, float* told) const {
    constexpr int COUNT = TABLE_ROWS / HELD_OUT_EVERY;
    told[0] = told[1] = told[2] = 0.0f;
    for (int tile = warp; tile * 16 < COUNT; tile += WARPS) {
      u32 X[1][Member::CHUNKS][2 * TERMS];
      const float* rows[2];
      bool counts[2];
      UNROLL for (int half = 0; half < 2; half++) {
        const int number = tile * 16 + 8 * half + g, row = (number < COUNT ? number : 0) * HELD_OUT_EVERY + HELD_OUT_EVERY - 1;
        counts[half] = number < COUNT && row < size, rows[half] = table + (size_t)row * TABLE_WIDTH;
        if (t == 0 && counts[half]) told[2] += 1;
      }
      inputs_of(rows, X[0]);
      float y[2][4];
      forward<Member, SILU, false>(O_IMAGE, X, lane, y);
      UNROLL for (int i = 0; i < 4; i++) {
        const int half = i >> 1, k = i & 1;
        if (!counts[half] || 2 * t + k >= OBSERVATION) continue;
        float square, likelihood, unused[2];
        judge(y[0][i], y[1][i], rows[half][Member::INPUTS + 2 * t + k], k, square, likelihood, unused[0], unused[1]);
        told[0] += square, told[1] += likelihood;
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) mbrl_fit(
    const float*, const float*, const float*, const float* bounds, const float* table, const int* batches, const float* schedule,
    const int* counts, const int* resting, const float* weights, float* parameters, float* mu, float* nu, float* told) {
  const size_t seed = blockIdx.x / MEMBERS, member = blockIdx.x % MEMBERS, P = Member::PARAMETERS, mine = blockIdx.x;
  const int thread = threadIdx.x, count = counts[seed * 8], size = counts[seed * 8 + 1];
  Fit fit;
  fit.thread = thread, fit.warp = thread / WARP, fit.lane = thread % WARP, fit.g = fit.lane >> 2, fit.t = fit.lane & 3;
  fit.zero = counts[seed * 8 + 7], fit.decay = weights[seed * 2], fit.laplacian_weight = weights[seed * 2 + 1];
  fit.table = table + seed * TABLE_ROWS * TABLE_WIDTH;
  fit.loss = fit.squares = 0.0f;
  fit.state.global[0] = parameters + mine * P, fit.state.global[1] = mu + mine * P, fit.state.global[2] = nu + mine * P;
  const bool rests = resting[mine];
  load_member(O_IMAGE, parameters + seed * MEMBERS * P, bounds + seed * MEMBERS * 2 * OBSERVATION, member, thread, THREADS);
  load_back<Member>(O_BACK2, O_BACK3, parameters + mine * P, thread, THREADS);
  fit.state.load(thread);
  fit.batches = batches + (seed * count * MEMBERS + member) * BATCH;
  if (count > 0) fit.fetch_rows(0);
  sync_block();
  for (int i = 0; i < count; i++) {
    const float* now = schedule + (seed * count + i) * 2;
    fit.learn(i, count, now[0], now[1], rests);
  }
  fit.state.store(thread);

  float sums[4];
  fit.hold_out(size, sums);
  sums[3] = (fit.loss + 0.5f * fit.decay * fit.squares) / (count > 0 ? count : 1);
  UNROLL for (int k = 0; k < 4; k++) {
    const float x = sum_row_threads(sum_rows(sums[k]));
    if (fit.lane == 0) at<float>(O_PARTS + (fit.warp * 4 + k) * 4) = x;
  }
  sync_block();
  if (thread == 0) {
    float all[4] = {0, 0, 0, 0};
    for (int w = 0; w < WARPS; w++)
      for (int k = 0; k < 4; k++) all[k] += at<const float>(O_PARTS + (w * 4 + k) * 4);
    told[mine * 3] = all[3], told[mine * 3 + 1] = all[0] / all[2], told[mine * 3 + 2] = 0.5f * all[1] / all[2];
  }
}

#ifdef EMU
extern "C" int emulate_mbrl_fit(void** pointers, int blocks, int backwards) {
  return emu::run_kernel(mbrl_fit, THREADS, SHARED_BYTES, blocks, backwards, pointers);
}
extern "C" unsigned shared_bytes() { return SHARED_BYTES; }
extern "C" unsigned threads() { return THREADS; }
#endif
