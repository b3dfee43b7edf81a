// What the solvers share: when a solve ends, the state of a query, laid out in shared or global
// memory, and what the warps tell one another.
#pragma once

#include "device.cuh"
#include "frank_wolfe.h"
#include "reduce.cuh"
#include "warp_integerize.cuh"

namespace hullft {

// When a solve ends, and when its residual has to come from the rows.
struct FwStopping {
  double residual;   // the solve ends below it
  double within;     // a squared residual this small is noise: the recurrence loses half its digits
  double gap_floor;  // the gap that ends the solve
  int last;          // steps
  int full;          // atoms that end a vanilla solve
};

// qq: the query's square. With one atom to find, a vanilla solve takes a step too.
template <typename S>
__device__ __forceinline__ FwStopping stopping_of(const FwProblem& p, double qq) {
  const bool one_step = p.variant == Variant::kVanilla && p.max_support == 1 && p.max_iter > 1;
  return {p.tol * sqrt(qq), (p.tol * p.tol + 32.0 * double(epsilon<S>())) * qq,
          p.gap_tol > 0 ? p.gap_tol : -INFINITY, one_step ? 1 : p.max_iter,
          p.max_support > 1 ? p.max_support : 2};
}

// What all warps do next. From kDone on, the solve is over.
enum class Action : int {
  kCorrelate,  // products of all rows with the query
  kColumn,     // products of all rows with the atom that was picked
  kResidual,   // the residual from the rows: the recurrence cannot tell it from 0
  kStep,       // apply the step
  kDone,
  kFail,
};

// Where a solve leaves off until the device has computed a column.
template <typename S>
struct FwPause {
  int round;                 // the last one that it paused in, or -1
  int picked, picked_entry;  // the row, and where its column goes
  int n;                     // rows that the query sees
  S qq;                      // the square of the query
};

// At the end of a query's state; null without rounds.
template <typename Pause>
__device__ __forceinline__ Pause* pause_of(const SolverPlan& plan, unsigned char* state) {
  static_assert(sizeof(Pause) <= kPauseBytes);
  const bool pauses = plan.rounds > 0;
  return pauses ? reinterpret_cast<Pause*>(state + plan.state_bytes - kPauseBytes) : nullptr;
}

// What warp 0 tells the other warps, and they tell it.
template <typename S>
struct FwControl {
  Action action;
  S scale, toward;
  const S* column;           // of the atom that the step goes toward; null: u stays
  int picked, picked_entry;  // of kColumn: the row, and where its column goes
  int support_size, iterations;
  S gap;
  S best_value[kMaxBlockWarps];
  int best_index[kMaxBlockWarps];
};

// An entry for each atom of the support.
template <typename S>
struct FwTable {
  int* atom;
  S* weight;
  int* order;  // at the end: entries, largest weight first
};

template <typename S>
struct FwState {
  S *b, *u;  // [n], side by side
  FwTable<S> table;
  CountArrays counts;
};

// Besides, `reals` numbers and `ints` integers of a solver's own.
inline int64_t fw_state_bytes(int64_t width, int64_t slots, int64_t real_bytes, int64_t reals = 0,
                              int64_t ints = 0) {
  return aligned_bytes((2 * width + slots + reals) * real_bytes + slots * kCountBytes +
                       (2 * slots + ints) * int64_t(sizeof(int)));
}

// The widest type first, so that every array is aligned. `reals` numbers follow u, integers the
// givers.
template <typename S>
__device__ __forceinline__ FwState<S> carve_state(unsigned char* memory, int width, int slots,
                                                  int64_t reals = 0) {
  FwState<S> state;
  state.counts.gain = reinterpret_cast<double*>(memory);
  state.b = reinterpret_cast<S*>(state.counts.gain + slots);
  state.u = state.b + width;
  state.table.weight = state.u + width + reals;
  state.table.atom = reinterpret_cast<int*>(state.table.weight + slots);
  state.table.order = state.table.atom + slots;
  state.counts.counts = state.table.order + slots;
  state.counts.givers = state.counts.counts + slots;
  return state;
}

}  // namespace hullft
