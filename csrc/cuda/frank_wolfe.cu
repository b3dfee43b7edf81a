// One block solves one query: the schedule of core/frank_wolfe.h on the GPU. All warps update the
// correlations; warp 0 alone keeps the support and decides, between two barriers a step. The solver
// of fw_warp.cuh starts and stops as this one, but its state is in the registers of one warp, and a
// step runs from end to end. Here a step is parted by what all warps do for it, so the state lies
// in shared memory, and decide() goes on where it left off.
#include "block_launch.cuh"
#include "block_solver.cuh"
#include "frank_wolfe.h"
#include "gram.h"

namespace hullft {
namespace {

template <typename S>
struct FwSteps {
  Iterate<S> it_{0, 0};
  Best<S> top_{0, 0};
  int s_ = 0, s_entry_ = 0;  // the atom that the step goes toward
  int support_size_ = 0, iterations_ = 0;
  FwStopping stopping_;
  bool placed_ = false, stops_ = false;
};

template <typename S>
class FwBlock : public BlockSolver<FwBlock<S>, S, FwState<S>, FwSteps<S>> {
  using Base = BlockSolver<FwBlock<S>, S, FwState<S>, FwSteps<S>>;
  friend Base;
  using Base::columns_, Base::control_, Base::me_, Base::n_, Base::p_, Base::plan_, Base::qq_;
  using Base::it_, Base::iterations_, Base::placed_, Base::s_, Base::s_entry_, Base::stopping_;
  using Base::residual_, Base::stops_, Base::support_size_, Base::top_, Base::x_;

 public:
  using Base::Base;

 private:
  // ---- all warps

  __device__ __forceinline__ void clear() {
    for (int k = me_.thread; k < n_; k += me_.n_threads) x_.u[k] = 0;
    if (me_.thread == 0) {
      control_.action = Action::kCorrelate;
      control_.column = nullptr;
    }
    __syncthreads();
  }

  // u <- scale * u + toward * G_s, and each warp's largest correlation.
  __device__ __forceinline__ void update() {
    const S* column = control_.column;
    Best<S> best = no_best<S>();
    for (int k = me_.thread; k < n_; k += me_.n_threads) {
      S u = x_.u[k];
      if (column) x_.u[k] = u = fma(control_.toward, column[k], control_.scale * u);
      see(best, x_.b[k] - u, k);
    }
    Base::publish_best(best);
  }

  // ---- warp 0: every lane holds the same members

  __device__ __forceinline__ const S* column(int entry) const {
    const int row = plan_.gram ? x_.table.atom[entry] : entry;
    return columns_ + int64_t(row) * p_.pool.width;
  }

  __device__ __forceinline__ void decide(Action action) {
    if (action == Action::kCorrelate) return start();
    if (action == Action::kStep) return begin_step();
    if (action == Action::kResidual) return after_residual();
    if (!placed_) return place();
    finish_step();
  }

  // The solve starts at the vertex of largest correlation.
  __device__ __forceinline__ void start() {
    stopping_ = stopping_of<S>(p_, double(qq_));
    s_ = Base::best_of_pool().index;
    s_entry_ = entry_of(s_);
    if (plan_.gram) return place();
    request_column();
  }

  __device__ __forceinline__ void place() {
    placed_ = true;
    support_size_ = 1;
    if (me_.lane == 0) x_.table.weight[s_entry_] = 1;
    __syncwarp();
    publish(1, 1);
    act(Action::kStep);
  }

  __device__ __forceinline__ void request_column() {
    if (me_.lane == 0) control_.picked = s_, control_.picked_entry = s_entry_;
    act(Action::kColumn);
  }

  __device__ __forceinline__ void act(Action action) {
    if (me_.lane != 0) return;
    control_.action = action;
    control_.support_size = support_size_;
    control_.iterations = iterations_;
    control_.gap = top_.value - mean_correlation(it_);
  }

  // <w, b> and <w, u>.
  __device__ __forceinline__ void measure() {
    top_ = Base::best_of_pool();
    S wb = 0, wu = 0;
    for (int j = me_.lane; j < support_size_; j += kWarp) {
      const int k = x_.table.atom[j];
      const S w = x_.table.weight[j];
      wb += w * x_.b[k], wu += w * x_.u[k];
    }
    it_ = {warp_sum(wb), warp_sum(wu)};
  }

  __device__ __forceinline__ void begin_step() {
    measure();
    if (!finite(it_.wu) || top_.index >= n_) return act(Action::kFail);
    const S gap = top_.value - mean_correlation(it_);
    if (is_last() || double(gap) <= stopping_.gap_floor) return stop();
    if (double(squared_residual(it_, qq_)) <= stopping_.within) return act(Action::kResidual);
    choose();
  }

  __device__ __forceinline__ bool is_last() const {
    return iterations_ >= stopping_.last || support_size_ >= stopping_.full;
  }

  __device__ __forceinline__ void stop() {
    stops_ = true;
    act(Action::kResidual);
  }

  __device__ __forceinline__ void after_residual() {
    if (stops_ || double(residual_) < stopping_.residual) return act(Action::kDone);
    choose();
  }

  __device__ __forceinline__ void choose() {
    s_ = top_.index;
    s_entry_ = entry_of(s_);
    if (plan_.gram || s_entry_ < support_size_) return finish_step();
    request_column();
  }

  __device__ __forceinline__ void finish_step() {
    const Atom<S> s{x_.b[s_] - x_.u[s_], x_.u[s_], column(s_entry_)[s_]};
    const Step<S> step = toward_step(s, it_);
    if (!finite(step.toward)) return act(Action::kFail);
    if (!step.moves) return stop();
    commit(step);
  }

  // Weights and support follow at once, u in the next update().
  __device__ __forceinline__ void commit(const Step<S>& step) {
    if (s_entry_ == support_size_) ++support_size_;
    for (int j = me_.lane; j < support_size_; j += kWarp) {
      S w = x_.table.weight[j] * step.scale;
      if (j == s_entry_) w += step.toward;
      x_.table.weight[j] = w;
    }
    __syncwarp();
    ++iterations_;
    publish(step.scale, step.toward);
    act(Action::kStep);
  }

  __device__ __forceinline__ void publish(S scale, S toward) {
    if (me_.lane != 0) return;
    control_.scale = scale, control_.toward = toward;
    control_.column = toward > S(0) ? column(s_entry_) : nullptr;
  }

  // The entry of an atom. One outside the support gets the entry behind it.
  __device__ __forceinline__ int entry_of(int atom) const {
    for (int first = 0; first < support_size_; first += kWarp) {
      const int j = first + me_.lane;
      const bool is_it = j < support_size_ && x_.table.atom[j] == atom;
      const unsigned hits = __ballot_sync(kFullWarp, is_it);
      if (hits) return first + __ffs(int(hits)) - 1;
    }
    if (me_.lane == 0) x_.table.atom[support_size_] = atom, x_.table.weight[support_size_] = 0;
    __syncwarp();
    return support_size_;
  }

  __device__ __forceinline__ void write(const FwOutputs& out) {
    Base::write_selection(2 * p_.pool.width, out);
  }
};

template <typename S, bool kSharedState>
__global__ void __launch_bounds__(kMaxThreads<S>, 1)
    fw_kernel(FwProblem problem, SolverPlan plan, unsigned char* workspace, FwOutputs outputs) {
  HULLFT_DYNAMIC_SHARED(shared);
  __shared__ FwControl<S> control;
  __shared__ BlockScratch scratch;
  const int64_t query = blockIdx.x;
  unsigned char* memory = kSharedState ? shared : workspace + query * plan.state_bytes;
  S* columns = reinterpret_cast<S*>(workspace + plan.columns_offset + query * plan.column_stride);
  FwBlock<S> block(problem, plan, query, kSharedState ? nullptr : memory,
                   carve_state<S>(memory, problem.pool.width, plan.slots), nullptr, nullptr,
                   columns, control, scratch);
  block.solve(outputs);
}

template <typename S>
cudaError_t launch_blocks(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                          const FwOutputs& outputs, cudaStream_t stream) {
  return launch_solver(fw_kernel<S, true>, fw_kernel<S, false>, problem, plan, workspace, outputs,
                       stream);
}

}  // namespace

cudaError_t launch_frank_wolfe(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream) {
  const bool wide = problem.pool.storage == Storage::kFloat64;
  const auto launch = plan.warp ? launch_fw_warp
                      : wide    ? launch_blocks<double>
                                : launch_blocks<float>;
  const auto launch_part = [&](const FwProblem& part, const FwOutputs& out, bool is_first) {
    cudaError_t status = cudaSuccess;
    if (plan.gram && (is_first || plan.column_stride || plan.warp)) {
      GramProblem grams = grams_of(plan, part.pool, part.batch, workspace);
      if (plan.warp) add_queries(grams, part.query, part.batch, workspace);
      status = launch_gram(grams, plan.sms, stream);
    }
    return status == cudaSuccess ? launch(part, plan, workspace, out, stream) : status;
  };
  return launch_parts(problem, outputs, plan.part, launch_part);
}

}  // namespace hullft
