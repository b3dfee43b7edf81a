// Weights to counts on the host: the schedule of core/integerize.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/integerize.h"

namespace hullft {

class Integerizer {
 public:
  static double total(const double* weights, int64_t m) {
    double sum = 0;
    for (int64_t i = 0; i < m; ++i) sum += weights[i] > 0 ? weights[i] : 0.0;
    return sum;
  }

  // gram [m, m] row-major, b = support . query [m], weights [m]; counts [m] is the output and sums
  // to n. Weights below 0 count as 0; if none is positive they count as equal. Their total is
  // finite.
  void run(const double* gram, const double* b, const double* weights, int64_t m, int64_t n,
           int64_t swap_passes, int64_t* counts) {
    gram_ = gram, m_ = m, counts_ = counts;
    gains_.resize(size_t(m));
    double largest_square = 0;
    for (int64_t i = 0; i < m; ++i) {
      const double square = gram_row(i)[i];
      gains_[size_t(i)] = gain_at_zero(square, b[i], double(n));
      largest_square = std::max(largest_square, square);
    }
    least_ = kMinImprovement * largest_square * double(n) * double(n);
    int64_t left = n - floor_counts(weights, n);
    for (int64_t i = 0; i < m; ++i)
      if (counts[i]) grow(i, double(counts[i]));
    for (; left > 0; --left) give_one();
    for (int64_t pass = 0; pass < swap_passes; ++pass)
      if (!swap_pass()) return;
  }

 private:
  const double* gram_row(int64_t i) const { return gram_ + i * m_; }

  // All gains after c_i has grown.
  void grow(int64_t i, double units) {
    const double* row = gram_row(i);  // G is symmetric bit for bit
    for (int64_t j = 0; j < m_; ++j)
      gains_[size_t(j)] = gain_after(gains_[size_t(j)], units, row[j]);
  }

  int64_t floor_counts(const double* weights, int64_t n) {
    const double whole = total(weights, m_);
    int64_t total_count = 0;
    for (int64_t i = 0; i < m_; ++i) {
      const double w = whole > 0 ? (weights[i] > 0 ? weights[i] / whole : 0.0) : 1.0 / double(m_);
      counts_[i] = int64_t(std::floor(double(n) * w));
      total_count += counts_[i];
    }
    return total_count;
  }

  void give_one() {
    const int64_t best = std::min_element(gains_.begin(), gains_.end()) - gains_.begin();
    ++counts_[best];
    grow(best, 1.0);
  }

  bool swap_pass() {
    bool moved = false;
    held_.assign(counts_, counts_ + m_);
    for (int64_t i = 0; i < m_; ++i) {
      if (held_[size_t(i)] == 0) continue;  // units received during the pass stay for the next
      const double* row = gram_row(i);
      double limit = swap_limit(gains_[size_t(i)], row[i], least_);
      for (int64_t j = 0; j < m_ && counts_[i] > 0; ++j) {
        if (!swap_improves(gains_[size_t(j)], row[j], limit)) continue;
        --counts_[i], ++counts_[j];
        grow(j, 1.0), grow(i, -1.0);
        limit = swap_limit(gains_[size_t(i)], row[i], least_);
        moved = true;
      }
    }
    return moved;
  }

  const double* gram_ = nullptr;
  int64_t m_ = 0;
  double least_ = 0;  // what a swap must lower N^2 L by
  int64_t* counts_ = nullptr;
  std::vector<double> gains_;
  std::vector<int64_t> held_;  // counts at the start of a pass
};

}  // namespace hullft
