// What a solve keeps: the state of a query, laid out in shared or global memory, and what the warps
// tell one another.
#pragma once

#include "block_integerize.cuh"
#include "device.cuh"
#include "reduce.cuh"

namespace hullft {

// What all warps do next. From kDone on, the solve is over.
enum class Action : int {
  kCorrelate,  // products of all rows with the query
  kColumn,     // products of all rows with the atom that was picked
  kResidual,   // the residual from the rows: the recurrence cannot tell it from 0
  kStep,       // apply the step
  kDone,
  kFail,
};

// What warp 0 tells the other warps, and they tell it.
template <typename S>
struct FwControl {
  Action action;
  S scale, toward, away;
  const S *column_s, *column_a;  // null: no such term
  int picked, picked_entry;      // of kColumn
  int n_entries, support_size, iterations;
  S gap;
  S best_value[kMaxBlockWarps];
  int best_index[kMaxBlockWarps];
};

// The atoms that have a column. Those outside the support are stored as ~atom.
template <typename S>
struct FwTable {
  int* atom;
  S* weight;
  int* order;  // entries of the support: for a residual by number, at the end largest weight first
};

template <typename S>
struct FwState {
  S *b, *u;  // [n]
  FwTable<S> table;
  CountArrays counts;
};

inline int64_t aligned_bytes(int64_t bytes) { return (bytes + 15) / 16 * 16; }

inline int64_t fw_state_bytes(int width, int slots, int64_t real_bytes) {
  const int64_t table_bytes = 2 * int64_t(sizeof(int)) + real_bytes;
  return aligned_bytes(2 * int64_t(width) * real_bytes +
                       slots * (int64_t(kCountBytes) + table_bytes));
}

// The widest type first, so that every array is aligned.
template <typename S>
__device__ __forceinline__ FwState<S> carve_state(unsigned char* memory, int width, int slots) {
  FwState<S> state;
  state.counts.v = reinterpret_cast<double*>(memory);
  state.counts.b = state.counts.v + slots;
  state.counts.diagonal = state.counts.b + slots;
  state.b = reinterpret_cast<S*>(state.counts.diagonal + slots);
  state.u = state.b + width;
  state.table.weight = state.u + width;
  state.table.atom = reinterpret_cast<int*>(state.table.weight + slots);
  state.table.order = state.table.atom + slots;
  state.counts.counts = state.table.order + slots;
  state.counts.held = state.counts.counts + slots;
  return state;
}

}  // namespace hullft
