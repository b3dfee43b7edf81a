// 16-bit floating-point storage types. Arithmetic is never done in them: they are widened on load
// and rounded to nearest even on store.
#pragma once

#include <cstdint>
#include <cstring>

#include "platform.h"

namespace hullft {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

HULLFT_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

HULLFT_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

HULLFT_HD float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

HULLFT_HD float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // infinity, NaN
    return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = float(magnitude) * (1.0f / 16777216.0f);  // exact
  return bits_to_float(sign | float_to_bits(subnormal));
}

HULLFT_HD BFloat16 to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

HULLFT_HD Float16 to_float16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds to a multiple of 2^-24
    const uint32_t sum = float_to_bits(bits_to_float(magnitude) + 0.5f);
    return {uint16_t(sign | (sum - 0x3f000000u))};
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return {uint16_t(sign | (magnitude - (112u << 23) + 0xfffu + odd) >> 13)};
}

HULLFT_HD double widen(double x) { return x; }
HULLFT_HD double widen(float x) { return double(x); }
HULLFT_HD double widen(BFloat16 x) { return double(to_float(x)); }
HULLFT_HD double widen(Float16 x) { return double(to_float(x)); }

static_assert(sizeof(BFloat16) == 2 && sizeof(Float16) == 2, "storage types must be two bytes");

}  // namespace hullft
