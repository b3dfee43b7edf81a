// adam_replay_ on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../host/flat_tensor.h"
#include "../host/replay_checks.h"
#include "multi_tensor.h"
#include "simd/replay_kernels.h"
#include "storage.h"

namespace hullft {
namespace {

// The constants of every step, computed once in float64 for tensors of one step count and rate.
template <typename R>
class Schedules {
 public:
  void add(const AdamOptions& options, int64_t repeats, double steps_done) {
    const auto [it, added] = constants_.try_emplace({steps_done, options.lr});
    if (!added) return;
    it->second.rates = adam_rates<R>(options, options.lr * options.weight_decay);
    for (const AdamCorrections& c : corrections_at(options, repeats, steps_done)) {
      const AdamStep<double> step = adam_step(options, c);
      it->second.steps.push_back({R(step.rate), R(step.eps)});
    }
  }

  AdamSchedule<R> at(double steps_done, double lr, int64_t repeats) const {
    const Constants& constants = constants_.at({steps_done, lr});
    return {constants.rates, constants.steps.data(), int64_t(constants.steps.size()), repeats};
  }

 private:
  struct Constants {
    AdamRates<R> rates;
    std::vector<AdamStep<R>> steps;
  };

  const std::vector<AdamCorrections>& corrections_at(const AdamOptions& options, int64_t repeats,
                                                     double steps_done) {
    const auto [it, added] = corrections_.try_emplace(steps_done);
    for (int64_t s = 1; added && s <= repeats; ++s) {
      it->second.push_back(adam_corrections(options, steps_done + double(s)));
      if (are_settled(it->second.back())) break;
    }
    return it->second;
  }

  std::map<std::pair<double, double>, Constants> constants_;  // by step count and rate
  std::map<double, std::vector<AdamCorrections>> corrections_;
};

struct AdamTensor {
  FlatTensor param, grad, exp_avg, exp_avg_sq;
  ScalarType param_type, grad_type;
  double steps_done, lr;
  uint32_t place;  // in the list
};

class AdamReplay {
 public:
  AdamReplay(const AdamOptions& options, int64_t repeats, std::optional<int64_t> seed,
             size_t n_tensors)
      : options_(options), repeats_(repeats), seed_(seed) {
    tensors_.reserve(n_tensors);
  }

  void add(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
           double steps_done, double lr) {
    const Strides strides = pairing_strides(param);
    tensors_.push_back({FlatTensor(param, strides), FlatTensor(grad, strides),
                        FlatTensor(exp_avg, strides), FlatTensor(exp_avg_sq, strides),
                        dtype_of(param), dtype_of(grad), steps_done, lr,
                        uint32_t(tensors_.size())});
    elements_.add(param.numel());
    options_.lr = lr;
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
        schedule<Arithmetic<T>>(t), seed_ ? &rounding : nullptr);
  }

  template <typename R>
  AdamSchedule<R> schedule(const AdamTensor& t) const {
    if constexpr (std::is_same_v<R, double>)
      return wide_.at(t.steps_done, t.lr, repeats_);
    else
      return narrow_.at(t.steps_done, t.lr, repeats_);
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
                 std::optional<Tensor> repeats_tensor, std::optional<Tensor> lr_scales) {
  constexpr const char* op = "adam_replay_";
  const TensorList param_list{"params", params}, step_list{"steps", steps};
  const AdamOptions options = check_adam_arguments(
      op, param_list, {"grads", grads}, {"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs},
      step_list, {lr, beta1, beta2, eps, weight_decay, decoupled, maximize}, lr_tensor, lr_scales);
  const int64_t n_steps = check_repeats(op, repeats, repeats_tensor, param_list, step_list);
  std::vector<double> steps_done;
  for (size_t i = 0; i < steps.size(); ++i)
    steps_done.push_back(read_step(op, step_list, i, param_list[0]));
  const NoGrad no_grad;
  AdamReplay replay(options, n_steps, seed, params.size());
  const double* scales = values_of(lr_scales);
  for (size_t i = 0; i < params.size(); ++i)
    replay.add(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], steps_done[i],
               scales ? options.lr * scales[i] : options.lr);
  replay.run();
  for (size_t i = 0; i < steps.size(); ++i)
    write_step(step_list[i], steps_done[i] + double(n_steps));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("adam_replay_", TORCH_BOX(&adam_replay)); }

}  // namespace hullft
