// Tries every divisor between 1 and 2 with every estimate of its reciprocal within a reach, and
// where the refined reciprocal is not the nearest number, every dividend between 1 and 2. Tries
// every radicand between 1 and 4 with every estimate of its root's reciprocal. Other exponents and
// signs differ from these by powers of two. A reciprocal that is rounded the other way gives
// wrong quotients for the last divisors before 2.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdio>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "core/from_estimates.h"
#include "cpu/simd/adam_block.h"
#include "cpu/simd/quotient.h"

namespace {

using hullft::VecF;

constexpr uint32_t kOne = 0x3f800000, kMantissas = 1u << 23;
constexpr int kLanes = 16;
constexpr double kCpuReach = 0x1p-14, kCudaReach = 0x1p-22;  // errors of an estimate, relative

struct Reciprocal {
  float divisor, value;
};

// The floats whose bits are first, first + 1 and so on.
VecF consecutive(uint32_t first) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return VecF(_mm512_add_epi32(_mm512_set1_epi32(int(first)), lanes));
}

uint32_t differing(VecF a, VecF b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_NEQ_UQ); }

// The arithmetic of csrc/cuda.
struct CudaMath : hullft::VectorMath {
  VecF fma_up(VecF a, VecF b, VecF c) const {
    return VecF(_mm512_fmadd_round_ps(__m512(a), __m512(b), __m512(c),
                                      _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
  }
  VecF remainder_of_one(VecF a, VecF b) const { return fma_up(-a, b, hullft::broadcast(1.0f)); }
};

VecF cuda_reciprocal(VecF y, VecF b) { return hullft::reciprocal_from_estimate(b, y, CudaMath()); }

VecF cuda_quotient(VecF a, VecF b, VecF y) {
  return hullft::quotient_from_reciprocal(a, b, y, CudaMath());
}

VecF to_nearest(VecF y, VecF b) {
  const VecF e = hullft::subtract_product(b, y, hullft::broadcast(1.0f));
  return hullft::multiply_add(hullft::multiply_add(e, e, e), y, y);
}

// body(i) for i < n, on all processors.
void in_parallel(uint32_t n, const std::function<void(uint32_t)>& body) {
  const uint32_t n_threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::jthread> threads;
  for (uint32_t t = 0; t < n_threads; ++t)
    threads.emplace_back([=, &body] {
      for (uint32_t i = t; i < n; i += n_threads) body(i);
    });
}

// body(estimates, which of them are within reach of `exact`) until all were there.
template <typename Body>
void for_estimates(double exact, double reach, const Body& body) {
  const auto bits = [&](double error) {
    return std::bit_cast<uint32_t>(float((1 + error) * exact));
  };
  const uint32_t last = bits(reach) + 1;
  for (uint32_t y = bits(-reach); y <= last; y += kLanes)
    body(consecutive(y), last - y < kLanes ? (2u << (last - y)) - 1 : 0xffffu);
}

template <typename Refine>
std::vector<Reciprocal> not_nearest(uint32_t first, double reach, const Refine& refine) {
  std::vector<Reciprocal> found;
  std::mutex mutex;
  in_parallel(kMantissas - first, [&](uint32_t i) {
    const float b = std::bit_cast<float>(kOne + first + i), nearest = 1.0f / b;
    std::set<float> others;
    for_estimates(1 / double(b), reach, [&](VecF y, uint32_t within) {
      const VecF refined = refine(y, hullft::broadcast(b));
      const uint32_t differ = differing(refined, hullft::broadcast(nearest)) & within;
      for (int lane = 0; differ >> lane; ++lane)
        if (differ >> lane & 1) others.insert(refined[lane]);
    });
    const std::lock_guard lock(mutex);
    for (float value : others) found.push_back({b, value});
  });
  return found;
}

template <typename Quotient>
long wrong_quotients(const std::vector<Reciprocal>& reciprocals, const Quotient& quotient) {
  std::atomic<long> wrong = 0;
  in_parallel(uint32_t(reciprocals.size()), [&](uint32_t i) {
    const VecF b = hullft::broadcast(reciprocals[i].divisor);
    const VecF y = hullft::broadcast(reciprocals[i].value);
    long wrong_here = 0;
    for (uint32_t mantissa = 0; mantissa < kMantissas; mantissa += kLanes) {
      const VecF a = consecutive(kOne + mantissa);
      wrong_here += std::popcount(differing(quotient(a, b, y), a / b));
    }
    wrong += wrong_here;
  });
  return wrong;
}

long wrong_roots() {
  std::atomic<long> wrong = 0;
  in_parallel(2 * kMantissas, [&](uint32_t i) {
    const float v = std::bit_cast<float>(kOne + i);
    for_estimates(1 / std::sqrt(double(v)), kCudaReach, [&](VecF y, uint32_t within) {
      const VecF root = hullft::root_from_estimate(hullft::broadcast(v), y, CudaMath());
      wrong += std::popcount(differing(root, hullft::broadcast(std::sqrt(v))) & within);
    });
  });
  return wrong;
}

template <typename Refine, typename Quotient>
void report(const char* name, uint32_t first, double reach, const Refine& refine,
            const Quotient& quotient) {
  const std::vector<Reciprocal> others = not_nearest(first, reach, refine);
  std::printf("%s %zu %ld\n", name, others.size(), wrong_quotients(others, quotient));
}

VecF cpu_reciprocal(VecF y, VecF b) { return hullft::refined_reciprocal(y, b); }
VecF cpu_quotient(VecF a, VecF b, VecF y) { return hullft::corrected_quotient(a, b, y); }

}  // namespace

int main() {
  report("upwards", 0, kCpuReach, cpu_reciprocal, cpu_quotient);
  report("nearest", kMantissas - 64, kCpuReach, to_nearest, cpu_quotient);
  report("cuda", 0, kCudaReach, cuda_reciprocal, cuda_quotient);
  std::printf("roots 0 %ld\n", wrong_roots());
}
