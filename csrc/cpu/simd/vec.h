// Vectors of float64 and float32 in the compiler's own vector extension, at the width of the
// instruction set this translation unit is compiled for. Included once per instruction set, inside
// an anonymous namespace each time: nothing here may be shared between those units, or the linker
// could pick a wider machine's code for a narrower one.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../core/dtypes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace hullft {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kDoubles = kVectorBytes / 8;
constexpr int kFloats = kVectorBytes / 4;

typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecL __attribute__((vector_size(kVectorBytes)));
typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
typedef float HalfVecF __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t VecU16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t HalfVecU16 __attribute__((vector_size(kVectorBytes / 4)));
typedef uint32_t HalfVecU __attribute__((vector_size(kVectorBytes / 2)));

template <typename V>
inline V load_bytes(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename V>
inline void store_bytes(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline VecD broadcast(double x) { return x - VecD{}; }
inline VecF broadcast(float x) { return x - VecF{}; }

// ---- conversions where GCC 12 splits __builtin_convertvector into halves ---------------------

inline VecU to_words(VecU16 v) {
#if defined(__AVX512F__)
  return VecU(_mm512_cvtepu16_epi32(__m256i(v)));
#elif defined(__AVX2__)
  return VecU(_mm256_cvtepu16_epi32(__m128i(v)));
#else
  return __builtin_convertvector(v, VecU);
#endif
}

inline VecU16 low_halves(VecU v) {
#if defined(__AVX512F__)
  return VecU16(_mm512_cvtepi32_epi16(__m512i(v)));
#else
  return __builtin_convertvector(v, VecU16);
#endif
}

inline HalfVecU to_words(HalfVecU16 v) {
#if defined(__AVX512F__)
  return HalfVecU(_mm256_cvtepu16_epi32(__m128i(v)));
#else
  return __builtin_convertvector(v, HalfVecU);
#endif
}

inline VecD to_doubles(HalfVecF v) {
#if defined(__AVX512F__)
  return VecD(_mm512_cvtps_pd(__m256(v)));
#elif defined(__AVX2__)
  return VecD(_mm256_cvtps_pd(__m128(v)));
#else
  return __builtin_convertvector(v, VecD);
#endif
}

// ---- load and store as float32: kFloats elements --------------------------------------------

inline VecF load_floats(const float* p) { return load_bytes<VecF>(p); }

inline VecF load_floats(const BFloat16* p) {
  const VecU wide = to_words(load_bytes<VecU16>(p)) << 16;
  return load_bytes<VecF>(&wide);
}

inline VecF load_floats(const Float16* p) {
#if defined(__AVX512F__)
  return VecF(_mm512_cvtph_ps(load_bytes<__m256i>(p)));
#elif defined(__F16C__)
  return VecF(_mm256_cvtph_ps(load_bytes<__m128i>(p)));
#else
  VecF v;
  for (int i = 0; i < kFloats; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store_floats(float* p, VecF v) { store_bytes(p, v); }

inline void store_floats(BFloat16* p, VecF v) {
  const VecU bits = load_bytes<VecU>(&v);
  const VecU rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const VecU quiet_nan = bits >> 16 | 0x40u;
  const VecU chosen = (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
  store_bytes(p, low_halves(chosen));
}

inline void store_floats(Float16* p, VecF v) {
#if defined(__AVX512F__)
  store_bytes(p, _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store_bytes(p, _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kFloats; ++i) p[i] = to_float16(v[i]);
#endif
}

// ---- load as float64: kDoubles elements -----------------------------------------------------

inline VecD load_doubles(const double* p) { return load_bytes<VecD>(p); }

inline VecD load_doubles(const float* p) { return to_doubles(load_bytes<HalfVecF>(p)); }

inline VecD load_doubles(const BFloat16* p) {
  const HalfVecU wide = to_words(load_bytes<HalfVecU16>(p)) << 16;
  return to_doubles(load_bytes<HalfVecF>(&wide));
}

inline VecD load_doubles(const Float16* p) {
#if defined(__AVX512F__)
  return to_doubles(HalfVecF(_mm256_cvtph_ps(load_bytes<__m128i>(p))));
#elif defined(__F16C__)
  return to_doubles(HalfVecF(_mm_cvtph_ps(_mm_loadu_si64(p))));
#else
  VecD v;
  for (int i = 0; i < kDoubles; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store_doubles(double* p, VecD v) { store_bytes(p, v); }

// ---- exact square root, which GCC makes one instruction of --------------------------------------

inline VecF square_root(VecF v) {
  for (int i = 0; i < kFloats; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}

inline VecD square_root(VecD v) {
  for (int i = 0; i < kDoubles; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

}  // namespace
}  // namespace hullft
