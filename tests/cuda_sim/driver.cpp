// The entry points that library.py calls.
#include "driver.h"

#include <deque>
#include <map>

#include "cuda/accumulate.h"
#include "cuda/adam_replay.h"
#include "cuda/correlate.h"
#include "cuda/frank_wolfe.h"
#include "cuda/fw_corrective.h"
#include "cuda/gram.h"
#include "cuda/integerize.h"
#include "cuda/knn.h"
#include "cuda/lmo.h"
#include "cuda/lstsq_adjoint.h"
#include "cuda/sift.h"

using driver::Buffer;

namespace {

// Mirrored by library.py.
struct Pool {
  const void* base;
  int64_t elements, batch_stride, row_stride, n_rows;
  const int64_t* candidates;
  const int64_t* sizes;
  int32_t width, storage;
  int64_t d;
  const void* query;
  int64_t batch, query_stride;
};

// Where the outputs of a selection kernel go.
struct Selection {
  int64_t *indices, *counts, *support_size, *num_iter;
  void *weights, *residual, *gap;
};

struct FwCase {
  Pool pool;
  Selection out;
  int32_t n_select, max_support, max_iter, swap_passes, variant;
  double tol, gap_tol;
  int32_t force_gram, force_warp, force_threads, force_slots;  // -1: as planned
};

struct LstsqCase {
  Pool pool;
  void *weights, *residual, *gap;
  int64_t *support_size, *num_iter;
  int32_t constraint, force_gram, force_threads;  // -1: as planned
};

struct AdjointCase {
  Pool pool;  // without queries
  const void* weights;
  const double* gradient;
  double* out;
  int32_t on_simplex;
};

struct KnnCase {
  Pool pool;
  Selection out;
  int32_t n_select;
};

struct SiftCase {
  Pool pool;
  Selection out;
  int64_t* picks;
  void* variance;
  int32_t n_select, n_targets;
  double noise;
  int32_t force_gram, force_threads;  // -1: as planned
};

struct LmoCase {
  Pool pool;
  const void* current;
  int64_t* index;
  void *correlation, *gamma, *gap;
};

struct IntegerizeCase {
  Pool pool;
  const void* weights;
  int64_t* counts;
  int32_t wide_weights, n_select, swap_passes;
};

struct GramCase {
  Pool pool;
  void *gram, *products;
  int64_t share;  // columns, 0: rows are not split
};

// A list of n tensors of each kind; a step is on the device when its pointer is not null. What lies
// on the device is float64 if it is wide, else float32.
struct AdamCase {
  int32_t n, param_storage, grad_storage, decoupled, maximize, misalign, wide_steps, wide_lr;
  const int64_t* numels;
  void* const* params;
  const void* const* grads;
  void* const* exp_avgs;
  void* const* exp_avg_sqs;
  void* const* device_steps;
  const double *steps_done, *lr_scales;
  int64_t repeats;
  double lr, beta1, beta2, eps, weight_decay;
  const void* device_lr;       // or null
  const void* device_repeats;  // or null
  int64_t seed;                // or -1
};

struct AccumulateCase {
  int32_t n, cache_storage, grad_storage, misalign;
  const int64_t* numels;
  void* const* caches;
  const void* const* grads;
  double alpha, beta;
};

// A buffer that is updated in place, `misalign` bytes past a multiple of 16.
class InOut {
 public:
  InOut(const char* name, void* host, int64_t bytes, int64_t misalign)
      : host_(host), bytes_(bytes), misalign_(misalign), device_(name, bytes + misalign) {
    memcpy(get(), host, size_t(bytes));
  }
  void* get() const { return device_.get<char>() + misalign_; }
  void copy_back() const { memcpy(host_, get(), size_t(bytes_)); }

 private:
  void* host_;
  int64_t bytes_, misalign_;
  Buffer device_;
};

int64_t real_bytes(int32_t wide) { return wide ? sizeof(double) : sizeof(float); }

int64_t storage_bytes(int32_t storage) { return hullft::bytes_of(hullft::Storage(storage)); }

struct DeviceInputs {
  Buffer base, query, candidates, sizes;

  explicit DeviceInputs(const Pool& p, int64_t n_targets = 1)
      : base("pool", p.base, p.elements * bytes(p)),
        query("query", p.query, ((p.batch - 1) * p.query_stride + n_targets * p.d) * bytes(p)),
        candidates("candidates", p.candidates, p.batch * p.width * 8),
        sizes("sizes", p.sizes, p.batch * 8) {}

  static int64_t bytes(const Pool& p) { return hullft::bytes_of(hullft::Storage(p.storage)); }

  hullft::QueryView query_view(const Pool& p) const { return {query.get(), p.query_stride}; }

  hullft::PoolView pool_view(const Pool& p) const {
    hullft::PoolView view{base.get(),
                          p.batch_stride,
                          p.row_stride,
                          p.n_rows,
                          candidates.get<const int64_t>(),
                          p.width,
                          sizes.get<const int64_t>(),
                          p.width,
                          p.d,
                          hullft::Storage(p.storage),
                          false};
    view.vectors = hullft::reads_vectors(view, query_view(p));
    return view;
  }
};

int64_t real_bytes(const Pool& p) { return hullft::real_bytes_of(hullft::Storage(p.storage)); }

// The outputs of a selection kernel on the device.
class DeviceSelection {
 public:
  DeviceSelection(const Pool& p, int64_t n_select)
      : indices_("indices", p.batch * n_select * 8),
        counts_("counts", p.batch * n_select * 8),
        weights_("weights", p.batch * n_select * real_bytes(p)),
        support_size_("support_size", p.batch * 8),
        num_iter_("num_iter", p.batch * 8),
        residual_("residual", p.batch * real_bytes(p)),
        gap_("gap", p.batch * real_bytes(p)) {}

  hullft::FwOutputs pointers() const {
    return {indices_.get<int64_t>(),
            counts_.get<int64_t>(),
            support_size_.get<int64_t>(),
            num_iter_.get<int64_t>(),
            weights_.get(),
            residual_.get(),
            gap_.get()};
  }

  void copy_to(const Selection& to) const {
    indices_.copy_to(to.indices), counts_.copy_to(to.counts), weights_.copy_to(to.weights);
    support_size_.copy_to(to.support_size), num_iter_.copy_to(to.num_iter);
    residual_.copy_to(to.residual), gap_.copy_to(to.gap);
  }

 private:
  Buffer indices_, counts_, weights_, support_size_, num_iter_, residual_, gap_;
};

hullft::SolverPlan plan_of(const FwCase& c, const hullft::FwProblem& problem,
                           const hullft::LaunchLimits& limits) {
  hullft::SolverPlan plan = hullft::plan_frank_wolfe(problem, limits);
  if (c.force_gram >= 0)
    plan = hullft::plan_columns(problem, limits, c.force_gram != 0, c.force_warp != 0);
  if (c.force_threads > 0) plan.threads = c.force_threads;
  if (c.force_slots > 0) plan.slots = c.force_slots;
  return plan;
}

cudaError_t solve_corrective(const hullft::FwProblem& problem, hullft::Constraint constraint,
                             int32_t force_gram, int32_t force_threads,
                             const driver::Schedule& schedule, const hullft::FwOutputs& out) {
  const hullft::LaunchLimits limits = schedule.limits();
  hullft::SolverPlan plan = hullft::plan_corrective(problem, limits);
  if (force_gram >= 0) plan = hullft::plan_corrective_columns(problem, limits, force_gram != 0);
  if (force_threads > 0) plan.threads = force_threads;
  const Buffer workspace("workspace", plan.workspace_bytes);
  return hullft::launch_corrective(problem, constraint, plan, workspace.get(), out, nullptr);
}

}  // namespace

extern "C" {

const char* sim_frank_wolfe(const FwCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    const hullft::FwProblem problem{
        in.pool_view(p), in.query_view(p), p.batch, c->n_select, c->max_support,
        c->max_iter,     c->swap_passes,   c->tol,  c->gap_tol,  hullft::Variant(c->variant)};
    const DeviceSelection out(p, c->n_select);
    cudaError_t status;
    if (problem.variant == hullft::Variant::kCorrective) {
      status = solve_corrective(problem, hullft::Constraint::kSimplex, c->force_gram,
                                c->force_threads, *schedule, out.pointers());
    } else {
      const hullft::SolverPlan plan = plan_of(*c, problem, schedule->limits());
      const Buffer workspace("workspace", plan.workspace_bytes);
      status = hullft::launch_frank_wolfe(problem, plan, workspace.get(), out.pointers(), nullptr);
    }
    out.copy_to(c->out);
    return status;
  });
}

const char* sim_lstsq(const LstsqCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    hullft::FwProblem problem{};
    problem.pool = in.pool_view(p), problem.query = in.query_view(p), problem.batch = p.batch;
    problem.n_select = problem.max_support = p.width;
    problem.max_iter = 1000, problem.dense = true;
    const Buffer weights("weights", p.batch * p.width * real_bytes(p)),
        residual("residual", p.batch * real_bytes(p)), gap("gap", p.batch * real_bytes(p)),
        support_size("support_size", p.batch * 8), num_iter("num_iter", p.batch * 8);
    const hullft::FwOutputs out{nullptr,
                                nullptr,
                                support_size.get<int64_t>(),
                                num_iter.get<int64_t>(),
                                weights.get(),
                                residual.get(),
                                gap.get()};
    const cudaError_t status = solve_corrective(problem, hullft::Constraint(c->constraint),
                                                c->force_gram, c->force_threads, *schedule, out);
    weights.copy_to(c->weights), residual.copy_to(c->residual), gap.copy_to(c->gap);
    support_size.copy_to(c->support_size), num_iter.copy_to(c->num_iter);
    return status;
  });
}

const char* sim_lstsq_adjoint(const AdjointCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    const int64_t values = p.batch * p.width;
    const Buffer weights("weights", c->weights, values * real_bytes(p)),
        gradient("gradient", c->gradient, values * 8), out("adjoint", values * 8);
    const hullft::AdjointProblem problem{in.pool_view(p),   weights.get(), gradient.get<double>(),
                                         out.get<double>(), p.batch,       c->on_simplex != 0};
    const hullft::AdjointPlan plan = hullft::plan_adjoint(problem, schedule->limits());
    const Buffer workspace("workspace", plan.workspace_bytes);
    const cudaError_t status = hullft::launch_adjoint(problem, plan, workspace.get(), nullptr);
    out.copy_to(c->out);
    return status;
  });
}

// What a launch would choose for float32 pools, shared or of their own.
void sim_plan(int64_t batch, int32_t candidates, int64_t dim, int32_t n_select, int32_t shared,
              const driver::Schedule* schedule, hullft::SolverPlan* plan) {
  hullft::FwProblem problem{};
  problem.pool.batch_stride = shared ? 0 : candidates * dim;
  problem.pool.row_stride = problem.pool.d = dim;
  problem.pool.n_rows = problem.pool.width = candidates;
  problem.pool.storage = hullft::Storage::kFloat32;
  problem.batch = batch, problem.n_select = problem.max_support = n_select;
  problem.max_iter = 250;
  *plan = hullft::plan_frank_wolfe(problem, schedule->limits());
}

// The tiles of a warp in Gram matrices of float32 pools, 0: each tile has a block of its own.
int32_t sim_warp_tiles(int64_t pools, int32_t candidates, int64_t dim, int64_t sms) {
  hullft::PoolView pool{};
  pool.d = dim, pool.width = candidates, pool.storage = hullft::Storage::kFloat32;
  return hullft::plan_gram(pool, false, pools, 1, sms).warp_tiles;
}

const char* sim_knn(const KnnCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    hullft::FwProblem problem{};
    problem.pool = in.pool_view(p), problem.query = in.query_view(p), problem.batch = p.batch;
    problem.n_select = c->n_select;
    const Buffer workspace("workspace", hullft::correlation_bytes(problem.pool, p.batch));
    const DeviceSelection out(p, c->n_select);
    const cudaError_t status =
        hullft::launch_knn(problem, workspace.get(), out.pointers(), nullptr);
    out.copy_to(c->out);
    return status;
  });
}

const char* sim_sift(const SiftCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p, c->n_targets);
    const hullft::SiftProblem problem{in.pool_view(p), in.query_view(p), p.batch,
                                      c->n_select,     c->n_targets,     c->noise};
    hullft::SolverPlan plan = hullft::plan_sift(problem, schedule->limits());
    if (c->force_gram >= 0)
      plan = hullft::plan_sift_columns(problem, schedule->limits(), c->force_gram != 0);
    if (c->force_threads > 0) plan.threads = c->force_threads;
    const Buffer workspace("workspace", plan.workspace_bytes),
        picks("picks", p.batch * c->n_select * 8),
        variance("variance", p.batch * c->n_select * real_bytes(p));
    const DeviceSelection out(p, c->n_select);
    const cudaError_t status =
        hullft::launch_sift(problem, plan, workspace.get(),
                            {out.pointers(), picks.get<int64_t>(), variance.get()}, nullptr);
    out.copy_to(c->out), picks.copy_to(c->picks), variance.copy_to(c->variance);
    return status;
  });
}

const char* sim_lmo(const LmoCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    const Buffer current("current", c->current, p.batch * p.d * DeviceInputs::bytes(p));
    const hullft::LmoProblem problem{
        in.pool_view(p), in.query_view(p), {current.get(), p.d}, p.batch};
    const Buffer workspace("workspace", hullft::correlation_bytes(problem.pool, p.batch)),
        index("index", p.batch * 8), correlation("correlation", p.batch * real_bytes(p)),
        gamma("gamma", p.batch * real_bytes(p)), gap("gap", p.batch * real_bytes(p));
    const cudaError_t status = hullft::launch_lmo(
        problem, workspace.get(), {index.get<int64_t>(), correlation.get(), gamma.get(), gap.get()},
        nullptr);
    index.copy_to(c->index), correlation.copy_to(c->correlation);
    gamma.copy_to(c->gamma), gap.copy_to(c->gap);
    return status;
  });
}

const char* sim_integerize(const IntegerizeCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    const int64_t rows = p.batch * p.width;
    const Buffer weights("weights", c->weights, rows * (c->wide_weights ? 8 : 4));
    const hullft::IntegerizeProblem problem{
        in.pool_view(p), in.query_view(p), weights.get(),  c->wide_weights != 0,
        p.batch,         c->n_select,      c->swap_passes, schedule->limits().sms};
    const Buffer workspace("workspace", hullft::integerize_workspace_bytes(problem)),
        counts("counts", rows * 8);
    const cudaError_t status =
        hullft::launch_integerize(problem, workspace.get(), counts.get<int64_t>(), nullptr);
    counts.copy_to(c->counts);
    return status;
  });
}

const char* sim_adam_replay(const AdamCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    std::deque<InOut> written;
    std::deque<Buffer> read;
    std::map<void*, void*> steps;  // of the host to those on the device: tensors may share one
    std::vector<hullft::AdamEntry> entries;
    const int64_t param_bytes = storage_bytes(c->param_storage);
    const auto on_device = [&](const char* name, void* host, int i) {
      written.emplace_back(name, host, c->numels[i] * param_bytes, c->misalign * param_bytes);
      return written.back().get();
    };
    for (int i = 0; i < c->n; ++i) {
      hullft::AdamEntry entry{};
      entry.param = on_device("param", c->params[i], i);
      entry.exp_avg = on_device("exp_avg", c->exp_avgs[i], i);
      entry.exp_avg_sq = on_device("exp_avg_sq", c->exp_avg_sqs[i], i);
      read.emplace_back("grad", c->grads[i], c->numels[i] * storage_bytes(c->grad_storage));
      entry.grad = read.back().get(), entry.numel = c->numels[i];
      if (c->device_steps[i]) {
        void*& step = steps[c->device_steps[i]];
        if (!step) {
          written.emplace_back("step", c->device_steps[i], real_bytes(c->wide_steps), 0);
          step = written.back().get();
        }
        entry.device_step = step, entry.wide_step = c->wide_steps != 0;
      }
      entry.steps_done = c->steps_done[i], entry.lr_scale = c->lr_scales[i];
      entry.place = uint32_t(i);
      entries.push_back(entry);
    }
    const hullft::AdamOptions options{c->lr,           c->beta1,          c->beta2,        c->eps,
                                      c->weight_decay, c->decoupled != 0, c->maximize != 0};
    const Buffer device_lr("lr", c->device_lr, real_bytes(c->wide_lr));
    const Buffer device_repeats("repeats", c->device_repeats, sizeof(int64_t));
    hullft::AdamCall call{};
    call.options = options, call.repeats = c->repeats;
    call.device_repeats = device_repeats.get<int64_t>();
    call.device_lr = device_lr.get(), call.wide_lr = c->wide_lr != 0;
    call.stochastic = c->seed >= 0, call.seed = uint64_t(c->seed);
    cudaError_t status =
        hullft::launch_adam_replay(entries.data(), c->n, hullft::Storage(c->param_storage),
                                   hullft::Storage(c->grad_storage), call, nullptr);
    if (status == cudaSuccess)
      status = hullft::launch_advance_steps(entries.data(), c->n, call, nullptr);
    for (const InOut& t : written) t.copy_back();
    return status;
  });
}

const char* sim_accumulate(const AccumulateCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    std::deque<InOut> written;
    std::deque<Buffer> read;
    std::vector<hullft::AccumulateEntry> entries;
    for (int i = 0; i < c->n; ++i) {
      const int64_t bytes = storage_bytes(c->cache_storage);
      written.emplace_back("cache", c->caches[i], c->numels[i] * bytes, c->misalign * bytes);
      read.emplace_back("grad", c->grads[i], c->numels[i] * storage_bytes(c->grad_storage));
      entries.push_back({written.back().get(), read.back().get(), c->numels[i]});
    }
    const cudaError_t status =
        hullft::launch_accumulate(entries.data(), c->n, hullft::Storage(c->cache_storage),
                                  hullft::Storage(c->grad_storage), c->alpha, c->beta, nullptr);
    for (const InOut& t : written) t.copy_back();
    return status;
  });
}

const char* sim_gram(const GramCase* c, const driver::Schedule* schedule) {
  return driver::run(*schedule, [&] {
    const Pool& p = c->pool;
    const DeviceInputs in(p);
    hullft::GramProblem problem = hullft::grams_of(in.pool_view(p), p.batch, nullptr);
    const Buffer gram("gram", problem.pools * p.width * p.width * real_bytes(p)),
        products("products", p.batch * p.width * real_bytes(p));
    problem.query = in.query_view(p), problem.queries = int(p.batch / problem.pools);
    problem.gram = gram.get(), problem.products = products.get();
    if (c->share) problem.shares = {c->share, int((p.d + c->share - 1) / c->share)};
    const int64_t partial_bytes = problem.pools * problem.shares.count *
                                  (p.width + problem.queries) * p.width * int64_t(sizeof(double));
    const Buffer partial("partial", partial_bytes);
    problem.partial = partial.get<double>();
    const cudaError_t status = hullft::launch_gram(problem, schedule->sms, nullptr);
    products.copy_to(c->products);
    gram.copy_to(c->gram);
    return status;
  });
}

}  // extern "C"
