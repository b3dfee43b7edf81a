// Rows as 16-bit integers with a scale, and their products, which are exact in 32 bits a lane.
#pragma once

#include <type_traits>

#include "real.h"
#include "screening_kernels.h"

namespace hullft {
namespace {

typedef int16_t VecS __attribute__((vector_size(kVectorBytes)));
// Elements of a row.
constexpr int64_t kVector = 2 * kFloats;
static_assert(kQuantizedPadding % kVector == 0);

// Where row k has its first vector; from there element i is i * tile further on, for whole vectors.
template <typename Value>
inline Value* quantized_row(Value* values, int64_t k, int64_t width, int64_t tile) {
  return values + k / tile * tile * width + k % tile * kVector;
}

// sum + a * b, where each lane adds the products of two neighbours. It wraps for rows that need a
// larger scale; nobody reads their sums.
inline VecI add_products(VecI sum, VecS a, VecS b) {
#if defined(__AVX512VNNI__)
  return VecI(_mm512_dpwssd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return VecI(VecU(sum) + VecU(_mm256_madd_epi16(__m256i(a), __m256i(b))));
#elif defined(__SSE2__)
  return VecI(VecU(sum) + VecU(_mm_madd_epi16(__m128i(a), __m128i(b))));
#else
  for (int i = 0; i < kFloats; ++i)
    sum[i] = int32_t(uint32_t(sum[i]) + uint32_t(int32_t(a[2 * i]) * b[2 * i]) +
                     uint32_t(int32_t(a[2 * i + 1]) * b[2 * i + 1]));
  return sum;
#endif
}

typedef float Floats4 __attribute__((vector_size(16)));

// [r] = the lanes of v[r] folded into one. In line, or a call would pass vectors through memory.
template <typename Op>
[[gnu::always_inline]] inline Floats4 fold_each(const VecF (&v)[4], const Op& op) {
#if defined(__AVX512F__)
  const auto fold_pair = [&op](VecF a, VecF b) {
    return _mm512_castps_pd(
        op(_mm512_unpacklo_ps(__m512(a), __m512(b)), _mm512_unpackhi_ps(__m512(a), __m512(b))));
  };
  const __m512d low = fold_pair(v[0], v[1]), high = fold_pair(v[2], v[3]);
  // Each quarter has a part of every row.
  const __m512 quarters = op(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 halves = op(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
#elif defined(__AVX2__)
  const auto fold_pair = [&op](VecF a, VecF b) {
    return _mm256_castps_pd(
        op(_mm256_unpacklo_ps(__m256(a), __m256(b)), _mm256_unpackhi_ps(__m256(a), __m256(b))));
  };
  const __m256d low = fold_pair(v[0], v[1]), high = fold_pair(v[2], v[3]);
  const __m256 halves = op(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
#endif
#if defined(__AVX2__)
  return Floats4(op(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  Floats4 folded = {v[0][0], v[1][0], v[2][0], v[3][0]};
  for (int i = 1; i < kFloats; ++i)
    folded = op(folded, Floats4{v[0][i], v[1][i], v[2][i], v[3][i]});
  return folded;
#endif
}

inline Floats4 sum_each(const VecF (&v)[4]) {
  return fold_each(v, [](auto a, auto b) { return a + b; });
}

inline Floats4 max_each(const VecF (&v)[4]) {
  return fold_each(v, [](auto a, auto b) { return a > b ? a : b; });
}

// ---- products ----------------------------------------------------------------------------------

// out[j][k ...] of the tile of row k. In line, or a call would pass its sums through memory.
template <int kAtoms>
[[gnu::always_inline]] inline void multiply_tile(const QuantizedTiles& tiles, int64_t k,
                                                 const int16_t* const* columns, const float* scales,
                                                 float* const* out) {
  const int16_t* rows = tiles.values + k * tiles.width;
  VecI sums[kAtoms][kQuantizedTile] = {};
  for (int64_t i = 0; i < tiles.width * kQuantizedTile; i += kVector * kQuantizedTile) {
    VecS column[kAtoms];
    for (int j = 0; j < kAtoms; ++j) column[j] = load_bytes<VecS>(columns[j] + i);
    for (int r = 0; r < kQuantizedTile; ++r) {
      // One load for all of its products.
      const VecS x = rounded(load_bytes<VecS>(rows + i + r * kVector));
      for (int j = 0; j < kAtoms; ++j) sums[j][r] = add_products(sums[j][r], x, column[j]);
    }
  }
  const Floats4 row_scales = load_bytes<Floats4>(tiles.scales + k);
  for (int j = 0; j < kAtoms; ++j) {
    VecF lanes[kQuantizedTile];
    for (int r = 0; r < kQuantizedTile; ++r) lanes[r] = __builtin_convertvector(sums[j][r], VecF);
    store_bytes(out[j] + k, sum_each(lanes) * (row_scales * scales[j]));
  }
}

template <int kAtoms>
inline void multiply_tiles(const QuantizedTiles& tiles, int64_t begin, int64_t end,
                           const int64_t* atoms, float* const* out) {
  const int16_t* columns[kAtoms];
  float scales[kAtoms];
  for (int j = 0; j < kAtoms; ++j) {
    columns[j] = quantized_row(tiles.values, atoms[j], tiles.width, kQuantizedTile);
    scales[j] = tiles.scales[atoms[j]];
  }
  for (int64_t k = begin * kQuantizedTile; k < end * kQuantizedTile; k += kQuantizedTile)
    multiply_tile<kAtoms>(tiles, k, columns, scales, out);
}

// ---- rounding ----------------------------------------------------------------------------------

// Adding it leaves the nearest integer in the low bits of a small float32.
constexpr float kRound = 0x1.8p23f;

// Two vectors of x; lane i of a product has element i of every vector.
template <typename T>
inline VecS quantize_vectors(const T* x, float inverse, VecF (&squares)[2]) {
  VecU nearest[2];
  for (int j = 0; j < 2; ++j) {
    const VecF v = load_floats(x + j * kFloats);
    squares[j] = multiply_add(v, v, squares[j]);
    const VecF shifted = multiply_add(v, broadcast(inverse), broadcast(kRound));
    nearest[j] = load_bytes<VecU>(&shifted);
  }
  return VecS((nearest[0] & 0xffffu) | (nearest[1] << 16));
}

// What one pass over a row leaves in the lanes: the sum of the squares that meet in one lane of a
// product, and the products with a column.
struct RowSums {
  VecF squares;
  VecI products;
};

// A row times `inverse`, and its sums; without a column the products are 0.
template <bool kColumn, typename T>
inline RowSums quantize_row(const T* x, int64_t d, float inverse, const int16_t* column,
                            int16_t* out, int64_t tile) {
  VecF squares[2] = {};
  VecI products = {};
  const auto add = [&](const T* from, int64_t i) {
    const VecS values = quantize_vectors(from, inverse, squares);
    store_bytes(out + i * tile, values);
    if constexpr (kColumn) products = add_products(products, values, load_bytes<VecS>(column + i));
  };
  int64_t i = 0;
  for (; i + kVector <= d; i += kVector) add(x + i, i);
  if (i < d) {
    T last[kVector] = {};
    std::memcpy(last, x + i, size_t(d - i) * sizeof(T));
    add(last, i);
    i += kVector;
  }
  for (; i < quantized_width(d); i += kVector) store_bytes(out + i * tile, VecS{});
  return {squares[0] + squares[1], products};
}

// Smaller squares count as this one, which the bound of the error allows.
constexpr float kSmallestSquare = 0x1p-78f;

// The scale of the rows to come: the largest row's so far, which is most often large enough,
// so that a row is read once. A row for which it is not is read again. What a pool loses depends on
// its largest scale alone.
struct RunningScale {
  float largest_lane = kSmallestSquare;  // sum of the squares that meet in a lane of a product
  float scale = 0, inverse = 0;

  RunningScale() { see(largest_lane); }
  void see(float lane) {
    if (lane < largest_lane) return;
    largest_lane = lane;
    scale = __builtin_sqrtf(lane) / kQuantizedNorm, inverse = 1 / scale;
  }
};

template <bool kColumn, typename T>
inline QuantizedBounds quantize_rows(const T* const* rows, int64_t n_rows, int64_t d,
                                     const QuantizedRowsOut& out, const QuantizedColumn& column,
                                     float* products) {
  constexpr float kLargestSquare = 0x1p120f;
  const int64_t width = quantized_width(d);
  RunningScale running;
  float largest_square = kSmallestSquare;
  for (int64_t k = 0; k < n_rows; k += kQuantizedTile) {
    const int64_t n = n_rows - k < kQuantizedTile ? n_rows - k : kQuantizedTile;
    VecF squares[kQuantizedTile] = {}, lanes[kQuantizedTile] = {};
    const auto quantize = [&](int64_t r) {
      const int64_t j = k + r;
      out.scales[j] = running.scale;
      const RowSums sums =
          quantize_row<kColumn>(rows[j], d, running.inverse, column.values,
                                quantized_row(out.values, j, width, out.tile), out.tile);
      squares[r] = sums.squares;
      lanes[r] = __builtin_convertvector(sums.products, VecF);
    };
    const float largest_before = running.largest_lane;
    for (int64_t r = 0; r < n; ++r) quantize(r);
    const Floats4 whole = sum_each(squares), lane = max_each(squares);
    for (int64_t r = 0; r < n; ++r) {
      if (!(whole[r] <= kLargestSquare)) return {__builtin_inff(), 0};
      largest_square = whole[r] > largest_square ? whole[r] : largest_square;
      if (lane[r] <= largest_before) continue;
      running.see(lane[r]);
      quantize(r);
    }
    if constexpr (kColumn) {
      const Floats4 sums = sum_each(lanes);
      for (int64_t r = 0; r < n; ++r)
        products[k + r] = sums[r] * (out.scales[k + r] * column.scale);
    }
  }
  const float norm = __builtin_sqrtf(largest_square);
  return {norm, 0.5f * running.scale * __builtin_sqrtf(float(d)) + norm * 0x1p-22f};
}

template <typename T>
QuantizedBounds quantize_kernel(const T* const* rows, int64_t n_rows, int64_t d,
                                const QuantizedRowsOut& out, const QuantizedColumn* column,
                                float* products) {
  return column ? quantize_rows<true>(rows, n_rows, d, out, *column, products)
                : quantize_rows<false>(rows, n_rows, d, out, {}, products);
}

void multiply_quantized_kernel(const QuantizedTiles& tiles, int64_t begin, int64_t end,
                               const int64_t* atoms, int64_t n_atoms, float* const* out) {
  static_assert(kMostColumns == 2);
  if (n_atoms == 2)
    multiply_tiles<2>(tiles, begin, end, atoms, out);
  else
    multiply_tiles<1>(tiles, begin, end, atoms, out);
}

}  // namespace
}  // namespace hullft
