// adam_replay_check refuses the tensors that adam_replay_ would refuse, for several calls at once
// and before the first of them writes. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "replay_checks.h"

namespace hullft {
namespace {

void adam_replay_check(std::vector<Tensor> params, std::vector<Tensor> grads,
                       std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
                       std::vector<Tensor> steps, std::vector<Tensor> lr_tensors,
                       std::optional<Tensor> repeats_tensor) {
  constexpr const char* op = "adam_replay_check";
  const TensorList param_list{"params", params}, step_list{"steps", steps};
  const TensorList lr_list{"lr_tensors", lr_tensors};
  check_adam_lists(op, param_list, {"grads", grads}, {"exp_avgs", exp_avgs},
                   {"exp_avg_sqs", exp_avg_sqs}, step_list, lr_list);
  for (size_t i = 0; i < steps.size(); ++i) read_step(op, step_list, i, param_list[0]);
  for (size_t i = 0; i < lr_tensors.size(); ++i)
    read_lr_tensor(op, entry(lr_list, i), lr_list[i], param_list);
  check_repeats(op, 1, repeats_tensor, param_list, step_list);
}

}  // namespace

// It reads metadata, and values that lie on the CPU: one function serves tensors on either device.
STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("adam_replay_check", TORCH_BOX(&adam_replay_check));
}
STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("adam_replay_check", TORCH_BOX(&adam_replay_check));
}

}  // namespace hullft
