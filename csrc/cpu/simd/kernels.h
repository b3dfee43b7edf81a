// The few inner loops that want vector instructions, as a table of functions: one table for each
// instruction set in the binary, the widest that the processor has chosen at run time.
#pragma once

#include <cstdint>

#include "../../core/adam.h"
#include "../../core/arithmetic.h"
#include "../../core/dtypes.h"
#include "../../core/stochastic_rounding.h"

namespace hullft {

// Arrays of one value a candidate are padded to whole float32 vectors of the widest instruction
// set, so that no loop over them has a tail.
constexpr int64_t kPadding = 16;
static inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

struct ArgMax {
  double value;
  int64_t index;  // the lowest on ties
};

// out[c][k] = <rows[k], columns[c]>, in the arithmetic of R throughout; each value depends on its
// own row and column alone, not on its place in a tile. columns is [n_columns, padded(d)], zero
// padded. A value is the sum of at least kDotChains chains of equal length.
template <typename T, typename R>
using DotRows = void (*)(const T* const* rows, int64_t n_rows, const R* columns, int64_t n_columns,
                         int64_t d, R* const* out);
constexpr int64_t kDotChains = 4;

// out[k] = <rows[k], column> and squares[k] = <rows[k], rows[k]>, float32 throughout.
template <typename T>
using DotAndSquare = void (*)(const T* const* rows, int64_t n_rows, const float* column, int64_t d,
                              float* out, float* squares);

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

template <typename T>
struct DotKernels {
  DotRows<T, double> exact;
  SquaredNorms<T> squared_norms;
  DotRows<T, float> screen;
  DotAndSquare<T> screen_and_square;
};

// float64 is not screened.
template <>
struct DotKernels<double> {
  DotRows<double, double> exact;
  SquaredNorms<double> squared_norms;
};

// One base for each storage type.
struct AllDotKernels : DotKernels<float>,
                       DotKernels<double>,
                       DotKernels<BFloat16>,
                       DotKernels<Float16> {};

// One step as the entry u_k of a candidate sees it: u_k <- scale * u_k + toward * G_ks - away *
// G_ka. A step that moves nothing has neither.
struct SupportMove {
  double scale, toward, away;
  int64_t s, a;  // of a list of atoms
};

// C is the type of the columns.
template <typename C>
using StepMax = double (*)(const double* b, double* u, int64_t n, double scale, double toward,
                           const C* column_s, double away, const C* column_a);

struct Kernels {
  const char* name;
  AllDotKernels dot;
  // u <- scale * u + toward * column_s - away * column_a, then argmax of b - u; a null column is
  // left out. Every array holds n = padded(K) values.
  ArgMax (*step_argmax)(const double* b, double* u, int64_t n, double scale, double toward,
                        const double* column_s, double away, const double* column_a);
  // The same, and only the maximum.
  StepMax<double> step_max;
  StepMax<float> screened_step_max;
  // u_k after those steps from 0, with the bits that step_max would have left there; products are
  // <x_k, atom> for the list of atoms.
  double (*follow_moves)(const SupportMove* moves, int64_t n_moves, const double* products);
  // Rounds d values of x to float16 and returns the square of what they lost; null where the
  // instruction set has no such conversion.
  double (*narrow)(const float* x, int64_t d, Float16* out);
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

template <typename T, typename R>
DotRows<T, R> dot_rows(const Kernels& k) {
  const DotKernels<T>& dot = k.dot;
  if constexpr (sizeof(R) == sizeof(double))
    return dot.exact;
  else
    return dot.screen;
}

template <typename T>
SquaredNorms<T> squared_norms(const Kernels& k) {
  const DotKernels<T>& dot = k.dot;
  return dot.squared_norms;
}

template <typename T, typename G>
const ReplayKernels<T, G>& replay_kernels(const Kernels& k) {
  return k.replay;
}

}  // namespace hullft
