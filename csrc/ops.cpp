// Every operator's schema, and the extension module whose import registers them.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "build_info.h"

STABLE_TORCH_LIBRARY(hullft_ops, m) {
  m.def(
      "fw_select(Tensor pool, Tensor query, int n_select, int max_iter=250, float tol=1e-5, "
      "float gap_tol=0.0, str variant='vanilla', int swap_passes=2, int? max_support=None, "
      "Tensor? pool_sizes=None, Tensor? candidates=None) -> "
      "(Tensor indices, Tensor weights, Tensor counts, Tensor support_size, Tensor residual, "
      "Tensor gap, Tensor num_iter)");
  // With is_gram, pool is a Gram matrix, query the products, and residual the squared residual less
  // the square of the query.
  m.def(
      "simplex_lstsq(Tensor pool, Tensor query, float gap_tol=0.0, int? max_iter=None, "
      "Tensor? pool_sizes=None, bool is_gram=False) -> "
      "(Tensor weights, Tensor residual, Tensor gap, Tensor support_size, Tensor num_iter)");
  m.def(
      "nnls(Tensor pool, Tensor query, float gap_tol=0.0, int? max_iter=None, "
      "Tensor? pool_sizes=None, bool is_gram=False) -> "
      "(Tensor weights, Tensor residual, Tensor gap, Tensor support_size, Tensor num_iter)");
  // What their gradients are made of, in float64: the solution of the support's system.
  m.def(
      "lstsq_adjoint(Tensor pool, Tensor weights, Tensor gradient, bool is_gram, bool on_simplex) "
      "-> Tensor");
  m.def(
      "knn_select(Tensor pool, Tensor query, int n_select, Tensor? pool_sizes=None, "
      "Tensor? candidates=None) -> "
      "(Tensor indices, Tensor weights, Tensor counts, Tensor support_size, Tensor residual, "
      "Tensor gap, Tensor num_iter)");
  m.def(
      "sift_select(Tensor pool, Tensor query, int n_select, float noise=0.01, "
      "Tensor? pool_sizes=None, Tensor? candidates=None) -> "
      "(Tensor indices, Tensor weights, Tensor counts, Tensor support_size, Tensor residual, "
      "Tensor gap, Tensor num_iter, Tensor picks, Tensor variance)");
  m.def(
      "integerize(Tensor support, Tensor query, Tensor weights, int n_select, int swap_passes=2, "
      "Tensor? support_sizes=None) -> Tensor");
  m.def(
      "fw_lmo(Tensor pool, Tensor query, Tensor current, Tensor? pool_sizes=None) -> "
      "(Tensor vertex, Tensor correlation, Tensor gamma, Tensor gap)");
  m.def(
      "adam_replay_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, *, int repeats, float lr, float beta1, "
      "float beta2, float eps, float weight_decay, bool decoupled, bool maximize, "
      "Tensor? lr_tensor=None, int? seed=None, Tensor? repeats_tensor=None, "
      "Tensor? lr_scales=None) -> ()");
  m.def(
      "grad_accumulate_(Tensor(a!)[] caches, Tensor[] grads, *, float alpha=1.0, float beta=1.0) "
      "-> ()");
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &hullft::build_info, "How this binary was built.");
  m.def("cuda_unusable", &hullft::cuda_unusable,
        "Why the operators cannot run on a CUDA device, or an empty string.");
  m.def("simd_levels", &hullft::simd_levels, "Instruction sets that can run here, widest first.");
  m.def("simd_level", &hullft::simd_level, "The instruction set in use.");
  m.def("use_simd_level", &hullft::use_simd_level,
        "Chooses an instruction set by name, for tests and measurements.");
  m.def("quick_quotients", &hullft::quick_quotients,
        "Whether several Adam steps multiply where they would divide.");
  m.def("use_quick_quotients", &hullft::use_quick_quotients, "For tests and measurements.");
}
