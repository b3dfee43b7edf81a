// The row outside the support of the largest correlation with a residual, in the whole pool or in a
// working set.
//
// The cosine of every row with the residual is estimated from 16-bit integers. In float64 come only
// the few correlations that may be the largest. The bound on the estimates' error is rigorous. The
// support's rows are left out: at the best weights all of theirs are equal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "../aligned.h"
#include "../query_pool.h"
#include "../share_rows.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "../simd/screening_kernels.h"
#include "support.h"

namespace hullft {

template <typename T>
class LargestCorrelation {
 public:
  // False when a row is not finite.
  bool begin(const QueryPool<T>& in, const Support& support) {
    in_ = &in, support_ = &support, kernels_ = &corrective_kernels();
    if (in.pool_id != pool_id_) read_pool();
    unit_residual_.reserve(width_);
    working_set_.clear();
    estimates_.resize(size_t(in.n_rows));
    double poison = 0;
    for (const double norm : all_.norms) poison += norm * 0;
    return poison == 0;
  }

  // residual: [d], padded with 0. The lowest row on ties, -1 without a row.
  int64_t in_pool(const double* residual) { return largest(all_, residual); }
  int64_t in_working_set(const double* residual) { return largest(working_set_, residual); }

  // After a search in the pool: the rows of the largest correlations above `least`, a share of the
  // residual's length, in order. Of equal rows, the first comes first.
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
      if (estimates_[size_t(k)] > least)
        working_set_.add(k, all_.units[size_t(k)], all_.norms[size_t(k)]);
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
  // Whether a working set would save nothing.
  bool is_small() const { return in_->n_rows <= kWorkingSet || in_->n_rows * in_->d <= kSmallPool; }

 private:
  static constexpr int64_t kWorkingSet = 32;
  static constexpr int64_t kSmallPool = 8192;  // values

  // Rows of the pool in order, as unit vectors of 16-bit integers, and their norms.
  struct RowSet {
    std::vector<int64_t> rows;
    std::vector<const int16_t*> units;
    // Not finite where a value of the row is not, or its square too large.
    std::vector<double> norms;

    int64_t size() const { return int64_t(rows.size()); }
    void clear() { rows.clear(), units.clear(), norms.clear(); }
    void add(int64_t row, const int16_t* unit, double norm) {
      rows.push_back(row), units.push_back(unit), norms.push_back(norm);
    }
  };

  // Once for the queries in a row that have the same pool.
  void read_pool() {
    const int64_t n = in_->n_rows, d = in_->d;
    pool_id_ = in_->pool_id, width_ = quantized_width(d);
    int16_t* units = units_.reserve(n * width_);
    double* norms = norms_.reserve(n);
    for_rows(n, d, in_->share_rows, [&](int64_t begin, int64_t end) {
      dot_kernels<T>().unit_rows(in_->rows + begin, end - begin, d, width_, units + begin * width_,
                                 norms + begin);
    });
    all_.clear();
    for (int64_t k = 0; k < n; ++k) all_.add(k, units + k * width_, norms[k]);
  }

  int64_t largest(const RowSet& set, const double* residual) {
    last_set_ = &set;
    estimate(set, residual);
    find_contenders(set);
    const int64_t n = int64_t(contenders_.size());
    if (n == 0) return -1;
    double* products = products_.reserve(n);
    dot_kernels<T>().rows(contender_rows_.data(), n, &residual, 1, in_->d, &products);
    return contenders_[size_t(std::max_element(products, products + n) - products)];
  }

  // The correlations over the residual's length.
  void estimate(const RowSet& set, const double* residual) {
    int16_t* unit = unit_residual_.get();
    double length;
    dot_kernels<double>().unit_rows(&residual, 1, in_->d, width_, unit, &length);
    for_rows(set.size(), width_ / 4, in_->share_rows, [&](int64_t begin, int64_t end) {
      kernels_->estimate(set.units.data() + begin, set.norms.data() + begin, end - begin, width_,
                         unit, estimates_.data() + begin);
    });
  }

  // The rows that may be the largest, in order. Branch-free where a branch is unpredictable; four
  // running maxima break the dependency chain.
  void find_contenders(const RowSet& set) {
    constexpr double kLowest = -std::numeric_limits<double>::infinity();
    const double error = cosine_error(width_);
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
  int64_t pool_id_ = 0, width_ = 0;  // width_: d, padded with 0 to whole vectors
  Aligned<int16_t> units_;
  AlignedDoubles norms_;
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
