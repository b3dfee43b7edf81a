// A block's part of a sweep, and loads and stores of a few elements of any storage type.
#pragma once

#include <type_traits>

#include "load.cuh"
#include "multi_tensor.h"
#include "pool_view.h"

namespace hullft {

// Elements that a thread takes at a time: what fits its registers four times over.
template <typename R>
constexpr int kSweepVector = sizeof(R) == 8 ? 4 : 8;

template <typename R>
constexpr int64_t kSweepTile = int64_t(kSweepThreads) * kSweepVector<R>;

template <typename R>
using SweepVector = R[kSweepVector<R>];

template <typename T, typename R>
__device__ __forceinline__ T narrow_to(R x) {
  if constexpr (sizeof(T) == sizeof(BFloat16)) {
#if defined(__CUDA_ARCH__)
    T narrow;
    const float single = float(x);
    if constexpr (std::is_same_v<T, BFloat16>)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(single));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(single));
    return narrow;
#else
    if constexpr (std::is_same_v<T, BFloat16>)
      return to_bfloat16(float(x));
    else
      return to_float16(float(x));
#endif
  } else {
    return T(x);
  }
}

// Which elements of a tile a thread has: pieces of at most 16 bytes of T. The threads' pieces lie
// side by side, so that a warp stores whole sectors.
template <typename T, typename R>
struct SweepPieces {
  static constexpr int kCount = kVector<T> < kSweepVector<R> ? kVector<T> : kSweepVector<R>;

  int64_t tile;  // the first element of the tile in its tensor
  int64_t numel;

  __device__ __forceinline__ SweepPieces(int64_t tile, int64_t numel) : tile(tile), numel(numel) {}

  // Where element j of the thread is in the tensor.
  __device__ __forceinline__ int64_t at(int j) const {
    return tile + int64_t(j - j % kCount) * kSweepThreads + int64_t(threadIdx.x) * kCount +
           j % kCount;
  }

  // Whether words of the tensor at p make up the tile. All threads of the block agree.
  template <typename G>
  __device__ __forceinline__ bool in_words(const G* p) const {
    return tile + kSweepTile<R> <= numel &&
           reinterpret_cast<uintptr_t>(p) % sizeof(Word<G, kCount>) == 0;
  }
};

// The thread's elements of the tensor at p, zeros past its end.
template <typename T, typename R, typename G>
__device__ __forceinline__ void load_sweep(const SweepPieces<T, R>& pieces, const G* p,
                                           SweepVector<R>& out) {
  constexpr int kCount = SweepPieces<T, R>::kCount;
  if (pieces.in_words(p)) {
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; j += kCount) load_words<kCount>(p + pieces.at(j), out + j);
    return;
  }
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j)
    out[j] = pieces.at(j) < pieces.numel ? widen_to<R>(p[pieces.at(j)]) : R(0);
}

template <typename T, typename R>
__device__ __forceinline__ void store_narrow(const SweepPieces<T, R>& pieces, T* p,
                                             const T (&narrow)[kSweepVector<R>]) {
  constexpr int kCount = SweepPieces<T, R>::kCount;
  if (pieces.in_words(p)) {
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; j += kCount) {
      Word<T, kCount> raw;
      memcpy(&raw, narrow + j, sizeof raw);
      *reinterpret_cast<Word<T, kCount>*>(p + pieces.at(j)) = raw;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j)
    if (pieces.at(j) < pieces.numel) p[pieces.at(j)] = narrow[j];
}

template <typename T, typename R>
__device__ __forceinline__ void store_sweep(const SweepPieces<T, R>& pieces, T* p,
                                            const SweepVector<R>& values) {
  T narrow[kSweepVector<R>];
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j) narrow[j] = narrow_to<T>(values[j]);
  store_narrow(pieces, p, narrow);
}

// The same for a gradient whose type is known at run time alone.
template <typename T, typename R>
__device__ __forceinline__ void load_sweep(const SweepPieces<T, R>& pieces, const void* p,
                                           Storage type, SweepVector<R>& out) {
  switch (type) {
    case Storage::kFloat64:
      return load_sweep(pieces, static_cast<const double*>(p), out);
    case Storage::kBFloat16:
      return load_sweep(pieces, static_cast<const BFloat16*>(p), out);
    case Storage::kFloat16:
      return load_sweep(pieces, static_cast<const Float16*>(p), out);
    default:
      return load_sweep(pieces, static_cast<const float*>(p), out);
  }
}

// The entry whose block this is, and its first element in it.
struct SweepPlace {
  int entry;
  int64_t start;
};

template <typename Entry>
__device__ __forceinline__ SweepPlace sweep_place(const SweepBatch<Entry>& batch) {
  int low = 0, high = batch.n;  // the entry is in low .. high - 1
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (batch.first_block[middle] <= blockIdx.x)
      low = middle;
    else
      high = middle;
  }
  return {low, int64_t(blockIdx.x - batch.first_block[low]) * batch.chunk};
}

}  // namespace hullft
