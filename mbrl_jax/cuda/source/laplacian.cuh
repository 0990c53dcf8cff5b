// The penalty on the Laplacian of the predicted means, on 16 rows at a time.
//
// The value, the slope along each observation axis and the sum of second derivatives go through the network side by side (the
// forward Laplacian, Li et al. 2023, arXiv:2307.08214). Each of these kinds is a warp's tile, and goes through the same products
// as rows of a batch do, forwards and backwards. With z, s_j, t the sums that enter a layer's nonlinearity f, and q the sum of
// s_j^2,
//   value h = f(z)    slope S_j = f'(z) s_j    second T = f''(z) q + f'(z) t
// so that the gradients with respect to z, s_j and t are
//   dz = dh f' + sum_j dS_j s_j f'' + dT (f''' q + f'' t)    ds_j = dS_j f' + 2 dT f'' s_j    dt = dT f'
#pragma once
#include "fit_rows.cuh"

struct Penalty : FitRows {
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
  DEVICE_METHOD void add_first(int J, const float (&c)[4][4], const float (&z)[4][4],
                               const u32 (&X)[Member::CHUNKS][2 * TERMS], F factor) {
    u32 o[4][2 * TERMS], XT[Member::CHUNKS][2 * TERMS];
    UNROLL for (int h = 0; h < 4; h++) {
      float x[4];
      UNROLL for (int i = 0; i < 4; i++) x[i] = c[h][i] * factor(Silu(z[h][i]), h, i);
      pack_operand<TERMS>(x, o[h]);
    }
    UNROLL for (int q = 0; q < Member::CHUNKS; q++) transpose_operand<TERMS>(X[q], XT[q]);
    partial.add_first(J, o, XT);
  }
};
