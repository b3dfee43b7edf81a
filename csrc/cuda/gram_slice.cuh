// The arithmetic of a Gram matrix on tensor cores: 16 x 8 products of rows over a slice, 64 bytes
// of each row. Every slice has sums of its own, which the kernels add up in the order of the
// slices: an element has the same bits whichever kernel makes it.
#pragma once

#include "load.cuh"
#include "mma.cuh"

namespace hullft {

constexpr int kTileSide = 2 * kFragmentRows;  // rows of a tile, either way

// Columns of a slice: 16 bytes of a row for each of four lanes.
template <typename T>
constexpr int kSlice = kRowLanes * kVector<T>;

// float32 numbers are hi + lo.
template <typename T>
constexpr bool kSplit = sizeof(T) == 4;

template <typename T>
__device__ __forceinline__ int64_t slices_of(int64_t d) {
  return (d + kSlice<T> - 1) / kSlice<T>;
}

// x = hi + lo, up to the last bit of x, once mma has cut both to TF32: they have 11 bits, and lo
// may lack one.
__device__ __forceinline__ void split(uint32_t x, uint32_t& hi, uint32_t& lo) {
  hi = x + 0x1000u;  // to nearest; if x is NaN or infinite, lo is NaN
  lo = float_to_bits(bits_to_float(x) - bits_to_float(hi & kTf32Mask));
}

// What a lane has of a slice of 16 rows: two pairs of words of each of its two rows, each pair for
// one instruction. Which lane holds which column does not matter as long as both rows of a product
// agree. lo: of float32 alone.
template <typename T>
struct Strip {
  uint32_t hi[2][4], lo[2][4];

  __device__ __forceinline__ void set_row(int row, const uint32_t (&words)[4]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int at = w % 2 * 2 + row;
      if constexpr (kSplit<T>)
        split(words[w], hi[w / 2][at], lo[w / 2][at]);
      else
        hi[w / 2][at] = words[w];
    }
  }
};

// sums += the products of 16 rows with half of 16 others.
template <typename T>
__device__ __forceinline__ void multiply(const uint32_t (&a)[2][4], const uint32_t (&b)[2][4],
                                         int half, float (&sums)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t rows[2] = {b[i][half], b[i][2 + half]};
    mma<T>(sums, a[i], rows);
  }
}

// totals += the products over one slice with half of the rows of b. Products of 16-bit numbers are
// exact. Of (hi + lo)(hi' + lo') float32 leaves out lo lo'. hi lo' and lo hi' have sums of their
// own, or rows i and j would not get the products of j and i.
template <typename T>
__device__ __forceinline__ void add_slice(const Strip<T>& a, const Strip<T>& b, int half,
                                          float (&totals)[4]) {
  float sums[4] = {};
  if constexpr (kSplit<T>) {
    float hi_lo[4] = {}, lo_hi[4] = {};
    multiply<T>(a.hi, b.lo, half, hi_lo);
    multiply<T>(a.lo, b.hi, half, lo_hi);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = hi_lo[i] + lo_hi[i];
  }
  multiply<T>(a.hi, b.hi, half, sums);
#pragma unroll
  for (int i = 0; i < 4; ++i) totals[i] += sums[i];
}

}  // namespace hullft
