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

// Lane i is a[2i] b[2i] + a[2i + 1] b[2i + 1].
inline VecI multiply_pairs(VecS a, VecS b) {
#if defined(__AVX512BW__)
  return VecI(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return VecI(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
  return VecI(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  VecI sum;
  for (int i = 0; i < kFloats; ++i)
    sum[i] = int32_t(a[2 * i]) * b[2 * i] + int32_t(a[2 * i + 1]) * b[2 * i + 1];
  return sum;
#endif
}

// The integers in an order of its own, the same for every call.
inline VecS pack(VecI low, VecI high) {
#if defined(__AVX512BW__)
  return VecS(_mm512_packs_epi32(__m512i(low), __m512i(high)));
#elif defined(__AVX2__)
  return VecS(_mm256_packs_epi32(__m256i(low), __m256i(high)));
#elif defined(__SSE2__)
  return VecS(_mm_packs_epi32(__m128i(low), __m128i(high)));
#else
  VecS both;
  for (int i = 0; i < kFloats; ++i) both[i] = int16_t(low[i]), both[kFloats + i] = int16_t(high[i]);
  return both;
#endif
}

// sums[r] = the sum over the lanes of v[r], in float32.
inline void sum_each(const VecI (&v)[4], float* sums) {
  VecF f[4];
  for (int r = 0; r < 4; ++r) f[r] = __builtin_convertvector(v[r], VecF);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(__m256(f[0]), __m256(f[1])),
                                       _mm256_hadd_ps(__m256(f[2]), __m256(f[3])));
  store_bytes(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  for (int r = 0; r < 4; ++r) sums[r] = sum_lanes(f[r]);
#endif
}

// ---- rounding ----------------------------------------------------------------------------------

struct QuantizedRow {
  float scale, norm, lost;
};

struct SquaredNorm {
  float whole;
  float lane;  // bounds that of the values which meet in one lane of a product
};

// Adding it leaves the nearest integer in the low bits of a small float32.
constexpr float kRound = 0x1.8p23f;
constexpr int32_t kRoundBits = 0x4b400000;

// Two vectors of x; adds the squares of what they lose.
template <typename T>
inline void quantize_vectors(const T* x, float inverse, float scale, int16_t* out, VecF& lost) {
  VecI integers[2];
  for (int j = 0; j < 2; ++j) {
    const VecF value = load_floats(x + j * kFloats);
    const VecF shifted = value * inverse + kRound;
    integers[j] = load_bytes<VecI>(&shifted) - kRoundBits;
    const VecF off = value - (shifted - kRound) * scale;
    lost += off * off;
  }
  store_bytes(out, pack(integers[0], integers[1]));
}

// A lane of a product has pairs of neighbours of either the even vectors or the odd ones.
template <typename T>
inline SquaredNorm squared_norm(const T* x, int64_t d) {
  VecF sums[4] = {};
  const auto add = [](VecF v, VecF& sum) { sum += v * v; };
  const int64_t whole = d / kFloats * kFloats;
  int64_t i = 0;
  for (; i + 4 * kFloats <= whole; i += 4 * kFloats)
    for (int j = 0; j < 4; ++j) add(load_floats(x + i + j * kFloats), sums[j]);
  for (; i + 2 * kFloats <= whole; i += 2 * kFloats)
    for (int j = 0; j < 2; ++j) add(load_floats(x + i + j * kFloats), sums[j]);
  if (i < whole) {
    add(load_floats(x + i), sums[0]);
    if (whole < d) add(load_tail<float>(x, d), sums[1]);
  } else if (whole < d) {
    add(load_tail<float>(x, d), sums[0]);
  }
  const VecF even = sums[0] + sums[2], odd = sums[1] + sums[3];
  const VecF larger = even > odd ? even : odd;
  float largest = larger[0];
  for (int lane = 1; lane < kFloats; ++lane)
    largest = larger[lane] > largest ? larger[lane] : largest;
  return {sum_lanes(even + odd), 2 * largest};
}

// Asks for the row after x while x, which is in the nearest cache by now, is worked on.
template <typename T>
inline void prefetch_elements(const T* next, int64_t n) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(next + i);
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
  VecF lost = {};
  int64_t i = 0;
  for (; i + kPair <= d; i += kPair) {
    prefetch_elements(next + i, kPair);
    quantize_vectors(x + i, inverse, scale, out + i, lost);
  }
  if (i < d) {
    T last[kPair] = {};
    std::memcpy(last, x + i, size_t(d - i) * sizeof(T));
    quantize_vectors(last, inverse, scale, out + i, lost);
    i += kPair;
  }
  std::memset(out + i, 0, size_t(quantized_width(d) - i) * sizeof(int16_t));
  return {scale, norm, __builtin_sqrtf(sum_lanes(lost)) + norm * 0x1p-23f};
}

template <typename T>
void quantize_kernel(const T* const* rows, int64_t n_rows, int64_t d, int16_t* values,
                     const QuantizedScales& out) {
  for (int64_t k = 0; k < n_rows; ++k) {
    const T* next = rows[k + 1 < n_rows ? k + 1 : k];
    const QuantizedRow row = quantize_row(rows[k], next, d, values + k * quantized_width(d));
    out.scales[k] = row.scale, out.norms[k] = row.norm, out.lost[k] = row.lost;
  }
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
      for (int c = 0; c < kColumns; ++c) products[c][r] += multiply_pairs(x, column[c]);
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

void multiply_quantized_kernel(const QuantizedRows& rows, const int16_t* const* columns,
                               const float* scales, int64_t n_columns, float* const* out) {
  if (n_columns == 2)
    multiply_columns<2>(rows, columns, scales, out);
  else
    multiply_columns<1>(rows, columns, scales, out);
}

}  // namespace
}  // namespace hullft
