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
#include "../pool.h"
#include "../query_pool.h"
#include "../share_rows.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "../simd/screening_kernels.h"
#include "support.h"

namespace hullft {

// The rows of a pool as unit vectors of 16-bit integers, which estimates of correlations are made
// of.
template <typename T>
class UnitPool {
 public:
  // `share`: the rows, among threads.
  void begin(const T* const* rows, int64_t n_rows, int64_t d, bool share) {
    width_ = quantized_width(d);
    int16_t* units = units_.reserve(n_rows * width_);
    norms_.resize(size_t(n_rows));
    const UnitRows<T> to_units = dot_kernels<T>().unit_rows;
    for_rows(n_rows, d, share, [&](int64_t begin, int64_t end) {
      to_units(rows + begin, end - begin, d, width_, units + begin * width_, norms_.data() + begin);
    });
  }

  // d, padded with 0 to whole vectors.
  int64_t width() const { return width_; }
  const int16_t* unit(int64_t k) const { return units_.get() + k * width_; }
  // Not finite where a value of the row is not, or its square too large.
  double norm(int64_t k) const { return norms_[size_t(k)]; }

 private:
  int64_t width_ = 0;
  Aligned<int16_t> units_;
  std::vector<double> norms_;
};

// The units of a pool that the queries of a batch share; none where each has its own.
template <typename T>
class SharedUnitPool {
 public:
  explicit SharedUnitPool(const SelectionArguments& arguments) {
    if (arguments.pool.dim() != 2 || arguments.candidates || arguments.batch < 2) return;
    const Pool<T> pool(arguments);
    std::vector<const T*> rows;
    pool.rows(0, arguments.width, rows);
    units_.begin(rows.data(), arguments.width, arguments.dim, true);
    is_shared_ = true;
  }

  const UnitPool<T>* get() const { return is_shared_ ? &units_ : nullptr; }

 private:
  UnitPool<T> units_;
  bool is_shared_ = false;
};

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

  // residual: [d], padded with 0. The lowest row on ties, -1 without a row.
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

  // The row of the largest estimate in the last search, outside the support; -1 without
  // one above 0.
  int64_t next_of_last_set() const {
    const RowSet& set = *last_set_;
    double largest = 0;
    int64_t next = -1;
    for (size_t i = 0; i < set.rows.size(); ++i) {
      if (estimates_[i] <= largest || support_->has(set.rows[i])) continue;
      largest = estimates_[i], next = set.rows[i];
    }
    return next;
  }

  bool working_set_is_empty() const { return working_set_.size() == 0; }
  // Whether every search is among all rows, in float64.
  bool is_small() const { return in_->n_rows <= kWorkingSet || in_->n_rows * in_->d <= kSmallPool; }

 private:
  static constexpr int64_t kWorkingSet = 32;
  static constexpr int64_t kSmallPool = 8192;  // values
  // Lines of the next query's pool that are prefetched for each tile of rows.
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
    last_set_ = &set;
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
    dot_kernels<double>().unit_rows(&residual, 1, in_->d, width, unit, &length);
    for_rows(set.size(), width / 4, in_->share_rows, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kTile) {
        kernels_->estimate(set.units.data() + first, set.norms.data() + first,
                           std::min(kTile, end - first), width, unit, estimates_.data() + first);
        in_->ahead->prefetch(kLinesATile);
      }
    });
  }

  // Those that may be the largest, in order. Branch-free where a branch is unpredictable; four
  // running maxima break the dependency chain.
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
  const RowSet* last_set_ = &all_;
  // Scratch.
  Aligned<int16_t> unit_residual_;
  std::vector<double> estimates_;  // of the last set
  std::vector<double> ranked_;
  std::vector<int64_t> contenders_;
  std::vector<const T*> contender_rows_;
  AlignedDoubles products_;
};

}  // namespace hullft
