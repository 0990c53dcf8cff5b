// A round of Dyna-Q with a Q-learner: T real steps, each of K lanes x H imagined steps and U updates. One block is one seed.
//
// Everything that a step reads and writes again lies in shared memory or in registers from the first step to the last: both
// networks, Adam's moments, the members, the lanes. A step is
//   act       (interactive) one step of the real cart and pole
//   imagine   a warp takes the rollouts of one member, 16 at a time, through H steps; their rows go to the ring
//   learn     a warp takes 32 rows of the minibatch forwards and backwards; then all warps make the gradients and Adam
// with a barrier of the block between imagine and learn, after the way back, before the parameters change and after it.
#include "q_learning.cuh"

struct Round : Learning {
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
    frozen = a.counters[C_FROZEN], updates = a.counters[C_UPDATES];
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
    const float* explore, const int* action, const int* deal, const float* noise, const u32* minibatch,
    const float* step_schedule, const float* update_schedule, const float* settings,
#if MBRL_PROTOCOL
    const float* behaviour_explore, const int* behaviour_action, const float* resets, const float*,
#endif
    float* online, float* target, float* mu, float* nu, float* ring, float* belief, float* from, int* depth, int* idle,
    int* counters,
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
  round.thread = thread, round.warp = thread / WARP, round.lane = thread % WARP;
  round.g = round.lane >> 2, round.t = round.lane & 3;
  load_members(O_IMAGES, members, bounds, seed, thread, THREADS);
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
