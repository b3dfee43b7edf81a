// The arithmetic of one SIFT pick, shared by the CPU and CUDA schedules.
//
// Hübotter, Bongni, Hakimi and Krause, "Efficiently Learning at Test-Time: Active Fine-Tuning of
// LLMs" (2025): under a Gaussian process with a linear kernel, pick the candidate whose noisy
// observation lowers the variance at the query most. A pick s has the conditional covariance
// column_k = Cov(k, s | earlier picks) with every candidate k; everything else follows from it.
#pragma once

#include "platform.h"

namespace hullft {

// Variance of the observation of a candidate.
template <typename V, typename T>
HULLFT_HD V observed_variance(V variance, T noise) {
  return variance + noise;
}

// By how much observing a candidate lowers the variance at a target.
template <typename V, typename T>
HULLFT_HD V variance_reduction(V squared_covariance, V variance, T noise) {
  return squared_covariance / observed_variance(variance, noise);
}

// Cov(k, target) once s is observed; share is Cov(s, target) / (Var(s) + noise).
template <typename V, typename T>
HULLFT_HD V condition_covariance(V covariance, V column, T share) {
  return covariance - column * share;
}

// Var(k) once s is observed; rate is 1 / (Var(s) + noise). Rounding must not make it negative.
template <typename V, typename T>
HULLFT_HD V condition_variance(V variance, V column, T rate) {
  const V zero = {};
  const V left = variance - column * column * rate;
  return left > zero ? left : zero;
}

}  // namespace hullft
