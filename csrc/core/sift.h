// The arithmetic of one SIFT pick, shared by the CPU and CUDA schedules.
//
// Hübotter, Bongni, Hakimi and Krause, "Efficiently Learning at Test-Time: Active Fine-Tuning of
// LLMs" (2025): under a Gaussian process with a linear kernel, pick the candidate whose noisy
// observation lowers the variance at the query most. A pick s has the conditional covariance
// column_k = Cov(k, s | earlier picks) with every candidate k; everything else follows from it.
// Covariances are never squared: for short or long vectors float32 does not hold their squares.
#pragma once

#include "platform.h"

namespace hullft {

// The precision of the observation of a candidate.
template <typename V, typename T>
HULLFT_HD V precision(V variance, T noise) {
  return T(1) / (variance + noise);
}

// How much an observation of a candidate, with precision `rate`, lowers a target's variance.
template <typename V>
HULLFT_HD V variance_reduction(V covariance, V rate) {
  return covariance * (covariance * rate);
}

// Cov(k, target) once s is observed; share is Cov(s, target) times the precision of s.
template <typename V, typename T>
HULLFT_HD V condition_covariance(V covariance, V column, T share) {
  return covariance - column * share;
}

// Var(k) once s is observed; rate is the precision of s. Rounding must not make it negative.
template <typename V, typename T>
HULLFT_HD V condition_variance(V variance, V column, T rate) {
  const V zero = {};
  const V left = variance - column * (column * rate);
  return left > zero ? left : zero;
}

}  // namespace hullft
