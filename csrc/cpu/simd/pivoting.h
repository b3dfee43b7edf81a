// Block principal pivoting (Kim and Park, "Fast Nonnegative Matrix Factorization: An
// Active-Set-Like Method and Comparisons", SIAM Journal on Scientific Computing 33, 2011) of as
// many queries as a vector has lanes.
//
// A row that is not free is the identity's in the factor, so that all queries have one flow
// of control. What a lane computes does not depend on the others.
#pragma once

#include "pivoting_kernels.h"
#include "real.h"

namespace hullft {
namespace {

inline VecD choose(VecL mask, VecD yes, VecD no) { return mask ? yes : no; }

class Pivoting {
 public:
  Pivoting(const PivotingProblem& problem, double* work, double* a)
      : in_(problem), n_(problem.n), a_(a), factor_(work), slopes_(work + factor_size(n_)) {
    shift_ = in_.shifts ? load_doubles(in_.shifts) : VecD{};
    scale_ = load_doubles(in_.scales);
  }

  // Room for the factor and the slopes.
  static int64_t work(int64_t n) { return factor_size(n) + n * kDoubles; }

  void solve(double* rounds) {
    for (int64_t i = 0; i < n_; ++i) is_free_[i] = VecL{} - 1;
    VecD ended{}, fewest = broadcast(double(n_ + 1)), trials = broadcast(kTrials);
    for (int round = 1; round <= kRounds; ++round) {
      factorize();
      substitute();
      find_slopes();
      const VecD infeasible = count_infeasible();
      const VecL is_done = infeasible == 0.0;
      ended = choose(is_done & (ended == 0.0), broadcast(double(round)), ended);
      store_doubles(rounds, ended);
      if (sum_lanes(choose(is_done, VecD{}, broadcast(1.0))) == 0) return;
      const VecL is_fewer = infeasible < fewest;
      fewest = choose(is_fewer, infeasible, fewest);
      trials = choose(is_fewer, broadcast(kTrials), trials - 1.0);
      exchange(trials >= 0.0);
    }
  }

 private:
  static constexpr int kRounds = 12;
  static constexpr double kTrials = 3;  // rounds without fewer infeasible rows, before one alone
  static constexpr double kLeastPivot = 32 * 0x1p-52;  // beside the diagonal
  static constexpr double kRounding = 32 * 0x1p-52;    // of slopes, beside the target

  static int64_t factor_size(int64_t n) { return n * (n + 1) / 2 * kDoubles; }
  double* factor(int64_t i) const { return factor_ + i * (i + 1) / 2 * kDoubles; }
  VecD product(int64_t i) const { return load_doubles(in_.products + i * kDoubles); }
  VecD a(int64_t i) const { return load_doubles(a_ + i * kDoubles); }

  VecD entry(int64_t i, int64_t j) const {
    const VecD gram = broadcast(in_.gram[i * n_ + j]);
    return in_.shifts ? gram + ((shift_ - product(i)) - product(j)) : gram;
  }
  VecD target(int64_t i) const { return in_.shifts ? scale_ : product(i); }

  // L of the free rows, with the reciprocals of its diagonal.
  void factorize() {
    for (int64_t i = 0; i < n_; ++i) {
      double* row = factor(i);
      int64_t j = 0;
      for (; j + kBlock <= i; j += kBlock) fill<kBlock>(row, i, j);
      for (; j < i; ++j) fill<1>(row, i, j);
      VecD left = entry(i, i);
      const VecD least = left * kLeastPivot;
      for (int64_t k = 0; k < i; ++k) {
        const VecD l = load_doubles(row + k * kDoubles);
        left = multiply_add(-l, l, left);
      }
      left = choose(left > least, left, least);
      store_doubles(row + i * kDoubles,
                    choose(is_free_[i], 1.0 / square_root(left), broadcast(1.0)));
    }
  }

  // Entries j .. j + kMany of row i. Several at once, as each sum waits for its last term.
  template <int kMany>
  void fill(double* row, int64_t i, int64_t j) {
    VecD sums[kMany];
    for (int c = 0; c < kMany; ++c)
      sums[c] = choose(is_free_[i] & is_free_[j + c], entry(i, j + c), VecD{});
    for (int64_t k = 0; k < j; ++k) {
      const VecD l = load_doubles(row + k * kDoubles);
      for (int c = 0; c < kMany; ++c)
        sums[c] = multiply_add(-l, load_doubles(factor(j + c) + k * kDoubles), sums[c]);
    }
    for (int c = 0; c < kMany; ++c) {
      const double* other = factor(j + c);
      for (int k = 0; k < c; ++k)
        sums[c] = multiply_add(-sums[k], load_doubles(other + (j + k) * kDoubles), sums[c]);
      sums[c] *= load_doubles(other + (j + c) * kDoubles);
      store_doubles(row + (j + c) * kDoubles, sums[c]);
    }
  }

  // a of the free rows, 0 for the others.
  void substitute() {
    for (int64_t i = 0; i < n_; ++i) {
      const double* row = factor(i);
      VecD left = choose(is_free_[i], target(i), VecD{});
      for (int64_t k = 0; k < i; ++k)
        left = multiply_add(-load_doubles(row + k * kDoubles), a(k), left);
      store_doubles(a_ + i * kDoubles, left * load_doubles(row + i * kDoubles));
    }
    for (int64_t i = n_; i-- > 0;) {
      const double* row = factor(i);
      const VecD value = a(i) * load_doubles(row + i * kDoubles);
      store_doubles(a_ + i * kDoubles, value);
      for (int64_t k = 0; k < i; ++k)
        store_doubles(a_ + k * kDoubles,
                      multiply_add(-load_doubles(row + k * kDoubles), value, a(k)));
    }
  }

  // A a - c of the rows that are not free; a itself of those that are.
  void find_slopes() {
    VecD sum{}, mean{};
    for (int64_t i = 0; in_.shifts && i < n_; ++i) {
      sum += a(i);
      mean = multiply_add(product(i), a(i), mean);
    }
    for (int64_t i = 0; i < n_; ++i) {
      VecD slope = multiply_add(shift_ - product(i), sum, -mean);
      if (!in_.shifts) slope = VecD{};
      for (int64_t j = 0; j < n_; ++j)
        slope = multiply_add(broadcast(in_.gram[i * n_ + j]), a(j), slope);
      slope -= target(i);
      slope += scale_ * kRounding;
      store_doubles(slopes_ + i * kDoubles, choose(is_free_[i], a(i), slope));
    }
  }

  VecL is_infeasible(int64_t i) const { return load_doubles(slopes_ + i * kDoubles) < 0.0; }

  VecD count_infeasible() const {
    VecD count{};
    for (int64_t i = 0; i < n_; ++i) count += choose(is_infeasible(i), broadcast(1.0), VecD{});
    return count;
  }

  // All infeasible rows change sides, or where `all` is not set the last of them: Murty's rule,
  // which ends.
  void exchange(VecL all) {
    VecL may{};
    may = ~may;
    for (int64_t i = n_; i-- > 0;) {
      const VecL changes = is_infeasible(i) & may;
      is_free_[i] ^= changes;
      may &= all | ~changes;
    }
  }

  static constexpr int kBlock = 4;

  const PivotingProblem& in_;
  int64_t n_;
  double *a_, *factor_, *slopes_;
  VecD shift_, scale_;
  VecL is_free_[kMostPivotingRows];
};

void pivot_kernel(const PivotingProblem& problem, double* work, double* a, double* rounds) {
  Pivoting(problem, work, a).solve(rounds);
}

}  // namespace
}  // namespace hullft
