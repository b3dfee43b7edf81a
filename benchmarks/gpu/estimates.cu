// Tries the roots and quotients of csrc/cuda, which are made of the hardware's estimates, on the
// hardware: no emulator has those. For each it prints a name, how many are wrong, and the largest
// error: of an estimate relative, of a quotient of a step in units of the last place.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "core/dtypes.h"
#include "cuda/adam_directions.cuh"
#include "cuda/fw_warp.cuh"

namespace {

using namespace hullft;

constexpr uint32_t kOne = 0x3f800000u, kMantissa = (1u << 23) - 1;
constexpr uint32_t kDividends = 512;
constexpr double kReach = 0x1p-22;  // what adam_directions.cuh expects of an estimate

struct Found {
  unsigned long long wrong;
  double largest;
};

__device__ __forceinline__ void take(Found& found, bool is_wrong, double error = 0) {
  found.wrong += is_wrong;
  if (!(error <= found.largest)) found.largest = error;
}

__device__ __forceinline__ uint32_t hashed(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

struct Reciprocal {
  __device__ void operator()(uint64_t i, Found& found) const {
    const float b = bits_to_float(kOne + uint32_t(i));
    const double error = fabs(double(estimated_reciprocal(b)) * b - 1);
    take(found, !(error <= kReach), error);
  }
};

struct ReciprocalRoot {
  __device__ void operator()(uint64_t i, Found& found) const {
    const float v = bits_to_float(kOne + uint32_t(i));
    const double error = fabs(double(estimated_reciprocal_root(v)) * sqrt(double(v)) - 1);
    take(found, !(error <= kReach), error);
  }
};

struct Divisor {
  float eps;
  __device__ void operator()(uint64_t i, Found& found) const {
    const float v = bits_to_float(uint32_t(i));
    take(found, quick_divisor(v, eps) != sqrtf(v) + eps);
  }
};

// A divisor with many dividends, one for each i; with all, a share for each i, where the refined
// reciprocal is not the nearest number.
struct Quotient {
  float dividend_scale, divisor_scale;
  __device__ void operator()(uint64_t i, Found& found) const {
    const uint32_t mantissa = uint32_t(i / kDividends), first = uint32_t(i % kDividends);
    const float b = bits_to_float(kOne + mantissa);
    const float y = reciprocal_from_estimate(b, estimated_reciprocal(b), DeviceMath<float>());
    const bool all = y != 1.0f / b;
    for (uint32_t k = first; k <= (all ? kMantissa : first); k += kDividends) {
      uint32_t dividend = all ? k : hashed(mantissa * kDividends + k);
      if (!all && k < 4) dividend = k == 3 ? kMantissa : mantissa + k - 1;
      const float a = bits_to_float(kOne + (dividend & kMantissa)) * dividend_scale;
      take(found, quick_quotient(a, b * divisor_scale) != a / (b * divisor_scale));
    }
  }
};

// The estimate sees the upper half of a divisor: all of those, with the least and most below.
struct StepQuotient {
  __device__ void operator()(uint64_t i, Found& found) const {
    const uint64_t below = i & 1 ? 0xffffffffu : 0;
    const double y = ldexp(double(uint64_t(1) << 52 | i >> 1 << 32 | below), -52);
    for (uint32_t k = 0; k < 64; ++k) {
      const double x = 1 + ldexp(double(hashed(uint32_t(i) * 64 + k)), -32);
      const auto bits = [](float z) { return double(float_to_bits(z)); };
      const double off = fabs(bits(quotient<float>(x, y)) - bits(float(x / y)));
      take(found, !(off <= 1), off);
    }
  }
};

#if defined(__CUDACC__)
constexpr int kThreads = 256, kBlocks = 4096;

template <typename Body>
__global__ void try_all(uint64_t count, Body body, Found* founds) {
  const uint64_t thread = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  Found found{};
  for (uint64_t i = thread; i < count; i += uint64_t(kBlocks) * kThreads) body(i, found);
  founds[thread] = found;
}

template <typename Body>
std::vector<Found> found_by_all(uint64_t count, const Body& body) {
  std::vector<Found> founds(size_t(kBlocks) * kThreads);
  const size_t bytes = founds.size() * sizeof(Found);
  Found* on_device = nullptr;
  cudaMalloc(&on_device, bytes);
  try_all<<<kBlocks, kThreads>>>(count, body, on_device);
  cudaMemcpy(founds.data(), on_device, bytes, cudaMemcpyDeviceToHost);
  cudaFree(on_device);
  return founds;
}
#else
template <typename Body>
std::vector<Found> found_by_all(uint64_t count, const Body& body) {
  std::vector<Found> founds(1);
  for (uint64_t i = 0; i < count; i += 1009) body(i, founds[0]);
  return founds;
}
#endif

template <typename Body>
void report(const char* name, uint64_t count, const Body& body) {
  Found sum{};
  for (const Found& found : found_by_all(count, body)) {
    sum.wrong += found.wrong;
    sum.largest = std::fmax(sum.largest, found.largest);
  }
  std::printf("%s %llu %g\n", name, sum.wrong, sum.largest);
}

}  // namespace

int main() {
  constexpr uint64_t kMantissas = kMantissa + 1;
  report("reciprocals", kMantissas, Reciprocal());
  report("reciprocal_roots", 2 * kMantissas, ReciprocalRoot());
  const uint64_t ordinary = uint64_t(127 + 76) << 23;  // the bits of 2^76
  report("divisors_with_eps_1e-8", ordinary, Divisor{1e-8f});
  report("divisors_with_the_smallest_eps", ordinary, Divisor{kSmallestEps});
  report("quotients", kMantissas * kDividends, Quotient{1, 1});
  report("smallest_quotients", kMantissas * kDividends, Quotient{kSmallestDividend, kLargestEps});
  report("largest_quotients", kMantissas * kDividends, Quotient{kLargestMoment / 2, kSmallestEps});
  report("quotients_of_a_step", uint64_t(1) << 21, StepQuotient());
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) std::printf("cuda_error_%d 1 0\n", int(error));
}
