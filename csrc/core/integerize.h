// The arithmetic of one integerization move, shared by the CPU and CUDA schedules.
//
// L(c) = ||q - (1/N) sum_i c_i x_i||^2 with c_i >= 0 integers that sum to N. Each atom has a gain:
// N^2 times the change of L when c_i grows by one, 2 (G c)_i + G_ii - 2 N b_i. With the gains at
// hand every trial is O(1), and the factor N^2 leaves no division in it.
#pragma once

#include "platform.h"

namespace hullft {

// A swap must lower L by more than this share of the largest ||x_i||^2 to be taken.
constexpr double kMinImprovement = 1e-14;

// The gain of an atom where all counts are 0.
template <typename T>
HULLFT_HD T gain_at_zero(T gram_ii, T b_i, T n) {
  return gram_ii - 2 * n * b_i;
}

// The gain of j after c_i has grown by `units`.
template <typename T>
HULLFT_HD T gain_after(T gain_j, T units, T gram_ij) {
  return gain_j + 2 * units * gram_ij;
}

// For swaps of a unit from i, which lower N^2 L by more than `least`: what swap_improves compares.
template <typename T>
HULLFT_HD T swap_limit(T gain_i, T gram_ii, T least) {
  return gain_i - 2 * gram_ii - least;
}

// Whether a unit that moves from i to j lowers L enough. Never where j is i.
template <typename T>
HULLFT_HD bool swap_improves(T gain_j, T gram_ij, T limit_i) {
  return gain_j - 2 * gram_ij < limit_i;
}

}  // namespace hullft
