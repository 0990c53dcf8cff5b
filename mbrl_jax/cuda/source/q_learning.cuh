// An update of the Q-network: a warp takes 32 rows of the minibatch forwards and backwards; then all warps make the gradients
// and Adam's step, and each thread puts what it owns into the images of both networks.
#pragma once
#include "imagining.cuh"

/// Weight, mean, and sum of squared distances to it, of weighed numbers; they add up without cancelling.
struct Spread {
  float weight = 0, mean = 0, squares = 0;
  DEVICE_METHOD void add(float w, float m, float s) {
    if (!(w > 0)) return;
    const float both = weight + w, apart = m - mean;
    mean += apart * (w / both), squares += s + apart * apart * (weight * w / both), weight = both;
  }
};

struct Learning : Imagining {
  int frozen, updates;
  u32 zero;                     // as in exchange
  float discount, follow, delta;
  u32 next[PASSES];             // random bits of this lane's rows of the next minibatch
  float loss, scaled;           // of this step's updates, in thread 0
  State state;

  DEVICE_METHOD void fetch_bits(int update) {
    UNROLL for (int p = 0; p < PASSES; p++) {
      const int row = p * ROWS + thread;
      next[p] = thread < ROWS && row < BATCH ? a.minibatch[(size_t)update * BATCH + row] : 0;
    }
  }
  DEVICE_METHOD void fetch_members() {
    for (int i = thread; i < (int)(IMAGES / 16); i += THREADS) copy_async_16(O_IMAGES + i * 16, a.scratch + i * 16);
  }
  /// The value that is `action`'s, of a row's values 2t and 2t + 1 (with two actions, in thread t = 0 alone).
  DEVICE_METHOD float value_of(const float* u, int action) const {
    const float mine = action & 1 ? u[1] : u[0];
    return ACTIONS == 2 ? mine : shuffle(mine, (lane & ~3) + (action >> 1));
  }
  /// Over the threads that hold a row's values, and over rows.
  DEVICE_METHOD float sum_all(float x) const { return ACTIONS == 2 ? sum_rows(x) : sum_row_threads(sum_rows(x)); }

  static DEVICE_METHOD u32 part_of(int warp) { return O_PARTS + warp * (Mine::PART * 4); }
  /// Take the 32 rows of this warp forwards and backwards.
  DEVICE_METHOD void learn_rows(int pass, int size, Partial<Mine>& partial, Spread& spread) {
    const int mine = next[pass] % (u32)size, row0 = 32 * warp;
    u32 X[TILES][Policy::CHUNKS][2 * TERMS], N[TILES][Policy::CHUNKS][2 * TERMS], XT[TILES][Policy::CHUNKS][2 * TERMS];
    int action[4];
    float weight[4], y[4], gain[4];  // of rows 8r + g; y: reward, then target
    {
      float s[4][2], after[4][2];
      UNROLL for (int r = 0; r < 4; r++) {
        const float* row = a.ring + (size_t)shuffle(mine, 8 * r + g) * ROW;
        UNROLL for (int k = 0; k < 2; k++) {
          const bool here = 2 * t + k < OBSERVATION;
          s[r][k] = here ? row[2 * t + k] * scale[k] : 0.0f, after[r][k] = here ? row[OBSERVATION + 2 * t + k] * scale[k] : 0.0f;
        }
        const float told = row[2 * OBSERVATION + t];  // action, reward, terminated, weight
        action[r] = (int)shuffle(told, lane & ~3), y[r] = shuffle(told, (lane & ~3) + 1);
        gain[r] = shuffle(told, (lane & ~3) + 2) > 0.5f ? 0.0f : discount;
        weight[r] = shuffle(told, (lane & ~3) + 3);
        if (pass * ROWS + row0 + 8 * r + g >= BATCH) weight[r] = 0.0f;
      }
      auto pack_rows = [&](const float (&x)[4][2], int i, u32 (&O)[Policy::CHUNKS][2 * TERMS]) {
        pack_inputs<Policy>(t, [&](int half, int chunk, int k, int number) {
          return chunk == 0 && number < OBSERVATION ? x[2 * i + half][k] : number == OBSERVATION ? 1.0f : 0.0f;
        }, O);
      };
      UNROLL for (int i = 0; i < TILES; i++) {
        pack_rows(s, i, X[i]), pack_rows(after, i, N[i]);
        UNROLL for (int q = 0; q < Policy::CHUNKS; q++) transpose_operand<TERMS>(X[i][q], XT[i][q]);
      }
    }
    u32 H2[TILES][Policy::WIDTH2 / 8][2 * TERMS], Q[TILES][1][2 * TERMS];
    {
      float q[TILES][4];
      int best = 0;  // 4 bits a row: the online network's choice in s'
#ifndef EMU
#pragma unroll 1  // one copy of the code: with three it is slower
#endif
      for (int k = TARGET ? 0 : 1; k < 3; k++) {  // s' by the online network, s' by the target network, s by the online one
        const u32 image = k == 1 ? O_TARGET : O_ONLINE;
        u32 I[TILES][Policy::CHUNKS][2 * TERMS], H1[TILES][Policy::WIDTH1 / 8][2 * TERMS];
        UNROLL for (int i = 0; i < TILES; i++)
          UNROLL for (int c = 0; c < Policy::CHUNKS; c++)
            UNROLL for (int j = 0; j < 2 * TERMS; j++) I[i][c][j] = k == 2 ? X[i][c][j] : N[i][c][j];
        first_layer<Policy, TILES, RELU, false>(image, I, lane, H1);
        if (k == 2) {
          UNROLL for (int i = 0; i < TILES; i++)
            UNROLL for (int J = 0; J < Policy::WIDTH1 / 32; J++) {
              u32 o[4][2 * TERMS];
              UNROLL for (int h = 0; h < 4; h++) UNROLL for (int j = 0; j < 2 * TERMS; j++) o[h][j] = H1[i][4 * J + h][j];
              exchange<TERMS, Policy::WIDTH1>(O_H, Mine::PLANE_H, row0 + 16 * i, J, g, t, o, zero);
            }
        }
        hidden_layer<TERMS, Policy::WIDTH1, Policy::WIDTH2, TILES, true>(
            image + Policy::AT_KERNEL2, image + Policy::AT_BIAS2, H1, g, t, Activate<Policy, TILES, RELU, false>{H2});
        last_layer<Policy, TILES>(image, 0, H2, g, t, q);
        const float2 bias = at<const float2>(image + Policy::AT_BIAS3 + t * 8);
        UNROLL for (int r = 0; r < 4; r++) {
          float* u = q[r >> 1] + (r & 1) * 2;
          u[0] += bias.x, u[1] += bias.y;
          if (k == 0) best |= best_action<false>(u, t, lane) << 4 * r;
          if (k == 1) y[r] += gain[r] * value_of(u, TARGET ? best >> 4 * r & 15 : best_action<false>(u, t, lane));
        }
      }
      float told[3] = {0, 0, 0}, squares = 0;  // weights, losses, targets
      UNROLL for (int i = 0; i < TILES; i++) {
        float slope[4];
        UNROLL for (int half = 0; half < 2; half++) {
          const int r = 2 * i + half;
          const bool here = action[r] >> 1 == t;
          const float error = (action[r] & 1 ? q[i][2 * half + 1] : q[i][2 * half]) - y[r], size = fabsf(error);
          const float w = here ? weight[r] : 0.0f;
          const float each = LOSS == 0 ? error * error : size <= delta ? 0.5f * error * error : delta * (size - 0.5f * delta);
          const float s = LOSS == 0 ? 2 * error : fminf(fmaxf(error, -delta), delta);
          UNROLL for (int k = 0; k < 2; k++) {
            slope[2 * half + k] = here && (action[r] & 1) == k ? w * s : 0.0f;
            partial.slopes[0][k] += slope[2 * half + k];
          }
          told[0] += w, told[1] += here ? w * each : 0.0f, told[2] += here ? w * y[r] : 0.0f;
        }
        pack_operand<TERMS>(slope, Q[i][0]);
      }
      UNROLL for (int k = 0; k < 3; k++) told[k] = sum_all(told[k]);
      const float mean = told[0] > 0 ? told[2] / told[0] : 0.0f;
      UNROLL for (int r = 0; r < 4; r++) squares += action[r] >> 1 == t ? weight[r] * (y[r] - mean) * (y[r] - mean) : 0.0f;
      spread.add(told[0], mean, sum_all(squares));
      partial.told[3] += told[1];
    }
    UNROLL for (int i = 0; i < TILES; i++) partial.add_last(H2[i], Q[i]);
    partial.told[0] = spread.weight, partial.told[1] = spread.mean, partial.told[2] = spread.squares;
    if (!ALIAS && pass + 1 == PASSES) partial.write_last(part_of(warp), lane);  // early: their registers are needed

    u32 Z[TILES][Policy::WIDTH2 / 8][2 * TERMS];
    UNROLL for (int J = 0; J < Policy::WIDTH2 / 32; J++) {  // dZ2 = (dQ W3') where H2 > 0
      u32 b[4][TERMS];
      read_kernel3_back<Policy>(O_BACK3, 0, J, g, t, b);
      UNROLL for (int i = 0; i < TILES; i++) {
        u32 o[4][2 * TERMS];
        UNROLL for (int h = 0; h < 4; h++) {
          float c[4] = {0, 0, 0, 0};
          multiply8<TERMS>(c, Q[i][0], b[h]);
          pack_operand<TERMS>(c, o[h]);
          UNROLL for (int j = 0; j < 2 * TERMS; j++) Z[i][4 * J + h][j] = o[h][j] &= mask_positive(H2[i][4 * J + h][j & 1]);
        }
        exchange<TERMS, Policy::WIDTH2>(O_Z, Mine::PLANE_Z, row0 + 16 * i, J, g, t, o, zero);
      }
    }
    hidden_layer<TERMS, Policy::WIDTH2, Policy::WIDTH1, TILES, false>(O_BACK2, 0, Z, g, t, [&](int J, float (&c)[TILES][4][4]) {
      UNROLL for (int i = 0; i < TILES; i++) {  // dZ1 = (dZ2 W2') where H1 > 0
        u32 o[4][2 * TERMS];
        UNROLL for (int half = 0; half < 2; half++) {
          const uint4 v = exchanged<Policy::WIDTH1>(O_H, row0 + 16 * i, half, J, g, t);
          const u32 on[4] = {v.x, v.y, v.z, v.w};
          UNROLL for (int h = 0; h < 4; h++) {
            if (half == 0) pack_operand<TERMS>(c[i][h], o[h]);
            UNROLL for (int j = half; j < 2 * TERMS; j += 2) o[h][j] &= mask_positive(on[h]);
          }
        }
        partial.add_first(J, o, XT[i]);
      }
    });
  }
  DEVICE_METHOD void learn(int step, int update) {
    const int number = step * UPDATES + update;
    const long long written = (long long)first + (long long)(step + 1) * STEPS_OF_LANES;
    const int size = written < CAPACITY ? (int)written : CAPACITY;
    const float rate = a.updates[number * 2], correction = a.updates[number * 2 + 1];
    Pieces<Mine> pieces;
    pieces.clear();
    {
      Partial<Mine> partial;
      Spread spread;
      partial.clear();
      UNROLL for (int pass = 0; pass < PASSES; pass++) {
        if (warp < LEARNERS) {
          learn_rows(pass, size, partial, spread);
          if (!ALIAS && pass + 1 == PASSES) partial.write_first(part_of(warp), lane);
        }
        sync_block();  // units and gradients of all rows, partial sums
        pieces.add(O_H, O_Z, ROWS, ROWS, warp, lane);
        if (pass + 1 < PASSES) sync_block();  // all have read the exchange
      }
      if (ALIAS) {
        sync_block();
        if (warp < LEARNERS) partial.write_last(part_of(warp), lane), partial.write_first(part_of(warp), lane);
        sync_block();
      }
    }
    if (number + 1 < a.counters[C_STEPS] * UPDATES) fetch_bits(number + 1);

    // what all rows say together
    float small[Mine::PER_THREAD], weight = 0;
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) small[k] = 0.0f;
    UNROLL for (int w = 0; w < LEARNERS; w++) {
      const u32 part = part_of(w);
      weight += at<const float>(part + Mine::PART_TOLD * 4);
      UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
        const int q = thread + k * THREADS;
        small[k] += at<const float>(part + Mine::part_of_small(q < Mine::SMALL ? q : 0) * 4);
      }
    }
    const float by = 1.0f / fmaxf(weight, SMALLEST);
    pieces.multiply(by);
    int bad = !pieces.is_finite_everywhere();
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) bad |= !is_finite(small[k] *= by);
    if (thread == 0) tell(by, update);
    frozen |= any_in_block(bad);  // and all have read the exchange and the partial sums
    if (STREAM && update + 1 == UPDATES) fetch_members();
    if (!frozen) {
      updates++;
      change(pieces, small, rate, correction);
    }
  }
  /// Add an update's loss to the step's, and that over the variance of the targets.
  DEVICE_METHOD void tell(float by, int update) {
    Spread all;
    float sum = 0;
    for (int w = 0; w < LEARNERS; w++) {
      const u32 told = part_of(w) + Mine::PART_TOLD * 4;
      all.add(at<const float>(told), at<const float>(told + 4), at<const float>(told + 8)), sum += at<const float>(told + 12);
    }
    if (update == 0) loss = scaled = 0;
    loss += sum * by / UPDATES, scaled += sum * by / fmaxf(all.squares * by, 1e-8f) / UPDATES;
  }
  /// Adam's step, from the gradients of all parameters that this thread owns.
  DEVICE_METHOD void change(const Pieces<Mine>& pieces, const float (&small)[Mine::PER_THREAD], float rate, float correction) {
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      const int piece = warp + p * WARPS;
      if (piece >= Mine::PIECES) continue;
      UNROLL for (int s = 0; s < 16; s += 2) {
        const int in = Mine::input_of(piece, s, g), out = Mine::output_of(piece, s, t), slot = p * Mine::OF_PIECE + s;
        const int place = Policy::KERNEL2 + in * Policy::WIDTH2 + out;
        float x[2][4];
        state.get_pair(slot, place, x);
        UNROLL for (int e = 0; e < 2; e++) adam(pieces.weight(p, s + e), x[e], rate, correction, follow);
        put_pair2<Policy, true>(O_ONLINE, O_BACK2, in, out >> 3, g, t, x[0][0], x[1][0]);
        put_pair2<Policy, false>(O_TARGET, 0, in, out >> 3, g, t, x[0][3], x[1][3]);
        state.set_pair(slot, place, x);
      }
      UNROLL for (int k = 0; k < Mine::BIAS_TILES; k++)
        if (Mine::has_bias(piece, g)) {
          const int place = Policy::BIAS2 + Mine::bias_unit(piece, k, g, t);
          change_small(p * Mine::OF_PIECE + 16 + k, place, pieces.bias(p, k, g), rate, correction);
        }
    }
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
      const int q = thread + k * THREADS;
      if (q < Mine::SMALL) change_small(Mine::PER_WARP * Mine::OF_PIECE + k, Mine::place_of_small(q), small[k], rate, correction);
    }
  }
  DEVICE_METHOD void change_small(int slot, int place, float gradient, float rate, float correction) {
    float x[4];
    state.get(slot, place, x);
    adam(gradient, x, rate, correction, follow);
    state.set(slot, place, x);
    put_small<Policy, true>(O_ONLINE, O_BACK3, place, x[0]), put_small<Policy, false>(O_TARGET, 0, place, x[3]);
  }
};
