// The arithmetic of one integerization move, shared by the CPU and CUDA schedules.
//
// L(c) = ||q - (1/N) sum_i c_i x_i||^2 with c_i >= 0 integers that sum to N. With v = G c every
// trial is O(1).
#pragma once

#include "platform.h"

namespace hullft {

// A swap must lower L by more than this share of the largest ||x_i||^2 to be taken.
constexpr double kMinImprovement = 1e-14;

// Change of L when c_i grows by one.
template <typename T>
HULLFT_HD T gain_of_unit(T v_i, T gram_ii, T b_i, T n) {
  return (2 * v_i + gram_ii) / (n * n) - 2 * b_i / n;
}

// Change of L when one unit moves from i to j.
template <typename T>
HULLFT_HD T gain_of_swap(T v_i, T v_j, T gram_ii, T gram_jj, T gram_ij, T b_i, T b_j, T n) {
  return (2 * (v_j - v_i) + gram_jj + gram_ii - 2 * gram_ij) / (n * n) - 2 * (b_j - b_i) / n;
}

}  // namespace hullft
