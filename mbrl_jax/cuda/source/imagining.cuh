// H imagined steps of the lanes, whose rows go to the ring. A warp takes the rollouts of one member, 16 at a time.
#pragma once
#include "round_layout.cuh"

struct Imagining : Block {
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
      const u32 given = (h * LANES + lanes[i]) * STRIDE * 4, own = lanes[i] * STRIDE * 4;
      const float2 s = axes_at(depths[i] == 0 ? O_ROOT + given : O_BELIEF + own, t), n = axes_at(O_NOISE + given, t);
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
        const int code = STOPPED * stop + TERMINATED * terminated + ENDED * ended + ACTIVE;
        a.codes[at_row] = (active ? code : 0) + DEPTH_FROM * depths[i];
        at<int>(O_DEPTH + lanes[i] * 4) = ended ? 0 : depths[i] + 1;
        if (RESTART && ended) at<int>(O_IDLE + lanes[i] * 4) = 1;
      }
    }
    sync_warp();
  }
};
