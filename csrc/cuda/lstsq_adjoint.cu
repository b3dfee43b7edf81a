// The systems of core/corrective.h: A v = g, where A is the Gram matrix of the support. On the
// simplex, one row of the support, the origin, is first subtracted from the others, and its value
// makes the sum 0. A row that depends on earlier rows leaves a direction in which A is 0. The
// solution of least norm has no part in these directions, and neither has its gradient.
#include "block_launch.cuh"
#include "gram.h"
#include "lstsq_adjoint.h"
#include "rows.cuh"

namespace hullft {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSmall = 32;  // rows whose system one warp solves, in shared memory

// A query's rows of weight above 0, their number, and which of them has the largest weight.
struct Supports {
  int64_t* rows;   // [batch, most]
  int64_t* sizes;  // [batch]
  int* origins;    // [batch]
};

// A warp a query. What is not of the support has a gradient of 0.
template <typename R>
__global__ void __launch_bounds__(kThreads, 4)
    support_kernel(AdjointProblem problem, int most, Supports to) {
  const int lane = int(threadIdx.x) % kWarp, width = problem.pool.width;
  const int64_t query = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (query >= problem.batch) return;
  const R* weights = static_cast<const R*>(problem.weights) + query * width;
  int m = 0, origin = 0;
  R largest = 0;
  for (int first = 0; first < width; first += kWarp) {
    const int k = first + lane;
    const R weight = k < width ? weights[k] : R(0);
    const bool is_row = weight > R(0);
    const unsigned rows = __ballot_sync(kFullWarp, is_row);
    const int at = m + __popc(rows & ((1u << lane) - 1));
    const Best<R> top = warp_best(is_row ? Best<R>{weight, at} : no_best<R>());
    if (top.value > largest) largest = top.value, origin = top.index;
    if (is_row && at < most) to.rows[query * most + at] = k;
    m += __popc(rows);
    if (k < width) problem.out[query * width + k] = is_row && m > most ? NAN : 0;
  }
  if (lane == 0) to.sizes[query] = m <= most ? m : 0, to.origins[query] = origin;
}

// The system of one query: row i has m elements, its target, and 1 if it has a pivot, else 0.
// Gauss-Jordan steps leave -A^-1 in the rows with pivots. Every other row is a combination of them,
// and is left with its coefficients. The threads stand in kAcross columns.
template <bool kOneWarp>
class AdjointSystem {
 public:
  __device__ __forceinline__ AdjointSystem(double* a, int m, int origin, const int64_t* rows,
                                           const GramProblem& grams, int64_t query)
      : a_(a), m_(m), origin_(origin), rows_(rows), width_(grams.pool.width) {
    const int64_t pool = grams.pools > 1 ? query : 0;
    gram_ = static_cast<const double*>(grams.gram) + pool * width_ * width_;
    gathered_ = grams.pool.candidates != nullptr;
    thread_ = int(threadIdx.x) % (kOneWarp ? kWarp : kThreads);
  }

  __device__ __forceinline__ void solve(const double* gradient, double* out) {
    if (eliminate()) find_directions();
    each([&](int i) { target(i) = gradient[rows_[i]]; });
    project([&](int j) -> double& { return target(j); }, m_);
    const auto solution = [&](int j) -> double& { return out[rows_[j]]; };
    multiply(solution);
    project(solution, m_);
  }

 private:
  static constexpr int kAcross = kOneWarp ? 4 : 16, kStep = kOneWarp ? kWarp : kThreads;
  // A row depends on the others if they explain all of its square but this share.
  static constexpr double kDependent = 1e-12;

  __device__ __forceinline__ void sync() const { kOneWarp ? __syncwarp() : __syncthreads(); }
  __device__ __forceinline__ double& at(int i, int j) const {
    return a_[int64_t(i) * (m_ + 2) + j];
  }
  __device__ __forceinline__ double& target(int i) const { return at(i, m_); }
  __device__ __forceinline__ double& has_pivot(int i) const { return at(i, m_ + 1); }
  __device__ __forceinline__ bool depends(int i) const { return i != origin_ && !has_pivot(i); }

  template <typename Body>
  __device__ __forceinline__ void each(const Body& body) const {
    for (int i = thread_; i < m_; i += kStep) body(i);
    sync();
  }

  template <typename Body>
  __device__ __forceinline__ void over_all(const Body& body) const {
    for (int i = thread_ / kAcross; i < m_; i += kStep / kAcross)
      for (int j = thread_ % kAcross; j < m_; j += kAcross) body(i, j);
    sync();
  }

  __device__ __forceinline__ double product(int i, int j) const {
    return gathered_ ? gram_[i * width_ + j] : gram_[rows_[i] * width_ + rows_[j]];
  }
  __device__ __forceinline__ double entry(int i, int j) const {
    if (origin_ < 0) return product(i, j);
    return (product(i, j) - product(i, origin_)) -
           (product(j, origin_) - product(origin_, origin_));
  }

  // Returns whether any row depends on others. The origin's row is 0.
  __device__ __forceinline__ bool eliminate() const {
    const double of_origin = origin_ < 0 ? 0.0 : product(origin_, origin_);
    over_all([&](int i, int j) { at(i, j) = entry(i, j); });
    bool any = false;
    for (int k = 0; k < m_; ++k) {
      const double left = at(k, k), reciprocal = 1 / left;
      const bool joins = k != origin_ && left > kDependent * (entry(k, k) + of_origin);
      any = any || (!joins && k != origin_);
      if (thread_ == 0) has_pivot(k) = joins;
      if (!joins) sync();  // all have read what the next step changes
      if (!joins) continue;
      over_all([&](int i, int j) {
        if (i != k && j != k) at(i, j) -= at(i, k) * reciprocal * at(k, j);
      });
      each([&](int i) {
        if (i == k)
          at(k, k) = -reciprocal;
        else
          at(i, k) *= reciprocal, at(k, i) *= reciprocal;
      });
    }
    sync();
    return any;
  }

  // The combination that a row is, less the row itself, orthonormal.
  __device__ __forceinline__ void find_directions() const {
    for (int i = 0; i < m_; ++i) {
      if (!depends(i)) continue;
      each([&](int j) {
        if (depends(j)) at(i, j) = j == i ? -1.0 : 0.0;
      });
      if (thread_ == 0 && origin_ >= 0) {
        at(i, origin_) = 0;
        double sum = 0;
        for (int j = 0; j < m_; ++j) sum += at(i, j);
        at(i, origin_) = -sum;
      }
      sync();
      const auto direction = [&](int j) -> double& { return at(i, j); };
      project(direction, i), project(direction, i);  // the second time takes what rounding left
      const double length = sqrt(dot(i, direction));
      sync();
      each([&](int j) { direction(j) /= length; });
    }
  }

  // By every thread, in the same order.
  template <typename Vector>
  __device__ __forceinline__ double dot(int direction, const Vector& x) const {
    double sum = 0;
    for (int j = 0; j < m_; ++j) sum += at(direction, j) * x(j);
    return sum;
  }

  // Takes the directions of the first n rows out of x.
  template <typename Vector>
  __device__ __forceinline__ void project(const Vector& x, int n) const {
    for (int i = 0; i < n; ++i) {
      if (!depends(i)) continue;
      const double share = dot(i, x);
      sync();
      each([&](int j) { x(j) -= share * at(i, j); });
    }
  }

  template <typename Vector>
  __device__ __forceinline__ void multiply(const Vector& solution) const {
    const double of_origin = origin_ < 0 ? 0.0 : target(origin_);
    each([&](int i) {
      double sum = 0;
      for (int j = 0; j < m_ && has_pivot(i); ++j)
        if (has_pivot(j)) sum -= at(i, j) * (target(j) - of_origin);
      solution(i) = sum;
    });
    if (origin_ < 0) return;
    double sum = 0;
    for (int i = 0; i < m_; ++i) sum += solution(i);
    sync();
    if (thread_ == 0) solution(origin_) = -sum;
    sync();
  }

  double* const a_;
  const int m_, origin_;
  const int64_t* const rows_;
  const int64_t width_;
  const double* gram_;
  bool gathered_;  // the Gram matrix has the rows of the support alone
  int thread_;
};

// A warp a query where kSide rows are the most, else a block, whose system lies in the workspace.
template <int kSide>
__global__ void __launch_bounds__(kThreads, 2)
    adjoint_kernel(AdjointProblem problem, Supports supports, int most, GramProblem grams,
                   double* systems) {
  constexpr bool kOneWarp = kSide > 0;
  __shared__ double shared[kOneWarp ? kWarps : 1][kOneWarp ? kSide * (kSide + 2) : 1];
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t query = kOneWarp ? int64_t(blockIdx.x) * kWarps + warp : int64_t(blockIdx.x);
  if (query >= problem.batch) return;
  const int m = int(supports.sizes[query]);
  if (m == 0) return;
  AdjointSystem<kOneWarp> system(kOneWarp ? shared[warp] : systems + query * most * (most + 2), m,
                                 problem.on_simplex ? supports.origins[query] : -1,
                                 supports.rows + query * most, grams, query);
  const int64_t first = query * problem.pool.width;
  system.solve(problem.gradient + first, problem.out + first);
}

cudaError_t launch_part(const AdjointProblem& part, const AdjointPlan& plan, void* workspace,
                        cudaStream_t stream) {
  int64_t* heads = in_workspace<int64_t>(workspace, plan.heads);
  const Supports supports{static_cast<int64_t*>(workspace), heads,
                          reinterpret_cast<int*>(heads + plan.part)};
  const bool wide = part.pool.storage == Storage::kFloat64;
  const auto support = wide ? support_kernel<double> : support_kernel<float>;
  const dim3 warps(unsigned((part.batch + kWarps - 1) / kWarps)), threads(kThreads);
  HULLFT_LAUNCH(support, warps, threads, 0, stream, part, plan.most, supports);
  cudaError_t status = cudaGetLastError();
  PoolView pool = part.pool;
  if (plan.gathers) {
    pool.candidates = supports.rows, pool.sizes = supports.sizes;
    pool.candidates_stride = pool.width = plan.most;
  }
  GramProblem grams = grams_of(pool, part.batch, in_workspace<void>(workspace, plan.grams));
  grams.wide = grams.wide_products = true;
  grams.shares = plan.shares, grams.partial = in_workspace<void>(workspace, plan.partial);
  if (status == cudaSuccess) status = launch_gram(grams, plan.sms, stream);
  if (status != cudaSuccess) return status;
  const bool small = part.pool.width <= kSmall;
  const auto kernel = part.pool.width <= kSmall / 2 ? adjoint_kernel<kSmall / 2>
                      : small                       ? adjoint_kernel<kSmall>
                                                    : adjoint_kernel<0>;
  HULLFT_LAUNCH(kernel, small ? warps : dim3(unsigned(part.batch)), threads, 0, stream, part,
                supports, plan.most, grams, in_workspace<double>(workspace, plan.systems));
  return cudaGetLastError();
}

}  // namespace

AdjointPlan plan_adjoint(const AdjointProblem& p, const LaunchLimits& limits) {
  constexpr int64_t kMostOfSupport = 4096, kMostOfShared = 1024;
  const int64_t width = p.pool.width;
  const bool is_shared = n_pools(p.pool, p.batch) == 1;
  AdjointPlan plan{};
  plan.sms = limits.sms;
  plan.most = int(std::min(width, std::max(kMostOfSupport, p.pool.d + 2)));
  plan.gathers = width > kSmall && !(is_shared && width <= kMostOfShared);
  plan.shares = shares_of(p.pool.d, plan.most, true);
  const bool has_one_gram = is_shared && !plan.gathers;
  const int64_t real = sizeof(double), most = plan.most;
  const int64_t list = most * real, head = 2 * real;
  const int64_t system = width <= kSmall ? 0 : most * (most + 2) * real;
  const int64_t gram = most * most * real, partial = gram * plan.shares.count;
  const int64_t all = has_one_gram ? gram + partial : 0;
  const int64_t of_query = list + head + system + (has_one_gram ? 0 : gram + partial);
  plan.part = queries_of_part(p.batch, of_query, all, limits.workspace_bytes);
  const int64_t grams = has_one_gram ? 1 : plan.part;
  plan.heads = plan.part * list;
  plan.systems = plan.heads + plan.part * head;
  plan.grams = plan.systems + plan.part * system;
  plan.partial = plan.grams + grams * gram;
  plan.workspace_bytes = plan.partial + grams * partial;
  return plan;
}

cudaError_t launch_adjoint(const AdjointProblem& problem, const AdjointPlan& plan, void* workspace,
                           cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  for (int64_t first = 0; first < problem.batch && status == cudaSuccess; first += plan.part) {
    AdjointProblem part = problem;
    const int64_t before = first * problem.pool.width;
    part.pool = rest_of(problem.pool, first);
    part.batch = std::min(plan.part, problem.batch - first);
    part.weights =
        static_cast<const char*>(problem.weights) + before * real_bytes_of(problem.pool.storage);
    part.gradient += before, part.out += before;
    status = launch_part(part, plan, workspace, stream);
  }
  return status;
}

}  // namespace hullft
