// Which of the estimates b - u of all candidates matter: those that reach a value, and the highest
// of some.
#pragma once

#include <limits>

#include "real.h"
#include "screening_kernels.h"

namespace hullft {
namespace {

int64_t estimates_from_kernel(const float* b, const float* u, int64_t n, float least,
                              int64_t* candidates) {
  int64_t n_candidates = 0;
  for (int64_t k = 0; k < n; k += kFloats) {
    uint64_t reached = lanes_at_least(load_floats(b + k) - load_floats(u + k), broadcast(least));
    for (; reached; reached &= reached - 1)
      candidates[n_candidates++] = k + __builtin_ctzll(reached);
  }
  return n_candidates;
}

int64_t highest_without_slot_kernel(const float* b, const float* u, const int32_t* slots,
                                    int64_t n) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const auto estimate = [&](int64_t k) {
    const VecF c = load_floats(b + k) - load_floats(u + k);
    return load_bytes<VecI>(slots + k) < 0 ? c : broadcast(kLowest);
  };
  VecF highest = broadcast(kLowest);
  for (int64_t k = 0; k < n; k += kFloats) {
    const VecF c = estimate(k);
    highest = c > highest ? c : highest;
  }
  const float value = max_lanes(highest);
  if (value == kLowest) return -1;
  for (int64_t k = 0;; k += kFloats)
    if (const uint64_t equal = lanes_at_least(estimate(k), broadcast(value)))
      return k + __builtin_ctzll(equal);
}

}  // namespace
}  // namespace hullft
