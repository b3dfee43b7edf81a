// Where the corrective solvers keep what: the state of a query, what warp 0 of its block holds, and
// what kernels tell one another about long rows.
#pragma once

#include "fw_corrective.h"
#include "fw_state.cuh"

namespace hullft {

// Rows of the support stand in the order in which they joined.
template <typename S>
struct CorrectiveState : FwState<S> {
  S* factor;        // L: row i starts at i (i + 1) / 2
  S *y, *solution;  // [capacity]
  int* place;       // [capacity]: which of the columns is a row's. Past the support, free ones
};

// Products give a squared residual of so much of the largest square, with the fifth digit right.
constexpr double kExactShare = 0.01;

// Of the products, and the t of core/corrective.h for it.
HULLFT_HD double rounding_of(const SolverPlan& plan) {
  return plan.wide_products ? epsilon<double>() : double(epsilon<float>());
}
template <typename S>
HULLFT_HD S shift_of(const SolverPlan& plan, S qq, S square) {
  return plan.wide_products ? factor_shift(qq, square) : S(factor_shift(float(qq), float(square)));
}

HULLFT_HD int64_t triangle(int64_t n) { return n * (n + 1) / 2; }

inline int64_t corrective_state_bytes(int64_t width, int64_t capacity, int64_t real_bytes) {
  return fw_state_bytes(width, capacity, real_bytes, triangle(capacity) + 2 * capacity, capacity);
}

template <typename S>
__device__ __forceinline__ CorrectiveState<S> carve_corrective(unsigned char* memory, int width,
                                                               int capacity) {
  const int64_t elements = triangle(capacity);
  CorrectiveState<S> state;
  static_cast<FwState<S>&>(state) =
      carve_state<S>(memory, width, capacity, elements + 2 * capacity);
  state.factor = state.u + width;
  state.y = state.factor + elements;
  state.solution = state.y + capacity;
  state.place = state.counts.givers + capacity;
  return state;
}

// Where the rows are long: what a batch takes and leaves of the sums over them.
template <typename R>
struct LongRows {
  double* squares;  // [part], of the queries; after the solve below 0 where rows give the residual
  R* weights;       // [part, capacity], of the support
  int* atoms;       // [part, capacity]
};

template <typename R>
HULLFT_HD LongRows<R> long_rows_of(const SolverPlan& plan, void* workspace) {
  LongRows<R> rows;
  rows.squares = in_workspace<double>(workspace, plan.behind_offset);
  rows.weights = reinterpret_cast<R*>(rows.squares + plan.part);
  rows.atoms = reinterpret_cast<int*>(rows.weights + plan.part * plan.slots);
  return rows;
}

// What every lane of warp 0 holds.
template <typename S>
struct CorrectiveSteps {
  Best<S> top_{0, 0};  // the largest correlation over the pool
  bool holds_top_ = false;
  Iterate<S> it_{0, 0};
  S gap_ = 0;
  FactorTerms<S> terms_{0, 0};
  S y_square_ = 0;
  int m_ = 0, iterations_ = 0;  // rows of the support; cycles
  bool stops_ = false, fails_ = false;
};

}  // namespace hullft
