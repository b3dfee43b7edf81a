// Weights to counts by one warp: the schedule of core/integerize.h. float64 whatever the state, so
// that the last decimals of a float32 Gram matrix cannot make units swap back and forth.
#pragma once

#include "../core/integerize.h"
#include "reduce.cuh"

namespace hullft {

// Arrays of the support's size.
struct CountArrays {
  double* gain;  // of core/integerize.h; before the counts <x_i, q>
  int* counts;
  int* givers;  // atoms with units, in order
};

constexpr int64_t kCountBytes = sizeof(double) + 2 * sizeof(int);

constexpr int kAtomsOfLane = 2;  // at once
constexpr int kAtomsAtOnce = kAtomsOfLane * kWarp;

// Elements of shared memory for the Gram matrix of a small support: 54 atoms in float32.
template <typename S>
constexpr int kSmallGram = 11'776 / int(sizeof(S));

// A Gram matrix of a whole support, of atoms that the lanes take at once.
template <typename S>
struct CompactRows {
  static constexpr bool kAtOnce = true;
  const S* gram;
  int m;

  __device__ __forceinline__ const S* row(int i) const { return gram + i * m; }
  __device__ __forceinline__ int at(int j) const { return j; }
};

// Rows: row(int i), a row of the Gram matrix, at(int j), where in a row atom j is, and kAtOnce.
template <typename Rows>
class WarpIntegerizer {
 public:
  __device__ __forceinline__ WarpIntegerizer(const Rows& rows, const CountArrays& arrays, int m,
                                             int n, int lane)
      : rows_(rows), x_(arrays), m_(m), n_(n), lane_(lane) {}

  // `gain` must hold the products with the query. Leaves the counts of the m atoms, which sum to n.
  // Weight: double operator()(int i).
  template <typename Weight>
  __device__ __forceinline__ void run(const Weight& weight, int swap_passes) {
    int left = n_ - floor_counts(weight);
    int best = start_gains();
    __syncwarp();  // all lanes have read the counts
    for (; left > 0; --left) best = give_one(best);
    for (int pass = 0; pass < swap_passes; ++pass)
      if (!swap_pass()) return;
  }

 private:
  // Givers whose swaps are tried together. More than four rows from anywhere take registers
  // that fw_kernel does not have (nvcc 13.0).
  static constexpr int kRowsAtOnce = Rows::kAtOnce ? 8 : 4;

  // What follows `first`, an atom of all lanes, in a loop over the support.
  __device__ __forceinline__ bool goes_on(int first) const { return !Rows::kAtOnce && first < m_; }

  __device__ __forceinline__ int atom(int first, int slot) const {
    return first + slot * kWarp + lane_;
  }

  template <typename Weight>
  __device__ __forceinline__ int floor_counts(const Weight& weight) {
    double sum = 0;
    for (int i = lane_; i < m_; i += kWarp) sum += weight(i) > 0 ? weight(i) : 0.0;
    const double total = warp_sum(sum);
    int floors = 0;
    for (int i = lane_; i < m_; i += kWarp) {
      const double w = total > 0 ? (weight(i) > 0 ? weight(i) / total : 0.0) : 1.0 / double(m_);
      x_.counts[i] = int(floor(double(n_) * w));
      floors += x_.counts[i];
    }
    return int(__reduce_add_sync(kFullWarp, unsigned(floors)));
  }

  // Lists the atoms that have units, and gives their number.
  __device__ __forceinline__ int list_givers() {
    __syncwarp();  // lane 0 has written counts
    int listed = 0;
    int first = 0;
    do {
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s) {
        const int i = atom(first, s);
        const bool gives = i < m_ && x_.counts[i] > 0;
        const unsigned lanes = __ballot_sync(kFullWarp, gives);
        if (gives) x_.givers[listed + __popc(lanes & ((1u << lane_) - 1))] = i;
        listed += __popc(lanes);
      }
      first += kAtomsAtOnce;
    } while (goes_on(first));
    __syncwarp();
    return listed;
  }

  // Where in a row of the Gram matrix an atom is; past the support, where the first one is.
  __device__ __forceinline__ int place(int j) const { return rows_.at(j < m_ ? j : 0); }

  // Infinite past the support.
  __device__ __forceinline__ double gain_of(int j) const { return j < m_ ? x_.gain[j] : INFINITY; }

  // Every gain may be NaN, where products overflow: the first atom is the best one then.
  __device__ __forceinline__ Best<double> none() const { return {-INFINITY, 0}; }

  __device__ __forceinline__ void set_gain(int j, double gain, Best<double>& best) {
    if (j < m_) x_.gain[j] = gain;
    if (-gain > best.value) best = {-gain, j};
  }

  // The gains of the floors; the atom of the least one.
  __device__ __forceinline__ int start_gains() {
    const int n_givers = list_givers();
    Best<double> best = none(), largest_square{0, 0};
    int first = 0;
    do {
      double gain[kAtomsOfLane];
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s) {
        const int j = atom(first, s);
        const double square = double(rows_.row(j < m_ ? j : 0)[place(j)]);
        if (square > largest_square.value) largest_square.value = square;
        gain[s] = gain_at_zero(square, gain_of(j), double(n_));
      }
      for (int r = 0; r < n_givers; ++r) {
        const int i = x_.givers[r];
        const double units = double(x_.counts[i]);
#pragma unroll
        for (int s = 0; s < kAtomsOfLane; ++s)
          gain[s] = gain_after(gain[s], units, double(rows_.row(i)[place(atom(first, s))]));
      }
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s)
        set_gain(atom(first, s), atom(first, s) < m_ ? gain[s] : INFINITY, best);
      first += kAtomsAtOnce;
    } while (goes_on(first));
    least_ = kMinImprovement * warp_best(largest_square).value * double(n_) * double(n_);
    return warp_best(best).index;
  }

  // A unit for atom i; the atom of the least gain after that.
  __device__ __forceinline__ int give_one(int i) {
    const auto* row = rows_.row(i);
    Best<double> best = none();
    int first = 0;
    do {
      decltype(*row + 0) element[kAtomsOfLane];
      double gain[kAtomsOfLane];
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s) {
        element[s] = row[place(atom(first, s))];
        gain[s] = gain_of(atom(first, s));
      }
      // While the loads are under way, and without a load of its own.
      if (first == 0 && lane_ == 0) atomicAdd(&x_.counts[i], 1);
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s)
        set_gain(atom(first, s), gain_after(gain[s], 1.0, double(element[s])), best);
      first += kAtomsAtOnce;
    } while (goes_on(first));
    return warp_best(best).index;
  }

  // Atoms give in order, each to the others in order, as long as it has units. Between two moves
  // nothing changes: where no pair of several givers improves, none of them moves a unit.
  __device__ __forceinline__ bool swap_pass() {
    const int n_givers = list_givers();  // units received during the pass stay for the next
    bool moved = false;
    for (int first = 0; first < n_givers; first += kRowsAtOnce) {
      if (!any_improves(first, n_givers)) continue;
      const int last = first + kRowsAtOnce < n_givers ? first + kRowsAtOnce : n_givers;
      for (int r = first; r < last; ++r)
        if (give_from(x_.givers[r])) moved = true;
    }
    return moved;
  }

  __device__ __forceinline__ double limit_of(int i) const {
    return swap_limit(x_.gain[i], double(rows_.row(i)[rows_.at(i)]), least_);
  }

  __device__ __forceinline__ bool any_improves(int from, int n_givers) const {
    bool improves = false;
    int first = 0;
    do {
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int i = x_.givers[from + r < n_givers ? from + r : from];
        const double limit = limit_of(i);
#pragma unroll
        for (int s = 0; s < kAtomsOfLane; ++s) {
          const int j = atom(first, s);
          improves |= swap_improves(gain_of(j), double(rows_.row(i)[place(j)]), limit);
        }
      }
      first += kAtomsAtOnce;
    } while (goes_on(first));
    return __any_sync(kFullWarp, improves);
  }

  // The swaps of one giver.
  __device__ __forceinline__ bool give_from(int i) {
    int units = x_.counts[i];
    bool moved = false;
    for (int first = 0; first < m_; first += kWarp) {
      unsigned rest = kFullWarp;  // lanes whose atoms come after the last one that received
      while (rest) {
        const int j = first + lane_;
        const bool improves =
            j < m_ && swap_improves(x_.gain[j], double(rows_.row(i)[rows_.at(j)]), limit_of(i));
        const unsigned lanes = __ballot_sync(kFullWarp, improves) & rest;
        if (!lanes) break;
        const int lane = __ffs(int(lanes)) - 1;
        move(i, first + lane);
        moved = true;
        if (--units == 0) return true;
        rest = lane == kWarp - 1 ? 0 : kFullWarp << (lane + 1);
      }
    }
    return moved;
  }

  __device__ __forceinline__ void move(int i, int j) {
    __syncwarp();  // all lanes have read the gain of i
    if (lane_ == 0) --x_.counts[i], ++x_.counts[j];
    for (int k = lane_; k < m_; k += kWarp) {
      const double with_j = gain_after(x_.gain[k], 1.0, double(rows_.row(j)[rows_.at(k)]));
      x_.gain[k] = gain_after(with_j, -1.0, double(rows_.row(i)[rows_.at(k)]));
    }
    __syncwarp();
  }

  const Rows& rows_;
  const CountArrays x_;
  const int m_, n_;
  double least_ = 0;  // what a swap must lower N^2 L by
  const int lane_;
};

// Copies the Gram matrix of at most kAtomsAtOnce atoms, by all warps of a block. Eight loads are
// under way before the first one is stored.
template <typename S, typename Rows>
__device__ __forceinline__ void copy_gram(const Rows& rows, int m, S* copy, const BlockThread& me) {
  constexpr int kRowsOfWarp = 4;
  int at[kAtomsOfLane];
#pragma unroll
  for (int s = 0; s < kAtomsOfLane; ++s) {
    const int j = s * kWarp + me.lane;
    at[s] = rows.at(j < m ? j : 0);
  }
  for (int first = me.warp; first < m; first += kRowsOfWarp * me.n_warps) {
    S loaded[kRowsOfWarp][kAtomsOfLane];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const int i = first + r * me.n_warps;
      const S* row = rows.row(i < m ? i : 0);
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s) loaded[r][s] = row[at[s]];
    }
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r)
#pragma unroll
      for (int s = 0; s < kAtomsOfLane; ++s) {
        const int i = first + r * me.n_warps, j = s * kWarp + me.lane;
        if (i < m && j < m) copy[i * m + j] = loaded[r][s];
      }
  }
}

// By all threads of a block: the counts of m atoms, from `arrays.gain` that holds their products
// with the query. `spare`: memory for n_spare elements, where a small support's Gram matrix goes.
template <typename S, typename Rows, typename Weight>
__device__ __forceinline__ void count_units(const Rows& rows, const Weight& weight,
                                            const CountArrays& arrays, int m, int n,
                                            int swap_passes, S* spare, int64_t n_spare,
                                            const BlockThread& me) {
  const bool compact = m <= kAtomsAtOnce && m * m <= n_spare;
  __syncthreads();
  if (compact) {
    copy_gram(rows, m, spare, me);
    __syncthreads();
  }
  if (me.warp == 0) {
    if (compact) {
      const CompactRows<S> copy{spare, m};
      WarpIntegerizer(copy, arrays, m, n, me.lane).run(weight, swap_passes);
    } else {
      WarpIntegerizer(rows, arrays, m, n, me.lane).run(weight, swap_passes);
    }
  }
  __syncthreads();
}

}  // namespace hullft
