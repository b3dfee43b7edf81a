// The few inner loops that want vector instructions, as a table of functions: one table for each
// instruction set in the binary, the widest that the processor has chosen at run time.
#pragma once

#include <cstdint>

#include "../../core/adam.h"
#include "../../core/arithmetic.h"
#include "../../core/dtypes.h"
#include "../../core/stochastic_rounding.h"

namespace hullft {

// Arrays of one float64 value a candidate are padded to whole vectors of the widest instruction
// set, so that no loop over them has a tail.
constexpr int64_t kPadding = 8;
static inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

struct ArgMax {
  double value;
  int64_t index;  // the lowest on ties
};

// out[c * out_stride + k] = <rows[k], columns[c]>, float64 throughout; each value depends on its
// own row and column alone, not on its place in a tile. columns is [n_columns, padded(d)], zero
// padded.
template <typename T>
using DotRows = void (*)(const T* const* rows, int64_t n_rows, const double* columns,
                         int64_t n_columns, int64_t d, double* out, int64_t out_stride);

// out[k] = <rows[k], rows[k]>; each value depends on its own row alone.
template <typename T>
using SquaredNorms = void (*)(const T* const* rows, int64_t n_rows, int64_t d, double* out);

// What SIFT knows of n = padded(K) candidates given the picks so far; 0 in the padding.
struct SiftPosterior {
  int64_t n, n_targets;
  double* covariance;  // [n_targets, n], of each candidate with each target
  double* variance;    // [n]
  double noise;
};

// What observing the pick s changes; every array of candidates holds n values.
struct SiftPick {
  const double* gram;     // G[:, s]
  const double* columns;  // [n_earlier, n], of the earlier picks
  const double* shares;   // [n_earlier]: columns[j, s] / (Var(s_j) + noise) at its time
  int64_t n_earlier;
  double* column;               // out: Cov(:, s | earlier picks)
  double rate;                  // 1 / (Var(s) + noise)
  const double* target_shares;  // [n_targets]: Cov(s, target) * rate
};

// Of a piece of a tensor, whose first element is a multiple of kRoundingGroup.
struct StochasticRounding {
  RoundingKey key;
  int64_t first;
};

// Takes schedule.repeats Adam steps on n elements with one gradient; a parameter's moments have its
// own dtype. bfloat16 parameters are rounded to nearest where `rounding` is null.
template <typename T, typename G>
using AdamSweep = void (*)(T* param, const G* grad, T* exp_avg, T* exp_avg_sq, int64_t n,
                           const AdamSchedule<Arithmetic<T>>& schedule,
                           const StochasticRounding* rounding);

// cache <- beta * cache + alpha * grad; with beta = 0 the cache is not read.
template <typename T, typename G>
using Accumulate = void (*)(T* cache, const G* grad, int64_t n, double alpha, double beta);

template <typename T, typename G>
struct ReplayKernels {
  AdamSweep<T, G> adam;
  Accumulate<T, G> accumulate;
};

template <typename T>
struct ReplayKernelsOf : ReplayKernels<T, float>,
                         ReplayKernels<T, double>,
                         ReplayKernels<T, BFloat16>,
                         ReplayKernels<T, Float16> {};

// One base for each pair of storage and gradient type.
struct AllReplayKernels : ReplayKernelsOf<float>,
                          ReplayKernelsOf<double>,
                          ReplayKernelsOf<BFloat16>,
                          ReplayKernelsOf<Float16> {};

struct Kernels {
  const char* name;
  DotRows<float> dot_rows_f32;
  DotRows<double> dot_rows_f64;
  DotRows<BFloat16> dot_rows_bf16;
  DotRows<Float16> dot_rows_f16;
  // u <- scale * u + toward * column_s - away * column_a, then argmax of b - u; a null column is
  // left out. Every array holds n = padded(K) values.
  ArgMax (*step_argmax)(const double* b, double* u, int64_t n, double scale, double toward,
                        const double* column_s, double away, const double* column_a);
  SquaredNorms<float> squared_norms_f32;
  SquaredNorms<double> squared_norms_f64;
  SquaredNorms<BFloat16> squared_norms_bf16;
  SquaredNorms<Float16> squared_norms_f16;
  // Conditions on a pick, unless it is null, and finds the candidate whose observation lowers the
  // variance at the targets most, and by how much.
  ArgMax (*sift_pick)(const SiftPosterior& posterior, const SiftPick* pick);
  AllReplayKernels replay;
};

const Kernels& kernels();

// The names of the tables that this processor can run, widest first.
int available_kernels(const char* names[], int capacity);

// Chooses a table by name, for tests and measurements; false when it cannot run here.
bool use_kernels(const char* name);

template <typename T>
DotRows<T> dot_rows(const Kernels& k);
template <>
inline DotRows<float> dot_rows<float>(const Kernels& k) {
  return k.dot_rows_f32;
}
template <>
inline DotRows<double> dot_rows<double>(const Kernels& k) {
  return k.dot_rows_f64;
}
template <>
inline DotRows<BFloat16> dot_rows<BFloat16>(const Kernels& k) {
  return k.dot_rows_bf16;
}
template <>
inline DotRows<Float16> dot_rows<Float16>(const Kernels& k) {
  return k.dot_rows_f16;
}

template <typename T>
SquaredNorms<T> squared_norms(const Kernels& k);
template <>
inline SquaredNorms<float> squared_norms<float>(const Kernels& k) {
  return k.squared_norms_f32;
}
template <>
inline SquaredNorms<double> squared_norms<double>(const Kernels& k) {
  return k.squared_norms_f64;
}
template <>
inline SquaredNorms<BFloat16> squared_norms<BFloat16>(const Kernels& k) {
  return k.squared_norms_bf16;
}
template <>
inline SquaredNorms<Float16> squared_norms<Float16>(const Kernels& k) {
  return k.squared_norms_f16;
}

template <typename T, typename G>
const ReplayKernels<T, G>& replay_kernels(const Kernels& k) {
  return k.replay;
}

}  // namespace hullft
