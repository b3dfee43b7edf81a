// grad_accumulate_ on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../host/flat_tensor.h"
#include "../host/replay_checks.h"
#include "multi_tensor.h"
#include "simd/replay_kernels.h"
#include "storage.h"

namespace hullft {
namespace {

struct AccumulateTensor {
  FlatTensor cache, grad;
  ScalarType cache_type, grad_type;
};

template <typename T, typename G>
void accumulate(const AccumulateTensor& t, int64_t offset, int64_t count, double alpha,
                double beta) {
  replay_kernels<T, G>().accumulate(static_cast<T*>(t.cache.data()) + offset,
                                    static_cast<const G*>(t.grad.data()) + offset, count, alpha,
                                    beta);
}

void grad_accumulate(std::vector<Tensor> caches, std::vector<Tensor> grads, double alpha,
                     double beta) {
  check_accumulate_arguments("grad_accumulate_", {"caches", caches}, {"grads", grads}, alpha, beta);
  const NoGrad no_grad;
  std::vector<AccumulateTensor> tensors;
  MultiTensorElements elements;
  for (size_t i = 0; i < caches.size(); ++i) {
    const Strides strides = pairing_strides(caches[i]);
    tensors.push_back({FlatTensor(caches[i], strides), FlatTensor(grads[i], strides),
                       caches[i].scalar_type(), grads[i].scalar_type()});
    elements.add(caches[i].numel());
  }
  elements.for_each_piece([&](size_t i, int64_t offset, int64_t count) {
    dispatch_floating(tensors[i].cache_type, [&](auto cache) {
      dispatch_floating(tensors[i].grad_type, [&](auto grad) {
        accumulate<decltype(cache), decltype(grad)>(tensors[i], offset, count, alpha, beta);
      });
    });
  });
  for (AccumulateTensor& t : tensors) t.cache.write_back();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("grad_accumulate_", TORCH_BOX(&grad_accumulate));
}

}  // namespace hullft
