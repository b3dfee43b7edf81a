// One SIFT pick: conditions the posterior of every candidate and finds the next pick in one pass.
#pragma once

#include "../../core/sift.h"
#include "fw_step.h"
#include "real.h"
#include "sift_kernels.h"

namespace hullft {
namespace {

// The conditional column of a pick for kVectors vectors of candidates from k on. Every vector has a
// chain of its own: a candidate's value must not depend on the block it falls in, or equal rows
// would cease to tie.
template <int kVectors>
inline void sift_column(const SiftPick& pick, int64_t n, int64_t k, VecD* column) {
  for (int v = 0; v < kVectors; ++v) column[v] = load_doubles(pick.gram + k + v * kDoubles);
  for (int64_t j = 0; j < pick.n_earlier; ++j) {
    const double* earlier = pick.columns + j * n + k;
    for (int v = 0; v < kVectors; ++v)
      column[v] =
          condition_covariance(column[v], load_doubles(earlier + v * kDoubles), pick.shares[j]);
  }
}

inline void condition_targets(const SiftPosterior& x, const SiftPick& pick, int64_t k,
                              VecD column) {
  for (int64_t t = 0; t < x.n_targets; ++t) {
    double* at = x.covariance + t * x.n + k;
    store_doubles(at, condition_covariance(load_doubles(at), column, pick.target_shares[t]));
  }
}

// What observing kDoubles candidates would bring.
inline VecD reduction_at_targets(const SiftPosterior& x, int64_t k) {
  const VecD rate = precision(load_doubles(x.variance + k), x.noise);
  VecD sum = {};
  for (int64_t t = 0; t < x.n_targets; ++t)
    sum += variance_reduction(load_doubles(x.covariance + t * x.n + k), rate);
  return sum;
}

struct SiftScan {
  RunningMax chains[kChains];
  VecL at;

  inline void see(int chain, VecD reduction) {
    chains[chain % kChains].see(reduction, at);
    at += kDoubles;
  }
};

template <int kVectors>
inline void sift_block(const SiftPosterior& x, const SiftPick& pick, int64_t k, SiftScan& scan) {
  VecD column[kVectors];
  sift_column<kVectors>(pick, x.n, k, column);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = k + v * kDoubles;
    store_doubles(pick.column + at, column[v]);
    condition_targets(x, pick, at, column[v]);
    store_doubles(x.variance + at,
                  condition_variance(load_doubles(x.variance + at), column[v], pick.rate));
    scan.see(v, reduction_at_targets(x, at));
  }
}

ArgMax pick_kernel(const SiftPosterior& x, const SiftPick* pick) {
  SiftScan scan;
  for (int i = 0; i < kDoubles; ++i) scan.at[i] = i;
  int64_t k = 0;
  if (pick) {
    for (; k + 8 * kDoubles <= x.n; k += 8 * kDoubles) sift_block<8>(x, *pick, k, scan);
    for (; k + 2 * kDoubles <= x.n; k += 2 * kDoubles) sift_block<2>(x, *pick, k, scan);
    for (; k < x.n; k += kDoubles) sift_block<1>(x, *pick, k, scan);
  }
  for (; k < x.n; k += kDoubles) scan.see(0, reduction_at_targets(x, k));
  return reduce(scan.chains);
}

template <typename T>
void squared_norms_kernel(const T* const* rows, int64_t n_rows, int64_t d, double* out) {
  const int64_t whole = d / kDoubles * kDoubles;
  for (int64_t k = 0; k < n_rows; ++k) {
    VecD sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kDoubles <= whole; i += 4 * kDoubles) {
      for (int j = 0; j < 4; ++j) {
        const VecD x = load_doubles(rows[k] + i + j * kDoubles);
        sums[j] += x * x;
      }
    }
    for (; i < whole; i += kDoubles) {
      const VecD x = load_doubles(rows[k] + i);
      sums[0] += x * x;
    }
    if (whole < d) {
      const VecD x = load_tail<double>(rows[k], d);
      sums[1] += x * x;
    }
    out[k] = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

}  // namespace
}  // namespace hullft
