// torch_parallel_for with threads that ThreadSanitizer knows. torch's own runs on an OpenMP runtime
// that is not instrumented: the sanitizer would see neither that a loop's threads start after what
// came before it nor that they end before what follows, and report both. Preloaded, this takes its
// place. As many threads as can be have a piece, whatever torch.set_num_threads says.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                      void (*body)(int64_t, int64_t, void*), void* context) {
  constexpr int64_t kThreads = 4;
  static thread_local bool inside = false;
  if (begin >= end) return 0;
  const int64_t pieces =
      (end - begin + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int64_t n = inside ? 1 : std::min(kThreads, pieces);
  const int64_t share = (end - begin + n - 1) / n;
  std::atomic<bool> failed{false};
  const auto run = [&](int64_t i) {
    const bool before = inside;
    inside = true;
    try {
      const int64_t from = begin + i * share, to = std::min(end, from + share);
      if (from < to) body(from, to, context);
    } catch (const std::exception&) {
      failed = true;
    }
    inside = before;
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < n; ++i) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
  return failed ? 1 : 0;
}
