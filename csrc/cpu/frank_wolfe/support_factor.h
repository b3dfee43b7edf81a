// A Cholesky factor of the support's matrix, kept while rows join and leave: core/corrective.h.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../aligned.h"
#include "../simd/corrective_kernels.h"

namespace hullft {

// A = L L^T and y = L^-1 target for each of some targets, in the order in which the rows joined.
template <int kTargets>
class SupportFactor {
 public:
  using Values = std::array<double, kTargets>;  // one for each target

  // `rounding`: of the matrix's entries, relative.
  void begin(double rounding) { size_ = 0, rounding_ = rounding, kernels_ = &corrective_kernels(); }

  // <y, y> of two targets.
  double product(int first, int second) const {
    double sum = 0;
    for (size_t i = 0; i < size_t(size_); ++i) sum += y_[i][size_t(first)] * y_[i][size_t(second)];
    return sum;
  }

  // `entries` are A_ik of the rows i of the support; they are overwritten. False when the row has
  // no length, or no more than this share of it that the support's rows do not explain.
  bool join(double* entries, double square, const Values& targets, double least_share) {
    const int64_t m = size_;
    make_room(m + 1);
    kernels_->solve_lower(rows_.data(), reciprocals_.data(), m, entries);
    double squares = 0;
    Values y = targets;
    double* last = row(m);
    for (int64_t i = 0; i < m; ++i) {
      last[i] = entries[i];
      squares += entries[i] * entries[i];
      for (size_t t = 0; t < kTargets; ++t) y[t] -= entries[i] * y_[size_t(i)][t];
    }
    const double pivot = pivot_of(square - squares, square, int(m), rounding_);
    if (!(pivot > least_share * square)) return false;
    last[m] = std::sqrt(pivot);
    reciprocals_[size_t(m)] = 1 / last[m];
    for (double& value : y) value *= reciprocals_[size_t(m)];
    y_[size_t(m)] = y;
    ++size_;
    return true;
  }

  // Takes the row at a place out: the rows below move up, and a rotation for each of them makes L
  // triangular again.
  void leave(int64_t place) {
    const int64_t m = size_ - 1;
    rotations_.resize(size_t(size_));
    for (int64_t i = place; i < m; ++i) {
      const double* below = row(i + 1);
      double* here = row(i);
      for (int64_t j = 0; j < place; ++j) here[j] = below[j];
      double carried = below[place];
      for (int64_t j = place; j < i; ++j) {
        here[j] = carried;
        carried = below[j + 1];
        rotate(rotations_[size_t(j)], here[j], carried);
      }
      const Rotation<double> rotation = rotation_of(carried, below[i + 1]);
      rotations_[size_t(i)] = rotation;
      here[i] = rotation.length;
      reciprocals_[size_t(i)] = 1 / rotation.length;
      for (size_t t = 0; t < kTargets; ++t)
        rotate(rotation, y_[size_t(i)][t], y_[size_t(i + 1)][t]);
    }
    size_ = m;
  }

  // out = A^-1 of the sum of factors[t] * target t, of as many values as there are rows.
  void solve(const Values& factors, double* out) const {
    for (int64_t i = 0; i < size_; ++i) {
      out[i] = 0;
      for (size_t t = 0; t < kTargets; ++t) out[i] += factors[t] * y_[size_t(i)][t];
    }
    solve_upper(out);
  }

  // x <- L^-T x
  void solve_upper(double* x) const {
    kernels_->solve_upper(rows_.data(), reciprocals_.data(), size_, x);
  }

 private:
  double* row(int64_t i) { return memory_[size_t(i)].get(); }

  // Row i has room for i + 1 values, so that memory follows the support.
  void make_room(int64_t n) {
    while (int64_t(memory_.size()) < n) {
      memory_.emplace_back();
      rows_.push_back(memory_.back().reserve(int64_t(memory_.size())));
    }
    y_.resize(memory_.size());
    reciprocals_.resize(memory_.size());
  }

  int64_t size_ = 0;
  double rounding_ = 0;
  const CorrectiveKernels* kernels_ = nullptr;
  std::vector<AlignedDoubles> memory_;
  std::vector<const double*> rows_;  // of L, in memory_
  std::vector<double> reciprocals_;  // of its diagonal
  std::vector<Values> y_;
  std::vector<Rotation<double>> rotations_;
};

}  // namespace hullft
