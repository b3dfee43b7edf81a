// Vectors of the arithmetic type, float32 or float64, loaded from and stored to any storage type.
#pragma once

#include <type_traits>

#include "vec.h"

namespace hullft {
namespace {

template <typename R>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = VecF;
};
template <>
struct VectorOf<double> {
  using type = VecD;
};
template <typename R>
using Vector = typename VectorOf<R>::type;

template <typename R>
constexpr int kLanes = kVectorBytes / int(sizeof(R));

// Not through memory, where two stores hold up the load of both.
inline VecF joined(HalfVecF low, HalfVecF high) {
#if defined(__AVX512F__)
  return VecF(_mm512_insertf32x8(_mm512_castps256_ps512(__m256(low)), __m256(high), 1));
#elif defined(__AVX2__)
  return VecF(_mm256_set_m128(__m128(high), __m128(low)));
#else
  const HalfVecF halves[2] = {low, high};
  return load_bytes<VecF>(halves);
#endif
}

inline VecF to_floats(VecD low, VecD high) {
  return joined(__builtin_convertvector(low, HalfVecF), __builtin_convertvector(high, HalfVecF));
}

inline VecF load_floats(const double* p) {
  return to_floats(load_bytes<VecD>(p), load_bytes<VecD>(p + kDoubles));
}

inline void store_doubles(float* p, VecD v) {
  store_bytes(p, __builtin_convertvector(v, HalfVecF));
}

inline void store_doubles(BFloat16* p, VecD v) {
  for (int i = 0; i < kDoubles; ++i) p[i] = to_bfloat16(float(v[i]));
}

inline void store_doubles(Float16* p, VecD v) {
  for (int i = 0; i < kDoubles; ++i) p[i] = to_float16(float(v[i]));
}

// ---- the lanes of a vector in one value ---------------------------------------------------------

// As a tree: the upper half onto the lower one.
template <typename V, typename Combine>
inline auto reduce_lanes(V v, const Combine& combine) {
  using R = std::remove_reference_t<decltype(v[0])>;
  if constexpr (sizeof(V) == 2 * sizeof(R)) {
    return combine(v[0], v[1]);
  } else {
    typedef R Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof v);
    return reduce_lanes(combine(halves[0], halves[1]), combine);
  }
}

template <typename V>
inline auto sum_lanes(V v) {
  return reduce_lanes(v, [](auto a, auto b) { return a + b; });
}

// Where no lane is NaN.
template <typename V>
inline auto max_lanes(V v) {
  return reduce_lanes(v, [](auto a, auto b) { return a > b ? a : b; });
}

// Bit i: lane i of a and b is equal.
inline uint64_t equal_lanes(VecD a, VecD b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_EQ_OQ);
#elif defined(__AVX2__)
  return uint64_t(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_EQ_OQ)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kDoubles; ++i) bits |= uint64_t(a[i] == b[i]) << i;
  return bits;
#endif
}

// Bit i: a[i] >= b[i].
inline uint64_t lanes_at_least(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_GE_OQ)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kFloats; ++i) bits |= uint64_t(a[i] >= b[i]) << i;
  return bits;
#endif
}

// ---- rounding under control -------------------------------------------------------------------

// The value as it is: the compiler may not fuse what made it with what uses it.
template <typename V>
inline V rounded(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// a * b + c, rounded once where the instruction set has that.
inline VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return VecF(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__FMA__)
  return VecF(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
  return VecF(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
  return a * b + c;
#endif
}

inline VecD multiply_add(VecD a, VecD b, VecD c) {
#if defined(__AVX512F__)
  return VecD(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
#elif defined(__FMA__)
  return VecD(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
#elif defined(__aarch64__)
  return VecD(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
#else
  return a * b + c;
#endif
}

template <typename R, typename T>
inline Vector<R> load(const T* p) {
  if constexpr (sizeof(R) == 8)
    return load_doubles(p);
  else
    return load_floats(p);
}

// The n % kLanes<R> last of n elements, zero padded to a vector. Through memory a load waits for
// the stores before it, which takes as long as a row of 100 values.
template <typename R, typename T>
inline Vector<R> load_tail(const T* p, int64_t n) {
  const int64_t whole = n / kLanes<R> * kLanes<R>;
#if defined(__AVX512F__)
  const auto mask = __mmask8((1u << (n - whole)) - 1);
  if constexpr (std::is_same_v<R, double> && std::is_same_v<T, double>)
    return VecD(_mm512_maskz_loadu_pd(mask, p + whole));
  if constexpr (std::is_same_v<R, double> && std::is_same_v<T, float>)
    return to_doubles(HalfVecF(_mm256_maskz_loadu_ps(mask, p + whole)));
#endif
  T last[kLanes<R>] = {};
  std::memcpy(last, p + whole, size_t(n - whole) * sizeof(T));
  return load<R>(last);
}

template <typename T>
inline void store(T* p, VecF v) {
  store_floats(p, v);
}
template <typename T>
inline void store(T* p, VecD v) {
  store_doubles(p, v);
}

}  // namespace
}  // namespace hullft
