// grad_accumulate_ on CUDA. Schema: csrc/ops.cpp.
#include "../cuda/accumulate.h"

#include <torch/csrc/stable/library.h>

#include <map>
#include <vector>

#include "../host/flat_tensor.h"
#include "../host/replay_checks.h"
#include "context.h"
#include "views.h"

namespace hullft {
namespace {

void grad_accumulate(std::vector<Tensor> caches, std::vector<Tensor> grads, double alpha,
                     double beta) {
  constexpr const char* op = "grad_accumulate_";
  check_accumulate_arguments(op, {"caches", caches}, {"grads", grads}, alpha, beta);
  if (caches.empty()) return;
  const NoGrad no_grad;
  const CudaContext context(op, caches[0]);
  std::vector<FlatTensor> flat, written;
  std::map<Storages, std::vector<AccumulateEntry>> groups;
  for (size_t i = 0; i < caches.size(); ++i) {
    const Strides strides = pairing_strides(caches[i]);
    written.emplace_back(caches[i], strides);
    flat.emplace_back(grads[i], strides);
    groups[{storage_of(caches[i]), storage_of(grads[i])}].push_back(
        {written.back().data(), flat.back().data(), caches[i].numel()});
  }
  for (const auto& [storages, group] : groups)
    check_cuda(op, launch_accumulate(group.data(), int64_t(group.size()), storages.first,
                                     storages.second, alpha, beta, context.stream()));
  for (FlatTensor& t : written) t.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CUDA, m) {
  m.impl("grad_accumulate_", TORCH_BOX(&grad_accumulate));
}

}  // namespace hullft
