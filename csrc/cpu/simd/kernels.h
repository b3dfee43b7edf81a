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

struct TiedMax {
  double value;
  int64_t index;  // the lowest on ties
  bool tied;      // whether others have the value too
};

// out[c][k] = <rows[k], columns[c]> in float64; each value depends on its own row and column alone,
// not on its place in a tile. n_columns is 1 or 2; a column is [padded(d)], zero padded.
template <typename T>
using DotRows = void (*)(const T* const* rows, int64_t n_rows, const double* const* columns,
                         int64_t n_columns, int64_t d, double* const* out);

// out[k] = <rows[k], x> with the bits of DotRows, for so few rows that widening x is not worth it.
template <typename T>
using DotFew = void (*)(const T* const* rows, int64_t n_rows, const T* x, int64_t d, double* out);

// out = x in float64, padded(d) values, zero in the padding.
template <typename T>
using Widen = void (*)(const T* x, int64_t d, double* out);

// out[k] = <rows[k], rows[k]>; each value depends on its own row alone.
template <typename T>
using SquaredNorms = void (*)(const T* const* rows, int64_t n_rows, int64_t d, double* out);

// Integers are rows of this many 16-bit values, zero in the padding.
constexpr int64_t kQuantizedPadding = 32;
static inline int64_t quantized_width(int64_t d) {
  return (d + kQuantizedPadding - 1) / kQuantizedPadding * kQuantizedPadding;
}
// The rows of a pool come in tiles of so many: their first vectors, then their second ones and so
// on. Products are made of a tile at a time, and a core gets up to twice as much of its
// second-level cache where it reads in the order of memory. How long a vector is, only a table
// knows.
constexpr int64_t kQuantizedTile = 4;

// One lane of a product adds up some of a row's integers. This bounds their norm: by Cauchy and
// Schwarz a part of the lane's sum is at most its square, about 2^30, and fits into 32 bits.
constexpr float kQuantizedNorm = 32000;

struct QuantizedColumn {
  const int16_t* values;  // [width]
  float scale;
};

struct QuantizedRowsOut {
  int16_t* values;  // [n, width], in tiles
  float* scales;    // [n]
  int64_t tile;     // kQuantizedTile, or 1 for rows one after the other
};

// Of all of some rows. `norm` is rounded, infinite where a square is not finite or too large.
struct QuantizedBounds {
  float norm, lost;
};

// Row k = scales[k] * the integers but for a vector of norm `lost` at most, for k < n_rows. Unless
// column is null, products[k] = <row k, column> as multiply_quantized has it. With an infinite norm
// nothing of that holds.
template <typename T>
using Quantize = QuantizedBounds (*)(const T* const* rows, int64_t n_rows, int64_t d,
                                     const QuantizedRowsOut& out, const QuantizedColumn* column,
                                     float* products);

// In one pass over rows of integers.
constexpr int64_t kMostColumns = 3;

// Of kQuantizedTile rows each. The padding of the last is zero, as are its scales.
struct QuantizedTiles {
  const int16_t* values;  // [n, width]
  const float* scales;    // [n]
  int64_t width;
};

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
  const double* shares;   // [n_earlier]: columns[j, s] times the precision of pick j at its time
  int64_t n_earlier;
  double* column;               // out: Cov(:, s | earlier picks)
  double rate;                  // the precision of s
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
  DotRows<T> rows;
  DotFew<T> few;
  Widen<T> widen;
  SquaredNorms<T> squared_norms;
  Quantize<T> quantize;
};

// float64 is not screened.
template <>
struct DotKernels<double> {
  DotRows<double> rows;
  DotFew<double> few;
  Widen<double> widen;
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

struct Kernels {
  const char* name;
  AllDotKernels dot;
  // u <- scale * u + toward * column_s - away * column_a, then argmax of b - u; a null column is
  // left out. Every array holds n = padded(K) values.
  ArgMax (*step_argmax)(const double* b, double* u, int64_t n, double scale, double toward,
                        const double* column_s, double away, const double* column_a);
  // The same, and whether the maximum is one of several.
  TiedMax (*step_tied_max)(const double* b, double* u, int64_t n, double scale, double toward,
                           const double* column_s, double away, const double* column_a);
  // The same in float32, and only the maximum.
  float (*screened_step_max)(const float* b, float* u, int64_t n, double scale, double toward,
                             const float* column_s, double away, const float* column_a);
  // Writes every k with b[k] - u[k] >= least, in order, and returns how many there are.
  int64_t (*estimates_from)(const float* b, const float* u, int64_t n, float least, int64_t* found);
  // The lowest k of the highest b[k] - u[k] among those with slots[k] < 0, or -1 if all of those
  // are -infinity.
  int64_t (*highest_without_slot)(const float* b, const float* u, const int32_t* slots, int64_t n);
  // u_k after those steps from 0, with the bits that step_tied_max would have left there; products
  // are <x_k, atom> for the list of atoms.
  double (*follow_moves)(const SupportMove* moves, int64_t n_moves, const double* products);
  // out[j][k] = <row k, row atoms[j]>, the exact product rounded a few times, for the rows of tiles
  // begin .. end and up to kMostColumns atoms.
  void (*multiply_quantized)(const QuantizedTiles& tiles, int64_t begin, int64_t end,
                             const int64_t* atoms, int64_t n_atoms, float* const* out);
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

bool is_intel_processor();

// Whether this is an x86 processor without instructions that multiply bfloat16.
bool lacks_bfloat16();

// Whether several Adam steps take their quotients by multiplication, with the bits of the division.
// Intel's divider is what they would wait for otherwise; a Zen 5's is faster than the products.
bool quick_quotients();

// For tests and measurements.
void use_quick_quotients(bool use);

// Whether a pass over a pool multiplies three columns, two of them on the chance that they will be
// wanted, or two. A Zen 5 takes little longer for the third; others wait for the products.
bool three_columns();

// For tests and measurements.
void use_three_columns(bool use);

template <typename T>
const DotKernels<T>& dot_kernels(const Kernels& k) {
  return k.dot;
}

template <typename T, typename G>
const ReplayKernels<T, G>& replay_kernels(const Kernels& k) {
  return k.replay;
}

}  // namespace hullft
