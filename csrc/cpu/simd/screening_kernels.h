// Screening the candidates of Frank-Wolfe: pools in 16-bit integers, and estimates of correlations.
#pragma once

#include <cstdint>

namespace hullft {

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

// The largest over the rows. `norm` is rounded, infinite where a square is not finite or too large.
struct QuantizedBounds {
  float norm, lost;
};

// In one pass over rows of integers.
constexpr int64_t kMostColumns = 2;

// Tiles of kQuantizedTile rows. The padding of the last is zero, as are its scales.
struct QuantizedTiles {
  const int16_t* values;  // [n, width]
  const float* scales;    // [n]
  int64_t width;
};

// One step as the entry u_k of a candidate sees it: u_k <- scale * u_k + toward * G_ks.
struct SupportMove {
  double scale, toward;
  int64_t s;  // of a list of atoms
};

struct ScreeningKernels {
  // out[j][k] = <row k, row atoms[j]>, the exact product rounded a few times, for the rows of tiles
  // begin .. end and up to kMostColumns atoms.
  void (*multiply_quantized)(const QuantizedTiles& tiles, int64_t begin, int64_t end,
                             const int64_t* atoms, int64_t n_atoms, float* const* out);
  // u <- scale * u + toward * column, then the maximum of b - u; without a column, u stays. Every
  // array holds n = padded(K) values.
  float (*step_max)(const float* b, float* u, int64_t n, double scale, double toward,
                    const float* column);
  // Writes every k with b[k] - u[k] >= least, in order, and returns how many there are.
  int64_t (*estimates_from)(const float* b, const float* u, int64_t n, float least,
                            int64_t* candidates);
  // The lowest k of the highest b[k] - u[k] where slots[k] < 0; -1 if all of these are -infinity.
  int64_t (*highest_without_slot)(const float* b, const float* u, const int32_t* slots, int64_t n);
  // u_k after the moves, from 0, with the bits that StepKernels would have left there. `products`
  // are <x_k, atom> for the list of atoms.
  double (*follow_moves)(const SupportMove* moves, int64_t n_moves, const double* products);
};

const ScreeningKernels& screening_kernels();

}  // namespace hullft
