// Scores of one policy: imagined episodes in the learned world, and real episodes of CartPole. One block is one seed.
//
// An episode needs no other one. A warp takes up to 16 of them, of one member or real, from the first step to the last, and stops
// when all have ended; the block has no barrier but the one behind the weights.
//
// Sizes by -D with MBRL_ before each, beside those of world.cuh: EPISODES imagined ones of at most STEPS steps, PLAYED real ones
// of at most TIME_LIMIT; either number may be 0.
#include "world.cuh"

constexpr int EPISODES = MBRL_EPISODES, STEPS = MBRL_STEPS, PLAYED = MBRL_PLAYED, TIME_LIMIT = MBRL_TIME_LIMIT;
static_assert(EPISODES % MEMBERS == 0, "imagined episodes are a multiple of the members");
static_assert(PLAYED == 0 || MBRL_TASK == 0, "real episodes are those of CartPole");
constexpr int PER_MEMBER = EPISODES / MEMBERS, TILES_OF_MEMBER = (PER_MEMBER + 15) / 16;
constexpr int IMAGINERS = EPISODES ? MEMBERS * TILES_OF_MEMBER : 0, PLAYERS = (PLAYED + 15) / 16;
constexpr bool HALF = PER_MEMBER <= 8;
constexpr int WARPS = IMAGINERS + PLAYERS < 8 ? IMAGINERS + PLAYERS : 8, THREADS = WARPS * WARP;
static_assert(WARPS > 0, "there is something to score");

constexpr u32 O_POLICY = 0, O_NORMALISER = aligned(O_POLICY + Policy::SIZE), O_IMAGES = O_NORMALISER + NORMALISER_SIZE,
              O_STATES = O_IMAGES + (EPISODES ? MEMBERS * MEMBER_SIZE : 0), SHARED_BYTES = O_STATES + WARPS * 16 * STRIDE * 4;

struct Scoring {
  int warp, lane, g, t;
  float scale[2];  // one over the policy's scale of this thread's axes

  DEVICE_METHOD u32 state_of(int half) const { return O_STATES + ((warp * 2 + half) * 8 + g) * STRIDE * 4; }
  /// The numbers of row `row` of an array [...][OBSERVATION], at this thread's axes.
  DEVICE_METHOD float number(const float* rows, int row, int k) const {
    return 2 * t + k < OBSERVATION ? rows[(size_t)row * OBSERVATION + 2 * t + k] : 0.0f;
  }
  /// Episodes of tile `tile` of a member: their returns, minus infinity where a state is not finite.
  DEVICE_METHOD void imagine(int member, int tile, const float* first, const float* noise, float* returns) {
    constexpr int HALVES = Tile<HALF>::HALVES;
    Tile<HALF> now;
    int episode[HALVES], running[HALVES];
    float sum[HALVES];
    UNROLL for (int i = 0; i < HALVES; i++) {
      const int rank = tile * 16 + i * 8 + g;
      running[i] = rank < PER_MEMBER, sum[i] = 0;
      episode[i] = member * PER_MEMBER + (rank < PER_MEMBER ? rank : 0);
      UNROLL for (int k = 0; k < 2; k++) now.s[i][k] = number(first, episode[i], k);
    }
    for (int step = 0; step < STEPS; step++) {
      Tile<HALF> noisy;
      UNROLL for (int i = 0; i < HALVES; i++)
        UNROLL for (int k = 0; k < 2; k++) noisy.s[i][k] = number(noise, step * EPISODES + episode[i], k);
      int action[HALVES], goes_on = 0;
      greedy_actions<HALF>(O_POLICY, now, scale, lane, action);
      now = imagined_step<HALF>(O_IMAGES + member * MEMBER_SIZE, O_NORMALISER, now, action, noisy, lane);
      UNROLL for (int i = 0; i < HALVES; i++) {
        UNROLL for (int k = 0; k < 2; k++) if (2 * t + k < STRIDE) at<float>(state_of(i) + (2 * t + k) * 4) = now.s[i][k];
      }
      sync_warp();
      UNROLL for (int i = 0; i < HALVES; i++) {
        const float* s = &at<const float>(state_of(i));
        bool sound = true;
        UNROLL for (int d = 0; d < OBSERVATION; d++) sound = sound && is_finite(s[d]);
        const bool terminated = terminated_in(s);
        if (running[i]) sum[i] = sound ? sum[i] + reward_of(terminated) : -1.0f / 0.0f;
        running[i] = running[i] && sound && !terminated, goes_on |= running[i];
      }
      if (!any_in_warp(goes_on)) break;  // and all have read the states
    }
    UNROLL for (int i = 0; i < HALVES; i++)
      if (t == 0 && tile * 16 + i * 8 + g < PER_MEMBER) returns[episode[i]] = sum[i];
  }
#if MBRL_TASK == 0
  /// Real episodes of tile `tile`.
  DEVICE_METHOD void play(int tile, const float* starts, float* returns) {
    Tile<false> now;
    int episode[2], running[2];
    float sum[2];
    UNROLL for (int i = 0; i < 2; i++) {
      const int number_of = tile * 16 + i * 8 + g;
      running[i] = number_of < PLAYED, episode[i] = running[i] ? number_of : 0, sum[i] = 0;
      UNROLL for (int k = 0; k < 2; k++) now.s[i][k] = number(starts, episode[i], k);
    }
    for (int step = 0; step < TIME_LIMIT; step++) {
      int action[2], goes_on = 0;
      greedy_actions<false>(O_POLICY, now, scale, lane, action);
      UNROLL for (int i = 0; i < 2; i++) {
        float s[4];
        UNROLL for (int d = 0; d < 4; d++) s[d] = shuffle(now.s[i][d & 1], (lane & ~3) + (d >> 1));
        real_step(s, action[i]);
        const bool terminated = terminated_in(s);
        if (running[i]) sum[i] += reward_of(terminated);
        running[i] = running[i] && !terminated, goes_on |= running[i];
        UNROLL for (int k = 0; k < 2; k++) now.s[i][k] = t == 0 ? s[k] : t == 1 ? s[2 + k] : 0.0f;
      }
      if (!any_in_warp(goes_on)) break;
    }
    UNROLL for (int i = 0; i < 2; i++)
      if (t == 0 && tile * 16 + i * 8 + g < PLAYED) returns[episode[i]] = sum[i];
  }
#endif
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) mbrl_score(
    const float* policy, const float* members, const float* bounds, const float* normaliser, const float* first,
    const float* noise, const float* starts, const float* settings, float* imagined, float* played) {
  const size_t s = blockIdx.x;
  const int thread = threadIdx.x;
  Scoring scoring;
  scoring.warp = thread / WARP, scoring.lane = thread % WARP, scoring.g = scoring.lane >> 2, scoring.t = scoring.lane & 3;
  load_image<Policy>(O_POLICY, policy + s * Policy::PARAMETERS, thread, THREADS);
  if (EPISODES) {
    load_normaliser(O_NORMALISER, normaliser + s * 4 * OBSERVATION, thread, THREADS);
    load_members(O_IMAGES, members, bounds, s, thread, THREADS);
  }
  UNROLL for (int k = 0; k < 2; k++) {
    const int axis = 2 * scoring.t + k;
    scoring.scale[k] = axis < OBSERVATION ? 1.0f / settings[s * 16 + 8 + axis] : 0.0f;
  }
  sync_block();
  for (int i = scoring.warp; i < IMAGINERS + PLAYERS; i += WARPS) {
    if (i < IMAGINERS)
      scoring.imagine(i / TILES_OF_MEMBER, i % TILES_OF_MEMBER, first + s * EPISODES * OBSERVATION,
                      noise + s * STEPS * EPISODES * OBSERVATION, imagined + s * EPISODES);
#if MBRL_TASK == 0
    else
      scoring.play(i - IMAGINERS, starts + s * PLAYED * OBSERVATION, played + s * PLAYED);
#endif
  }
}

#ifdef EMU
extern "C" int emulate_mbrl_score(void** pointers, int blocks, int backwards) {
  return emu::run_kernel(mbrl_score, THREADS, SHARED_BYTES, blocks, backwards, pointers);
}
extern "C" unsigned shared_bytes() { return SHARED_BYTES; }
extern "C" unsigned threads() { return THREADS; }
#endif
