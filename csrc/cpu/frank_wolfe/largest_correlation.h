// The row outside the support of the largest correlation with a residual, in the whole pool or in a
// working set.
//
// The cosine of every row with the residual is estimated from 16-bit integers. In float64 come only
// the few correlations that may be the largest. The bound on the estimates' error is rigorous. The
// support's rows are left out: at the best weights all of theirs are equal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "../aligned.h"
#include "../query_pool.h"
#include "../share_rows.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "support.h"
#include "unit_pool.h"

namespace hullft {

template <typename T>
class LargestCorrelation {
 public:
  // `units` are those of a shared pool, or null. False when a row is not finite.
  bool begin(const QueryPool<T>& in, const UnitPool<T>* units, const Support& support) {
    in_ = &in, support_ = &support, kernels_ = &corrective_kernels();
    const int64_t n = in.n_rows;
    if (!units) own_units_.begin(in.rows, n, in.d, in.share_rows), units = &own_units_;
    units_ = units;
    unit_residual_.reserve(units->width());
    all_.clear(), working_set_.clear();
    estimates_.resize(size_t(n));
    double poison = 0;
    for (int64_t k = 0; k < n; ++k) {
      all_.add(k, *units);
      poison += units->norm(k) * 0;
    }
    return poison == 0;
  }

  // Of a residual [d], padded with 0; the lowest row on ties, -1 without a row.
  int64_t in_pool(const double* residual) { return largest(all_, residual); }
  int64_t in_working_set(const double* residual) { return largest(working_set_, residual); }

  // After a search in the pool: the rows of the largest correlations above `least`, a share of the
  // residual's length, in order. Of equal rows the first is there before others.
  void choose_working_set(double least) {
    ranked_.clear();
    for (int64_t k = 0; k < in_->n_rows; ++k)
      if (estimates_[size_t(k)] > least) ranked_.push_back(estimates_[size_t(k)]);
    if (int64_t(ranked_.size()) > kWorkingSet) {
      const auto last = ranked_.begin() + (kWorkingSet - 1);
      std::nth_element(ranked_.begin(), last, ranked_.end(), std::greater<double>());
      least = std::nextafter(*last, least);
    }
    working_set_.clear();
    for (int64_t k = 0; k < in_->n_rows && working_set_.size() < kWorkingSet; ++k)
      if (estimates_[size_t(k)] > least) working_set_.add(k, *units_);
  }

  bool working_set_is_empty() const { return working_set_.size() == 0; }
  // Whether every search is among all rows, in float64.
  bool is_small() const { return in_->n_rows <= kWorkingSet || in_->n_rows * in_->d <= kSmallPool; }

 private:
  static constexpr int64_t kWorkingSet = 32;
  static constexpr int64_t kSmallPool = 8192;  // values
  // Of the pool to come, asked for while a tile of rows is computed.
  static constexpr int64_t kTile = 8, kLinesATile = 64;

  // Rows of the pool in order, as unit vectors, and their norms.
  struct RowSet {
    std::vector<int64_t> rows;
    std::vector<const int16_t*> units;
    std::vector<double> norms;

    int64_t size() const { return int64_t(rows.size()); }
    void clear() { rows.clear(), units.clear(), norms.clear(); }
    void add(int64_t row, const UnitPool<T>& pool) {
      rows.push_back(row), units.push_back(pool.unit(row)), norms.push_back(pool.norm(row));
    }
  };

  int64_t largest(const RowSet& set, const double* residual) {
    if (is_small()) return largest_of_all(residual);
    estimate(set, residual);
    find_contenders(set);
    const int64_t n = int64_t(contenders_.size());
    if (n == 0) return -1;
    const double* products = multiply(contender_rows_.data(), n, residual);
    return contenders_[size_t(std::max_element(products, products + n) - products)];
  }

  // Without estimates, which would save nothing.
  int64_t largest_of_all(const double* residual) {
    const double* products = multiply(in_->rows, in_->n_rows, residual);
    int64_t best = -1;
    for (int64_t k = 0; k < in_->n_rows; ++k)
      if (!support_->has(k) && (best < 0 || products[k] > products[best])) best = k;
    return best;
  }

  const double* multiply(const T* const* rows, int64_t n, const double* residual) {
    double* products = products_.reserve(n);
    dot_kernels<T>().rows(rows, n, &residual, 1, in_->d, &products);
    return products;
  }

  // The correlations over the residual's length.
  void estimate(const RowSet& set, const double* residual) {
    const int64_t width = units_->width();
    int16_t* unit = unit_residual_.get();
    double length;
    kernels_->unit_rows_float64(&residual, 1, in_->d, width, unit, &length);
    for_rows(set.size(), width / 4, in_->share_rows, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kTile) {
        kernels_->estimate(set.units.data() + first, set.norms.data() + first,
                           std::min(kTile, end - first), width, unit, estimates_.data() + first);
        in_->ahead->some(kLinesATile);
      }
    });
  }

  // Those that may be the largest, in order. Without branches where they would be a surprise, and
  // with several maxima at a time, of which each would wait for the last.
  void find_contenders(const RowSet& set) {
    constexpr double kLowest = -std::numeric_limits<double>::infinity();
    const double error = cosine_error(units_->width());
    const size_t n = set.rows.size();
    double least[4] = {kLowest, kLowest, kLowest, kLowest};
    for (size_t i = 0; i < n; ++i) {
      estimates_[i] = support_->has(set.rows[i]) ? kLowest : estimates_[i];
      least[i % 4] = std::max(least[i % 4], estimates_[i] - error * set.norms[i]);
    }
    const double least_of_all = *std::max_element(least, least + 4);
    contenders_.clear(), contender_rows_.clear();
    if (least_of_all == kLowest) return;
    for (size_t i = 0; i < n; ++i) {
      if (estimates_[i] + error * set.norms[i] < least_of_all) continue;
      contenders_.push_back(set.rows[i]);
      contender_rows_.push_back(in_->rows[set.rows[i]]);
    }
  }

  const QueryPool<T>* in_ = nullptr;
  const Support* support_ = nullptr;
  const CorrectiveKernels* kernels_ = nullptr;
  UnitPool<T> own_units_;
  const UnitPool<T>* units_ = nullptr;
  RowSet all_, working_set_;
  // Scratch.
  Aligned<int16_t> unit_residual_;
  std::vector<double> estimates_;  // of the last set
  std::vector<double> ranked_;
  std::vector<int64_t> contenders_;
  std::vector<const T*> contender_rows_;
  AlignedDoubles products_;
};

}  // namespace hullft
