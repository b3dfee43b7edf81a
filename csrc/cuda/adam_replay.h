// Several Adam steps with one gradient, over many tensors, in one sweep over memory.
#pragma once

#include <driver_types.h>

#include "../core/adam.h"
#include "pool_view.h"

namespace hullft {

struct AdamEntry {
  void* param;
  const void* grad;
  void *exp_avg, *exp_avg_sq;
  int64_t numel;
  const void* device_step;  // one float32 or float64 on the device, or null: steps_done
  double steps_done;
  double lr_scale;  // a factor of the learning rate
  bool wide_step;
  uint32_t place;  // in the caller's list, for stochastic rounding
};

// What all tensors of a call share.
struct AdamCall {
  AdamOptions options;
  int64_t repeats;
  const int64_t* device_repeats;  // on the device, or null: repeats
  const void* device_lr;          // one float32 or float64 on the device, or null: options.lr
  bool wide_lr;
  bool stochastic;  // rounding of bfloat16 parameters
  uint64_t seed;
};

// entries of one dtype for parameters and moments, another for gradients. Leaves the steps as they
// are: launch_advance_steps comes after.
cudaError_t launch_adam_replay(const AdamEntry* entries, int64_t n, Storage param, Storage grad,
                               const AdamCall& call, cudaStream_t stream);

// Adds the call's repeats to every step that is on the device, once where several entries share it.
cudaError_t launch_advance_steps(const AdamEntry* entries, int64_t n, const AdamCall& call,
                                 cudaStream_t stream);

}  // namespace hullft
