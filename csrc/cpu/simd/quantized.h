// Rows as 16-bit integers with a scale, and their products, which are exact in 32 bits a lane.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "real.h"

namespace hullft {
namespace {

typedef int16_t VecS __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
static_assert(kQuantizedPadding % (2 * kFloats) == 0);

// sum + the products of a and b, those of two neighbours in each lane.
inline VecI add_products(VecI sum, VecS a, VecS b) {
#if defined(__AVX512VNNI__)
  return VecI(_mm512_dpwssd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return sum + VecI(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
  return sum + VecI(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  for (int i = 0; i < kFloats; ++i)
    sum[i] += int32_t(a[2 * i]) * b[2 * i] + int32_t(a[2 * i + 1]) * b[2 * i + 1];
  return sum;
#endif
}

// sums[r] = the sum over the lanes of v[r], in float32.
inline void sum_each(const VecI (&v)[4], float* sums) {
  VecF f[4];
  for (int r = 0; r < 4; ++r) f[r] = __builtin_convertvector(v[r], VecF);
#if defined(__AVX512F__)
  const auto interleave_add = [](VecF a, VecF b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(__m512(a), __m512(b)),
                         _mm512_unpackhi_ps(__m512(a), __m512(b)));
  };
  const __m512d low = _mm512_castps_pd(interleave_add(f[0], f[1]));
  const __m512d high = _mm512_castps_pd(interleave_add(f[2], f[3]));
  // Each quarter has a part of every sum.
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  store_bytes(sums, sum);
#elif defined(__AVX2__)
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(__m256(f[0]), __m256(f[1])),
                                       _mm256_hadd_ps(__m256(f[2]), __m256(f[3])));
  store_bytes(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  for (int r = 0; r < 4; ++r) sums[r] = sum_lanes(f[r]);
#endif
}

// ---- products ----------------------------------------------------------------------------------

constexpr int kQuantizedRows = 4;

template <int kRows, int kColumns>
inline void multiply_tile(const int16_t* rows, const int16_t* const* columns, int64_t width,
                          float (&sums)[kColumns][kQuantizedRows]) {
  VecI products[kColumns][kQuantizedRows] = {};
  for (int64_t i = 0; i < width; i += 2 * kFloats) {
    VecS column[kColumns];
    for (int c = 0; c < kColumns; ++c) column[c] = load_bytes<VecS>(columns[c] + i);
    for (int r = 0; r < kRows; ++r) {
      // One load for all of its products.
      const VecS x = rounded(load_bytes<VecS>(rows + r * width + i));
      for (int c = 0; c < kColumns; ++c)
        products[c][r] = add_products(products[c][r], x, column[c]);
    }
  }
  for (int c = 0; c < kColumns; ++c) sum_each(products[c], sums[c]);
}

template <int kColumns>
inline void multiply_columns(const QuantizedRows& rows, const int16_t* const* columns,
                             const float* scales, float* const* out) {
  const auto tile = [&](auto n, int64_t k) {
    float sums[kColumns][kQuantizedRows];
    multiply_tile<n, kColumns>(rows.values + k * rows.width, columns, rows.width, sums);
    for (int c = 0; c < kColumns; ++c)
      for (int r = 0; r < n; ++r) out[c][k + r] = sums[c][r] * (rows.scales[k + r] * scales[c]);
  };
  int64_t k = 0;
  for (; k + kQuantizedRows <= rows.n; k += kQuantizedRows)
    tile(std::integral_constant<int, kQuantizedRows>{}, k);
  for (; k < rows.n; ++k) tile(std::integral_constant<int, 1>{}, k);
}

// ---- rounding ----------------------------------------------------------------------------------

struct QuantizedRow {
  float scale, norm, lost;
};

struct SquaredNorm {
  float whole;
  float lane;  // that of the values which meet in one lane of a product, at most
};

// Adding it leaves the nearest integer in the low bits of a small float32.
constexpr float kRound = 0x1.8p23f;

// Two vectors of x; lane i of a product has element i of every vector.
template <typename T>
inline void quantize_vectors(const T* x, float inverse, int16_t* out) {
  const auto nearest = [&](const T* from) {
    const VecF shifted = multiply_add(load_floats(from), broadcast(inverse), broadcast(kRound));
    return load_bytes<VecU>(&shifted);
  };
  store_bytes(out, (nearest(x) & 0xffffu) | (nearest(x + kFloats) << 16));
}

template <typename T>
inline SquaredNorm squared_norm(const T* x, int64_t d) {
  VecF sums[4] = {};
  const auto add = [](VecF v, VecF& sum) { sum = multiply_add(v, v, sum); };
  int64_t i = 0;
  for (; i + 4 * kFloats <= d; i += 4 * kFloats)
    for (int j = 0; j < 4; ++j) add(load_floats(x + i + j * kFloats), sums[j]);
  for (; i + kFloats <= d; i += kFloats) add(load_floats(x + i), sums[0]);
  if (i < d) add(load_tail<float>(x, d), sums[1]);
  const VecF sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  float largest = sum[0];
  for (int lane = 1; lane < kFloats; ++lane) largest = sum[lane] > largest ? sum[lane] : largest;
  return {sum_lanes(sum), largest};
}

// Asks for a row to come while another, which is in the nearest cache by now, is worked on.
template <typename T>
inline void prefetch_elements(const T* next, int64_t n) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(next + i, 0, 2);
}

template <typename T>
inline QuantizedRow quantize_row(const T* x, const T* next, int64_t d, int16_t* out) {
  constexpr float kLargestSquare = 0x1p120f, kSmallestSquare = 0x1p-80f;
  constexpr float kSmallestNorm = 0x1p-39f;
  constexpr int64_t kPair = 2 * kFloats;
  const SquaredNorm squared = squared_norm(x, d);
  if (!(squared.whole <= kLargestSquare)) return {0, __builtin_inff(), 0};
  if (squared.whole < kSmallestSquare) {
    std::memset(out, 0, size_t(quantized_width(d)) * sizeof(int16_t));
    return {0, kSmallestNorm, kSmallestNorm};
  }
  const float norm = __builtin_sqrtf(squared.whole);
  const float scale = __builtin_sqrtf(squared.lane) / kQuantizedNorm, inverse = 1 / scale;
  int64_t i = 0;
  for (; i + kPair <= d; i += kPair) {
    prefetch_elements(next + i, kPair);
    quantize_vectors(x + i, inverse, out + i);
  }
  if (i < d) {
    T last[kPair] = {};
    std::memcpy(last, x + i, size_t(d - i) * sizeof(T));
    quantize_vectors(last, inverse, out + i);
    i += kPair;
  }
  std::memset(out + i, 0, size_t(quantized_width(d) - i) * sizeof(int16_t));
  return {scale, norm, 0.5f * scale * __builtin_sqrtf(float(d)) + norm * 0x1p-22f};
}

template <typename T>
void quantize_kernel(const T* const* rows, int64_t n_rows, int64_t d, int16_t* values,
                     const QuantizedScales& out, const QuantizedColumn* column, float* products) {
  constexpr int64_t kBytesAhead = 6144;
  const int64_t width = quantized_width(d), row_bytes = d * int64_t(sizeof(T));
  const int64_t ahead = (kBytesAhead + row_bytes - 1) / row_bytes;
  const auto round = [&](int64_t k) {
    const T* next = rows[k + ahead < n_rows ? k + ahead : n_rows - 1];
    const QuantizedRow row = quantize_row(rows[k], next, d, values + k * width);
    out.scales[k] = row.scale, out.norms[k] = row.norm, out.lost[k] = row.lost;
  };
  for (int64_t k = 0; k < n_rows; k += kQuantizedRows) {
    const int64_t n = n_rows - k < kQuantizedRows ? n_rows - k : kQuantizedRows;
    for (int64_t j = k; j < k + n; ++j) round(j);
    if (!column) continue;
    // While the rows are in the nearest cache.
    float* const to[] = {products + k};
    multiply_columns<1>({values + k * width, out.scales + k, n, width}, &column->values,
                        &column->scale, to);
  }
}

void multiply_quantized_kernel(const QuantizedRows& rows, const int16_t* const* columns,
                               const float* scales, int64_t n_columns, float* const* out) {
  if (n_columns == 2)
    multiply_columns<2>(rows, columns, scales, out);
  else
    multiply_columns<1>(rows, columns, scales, out);
}

}  // namespace
}  // namespace hullft
