// The learned world and the policy in it: one imagined step of up to 16 rollouts by one warp, and what the task knows of states.
//
// Sizes by -D, each with MBRL_ before it: TERMS, OBSERVATION, ACTIONS, TASK (0 CartPole, 1 MountainCar, 2 Acrobot), Q_WIDTH1,
// Q_WIDTH2, M_WIDTH1, M_WIDTH2, MEMBERS.
#pragma once
#include "network.cuh"

constexpr int TERMS = MBRL_TERMS, OBSERVATION = MBRL_OBSERVATION, ACTIONS = MBRL_ACTIONS, MEMBERS = MBRL_MEMBERS;
constexpr int ENCODED = ACTIONS == 2 ? 1 : ACTIONS;  // numbers of an action: -1 or 1, else one-hot
constexpr int STRIDE = OBSERVATION <= 4 ? 4 : 8;     // floats of an observation in shared memory
static_assert(OBSERVATION <= 8 && ACTIONS <= 8, "at most 8 observation axes and 8 actions");

using Policy = Network<OBSERVATION, MBRL_Q_WIDTH1, MBRL_Q_WIDTH2, ACTIONS, 1, TERMS>;
// Outputs of a member: means, then raw log-variances.
using Member = Network<OBSERVATION + ENCODED, MBRL_M_WIDTH1, MBRL_M_WIDTH2, OBSERVATION, 2, TERMS>;
constexpr u32 AT_BOUNDS = Member::SIZE, MEMBER_SIZE = AT_BOUNDS + 64;  // minimum and maximum of the log-variance, 8 axes each
// the normaliser in shared memory, 8 axes each
enum { STATE_MEAN, INVERSE_STATE_STD, TARGET_MEAN, TARGET_STD };
constexpr u32 NORMALISER_SIZE = 4 * 32;

/// Member `member` and its bounds, by `threads` threads of which this is number `thread`.
DEV void load_member(u32 image, const float* members, const float* bounds, int member, int thread, int threads) {
  load_image<Member>(image, members + member * Member::PARAMETERS, thread, threads);
  for (int i = thread; i < 16; i += threads)
    at<float>(image + AT_BOUNDS + i * 4) = i % 8 < OBSERVATION ? bounds[(member * 2 + i / 8) * OBSERVATION + i % 8] : 0.0f;
}
/// All members of a seed, one after the other.
DEV void load_members(u32 images, const float* members, const float* bounds, size_t seed, int thread, int threads) {
  for (int m = 0; m < MEMBERS; m++)
    load_member(images + m * MEMBER_SIZE, members + seed * MEMBERS * Member::PARAMETERS,
                bounds + seed * MEMBERS * 2 * OBSERVATION, m, thread, threads);
}
DEV void load_normaliser(u32 base, const float* normaliser, int thread, int threads) {
  for (int i = thread; i < 32; i += threads) {
    const float x = i % 8 < OBSERVATION ? normaliser[i / 8 * OBSERVATION + i % 8] : i / 8 == INVERSE_STATE_STD ? 1.0f : 0.0f;
    at<float>(base + i * 4) = i / 8 == INVERSE_STATE_STD ? 1.0f / x : x;
  }
}

// ------------------------------------------------------------------------------------------------------------------ tasks
DEV bool terminated_in(const float* s) {
#if MBRL_TASK == 0
  return fabsf(s[0]) > 2.4f || fabsf(s[2]) > 0.20943951f;  // metres from the middle, radians (12 degrees)
#elif MBRL_TASK == 1
  return s[0] >= 0.5f && s[1] >= 0.0f;
#else
  return -s[0] - (s[0] * s[2] - s[1] * s[3]) > 1.0f;  // height of the tip, from the cosines and sines of both angles
#endif
}
/// The reward of a step that led to a state, and did or did not terminate.
DEV float reward_of(bool terminated) {
#if MBRL_TASK == 0
  return 1.0f;
#elif MBRL_TASK == 1
  return -1.0f;
#else
  return terminated ? 0.0f : -1.0f;
#endif
}
#if MBRL_TASK == 0
/// One step of the real cart and pole, Euler's method (Barto, Sutton & Anderson 1983, as gymnasium has it).
DEV void real_step(float* s, int action) {
  const float force = action ? 10.0f : -10.0f, cosine = cosf(s[2]), sine = sinf(s[2]);
  const float push = (force + 0.05f * (s[3] * s[3]) * sine) / 1.1f;
  const float turn = (9.8f * sine - cosine * push) / (0.5f * (4.0f / 3.0f - 0.1f * (cosine * cosine) / 1.1f));
  const float move = push - 0.05f * turn * cosine / 1.1f;
  s[0] += 0.02f * s[1], s[1] += 0.02f * move, s[2] += 0.02f * s[3], s[3] += 0.02f * turn;
}
#endif

// --------------------------------------------------------------------------------------------------------------- one tile
/// Up to 16 observations: thread (g, t) holds axes 2t and 2t + 1 of rows g and, unless HALF, g + 8. Axes that are not there are
/// 0.
template <bool HALF> struct Tile {
  static constexpr int HALVES = HALF ? 1 : 2;
  float s[HALVES][2];
};
DEV float2 axes_at(u32 row, int t) { return 2 * t < STRIDE ? at<const float2>(row + t * 8) : float2{0.0f, 0.0f}; }

/// The number of the largest of ACTIONS values, u[0] and u[1] being values 2t and 2t + 1: the first one of equals.
///
/// With two actions the thread t = 0 alone has it, unless EVERYWHERE.
template <bool EVERYWHERE> DEV int best_action(const float* u, int t, int lane) {
  int best = ACTIONS > 2 * t + 1 && u[1] > u[0] ? 2 * t + 1 : 2 * t;
  if (ACTIONS == 2) return EVERYWHERE ? shuffle(best, lane & ~3) : best;
  float value = 2 * t >= ACTIONS ? -3.4e38f : best == 2 * t ? u[0] : u[1];
  UNROLL for (int mask = 1; mask <= 2; mask *= 2) {
    const float other = shuffle_xor(value, mask);
    const int its = shuffle_xor(best, mask);
    const bool take = other > value || (other == value && its < best);
    value = take ? other : value, best = take ? its : best;
  }
  return best;
}
/// Greedy actions of a tile, in all threads of a row. `scale` has one over the policy's scale of this thread's axes.
template <bool HALF> DEV void greedy_actions(u32 policy, const Tile<HALF>& tile, const float* scale, int lane, int* action) {
  u32 X[1][Policy::CHUNKS][2 * TERMS];
  float q[1][4];
  const int t = lane & 3;
  pack_inputs<Policy>(t, [&](int half, int chunk, int k, int i) {
    if (HALF && half) return 0.0f;
    return chunk == 0 && i < OBSERVATION ? tile.s[half % Tile<HALF>::HALVES][k] * scale[k] : i == OBSERVATION ? 1.0f : 0.0f;
  }, X[0]);
  forward<Policy, RELU, HALF>(policy, X, lane, q);
  UNROLL for (int half = 0; half < Tile<HALF>::HALVES; half++) action[half] = best_action<true>(q[0] + 2 * half, t, lane);
}
/// Where a tile's actions lead in the world of one member, with standard normal noise.
template <bool HALF>
DEV Tile<HALF> imagined_step(u32 member, u32 normaliser, const Tile<HALF>& tile, const int* action, const Tile<HALF>& noise,
                             int lane) {
  constexpr int HALVES = Tile<HALF>::HALVES;
  const int t = lane & 3;
  auto of_axes = [&](int what) { return at<const float2>(normaliser + (what * 8 + 2 * t) * 4); };
  u32 X[1][Member::CHUNKS][2 * TERMS];
  float y[2][4];
  {
    const float2 mean = of_axes(STATE_MEAN), inverse = of_axes(INVERSE_STATE_STD);
    pack_inputs<Member>(t, [&](int half, int chunk, int k, int i) {
      if (HALF && half) return 0.0f;
      if (chunk == 0 && i < OBSERVATION) return (tile.s[half % HALVES][k] - (k ? mean.y : mean.x)) * (k ? inverse.y : inverse.x);
      if (i == OBSERVATION + ENCODED) return 1.0f;
      if (i > OBSERVATION + ENCODED) return 0.0f;
      return ACTIONS == 2 ? 2.0f * action[half % HALVES] - 1.0f : i - OBSERVATION == action[half % HALVES] ? 1.0f : 0.0f;
    }, X[0]);
  }
  forward<Member, SILU, HALF>(member, X, lane, y);
  const float2 low = at<const float2>(member + AT_BOUNDS + t * 8), high = at<const float2>(member + AT_BOUNDS + 32 + t * 8);
  const float2 shift = of_axes(TARGET_MEAN), by = of_axes(TARGET_STD);
  Tile<HALF> after;
  UNROLL for (int i = 0; i < 2 * HALVES; i++) {
    const int half = i >> 1, k = i & 1;
    const float minimum = k ? low.y : low.x, maximum = k ? high.y : high.x;
    const float log_variance = minimum + softplus(maximum - softplus(maximum - y[1][i]) - minimum);
    const float change = y[0][i] + fast_exp(0.5f * log_variance) * noise.s[half][k];
    after.s[half][k] = tile.s[half][k] + (k ? shift.y : shift.x) + (k ? by.y : by.x) * change;
  }
  return after;
}
