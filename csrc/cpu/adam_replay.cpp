// adam_replay_ on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <map>
#include <optional>
#include <type_traits>
#include <vector>

#include "../host/flat_tensor.h"
#include "../host/replay_checks.h"
#include "multi_tensor.h"
#include "simd/replay_kernels.h"
#include "storage.h"

namespace hullft {
namespace {

// The constants of every step, computed once in float64 for each step count met in a call.
template <typename R>
class Schedules {
 public:
  void add(const AdamOptions& options, int64_t repeats, double steps_done) {
    const auto [it, added] = entries_.try_emplace(steps_done);
    if (!added) return;
    std::vector<AdamStep<R>>& steps = it->second.steps;
    for (int64_t s = 1; s <= repeats; ++s) {
      const AdamStep<double> step = adam_step(options, steps_done + double(s));
      steps.push_back({R(step.rate), R(step.eps)});
      if (adam_settled(options, steps_done + double(s))) break;
    }
    it->second.schedule = {adam_rates<R>(options, options.lr * options.weight_decay), steps.data(),
                           int64_t(steps.size()), repeats};
  }

  const AdamSchedule<R>& at(double steps_done) const { return entries_.at(steps_done).schedule; }

 private:
  struct Entry {
    std::vector<AdamStep<R>> steps;
    AdamSchedule<R> schedule;
  };
  std::map<double, Entry> entries_;
};

struct AdamTensor {
  FlatTensor param, grad, exp_avg, exp_avg_sq;
  ScalarType param_type, grad_type;
  double steps_done;
  uint32_t place;  // in the list
};

class AdamReplay {
 public:
  AdamReplay(const AdamOptions& options, int64_t repeats, std::optional<int64_t> seed)
      : options_(options), repeats_(repeats), seed_(seed) {}

  void add(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
           double steps_done) {
    const Layout layout = pairing_layout(param);
    tensors_.push_back({FlatTensor(param, layout), FlatTensor(grad, layout),
                        FlatTensor(exp_avg, layout), FlatTensor(exp_avg_sq, layout),
                        dtype_of(param), dtype_of(grad), steps_done, uint32_t(tensors_.size())});
    elements_.add(param.numel());
    if (tensors_.back().param_type == ScalarType::Double)
      wide_.add(options_, repeats_, steps_done);
    else
      narrow_.add(options_, repeats_, steps_done);
  }

  void run() {
    elements_.for_each_piece([&](size_t i, int64_t offset, int64_t count) {
      const AdamTensor& t = tensors_[i];
      dispatch_floating(t.param_type, [&](auto param) {
        dispatch_floating(t.grad_type, [&](auto grad) {
          sweep<decltype(param), decltype(grad)>(t, offset, count);
        });
      });
    });
    for (AdamTensor& t : tensors_)
      for (FlatTensor* written : {&t.param, &t.exp_avg, &t.exp_avg_sq}) written->write_back();
  }

 private:
  template <typename T, typename G>
  void sweep(const AdamTensor& t, int64_t offset, int64_t count) const {
    const auto at = [offset](auto* base) { return base + offset; };
    const StochasticRounding rounding{
        {uint64_t(seed_.value_or(0)), t.place, rounding_step(t.steps_done)}, offset};
    replay_kernels<T, G>().adam(
        at(static_cast<T*>(t.param.data())), at(static_cast<const G*>(t.grad.data())),
        at(static_cast<T*>(t.exp_avg.data())), at(static_cast<T*>(t.exp_avg_sq.data())), count,
        schedule<Arithmetic<T>>(t.steps_done), seed_ ? &rounding : nullptr);
  }

  template <typename R>
  const AdamSchedule<R>& schedule(double steps_done) const {
    if constexpr (std::is_same_v<R, double>)
      return wide_.at(steps_done);
    else
      return narrow_.at(steps_done);
  }

  AdamOptions options_;
  int64_t repeats_;
  std::optional<int64_t> seed_;
  std::vector<AdamTensor> tensors_;
  MultiTensorElements elements_;
  Schedules<float> narrow_;
  Schedules<double> wide_;
};

void adam_replay(std::vector<Tensor> params, std::vector<Tensor> grads,
                 std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
                 std::vector<Tensor> steps, int64_t repeats, double lr, double beta1, double beta2,
                 double eps, double weight_decay, bool decoupled, bool maximize,
                 std::optional<Tensor> lr_tensor, std::optional<int64_t> seed,
                 std::optional<Tensor> repeats_tensor) {
  constexpr const char* op = "adam_replay_";
  const TensorList param_list{"params", params}, step_list{"steps", steps};
  const AdamOptions options = check_adam_arguments(
      op, param_list, {"grads", grads}, {"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs},
      step_list, {lr, beta1, beta2, eps, weight_decay, decoupled, maximize}, lr_tensor);
  const int64_t n_steps = check_repeats(op, repeats, repeats_tensor, param_list, step_list);
  std::vector<double> steps_done;
  for (size_t i = 0; i < steps.size(); ++i)
    steps_done.push_back(read_step(op, step_list, i, param_list[0]));
  const NoGrad no_grad;
  AdamReplay replay(options, n_steps, seed);
  for (size_t i = 0; i < params.size(); ++i)
    replay.add(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], steps_done[i]);
  replay.run();
  for (size_t i = 0; i < steps.size(); ++i)
    write_step(step_list[i], steps_done[i] + double(n_steps));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("adam_replay_", TORCH_BOX(&adam_replay)); }

}  // namespace hullft
