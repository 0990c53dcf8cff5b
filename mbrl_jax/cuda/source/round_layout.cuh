// A round's sizes, its arrays in global memory and its shared memory.
//
// Sizes by -D with MBRL_ before each, beside those of world.cuh: LANES, HORIZON, BATCH, UPDATES, CAPACITY, REAL_CAPACITY;
// TARGET 0 max, 1 double; LOSS 0 squared, 1 Huber; SAMPLER 0 ts1, 1 ts_infinity; RESTART 0 streaming, 1 per_step; PROTOCOL
// 0 batch, 1 interactive (TIME_LIMIT).
// Where memory is scarce: STATE as in Owned; STREAM 1 brings the members in anew at each step, into the space of the exchange;
// ALIAS 1 puts partial sums there too, for two more barriers.
#pragma once
#include "adam.cuh"
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

/// What every part of a round knows.
struct Block {
  Seed a;
  int thread, warp, lane, g, t;
  int first, real;  // rows written to both rings before this launch
  float scale[2];   // one over the policy's scale of this thread's axes
};
