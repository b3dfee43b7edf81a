// One pick of SIFT.
#pragma once

#include <cstdint>

#include "step_kernels.h"

namespace hullft {

// What SIFT knows of n = padded(K) candidates given the picks so far; 0 in the padding.
struct SiftPosterior {
  int64_t n, n_targets;
  double* covariance;  // [n_targets, n], of each candidate with each target
  double* variance;    // [n]
  double noise;
};

// What observing the pick s changes; every array of candidates holds n values.
struct SiftPick {
  const double* gram;     // G[:, s]
  const double* columns;  // [n_earlier, n], of the earlier picks
  const double* shares;   // [n_earlier]: columns[j, s] times the precision of pick j at its time
  int64_t n_earlier;
  double* column;               // out: Cov(:, s | earlier picks)
  double rate;                  // the precision of s
  const double* target_shares;  // [n_targets]: Cov(s, target) * rate
};

// Conditions on a pick, unless it is null, and finds the candidate whose observation lowers the
// variance at the targets most, and by how much.
using SiftPickKernel = ArgMax (*)(const SiftPosterior& posterior, const SiftPick* pick);

SiftPickKernel sift_pick_kernel();

}  // namespace hullft
