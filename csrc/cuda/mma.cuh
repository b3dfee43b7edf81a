// One tensor-core instruction of a warp: c += a b^T, sums of 16 x 8 products of rows that are 32
// bytes long. Words of 4 bytes hold one TF32 number or two bfloat16 or float16 numbers; so the
// fragments of mma.m16n8k8 (TF32) and mma.m16n8k16 (the others) of the PTX ISA are the same. With
// g = lane / 4 and t = lane % 4 a lane holds
//
//   a[0]: row g, word t     a[1]: row g + 8, word t     a[2], a[3]: the same rows, word t + 4
//   b[0]: row g, word t     b[1]: row g, word t + 4
//   c[0]: row g of a with row 2 t of b     c[1]: with row 2 t + 1     c[2], c[3]: row g + 8 of a
//
// Products are exact. The sums are float32.
#pragma once

#include <type_traits>

#include "../core/dtypes.h"
#include "device.cuh"

namespace hullft {

constexpr int kRowLanes = 4;                 // that share a row of a fragment
constexpr int kFragmentRows = 8;             // of b; a has twice as many
constexpr uint32_t kTf32Mask = 0xffffe000u;  // the last 13 bits of a word are not TF32's

#if defined(__CUDACC__)

#define HULLFT_MMA(shape, type)                                                       \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// T: BFloat16, Float16, or float for words that are cut to TF32. Tensor cores do that themselves,
// so ptxas leaves those instructions out.
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    HULLFT_MMA("m16n8k16", "bf16");
  } else if constexpr (std::is_same_v<T, Float16>) {
    HULLFT_MMA("m16n8k16", "f16");
  } else {
    asm volatile(
        "{.reg .b32 a0, a1, a2, a3, b0, b1;"
        "and.b32 a0, %4, %10; and.b32 a1, %5, %10; and.b32 a2, %6, %10; and.b32 a3, %7, %10;"
        "and.b32 b0, %8, %10; and.b32 b1, %9, %10;"
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {a0, a1, a2, a3}, "
        "{b0, b1}, {%0, %1, %2, %3};}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "n"(kTf32Mask));
  }
}
#undef HULLFT_MMA

#else

template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         int line = __builtin_LINE()) {
  cusim::mma<T>(c, a, b, line);
}

#endif

}  // namespace hullft
