// Tries every divisor between 1 and 2 with every estimate of its reciprocal within 2^-14, and where
// the refined reciprocal is not the nearest number, every dividend between 1 and 2. Other exponents
// and signs differ from these by powers of two.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cpu/simd/quotient.h"

namespace {

using hullft::VecF;

constexpr uint32_t kOne = 0x3f800000, kMantissas = 1u << 23;
constexpr int kLanes = 16;

struct Reciprocal {
  float divisor, value;
};

// The floats whose bits are first, first + 1 and so on.
VecF consecutive(uint32_t first) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return VecF(_mm512_add_epi32(_mm512_set1_epi32(int(first)), lanes));
}

uint32_t differing(VecF a, VecF b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_NEQ_UQ); }

VecF refined_to_nearest(VecF y, VecF b) {
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

template <typename Refine>
std::vector<Reciprocal> not_nearest(const Refine& refine) {
  std::vector<Reciprocal> found;
  std::mutex mutex;
  in_parallel(kMantissas, [&](uint32_t i) {
    const float b = std::bit_cast<float>(kOne + i), nearest = 1.0f / b;
    const auto estimate = [&](double error) {
      return std::bit_cast<uint32_t>(float((1 + error) / double(b)));
    };
    std::set<float> others;
    for (uint32_t y = estimate(-0x1p-14); y <= estimate(0x1p-14) + 1; y += kLanes) {
      const VecF refined = refine(consecutive(y), hullft::broadcast(b));
      const uint32_t differ = differing(refined, hullft::broadcast(nearest));
      for (int lane = 0; differ >> lane; ++lane)
        if (differ >> lane & 1) others.insert(refined[lane]);
    }
    const std::lock_guard lock(mutex);
    for (float value : others) found.push_back({b, value});
  });
  return found;
}

long wrong_quotients(const std::vector<Reciprocal>& reciprocals) {
  std::atomic<long> wrong = 0;
  in_parallel(uint32_t(reciprocals.size()), [&](uint32_t i) {
    const VecF b = hullft::broadcast(reciprocals[i].divisor);
    const VecF y = hullft::broadcast(reciprocals[i].value);
    long wrong_here = 0;
    for (uint32_t mantissa = 0; mantissa < kMantissas; mantissa += kLanes) {
      const VecF a = consecutive(kOne + mantissa);
      wrong_here += std::popcount(differing(hullft::corrected_quotient(a, b, y), a / b));
    }
    wrong += wrong_here;
  });
  return wrong;
}

template <typename Refine>
void report(const char* name, const Refine& refine) {
  const std::vector<Reciprocal> others = not_nearest(refine);
  std::printf("%s %zu %ld\n", name, others.size(), wrong_quotients(others));
}

}  // namespace

int main() {
  report("upwards", hullft::refined_reciprocal);
  report("nearest", refined_to_nearest);
}
