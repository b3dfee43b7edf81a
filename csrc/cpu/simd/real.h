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
