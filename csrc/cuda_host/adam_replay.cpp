// adam_replay_ on CUDA. Schemas: csrc/ops.cpp.
#include "../cuda/adam_replay.h"

#include <torch/csrc/stable/library.h>

#include <map>
#include <optional>
#include <vector>

#include "../host/flat_tensor.h"
#include "../host/replay_checks.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

// As in torch.optim.Adam, step counts are on the CPU, or with capturable=True on the parameter's
// device, where the launch reads and advances them.
AdamEntry with_step(const char* op, const TensorList& steps, size_t i, const Tensor& first,
                    AdamEntry entry_of) {
  entry_of.steps_done = read_step(op, steps, i, first);
  if (steps[i].is_cpu()) return entry_of;
  entry_of.device_step = steps[i].mutable_data_ptr();
  entry_of.wide_step = dtype_of(steps[i]) == ScalarType::Double;
  return entry_of;
}

bool is_on_device(const std::optional<Tensor>& t) { return t && !t->is_cpu(); }

// A learning rate and a number of steps beside the parameters are read by the launch.
AdamCall adam_call(const AdamOptions& options, int64_t n_steps,
                   const std::optional<Tensor>& lr_tensor, std::optional<int64_t> seed,
                   const std::optional<Tensor>& repeats_tensor) {
  AdamCall call{};
  call.options = options, call.repeats = n_steps;
  call.stochastic = seed.has_value(), call.seed = uint64_t(seed.value_or(0));
  if (is_on_device(repeats_tensor))
    call.device_repeats = static_cast<const int64_t*>(repeats_tensor->const_data_ptr());
  if (is_on_device(lr_tensor)) {
    call.device_lr = lr_tensor->const_data_ptr();
    call.wide_lr = lr_tensor->scalar_type() == ScalarType::Double;
  }
  return call;
}

void adam_replay(std::vector<Tensor> params, std::vector<Tensor> grads,
                 std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
                 std::vector<Tensor> steps, int64_t repeats, double lr, double beta1, double beta2,
                 double eps, double weight_decay, bool decoupled, bool maximize,
                 std::optional<Tensor> lr_tensor, std::optional<int64_t> seed,
                 std::optional<Tensor> repeats_tensor, std::optional<Tensor> lr_scales) {
  constexpr const char* op = "adam_replay_";
  const TensorList param_list{"params", params}, step_list{"steps", steps};
  const AdamOptions options = check_adam_arguments(
      op, param_list, {"grads", grads}, {"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs},
      step_list, {lr, beta1, beta2, eps, weight_decay, decoupled, maximize}, lr_tensor, lr_scales);
  const int64_t n_steps = check_repeats(op, repeats, repeats_tensor, param_list, step_list);
  const AdamCall call = adam_call(options, n_steps, lr_tensor, seed, repeats_tensor);
  if (params.empty()) return;
  std::vector<AdamEntry> entries;
  entries.reserve(params.size());
  const double* scales = values_of(lr_scales);
  for (size_t i = 0; i < params.size(); ++i) {
    entries.push_back(with_step(op, step_list, i, param_list[0], AdamEntry{}));
    entries.back().place = uint32_t(i);
    entries.back().lr_scale = scales ? scales[i] : 1;
  }
  const NoGrad no_grad;
  const CudaContext context(op, params[0]);
  std::vector<FlatTensor> read, written;
  read.reserve(params.size()), written.reserve(3 * params.size());
  std::map<Storages, std::vector<AdamEntry>> groups;
  for (size_t i = 0; i < params.size(); ++i) {
    const Strides strides = pairing_strides(params[i]);
    const auto data_of = [&](std::vector<FlatTensor>& flat, const Tensor& t) {
      return flat.emplace_back(t, strides).data();
    };
    entries[i].param = data_of(written, params[i]), entries[i].grad = data_of(read, grads[i]);
    entries[i].exp_avg = data_of(written, exp_avgs[i]);
    entries[i].exp_avg_sq = data_of(written, exp_avg_sqs[i]);
    entries[i].numel = params[i].numel();
    groups[{storage_of(params[i]), storage_of(grads[i])}].push_back(entries[i]);
  }
  for (const auto& [storages, group] : groups)
    check_cuda(op, launch_adam_replay(group.data(), int64_t(group.size()), storages.first,
                                      storages.second, call, context.stream()));
  check_cuda(op,
             launch_advance_steps(entries.data(), int64_t(entries.size()), call, context.stream()));
  for (FlatTensor& t : written) t.write_back();
  for (size_t i = 0; i < steps.size(); ++i)
    if (step_list[i].is_cpu()) write_step(step_list[i], entries[i].steps_done + double(n_steps));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) { m.impl("adam_replay_", TORCH_BOX(&adam_replay)); }

}  // namespace hullft
