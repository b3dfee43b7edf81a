// Weights to counts by one block: the schedule of core/integerize.h. float64 whatever the state, so
// that the last decimals of a float32 Gram matrix cannot make units swap back and forth.
#pragma once

#include "../core/integerize.h"
#include "reduce.cuh"

namespace hullft {

// Arrays of the support's size.
struct CountArrays {
  double* v;         // G c
  double* b;         // <x_i, q>
  double* diagonal;  // G_ii
  int* counts;
  int* held;  // counts at the start of a pass
};

constexpr size_t kCountBytes = 3 * sizeof(double) + 2 * sizeof(int);

// Gram: double operator()(int i, int j). Weight: double operator()(int i).
template <typename Gram>
class BlockIntegerizer {
 public:
  __device__ __forceinline__ BlockIntegerizer(const Gram& gram, const CountArrays& arrays, int m,
                                              int n, BlockScratch& scratch, const BlockThread& me)
      : gram_(gram), x_(arrays), m_(m), n_(n), scratch_(scratch), me_(me) {}

  // b must be set. Leaves the counts of the m atoms in arrays.counts; they sum to n.
  template <typename Weight>
  __device__ __forceinline__ void run(const Weight& weight, int swap_passes) {
    int left = n_ - floor_counts(weight);
    start_products();
    for (; left > 0; --left) give_one();
    for (int pass = 0; pass < swap_passes; ++pass)
      if (!swap_pass()) return;
  }

 private:
  template <typename Weight>
  __device__ __forceinline__ int floor_counts(const Weight& weight) {
    double sum = 0;
    for (int i = me_.thread; i < m_; i += me_.n_threads) sum += weight(i) > 0 ? weight(i) : 0.0;
    const double total = block_sum(sum, scratch_, me_);
    double floors = 0;
    for (int i = me_.thread; i < m_; i += me_.n_threads) {
      const double w = total > 0 ? (weight(i) > 0 ? weight(i) / total : 0.0) : 1.0 / double(m_);
      x_.counts[i] = int(floor(double(n_) * w));
      floors += x_.counts[i];
    }
    return int(block_sum(floors, scratch_, me_));  // its barriers also publish the counts
  }

  __device__ __forceinline__ void start_products() {
    Best<double> largest_square{0, 0};
    for (int j = me_.thread; j < m_; j += me_.n_threads) {
      double sum = 0;
      for (int i = 0; i < m_; ++i)
        if (x_.counts[i]) sum += double(x_.counts[i]) * gram_(i, j);
      x_.v[j] = sum;
      x_.diagonal[j] = gram_(j, j);
      see(largest_square, x_.diagonal[j], j);
    }
    // Its barriers also publish the products.
    min_improvement_ = kMinImprovement * block_best(largest_square, scratch_, me_).value;
  }

  __device__ __forceinline__ void give_one() {
    Best<double> mine{-INFINITY, 0};  // every gain may be NaN, where products overflow
    for (int i = me_.thread; i < m_; i += me_.n_threads)
      see(mine, -gain_of_unit(x_.v[i], x_.diagonal[i], x_.b[i], double(n_)), i);
    const int best = block_best(mine, scratch_, me_).index;
    if (me_.thread == 0) ++x_.counts[best];
    for (int j = me_.thread; j < m_; j += me_.n_threads) x_.v[j] += gram_(best, j);
    __syncthreads();
  }

  // Between two moves nothing changes, so the block tries as many pairs at once as it has threads
  // and takes the first that improves: the order of the definition.
  __device__ __forceinline__ bool swap_pass() {
    for (int i = me_.thread; i < m_; i += me_.n_threads) x_.held[i] = x_.counts[i];
    __syncthreads();
    bool moved = false;
    const int64_t pairs = int64_t(m_) * m_;
    for (int64_t start = 0; start < pairs;) {
      const int64_t pair = start + me_.thread;
      const int first = block_first(pair < pairs && improves(pair), scratch_, me_);
      if (first == kNoIndex) {
        start += me_.n_threads;
        continue;
      }
      move(start + first);
      moved = true;
      start += first + 1;
    }
    return moved;
  }

  __device__ __forceinline__ bool improves(int64_t pair) const {
    const int i = int(pair / m_), j = int(pair % m_);
    // Units received during the pass stay for the next; an atom without units has none to give.
    if (i == j || x_.held[i] == 0 || x_.counts[i] == 0) return false;
    return gain_of_swap(x_.v[i], x_.v[j], x_.diagonal[i], x_.diagonal[j], gram_(i, j), x_.b[i],
                        x_.b[j], double(n_)) < -min_improvement_;
  }

  __device__ __forceinline__ void move(int64_t pair) {
    const int i = int(pair / m_), j = int(pair % m_);
    if (me_.thread == 0) --x_.counts[i], ++x_.counts[j];
    for (int k = me_.thread; k < m_; k += me_.n_threads) {
      const double with_j = x_.v[k] + gram_(j, k);
      x_.v[k] = with_j - gram_(i, k);
    }
    __syncthreads();
  }

  const Gram& gram_;
  CountArrays x_;
  int m_, n_;
  double min_improvement_ = 0;
  BlockScratch& scratch_;
  const BlockThread& me_;
};

}  // namespace hullft
