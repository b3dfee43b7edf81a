#include <unordered_set>
#include <vector>

#include "../core/arithmetic.h"
#include "../core/stochastic_rounding.h"
#include "adam_directions.cuh"
#include "adam_replay.h"
#include "sweep.cuh"

namespace hullft {
namespace {

constexpr int kStepTable = 64;  // steps whose constants are in shared memory at a time

__device__ __forceinline__ double read_value(const void* p, bool wide) {
  return wide ? *static_cast<const double*>(p) : double(*static_cast<const float*>(p));
}

__device__ __forceinline__ double steps_done(const AdamEntry& entry) {
  return entry.device_step ? read_value(entry.device_step, entry.wide_step) : entry.steps_done;
}

__device__ __forceinline__ int64_t repeats_of(int64_t repeats, const int64_t* device_repeats) {
  return device_repeats ? *device_repeats : repeats;
}

__device__ __forceinline__ AdamOptions options_of(const AdamCall& call, const AdamEntry& entry) {
  AdamOptions options = call.options;
  if (call.device_lr) options.lr = read_value(call.device_lr, call.wide_lr);
  options.lr *= entry.lr_scale;
  return options;
}

// Steps done + 1 .. done + n.
template <typename R>
__device__ __forceinline__ void fill_steps(const AdamOptions& options, double done, int n,
                                           AdamStep<R>* steps) {
  __syncthreads();
  if (int(threadIdx.x) < n) {
    const double number = done + double(threadIdx.x + 1);
    const AdamStep<double> step = adam_step(options, adam_corrections(options, number));
    steps[threadIdx.x] = {R(step.rate), R(step.eps)};
  }
  __syncthreads();
}

template <typename R>
struct AdamLane {
  SweepVector<R> param, grad, exp_avg, exp_avg_sq;
};

// Coupled decay changes the gradient from step to step.
template <WeightDecay kDecay, typename R>
__device__ __forceinline__ void take_steps(AdamLane<R>& x, const AdamRates<R>& rates,
                                           const AdamStep<R>* steps, int n) {
  constexpr bool kCoupled = kDecay == WeightDecay::kCoupled;
  const DeviceMath<R> math;
  bool ordinary = !kCoupled && are_ordinary(x.exp_avg, x.exp_avg_sq, x.grad);
  for (int s = 0; s < n; ++s) {
    const AdamStep<R> step = steps[s];
    SweepVector<R> directions;
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; ++j) {
      AdamState<R> state{x.param[j], x.exp_avg[j], x.exp_avg_sq[j]};
      adam_moments<kDecay>(state, x.grad[j], rates, math);
      x.exp_avg[j] = state.exp_avg, x.exp_avg_sq[j] = state.exp_avg_sq;
    }
    if (kCoupled) ordinary = are_ordinary(x.exp_avg, x.exp_avg_sq, x.exp_avg);
    make_directions(x.exp_avg, x.exp_avg_sq, step.eps, ordinary, directions);
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; ++j) {
      AdamState<R> state{x.param[j], x.exp_avg[j], x.exp_avg_sq[j]};
      adam_move<kDecay>(state, directions[j], rates, step, math);
      x.param[j] = state.param;
    }
  }
}

using RoundedPieces = SweepPieces<BFloat16, float>;

__device__ __forceinline__ void store_rounded(const RoundedPieces& pieces, BFloat16* p,
                                              const SweepVector<float>& values,
                                              const RoundingKey& key) {
  static_assert(RoundedPieces::kCount == kRoundingGroup, "a thread has one group");
  const RandomWords random = rounding_words(key, pieces.at(0) / kRoundingGroup);
  BFloat16 narrow[kRoundingGroup];
#pragma unroll
  for (int j = 0; j < kRoundingGroup; ++j) narrow[j] = to_bfloat16(values[j], random, j);
  store_narrow(pieces, p, narrow);
}

template <typename T, bool kStochastic>
__global__ void __launch_bounds__(kSweepThreads, 2)
    adam_kernel(SweepBatch<AdamEntry> batch, Storage grad_type, AdamCall call) {
  using R = Arithmetic<T>;
  __shared__ AdamStep<R> steps[kStepTable];
  const SweepPlace place = sweep_place(batch);
  const AdamEntry& entry = batch.entries[place.entry];
  const double done = steps_done(entry);
  const AdamOptions options = options_of(call, entry);
  const int repeats = int(repeats_of(call.repeats, call.device_repeats));
  const double decay = DeviceMath<double>{}.product(options.lr, options.weight_decay);
  const AdamRates<R> rates = adam_rates<R>(options, decay);
  T* const param = static_cast<T*>(entry.param);
  T* const exp_avg = static_cast<T*>(entry.exp_avg);
  T* const exp_avg_sq = static_cast<T*>(entry.exp_avg_sq);
  // All threads go through all tiles: the barriers of fill_steps are theirs too.
  for (int64_t tile = 0; tile < batch.chunk && place.start + tile < entry.numel;
       tile += kSweepTile<R>) {
    const SweepPieces<T, R> pieces(place.start + tile, entry.numel);
    AdamLane<R> x;
    load_sweep(pieces, param, x.param);
    load_sweep(pieces, exp_avg, x.exp_avg);
    load_sweep(pieces, exp_avg_sq, x.exp_avg_sq);
    load_sweep(pieces, entry.grad, grad_type, x.grad);
#pragma unroll
    for (int j = 0; j < kSweepVector<R>; ++j) x.grad[j] *= rates.sign;
    for (int left = repeats; left > 0; left -= kStepTable) {
      const int n = left < kStepTable ? left : kStepTable;
      if (tile == 0 || repeats > kStepTable)
        fill_steps(options, done + double(repeats - left), n, steps);
      // No decay is a factor of 1, which waits for memory; a third loop would take registers.
      if (weight_decay(rates) == WeightDecay::kCoupled)
        take_steps<WeightDecay::kCoupled>(x, rates, steps, n);
      else
        take_steps<WeightDecay::kDecoupled>(x, rates, steps, n);
    }
    if constexpr (kStochastic)
      store_rounded(pieces, param, x.param, {call.seed, entry.place, rounding_step(done)});
    else
      store_sweep(pieces, param, x.param);
    store_sweep(pieces, exp_avg, x.exp_avg);
    store_sweep(pieces, exp_avg_sq, x.exp_avg_sq);
  }
}

__global__ void __launch_bounds__(kSweepThreads, 2)
    advance_kernel(SweepBatch<AdamEntry> batch, int64_t repeats, const int64_t* device_repeats) {
  const double taken = double(repeats_of(repeats, device_repeats));
  for (int i = int(threadIdx.x); i < batch.n; i += kSweepThreads) {
    const AdamEntry& entry = batch.entries[i];
    void* step = const_cast<void*>(entry.device_step);
    if (entry.wide_step)
      *static_cast<double*>(step) += taken;
    else
      *static_cast<float*>(step) += float(taken);
  }
}

template <typename T, bool kStochastic = false>
cudaError_t launch(const AdamEntry* entries, int64_t n, Storage grad, const AdamCall& call,
                   cudaStream_t stream) {
  // The number of steps comes from the device in graphs, where a backward pass runs beside them.
  const int chunk = call.device_repeats ? kSweepChunkBeside : kSweepChunk;
  return for_each_batch(entries, n, chunk,
                        [&](const SweepBatch<AdamEntry>& batch, uint32_t n_blocks) {
                          HULLFT_LAUNCH((adam_kernel<T, kStochastic>), dim3(n_blocks),
                                        dim3(kSweepThreads), 0, stream, batch, grad, call);
                          return cudaGetLastError();
                        });
}

}  // namespace

cudaError_t launch_adam_replay(const AdamEntry* entries, int64_t n, Storage param, Storage grad,
                               const AdamCall& call, cudaStream_t stream) {
  if (call.stochastic && param == Storage::kBFloat16)
    return launch<BFloat16, true>(entries, n, grad, call, stream);
  return for_storage(param,
                     [&](auto x) { return launch<decltype(x)>(entries, n, grad, call, stream); });
}

cudaError_t launch_advance_steps(const AdamEntry* entries, int64_t n, const AdamCall& call,
                                 cudaStream_t stream) {
  std::vector<AdamEntry> with_step;
  std::unordered_set<const void*> advanced;  // tensors may share a step
  for (int64_t i = 0; i < n; ++i) {
    if (!entries[i].device_step || !advanced.insert(entries[i].device_step).second) continue;
    with_step.push_back(entries[i]);
    with_step.back().numel = 1;  // of an empty tensor too
  }
  return for_each_batch(with_step.data(), int64_t(with_step.size()), kSweepChunk,
                        [&](const SweepBatch<AdamEntry>& batch, uint32_t) {
                          HULLFT_LAUNCH(advance_kernel, dim3(1), dim3(kSweepThreads), 0, stream,
                                        batch, call.repeats, call.device_repeats);
                          return cudaGetLastError();
                        });
}

}  // namespace hullft
