// Rounding to bfloat16 up or down at random, right on average, so that steps far smaller than half
// a unit in the last place are not lost. The random numbers are counted, not drawn in an order:
// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "platform.h"

namespace hullft {

constexpr int kRoundingGroup = 8;  // elements that one set of random words serves

struct RandomWords {
  uint32_t word[4];
};

HULLFT_HD RandomWords philox(RandomWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xd2511f53u) * counter.word[0];
    const uint64_t second = uint64_t(0xcd9e8d57u) * counter.word[2];
    counter = {{uint32_t(second >> 32) ^ counter.word[1] ^ key0, uint32_t(second),
                uint32_t(first >> 32) ^ counter.word[3] ^ key1, uint32_t(first)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// Which random numbers a tensor's elements get in a call.
struct RoundingKey {
  uint64_t seed;
  uint32_t tensor;  // its place in the list
  uint32_t step;    // steps done before the call
};

// For elements 8 * group .. 8 * group + 7.
HULLFT_HD RandomWords rounding_words(const RoundingKey& key, int64_t group) {
  return philox({{uint32_t(group), uint32_t(uint64_t(group) >> 32), key.tensor, key.step}},
                uint32_t(key.seed), uint32_t(key.seed >> 32));
}

// The low 32 bits of a step count, which is not checked on the device.
HULLFT_HD uint32_t rounding_step(double steps_done) {
  return steps_done >= 0 && steps_done < 0x1p64 ? uint32_t(uint64_t(steps_done)) : 0u;
}

// Element i of a group. What lies below the bits that are kept, and 16 random bits, carry or not.
HULLFT_HD BFloat16 to_bfloat16(float x, const RandomWords& random, int i) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) >= 0x7f800000u) return to_bfloat16(x);
  const uint32_t noise = random.word[i / 2] >> (16 * (i % 2)) & 0xffffu;
  return {uint16_t((bits + noise) >> 16)};
}

}  // namespace hullft
