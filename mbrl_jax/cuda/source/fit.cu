// A fit of one member of the dynamics ensemble: n minibatches by Adam, then its errors on the rows held out. One block is one
// member of one seed. A minibatch goes forwards and backwards in passes, 16 rows a warp, with those of the penalty before them.
//
// Gradients of the likelihood are carried in half precision as a sixteenth of a row's own, which keeps them in its range. Those
// of the penalty are carried as of a row's sum of squares; the float32 sums get its weight when its passes are over.
#include "laplacian.cuh"

struct Fit : Penalty {
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
  /// One minibatch.
  DEVICE_METHOD void learn(int batch, int count, float rate, float correction, bool rests) {
    Pieces<Mine> pieces;
    pieces.clear();
    partial.clear();
#ifndef EMU
#pragma unroll 1
#endif
    for (int pass = -LAPLACIAN_PASSES; pass < PASSES; pass++) {
      if (pass < 0) penalise(pass + LAPLACIAN_PASSES);
      else learn_rows(pass);
      if (pass + 1 == PASSES) partial.write_first(part_of(warp), lane);
      sync_block();  // units and gradients of all rows, partial sums
      if (pass < 0) pieces.add(O_H, O_Z, 16 * KINDS, 16, warp, lane);  // the bias goes with the values alone
      else pieces.add(O_H, O_Z, PASS_ROWS, PASS_ROWS, warp, lane);
      if (pass == -1) {  // the penalty's passes are over: its weight, in the unit of the rows that follow
        const float weight = laplacian_weight * SHARE * BATCH / (LAPLACIAN ? LAPLACIAN : 1);
        pieces.multiply(weight), partial.multiply(weight);
      }
      if (pass + 1 < PASSES) sync_block();  // all have read the exchange
    }
    if (batch + 1 < count) fetch_rows(batch + 1);
    float small[Mine::PER_THREAD];
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
      const int q = thread + k * THREADS, place = Mine::part_of_small(q < Mine::SMALL ? q : 0);
      small[k] = 0.0f;
      UNROLL for (int w = 0; w < WARPS; w++) small[k] += at<const float>(part_of(w) + place * 4);
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
        UNROLL for (int e = 0; e < 2; e++) change_one(pieces.weight(p, s + e), true, x[e], rate, correction);
        if (rests) continue;
        put_pair2<Member, true>(O_IMAGE, O_BACK2, in, out >> 3, g, t, x[0][0], x[1][0]);
        state.set_pair(slot, place, x);
      }
      UNROLL for (int k = 0; k < Mine::BIAS_TILES; k++)
        if (Mine::has_bias(piece, g)) {
          const int place = Member::BIAS2 + Mine::bias_unit(piece, k, g, t);
          change_small(p * Mine::OF_PIECE + 16 + k, place, pieces.bias(p, k, g), rate, correction, rests);
        }
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
