// A round of Dyna-Q with a Q-learner: T real steps, each of K lanes x H imagined steps and U updates. One block is one seed.
//
// Everything that a step reads and writes again lies in shared memory or in registers from the first step to the last: both
// networks, Adam's moments, the members, the lanes. A step is
//   act       (interactive) one step of the real cart and pole
//   imagine   a warp takes the rollouts of one member, 16 at a time, through H steps; their rows go to the ring
//   learn     a warp takes 32 rows of the minibatch forwards and backwards; then all warps make the gradients and Adam
// with a barrier of the block between imagine and learn, after the way back, before the parameters change and after it.
//
// Sizes by -D with MBRL_ before each, beside those of world.cuh: LANES, HORIZON, BATCH, UPDATES, CAPACITY, REAL_CAPACITY; TARGET 0 max, 1 double; LOSS
// 0 squared, 1 Huber; SAMPLER 0 ts1, 1 ts_infinity; RESTART 0 streaming, 1 per_step; PROTOCOL 0 batch, 1 interactive (TIME_LIMIT).
// Where memory is scarce: STATE as in Owned; STREAM 1 brings the members in anew at each step, into the space of the exchange;
// ALIAS 1 puts partial sums there too, for two more barriers.
#include "learning.cuh"
#include "world.cuh"

constexpr int LANES = MBRL_LANES, HORIZON = MBRL_HORIZON, BATCH = MBRL_BATCH, UPDATES = MBRL_UPDATES, CAPACITY = MBRL_CAPACITY,
              REAL_CAPACITY = MBRL_REAL_CAPACITY;
constexpr int TARGET = MBRL_TARGET, LOSS = MBRL_LOSS, SAMPLER = MBRL_SAMPLER, RESTART = MBRL_RESTART, PROTOCOL = MBRL_PROTOCOL;
constexpr int STATE = MBRL_STATE, STREAM = MBRL_STREAM, ALIAS = MBRL_ALIAS;  // variants of memory
constexpr int WARPS = 8, THREADS = WARPS * WARP, TILES = 2;  // tiles of 16 rows in a warp
constexpr int ROW = 2 * OBSERVATION + 5;                     // floats of a row: s, s', action, reward, terminated, weight, depth
constexpr int PER_MEMBER = LANES / MEMBERS, STEPS_OF_LANES = HORIZON * LANES;
static_assert(LANES % MEMBERS == 0, "lanes are a multiple of the members");
constexpr bool HALF = PER_MEMBER <= 8;
constexpr int TILES_OF_MEMBER = (PER_MEMBER + 15) / 16, IMAGINERS = MEMBERS * TILES_OF_MEMBER;
constexpr int IMAGINING_WARPS = IMAGINERS < WARPS ? IMAGINERS : WARPS;
constexpr int LEARNERS = BATCH >= 32 * WARPS ? WARPS : (BATCH + 31) / 32;  // warps that have rows
constexpr int ROWS = 32 * LEARNERS, PASSES = (BATCH + ROWS - 1) / ROWS;
static_assert(!ALIAS || PASSES == 1, "partial sums cannot share the exchange where a minibatch takes several passes");
using Mine = Share<Policy, WARPS, ROWS>;
using State = Owned<Mine, STATE, true>;

// shared memory, bytes
constexpr u32 aligned(u32 x) { return (x + 127) / 128 * 128; }
constexpr u32 IMAGES = MEMBERS * MEMBER_SIZE, PARTS = LEARNERS * Mine::PART * 4;
constexpr u32 O_ONLINE = 0, O_TARGET = aligned(O_ONLINE + Policy::SIZE), O_BACK2 = aligned(O_TARGET + Policy::SIZE),
              O_BACK3 = aligned(O_BACK2 + Policy::PLANE2 * TERMS), O_H = aligned(O_BACK3 + Policy::PLANE3_BACK * TERMS),
              O_Z = O_H + Mine::SIZE_H, O_ROOT = aligned(O_Z + Mine::SIZE_Z), O_NOISE = O_ROOT + STEPS_OF_LANES * STRIDE * 4,
              O_EXPLORE = O_NOISE + STEPS_OF_LANES * STRIDE * 4, O_ACTION = O_EXPLORE + STEPS_OF_LANES * 4,
              O_DEAL = O_ACTION + STEPS_OF_LANES * 4, O_BELIEF = aligned(O_DEAL + STEPS_OF_LANES * 4),
              O_FROM = O_BELIEF + LANES * STRIDE * 4, O_DEPTH = O_FROM + LANES * STRIDE * 4, O_IDLE = O_DEPTH + LANES * 4,
              O_NORMALISER = aligned(O_IDLE + LANES * 4), O_OWN_PARTS = O_NORMALISER + NORMALISER_SIZE,
              O_OWN_IMAGES = aligned(O_OWN_PARTS + (ALIAS ? 0 : PARTS)), O_STATE = aligned(O_OWN_IMAGES + (STREAM ? 0 : IMAGES)),
              O_EPISODE = O_STATE + State::SIZE, SHARED_BYTES = O_EPISODE + (PROTOCOL ? 48 : 0);
constexpr u32 O_PARTS = ALIAS ? O_H : O_OWN_PARTS, O_IMAGES = STREAM ? O_H : O_OWN_IMAGES;
static_assert(!STREAM || IMAGES <= Mine::SIZE_H + Mine::SIZE_Z, "the members do not fit into the exchange");
static_assert(!ALIAS || PARTS <= Mine::SIZE_H + Mine::SIZE_Z, "the partial sums do not fit into the exchange");

// counters of a seed, and what a lane's step is told as
enum { C_STEPS, C_IMAGINED, C_REAL, C_FROZEN, C_UPDATES, C_ELAPSED, C_SPARE, C_ZERO, COUNTERS };
enum { STOPPED = 1, TERMINATED = 2, ENDED = 4, ACTIVE = 8, DEPTH_FROM = 16 };

/// Weight, mean, and sum of squared distances to it, of weighed numbers; they add up without cancelling.
struct Spread {
  float weight = 0, mean = 0, squares = 0;
  DEVICE_METHOD void add(float w, float m, float s) {
    if (!(w > 0)) return;
    const float both = weight + w, apart = m - mean;
    mean += apart * (w / both), squares += s + apart * apart * (weight * w / both), weight = both;
  }
};

/// What one seed reads and writes in global memory.
struct Seed {
  float *online, *target, *mu, *nu, *ring, *belief, *from;
  int *depth, *idle, *counters;
  float* real;
  const u32* root;
  const float* explore;
  const int *action, *deal;
  const float* noise;
  const u32* minibatch;
  const float *steps, *updates, *settings;
  float* losses;
  int* codes;
  char* scratch;
  const float* behaviour_explore;
  const int* behaviour_action;
  const float* resets;
};

struct Round {
  Seed a;
  int thread, warp, lane, g, t;
  int first, real;           // rows written to both rings before this launch
  int frozen, updates, elapsed;
  u32 zero;                  // as in exchange
  float scale[2];            // one over the policy's scale of this thread's axes
  float discount, follow, delta;
  u32 next[PASSES];          // random bits of this lane's rows of the next minibatch
  float loss, scaled;        // of this step's updates, in thread 0
  State state;

  // ------------------------------------------------------------------------------------------------- begin and end
  DEVICE_METHOD void begin() {
    load_image<Policy>(O_ONLINE, a.online, thread, THREADS);
    load_image<Policy>(O_TARGET, a.target, thread, THREADS);
    load_back<Policy>(O_BACK2, O_BACK3, a.online, thread, THREADS);
    for (int i = thread; i < LANES * STRIDE; i += THREADS) {
      const int k = i / STRIDE, d = i % STRIDE;
      at<float>(O_BELIEF + i * 4) = d < OBSERVATION ? a.belief[k * OBSERVATION + d] : 0.0f;
      at<float>(O_FROM + i * 4) = d < OBSERVATION ? a.from[k * OBSERVATION + d] : 0.0f;
    }
    for (int i = thread; i < STEPS_OF_LANES * STRIDE; i += THREADS)  // axes that are not there stay 0
      at<float>(O_ROOT + i * 4) = 0.0f, at<float>(O_NOISE + i * 4) = 0.0f;
    for (int i = thread; i < LANES; i += THREADS) at<int>(O_DEPTH + i * 4) = a.depth[i], at<int>(O_IDLE + i * 4) = a.idle[i];
    UNROLL for (int k = 0; k < 2; k++) scale[k] = 2 * t + k < OBSERVATION ? 1.0f / a.settings[8 + 2 * t + k] : 0.0f;
    discount = a.settings[0], follow = a.settings[1], delta = a.settings[2];
    first = a.counters[C_IMAGINED], real = a.counters[C_REAL];
    frozen = a.counters[C_FROZEN], updates = a.counters[C_UPDATES], elapsed = a.counters[C_ELAPSED];
    zero = a.counters[C_ZERO];
    state.global[0] = a.online, state.global[1] = a.mu, state.global[2] = a.nu, state.global[3] = a.target;
    state.shared = O_STATE + thread * 4;
    state.load(thread);
    fetch_bits(0);
    if (STREAM) {
      for (int i = thread; i < (int)(IMAGES / 16); i += THREADS) ((uint4*)a.scratch)[i] = at<const uint4>(O_IMAGES + i * 16);
    }
    sync_block();
    fetch_inputs(0);
    if (!PROTOCOL) fetch_roots(0);
    wait_for_copies();
    sync_block();
  }
  DEVICE_METHOD void end(int steps) {
    state.store(thread);
    for (int i = thread; i < LANES * OBSERVATION; i += THREADS) {
      const u32 place = (i / OBSERVATION * STRIDE + i % OBSERVATION) * 4;
      a.belief[i] = at<float>(O_BELIEF + place), a.from[i] = at<float>(O_FROM + place);
    }
    for (int i = thread; i < LANES; i += THREADS) a.depth[i] = at<int>(O_DEPTH + i * 4), a.idle[i] = at<int>(O_IDLE + i * 4);
    if (thread == 0) {
      a.counters[C_IMAGINED] = first + steps * STEPS_OF_LANES;
      a.counters[C_FROZEN] = frozen, a.counters[C_UPDATES] = updates;
    }
  }
  DEVICE_METHOD void fetch_bits(int update) {
    UNROLL for (int p = 0; p < PASSES; p++) {
      const int row = p * ROWS + thread;
      next[p] = thread < ROWS && row < BATCH ? a.minibatch[(size_t)update * BATCH + row] : 0;
    }
  }
  /// What the lanes of a step are given, but for their roots; it arrives by wait_for_copies.
  DEVICE_METHOD void fetch_inputs(int step) {
    const size_t from = (size_t)step * STEPS_OF_LANES;
    for (int i = thread; i < 2 * STEPS_OF_LANES; i += THREADS) {
      const int j = i % STEPS_OF_LANES;
      if (i < STEPS_OF_LANES) {
        const float* noise = a.noise + (from + j) * OBSERVATION;
        if (OBSERVATION == 4) copy_async_16(O_NOISE + j * 16, noise);
        else UNROLL for (int d = 0; d < OBSERVATION; d++) copy_async(O_NOISE + (j * STRIDE + d) * 4, noise + d);
      } else {
        copy_async(O_EXPLORE + j * 4, a.explore + from + j), copy_async(O_ACTION + j * 4, a.action + from + j);
        if (SAMPLER == 0) copy_async(O_DEAL + j * 4, a.deal + from + j);
      }
    }
  }
  DEVICE_METHOD void fetch_roots(int step) {
    const int written = real + (PROTOCOL ? step + 1 : 0);
    const u32 size = written < REAL_CAPACITY ? written : REAL_CAPACITY;
    for (int i = thread; i < STEPS_OF_LANES; i += THREADS) {
      const float* row = a.real + (size_t)(a.root[(size_t)step * STEPS_OF_LANES + i] % size) * ROW;
      UNROLL for (int d = 0; d < OBSERVATION; d++) copy_async(O_ROOT + (i * STRIDE + d) * 4, row + d);
    }
  }
  DEVICE_METHOD void fetch_members() {
    for (int i = thread; i < (int)(IMAGES / 16); i += THREADS) copy_async_16(O_IMAGES + i * 16, a.scratch + i * 16);
  }

  // --------------------------------------------------------------------------------------------------------- act
#if MBRL_PROTOCOL
  /// One real step by the online network; warp 0 does it, row 0 of its tile is the episode.
  DEVICE_METHOD void act(int step) {
    Tile<true> tile;
    const float2 s = axes_at(O_EPISODE, t);
    tile.s[0][0] = s.x, tile.s[0][1] = s.y;
    int action[1];
    greedy_actions<true>(O_ONLINE, tile, scale, lane, action);
    if (a.behaviour_explore[step] < a.steps[step * 4 + 3]) action[0] = a.behaviour_action[step];
    if (lane != 0) return;
    float* row = a.real + (size_t)((real + step) % REAL_CAPACITY) * ROW;
    const int before = at<int>(O_EPISODE + 32);
    float x[OBSERVATION];
    for (int d = 0; d < OBSERVATION; d++) row[d] = x[d] = at<float>(O_EPISODE + d * 4);
    real_step(x, action[0]);
    const bool terminated = terminated_in(x), ended = terminated || before + 1 >= MBRL_TIME_LIMIT;
    for (int d = 0; d < OBSERVATION; d++) row[OBSERVATION + d] = x[d];
    float* told = row + 2 * OBSERVATION;
    told[0] = (float)action[0], told[1] = reward_of(terminated), told[2] = terminated, told[3] = 1.0f, told[4] = (float)before;
    for (int d = 0; d < OBSERVATION; d++) at<float>(O_EPISODE + d * 4) = ended ? a.resets[step * OBSERVATION + d] : x[d];
    at<int>(O_EPISODE + 32) = ended ? 0 : before + 1;
  }
#endif

  // ----------------------------------------------------------------------------------------------------- imagine
  DEVICE_METHOD void imagine(int step) {
    const float epsilon = a.steps[step * 4], stop_at = a.steps[step * 4 + 1], cap = a.steps[step * 4 + 2];
    for (int h = 0; h < HORIZON; h++) {
      for (int i = warp; i < IMAGINERS; i += WARPS)
        imagine_tile(step, h, i / TILES_OF_MEMBER, i % TILES_OF_MEMBER, epsilon, stop_at, cap);
      if (h + 1 < HORIZON && SAMPLER == 0) sync_some(IMAGINING_WARPS * WARP);  // lanes go to other members
    }
  }
  DEVICE_METHOD void imagine_tile(int step, int h, int member, int tile, float epsilon, float stop_at, float cap) {
    constexpr int HALVES = Tile<HALF>::HALVES;
    const u32 image = O_IMAGES + member * MEMBER_SIZE;
    int lanes[HALVES], depths[HALVES], greedy[HALVES];
    bool valid[HALVES];
    Tile<HALF> now, noise;
    UNROLL for (int i = 0; i < HALVES; i++) {
      const int rank = tile * 16 + i * 8 + g;
      valid[i] = rank < PER_MEMBER;
      const int place = member * PER_MEMBER + (valid[i] ? rank : 0);
      lanes[i] = SAMPLER == 0 ? at<const int>(O_DEAL + (h * LANES + place) * 4) : place;
      depths[i] = at<const int>(O_DEPTH + lanes[i] * 4);
      const float2 s = axes_at(depths[i] == 0 ? O_ROOT + (h * LANES + lanes[i]) * STRIDE * 4 : O_BELIEF + lanes[i] * STRIDE * 4, t);
      const float2 n = axes_at(O_NOISE + (h * LANES + lanes[i]) * STRIDE * 4, t);
      now.s[i][0] = s.x, now.s[i][1] = s.y, noise.s[i][0] = n.x, noise.s[i][1] = n.y;
    }
    greedy_actions<HALF>(O_ONLINE, now, scale, lane, greedy);
    UNROLL for (int i = 0; i < HALVES; i++) {
      const u32 place = (h * LANES + lanes[i]) * 4;
      if (at<const float>(O_EXPLORE + place) < epsilon) greedy[i] = at<const int>(O_ACTION + place);
    }
    const Tile<HALF> after = imagined_step<HALF>(image, O_NORMALISER, now, greedy, noise, lane);
    UNROLL for (int i = 0; i < HALVES; i++) {
      const int at_row = step * STEPS_OF_LANES + h * LANES + lanes[i];
      float* row = a.ring + (size_t)((u32)(first + at_row) % CAPACITY) * ROW;
      if (valid[i]) {
        UNROLL for (int k = 0; k < 2; k++)
          if (2 * t + k < OBSERVATION) {
            row[2 * t + k] = now.s[i][k], row[OBSERVATION + 2 * t + k] = after.s[i][k];
            at<float>(O_BELIEF + (lanes[i] * STRIDE + 2 * t + k) * 4) = after.s[i][k];
            if (depths[i] == 0) at<float>(O_FROM + (lanes[i] * STRIDE + 2 * t + k) * 4) = now.s[i][k];
          }
      }
      sync_warp();
      if (valid[i] && t == 0) {
        const bool terminated = terminated_in(&at<const float>(O_BELIEF + lanes[i] * STRIDE * 4));
        const bool active = !at<const int>(O_IDLE + lanes[i] * 4), stop = (float)(depths[i] + 1) >= stop_at;
        const bool ended = terminated || stop || (float)(depths[i] + 1) >= cap;
        float* told = row + 2 * OBSERVATION;
        told[0] = (float)greedy[i], told[1] = reward_of(terminated), told[2] = terminated, told[3] = active;
        told[4] = (float)depths[i];
        a.codes[at_row] = (active ? STOPPED * stop + TERMINATED * terminated + ENDED * ended + ACTIVE : 0) + DEPTH_FROM * depths[i];
        at<int>(O_DEPTH + lanes[i] * 4) = ended ? 0 : depths[i] + 1;
        if (RESTART && ended) at<int>(O_IDLE + lanes[i] * 4) = 1;
      }
    }
    sync_warp();
  }

  // ------------------------------------------------------------------------------------------------------- learn
  /// The value that is `action`'s, of a row's values 2t and 2t + 1 (with two actions, in thread t = 0 alone).
  DEVICE_METHOD float value_of(const float* u, int action) const {
    const float mine = action & 1 ? u[1] : u[0];
    return ACTIONS == 2 ? mine : shuffle(mine, (lane & ~3) + (action >> 1));
  }
  /// Over the threads that hold a row's values, and over rows.
  DEVICE_METHOD float sum_all(float x) const { return ACTIONS == 2 ? sum_rows(x) : sum_row_threads(sum_rows(x)); }

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
      auto input = [&](const float (&x)[4][2], int i, int half, int chunk, int k, int number) {
        return chunk == 0 && number < OBSERVATION ? x[2 * i + half][k] : number == OBSERVATION ? 1.0f : 0.0f;
      };
      UNROLL for (int i = 0; i < TILES; i++) {
        pack_inputs<Policy>(t, [&](int half, int chunk, int k, int number) { return input(s, i, half, chunk, k, number); }, X[i]);
        pack_inputs<Policy>(t, [&](int half, int chunk, int k, int number) { return input(after, i, half, chunk, k, number); }, N[i]);
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
          const float error = (action[r] & 1 ? q[i][2 * half + 1] : q[i][2 * half]) - y[r], size = fabsf(error), w = here ? weight[r] : 0.0f;
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
    float d[Mine::PER_WARP][2][2][4], b[Mine::PER_WARP][Mine::BIAS_TILES][4];
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++) UNROLL for (int k = 0; k < 4; k++) d[p][i][j][k] = 0.0f;
      UNROLL for (int j = 0; j < Mine::BIAS_TILES; j++) UNROLL for (int k = 0; k < 4; k++) b[p][j][k] = 0.0f;
    }
    {
      Partial<Mine> partial;
      Spread spread;
      const u32 part = O_PARTS + warp * (Mine::PART * 4);
      partial.clear();
      UNROLL for (int pass = 0; pass < PASSES; pass++) {
        if (warp < LEARNERS) {
          learn_rows(pass, size, partial, spread);
          partial.told[0] = spread.weight, partial.told[1] = spread.mean, partial.told[2] = spread.squares;
          if (!ALIAS && pass + 1 == PASSES) partial.write_last(part, lane), partial.write_first(part, lane);
        }
        sync_block();  // units and gradients of all rows, partial sums
        UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
          const int piece = warp + p * WARPS;
          if (piece < Mine::PIECES) piece_gradient<Mine>(O_H, O_Z, ROWS, ROWS, piece, lane, d[p], b[p]);
        }
        if (pass + 1 < PASSES) sync_block();  // all have read the exchange
      }
      if (ALIAS) {
        sync_block();
        if (warp < LEARNERS) partial.write_last(part, lane), partial.write_first(part, lane);
        sync_block();
      }
    }
    if (number + 1 < a.counters[C_STEPS] * UPDATES) fetch_bits(number + 1);

    // what all rows say together
    float small[Mine::PER_THREAD], weight = 0;
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) small[k] = 0.0f;
    UNROLL for (int w = 0; w < LEARNERS; w++) {
      const u32 part = O_PARTS + w * (Mine::PART * 4);
      weight += at<const float>(part + Mine::PART_TOLD * 4);
      UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) {
        const int q = thread + k * THREADS;
        small[k] += at<const float>(part + Mine::part_of_small(q < Mine::SMALL ? q : 0) * 4);
      }
    }
    const float by = 1.0f / fmaxf(weight, SMALLEST);
    int bad = 0;
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      UNROLL for (int s = 0; s < 16; s++) bad |= !is_finite(d[p][s >> 3][s >> 2 & 1][s & 3] *= by);
      UNROLL for (int j = 0; j < Mine::BIAS_TILES; j++) UNROLL for (int k = 0; k < 2; k++) bad |= !is_finite(b[p][j][k] *= by);
    }
    UNROLL for (int k = 0; k < Mine::PER_THREAD; k++) bad |= !is_finite(small[k] *= by);
    if (thread == 0) tell(by, update);
    frozen |= any_in_block(bad);  // and all have read the exchange and the partial sums
    if (STREAM && update + 1 == UPDATES) fetch_members();
    if (!frozen) {
      updates++;
      change(d, b, small, rate, correction);
    }
  }
  /// Add an update's loss to the step's, and that over the variance of the targets.
  DEVICE_METHOD void tell(float by, int update) {
    Spread all;
    float sum = 0;
    for (int w = 0; w < LEARNERS; w++) {
      const u32 told = O_PARTS + (w * Mine::PART + Mine::PART_TOLD) * 4;
      all.add(at<const float>(told), at<const float>(told + 4), at<const float>(told + 8)), sum += at<const float>(told + 12);
    }
    if (update == 0) loss = scaled = 0;
    loss += sum * by / UPDATES, scaled += sum * by / fmaxf(all.squares * by, 1e-8f) / UPDATES;
  }
  DEVICE_METHOD void change(const float (&d)[Mine::PER_WARP][2][2][4], const float (&b)[Mine::PER_WARP][Mine::BIAS_TILES][4],
                            const float (&small)[Mine::PER_THREAD], float rate, float correction) {
    UNROLL for (int p = 0; p < Mine::PER_WARP; p++) {
      const int piece = warp + p * WARPS;
      if (piece >= Mine::PIECES) continue;
      UNROLL for (int s = 0; s < 16; s += 2) {
        const int in = Mine::input_of(piece, s, g), out = Mine::output_of(piece, s, t), slot = p * Mine::OF_PIECE + s;
        const int place = Policy::KERNEL2 + in * Policy::WIDTH2 + out;
        float x[2][4];
        state.get_pair(slot, place, x);
        UNROLL for (int e = 0; e < 2; e++) adam(d[p][s >> 3][s >> 2 & 1][(s & 2) + e], x[e], rate, correction, follow);
        put_pair2<Policy, true>(O_ONLINE, O_BACK2, in, out >> 3, g, t, x[0][0], x[1][0]);
        put_pair2<Policy, false>(O_TARGET, 0, in, out >> 3, g, t, x[0][3], x[1][3]);
        state.set_pair(slot, place, x);
      }
      UNROLL for (int k = 0; k < Mine::BIAS_TILES; k++)
        if (Mine::has_bias(piece, g))
          change_small(p * Mine::OF_PIECE + 16 + k, Policy::BIAS2 + Mine::bias_unit(piece, k, g, t), g ? b[p][k][1] : b[p][k][0], rate, correction);
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

  // ------------------------------------------------------------------------------------------------------- a step
  DEVICE_METHOD void step(int number, int steps) {
#if MBRL_PROTOCOL
    if (warp == 0) act(number);
    sync_block();  // the real row
    fetch_roots(number);
    wait_for_copies();
#endif
    if (RESTART) {
      for (int i = thread; i < LANES; i += THREADS) at<int>(O_DEPTH + i * 4) = 0, at<int>(O_IDLE + i * 4) = 0;
    }
    if (PROTOCOL || RESTART) sync_block();
    if (warp < IMAGINING_WARPS) imagine(number);
    sync_block();  // rows, lanes
    if (number + 1 < steps) {
      fetch_inputs(number + 1);
      if (!PROTOCOL) fetch_roots(number + 1);
    }
    for (int u = 0; u < UPDATES; u++) {
      learn(number, u);
      wait_for_copies();
      sync_block();  // weights, members, the next step's inputs
    }
    if (thread == 0) a.losses[number * 2] = loss, a.losses[number * 2 + 1] = scaled;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) mbrl_round(
    const float*, const float*, const float*, const float*, const float*, const float*, const float*, const int*, const int*,
    const int*, const float* real_in, const float* members, const float* bounds, const float* normaliser, const u32* root,
    const float* explore, const int* action, const int* deal, const float* noise, const u32* minibatch, const float* step_schedule,
    const float* update_schedule, const float* settings,
#if MBRL_PROTOCOL
    const float* behaviour_explore, const int* behaviour_action, const float* resets, const float*,
#endif
    float* online, float* target, float* mu, float* nu, float* ring, float* belief, float* from, int* depth, int* idle, int* counters,
#if MBRL_PROTOCOL
    float* real, float* episode,
#endif
    float* losses, int* codes, char* scratch) {
  const int seed = blockIdx.x, thread = threadIdx.x;
  const size_t s = seed, P = Policy::PARAMETERS;
  Round round;
  counters += s * COUNTERS;
  const int steps = counters[C_STEPS];
  const size_t lanes = s * steps * STEPS_OF_LANES;
  round.a = Seed{
      online + s * P, target + s * P, mu + s * P, nu + s * P, ring + s * CAPACITY * ROW, belief + s * LANES * OBSERVATION,
      from + s * LANES * OBSERVATION, depth + s * LANES, idle + s * LANES, counters,
#if MBRL_PROTOCOL
      real + s * REAL_CAPACITY * ROW,
#else
      (float*)real_in + s * REAL_CAPACITY * ROW,
#endif
      root + lanes, explore + lanes, action + lanes, deal + (SAMPLER == 0 ? lanes : 0), noise + lanes * OBSERVATION,
      minibatch + s * steps * UPDATES * BATCH, step_schedule + s * steps * 4, update_schedule + s * steps * UPDATES * 2,
      settings + s * 16, losses + s * steps * 2, codes + lanes, scratch + (STREAM ? s * IMAGES : 0),
#if MBRL_PROTOCOL
      behaviour_explore + s * steps, behaviour_action + s * steps, resets + s * steps * OBSERVATION,
#else
      nullptr, nullptr, nullptr,
#endif
  };
  round.thread = thread, round.warp = thread / WARP, round.lane = thread % WARP, round.g = round.lane >> 2, round.t = round.lane & 3;
  for (int m = 0; m < MEMBERS; m++)
    load_member(O_IMAGES + m * MEMBER_SIZE, members + s * MEMBERS * Member::PARAMETERS, bounds + s * MEMBERS * 2 * OBSERVATION, m, thread, THREADS);
  load_normaliser(O_NORMALISER, normaliser + s * 4 * OBSERVATION, thread, THREADS);
#if MBRL_PROTOCOL
  if (thread < 8) at<float>(O_EPISODE + thread * 4) = thread < OBSERVATION ? episode[s * OBSERVATION + thread] : 0.0f;
  if (thread == 0) at<int>(O_EPISODE + 32) = counters[C_ELAPSED];
#endif
  sync_block();
  round.begin();
  for (int i = 0; i < steps; i++) round.step(i, steps);
  round.end(steps);
#if MBRL_PROTOCOL
  if (thread < OBSERVATION) episode[s * OBSERVATION + thread] = at<float>(O_EPISODE + thread * 4);
  if (thread == 0) counters[C_ELAPSED] = at<int>(O_EPISODE + 32), counters[C_REAL] += steps;
#endif
}

#ifdef EMU
extern "C" int emulate_mbrl_round(void** pointers, int blocks, int backwards) {
  return emu::run_kernel(mbrl_round, THREADS, SHARED_BYTES, blocks, backwards, pointers);
}
extern "C" unsigned shared_bytes() { return SHARED_BYTES; }
extern "C" unsigned threads() { return THREADS; }
#endif
