// What lets one source serve the host and the device: the arithmetic of core/ is compiled by the
// C++ compiler for csrc/cpu and by nvcc for csrc/cuda. Internal linkage, since csrc/cpu/simd
// compiles it once for each instruction set, and the linker must not merge these copies.
#pragma once

#ifdef __FAST_MATH__
#error "hullft_ops looks for NaN and infinity: compile it without -ffast-math"
#endif

#if defined(__CUDACC__)
#define HULLFT_HD __host__ __device__ __forceinline__
#else
#define HULLFT_HD static inline
#endif
