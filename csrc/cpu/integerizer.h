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
    gram_ = gram, b_ = b, m_ = m, n_ = double(n), counts_ = counts;
    double largest_square = 0;
    for (int64_t i = 0; i < m; ++i) largest_square = std::max(largest_square, gram_row(i)[i]);
    min_improvement_ = kMinImprovement * largest_square;
    int64_t left = n - floor_counts(weights, n);
    v_.assign(size_t(m), 0.0);
    for (int64_t i = 0; i < m; ++i)
      if (counts[i]) add_column(i, double(counts[i]));
    for (; left > 0; --left) give_one();
    for (int64_t pass = 0; pass < swap_passes; ++pass)
      if (!swap_pass()) return;
  }

 private:
  const double* gram_row(int64_t i) const { return gram_ + i * m_; }

  void add_column(int64_t i, double amount) {
    const double* row = gram_row(i);  // G is symmetric bit for bit
    for (int64_t j = 0; j < m_; ++j) v_[size_t(j)] += amount * row[j];
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
    int64_t best = 0;
    double best_gain = 0;
    for (int64_t i = 0; i < m_; ++i) {
      const double gain = gain_of_unit(v_[size_t(i)], gram_row(i)[i], b_[i], n_);
      if (i == 0 || gain < best_gain) best = i, best_gain = gain;
    }
    ++counts_[best];
    add_column(best, 1.0);
  }

  bool swap_pass() {
    bool moved = false;
    held_.assign(counts_, counts_ + m_);
    for (int64_t i = 0; i < m_; ++i) {
      if (held_[size_t(i)] == 0) continue;  // units received during the pass stay for the next
      for (int64_t j = 0; j < m_ && counts_[i] > 0; ++j) {
        if (j == i || !swap_improves(i, j)) continue;
        --counts_[i], ++counts_[j];
        add_column(j, 1.0), add_column(i, -1.0);
        moved = true;
      }
    }
    return moved;
  }

  bool swap_improves(int64_t i, int64_t j) const {
    const double* row = gram_row(i);
    return gain_of_swap(v_[size_t(i)], v_[size_t(j)], row[i], gram_row(j)[j], row[j], b_[i], b_[j],
                        n_) < -min_improvement_;
  }

  const double* gram_ = nullptr;
  const double* b_ = nullptr;
  int64_t m_ = 0;
  double n_ = 1, min_improvement_ = 0;
  int64_t* counts_ = nullptr;
  std::vector<double> v_;
  std::vector<int64_t> held_;  // counts at the start of a pass
};

}  // namespace hullft
