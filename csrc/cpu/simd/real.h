// Vectors of the arithmetic type, float32 or float64, loaded from and stored to any storage type.
#pragma once

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

inline VecF load_floats(const double* p) {
  const HalfVecF halves[2] = {
      __builtin_convertvector(load_bytes<VecD>(p), HalfVecF),
      __builtin_convertvector(load_bytes<VecD>(p + kDoubles), HalfVecF),
  };
  return load_bytes<VecF>(halves);
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
