// The simulator's own test: what must pass, and what must be reported. Exit status 1 on a failure.
#include <functional>

#include "cusim.h"
#ifdef CUSIM_RACE
#include "race.h"
#endif

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  ++failures;
  printf("FAILED %s (seed %u)\n", what, cusim::sim.config.seed);
}

void expect_report(const char* report, const char* what, const std::function<void()>& run) {
  try {
    run();
  } catch (const cusim::Error& e) {
    if (strstr(e.what(), report)) return;
    printf("another report: %s\n", e.what());
  }
  ++failures;
  printf("NOT REPORTED: %s (seed %u)\n", what, cusim::sim.config.seed);
}

__global__ void shuffles(int* out) {
  const int lane = int(threadIdx.x) & 31;
  int* p = out + (threadIdx.x + blockIdx.x * blockDim.x) * 4;
  p[0] = __shfl_sync(~0u, lane * 3, 5);
  p[1] = __shfl_down_sync(~0u, lane, 1);
  p[2] = __shfl_xor_sync(~0u, lane, 4);
  p[3] = int(__ballot_sync(~0u, lane & 1));
}

__global__ void half_warps(int* out) {
  const int lane = int(threadIdx.x);
  out[lane] = lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1)
                        : int(__reduce_add_sync(0xffff0000u, unsigned(lane)));
}

__global__ void votes(int* out) {
  const int count = __syncthreads_count(threadIdx.x % 3 == 0);
  const int all = __syncthreads_and(threadIdx.x < 99), any = __syncthreads_or(threadIdx.x == 7);
  if (threadIdx.x == 0) out[0] = count, out[1] = all, out[2] = any;
}

__global__ void reverse(int* out) {
  int* shared = reinterpret_cast<int*>(CUSIM_DYNAMIC_SHARED());
  const int t = int(threadIdx.y * blockDim.x + threadIdx.x), n = int(blockDim.x * blockDim.y);
  shared[t] = t;
  __syncthreads();
  out[int(blockIdx.y * gridDim.x + blockIdx.x) * n + t] = shared[n - 1 - t];
}

template <bool kSync>
__global__ void exchange(float* out) {
  __shared__ float shared[32];
  const int lane = int(threadIdx.x);
  shared[lane] = float(lane);
  if (kSync) __syncwarp();
  out[lane] = shared[lane ^ 1];
}

// The first of two groups of copies is waited for.
template <bool kSync>
__global__ void copies(const float* in, float* out) {
  alignas(16) __shared__ float shared[2][128];
  const int lane = int(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    cusim::copy_async(&shared[group][4 * lane], in + 4 * lane);
    cusim::close_group();
  }
  cusim::wait_for_groups(1);
  if (kSync) __syncwarp();
  out[lane] = shared[0][4 * (lane ^ 1)];
  out[lane + 32] = shared[1][4 * lane];
}

__global__ void misaligned_copy(const float* in) {
  alignas(16) __shared__ float shared[4];
  cusim::copy_async(shared, in + 1);
}

template <bool kAtomic>
__global__ void sum(float* out) {
  if (kAtomic)
    atomicAdd(out, 1.0f);
  else if (threadIdx.x == 0)
    *out += 1.0f;
}

__global__ void masks_differ() {
  (void)__shfl_sync(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u, 1, 0);
}

__global__ void operations_differ() {
  if (threadIdx.x & 1)
    (void)__ballot_sync(~0u, 1);
  else
    __syncwarp();
}

__global__ void early_return() {
  if (threadIdx.x < 5) return;
  __syncthreads();
}

__global__ void barrier_in_a_branch() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

void what_must_pass() {
  std::vector<int> out(4096);
  CUSIM_LAUNCH(shuffles, 2, 64, 0, nullptr, out.data());
  for (int t = 0; t < 128; ++t) {
    const int lane = t & 31, *p = &out[size_t(t) * 4];
    expect(p[0] == 15 && p[1] == (lane < 31 ? lane + 1 : lane) && p[2] == (lane ^ 4) &&
               unsigned(p[3]) == 0xaaaaaaaau,
           "shuffles");
  }
  CUSIM_LAUNCH(half_warps, 1, 32, 0, nullptr, out.data());
  for (int l = 0; l < 32; ++l) expect(out[size_t(l)] == (l < 16 ? l ^ 1 : 376), "half warps");
  CUSIM_LAUNCH(votes, 1, 100, 0, nullptr, out.data());
  expect(out[0] == 34 && out[1] == 0 && out[2] == 1, "votes");
  CUSIM_LAUNCH(reverse, dim3(2, 3), dim3(8, 5), 160, nullptr, out.data());
  for (int i = 0; i < 240; ++i) expect(out[size_t(i)] == 39 - i % 40, "two dimensions");
  std::vector<float> floats(64);
  CUSIM_LAUNCH(exchange<true>, 1, 32, 0, nullptr, floats.data());
  for (int l = 0; l < 32; ++l) expect(floats[size_t(l)] == float(l ^ 1), "syncwarp");
  floats[0] = 0;
  CUSIM_LAUNCH(sum<true>, 7, 64, 0, nullptr, floats.data());
  expect(floats[0] == 448, "atomicAdd");
  alignas(16) static float in[128];
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  CUSIM_LAUNCH(copies<true>, 1, 32, 0, nullptr, in, floats.data());
  for (int l = 0; l < 32; ++l) {
    expect(floats[size_t(l)] == float(4 * (l ^ 1)), "a copy that was waited for");
    expect(std::isnan(floats[size_t(l) + 32]), "a copy that was not waited for");
  }
}

void what_must_be_reported() {
  expect_report("warp", "masks differ", [] { CUSIM_LAUNCH(masks_differ, 1, 32, 0, nullptr); });
  expect_report("mismatch", "operations differ",
                [] { CUSIM_LAUNCH(operations_differ, 1, 32, 0, nullptr); });
  expect_report("divergent barrier", "early return",
                [] { CUSIM_LAUNCH(early_return, 1, 64, 0, nullptr); });
  expect_report("divergent barrier", "barrier in a branch",
                [] { CUSIM_LAUNCH(barrier_in_a_branch, 1, 64, 0, nullptr); });
  expect_report("invalid", "1025 threads", [] { CUSIM_LAUNCH(early_return, 1, 1025, 0, nullptr); });
  expect_report("more shared memory", "too much shared memory",
                [] { CUSIM_LAUNCH(early_return, 1, 32, 49 * 1024, nullptr); });
  constexpr auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  expect(cudaFuncSetAttribute(barrier_in_a_branch, limit, 228 * 1024) != cudaSuccess, "no device");
  expect(cudaFuncSetAttribute(barrier_in_a_branch, limit, 64 * 1024) == cudaSuccess, "a limit");
  alignas(16) static float in[8];
  expect_report("misaligned address", "a misaligned copy",
                [] { CUSIM_LAUNCH(misaligned_copy, 1, 1, 0, nullptr, in); });
  expect_report("lowered", "a lower limit",
                [] { cudaFuncSetAttribute(barrier_in_a_branch, limit, 50 * 1024); });
}

#ifdef CUSIM_RACE
__global__ void constant_load(const float* in, float* out) { *out = __ldg(in); }

void races_that_must_be_reported() {
  std::vector<float> floats(64);
  cusim::race::clear();
  expect_report("static __shared__", "no syncwarp",
                [&] { CUSIM_LAUNCH(exchange<false>, 1, 32, 0, nullptr, floats.data()); });
  cusim::race::clear();
  alignas(16) static float in[128];
  expect_report("static __shared__", "no barrier after a copy",
                [&] { CUSIM_LAUNCH(copies<false>, 1, 32, 0, nullptr, in, floats.data()); });
  cusim::race::clear();
  cusim::race::add(floats.data(), 4, "sum", false);
  CUSIM_LAUNCH(sum<true>, 7, 64, 0, nullptr, floats.data());
  expect_report("another block", "blocks race",
                [&] { CUSIM_LAUNCH(sum<false>, 2, 64, 0, nullptr, floats.data()); });
  cusim::race::clear();
  cusim::race::add(in, 16, "input", true);
  cusim::race::add(floats.data(), 16, "workspace", false);
  CUSIM_LAUNCH(constant_load, 1, 1, 0, nullptr, in, floats.data());
  expect_report("constant load of workspace", "__ldg of what kernels write",
                [&] { CUSIM_LAUNCH(constant_load, 1, 1, 0, nullptr, &floats[1], floats.data()); });
  cusim::race::clear();
  cusim::race::add(floats.data(), 4, "sum", true);
  expect_report("read-only", "write to a read-only buffer",
                [&] { CUSIM_LAUNCH(sum<false>, 1, 64, 0, nullptr, floats.data()); });
}
#endif

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 20; ++seed) {
    cusim::sim.config.seed = seed;
#ifdef CUSIM_RACE
    cusim::race::clear();
    what_must_pass();
    races_that_must_be_reported();
#else
    what_must_pass();
#endif
    what_must_be_reported();
  }
  printf("%s\n", failures ? "selftest FAILED" : "selftest passed");
  return failures != 0;
}
