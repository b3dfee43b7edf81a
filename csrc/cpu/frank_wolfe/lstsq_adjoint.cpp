// The adjoint of simplex_lstsq and nnls on the CPU: what their gradients are made of. Schema:
// csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../../host/empty.h"
#include "../../host/selection_arguments.h"
#include "../batch.h"
#include "../simd/dot_kernels.h"
#include "../wide_vectors.h"
#include "support_factor.h"

namespace hullft {
namespace {

// The system of one query's support: G v = g without the sum. On the simplex, one row, the origin,
// is first subtracted from the others, and its value makes the sum 0.
template <typename T>
class AdjointSystem {
 public:
  // Row i of the support is rows[support[i]], of d values.
  void multiply(const std::vector<const T*>& rows, const std::vector<int64_t>& support, int64_t d,
                int64_t origin) {
    begin(support, origin);
    const int64_t width = padded(d);
    double* values = values_.reserve(m_ * width);
    std::vector<const double*> vectors;
    for (int64_t i = 0; i < m_; ++i) {
      vectors.push_back(values + i * width);
      dot_kernels<T>().widen(rows[size_t(support[size_t(i)])], d, values + i * width);
    }
    for (int64_t i = 0; i < m_; ++i) {
      double* row = values + i * width;
      if (origin >= 0 && i != origin) subtract(row, vectors[size_t(origin)], width);
      dot_kernels<double>().few(vectors.data(), i + 1, row, width, &gram_[size_t(i * m_)]);
    }
  }

  // The same from the rows of a Gram matrix, which counts as symmetric.
  void pick(const std::vector<const T*>& gram, const std::vector<int64_t>& support,
            int64_t origin) {
    begin(support, origin);
    const auto product = [&](int64_t i, int64_t j) {
      const int64_t k = support[size_t(i)], l = support[size_t(j)];
      return (widen(gram[size_t(k)][l]) + widen(gram[size_t(l)][k])) / 2;
    };
    if (origin >= 0) origin_square_ = product(origin, origin);
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j <= i; ++j)
        gram_[size_t(i * m_ + j)] = origin < 0 ? product(i, j)
                                               : (product(i, j) - product(i, origin)) -
                                                     (product(j, origin) - origin_square_);
  }

  // g <- v, of least norm where rows depend on one another.
  void solve(std::vector<double>& g) {
    std::vector<double> v = solution(g);
    if (!null_.empty()) {
      project(g);
      v = solution(g);
      project(v);
    }
    g = v;
  }

 private:
  // A row depends on the others if they explain all of its square but this share.
  static constexpr double kDependent = 1e-12;

  void begin(const std::vector<int64_t>& support, int64_t origin) {
    m_ = int64_t(support.size()), origin_ = origin, origin_square_ = 0;
    gram_.resize(size_t(m_ * m_));
  }

  double entry(int64_t i, int64_t j) const { return gram_[size_t(i * m_ + j)]; }  // j <= i

  // A row that depends on earlier ones gets 0; null_ then has the directions of dependence.
  std::vector<double> solution(const std::vector<double>& g) {
    factor_.begin(epsilon<double>());
    joined_.clear(), null_.clear();
    for (int64_t i = 0; i < m_; ++i) {
      if (i == origin_) continue;
      entries_.clear();
      for (const int64_t j : joined_) entries_.push_back(entry(i, j));
      const double target = g[size_t(i)] - (origin_ < 0 ? 0 : g[size_t(origin_)]);
      const double square = entry(i, i), share = kDependent * (1 + origin_square_ / square);
      if (factor_.join(entries_.data(), square, {target}, share))
        joined_.push_back(i);
      else
        note_dependence(i);
    }
    entries_.resize(joined_.size());
    factor_.solve({1}, entries_.data());
    return scattered();
  }

  // Row i is a combination of the rows that joined: its coefficients are L^-T times its entries.
  void note_dependence(int64_t i) {
    factor_.solve_upper(entries_.data());
    std::vector<double> direction = scattered();
    direction[size_t(i)] = -1;
    if (origin_ >= 0) direction[size_t(origin_)] += 1;
    project(direction), project(direction);  // the second time takes what rounding left
    const double length =
        std::sqrt(std::inner_product(direction.begin(), direction.end(), direction.begin(), 0.0));
    for (double& value : direction) value /= length;
    null_.push_back(direction);
  }

  // entries_ at the rows that joined, and the origin's value.
  std::vector<double> scattered() const {
    std::vector<double> values(size_t(m_), 0.0);
    for (size_t j = 0; j < joined_.size(); ++j) values[size_t(joined_[j])] = entries_[j];
    if (origin_ >= 0)
      values[size_t(origin_)] = -std::accumulate(entries_.begin(), entries_.end(), 0.0);
    return values;
  }

  // Takes the directions of dependence out.
  void project(std::vector<double>& x) const {
    for (const std::vector<double>& direction : null_) {
      const double share = std::inner_product(x.begin(), x.end(), direction.begin(), 0.0);
      for (size_t i = 0; i < x.size(); ++i) x[i] -= share * direction[i];
    }
  }

  int64_t m_ = 0, origin_ = -1;
  double origin_square_ = 0;  // that the differences are less, and have its rounding
  AlignedDoubles values_;
  std::vector<double> gram_, entries_;
  std::vector<int64_t> joined_;
  std::vector<std::vector<double>> null_;  // orthonormal
  SupportFactor<1> factor_;
};

template <typename T>
void solve_each(const SelectionArguments& arguments, const Tensor& gradient, bool is_gram,
                bool on_simplex, double* out) {
  const int64_t width = arguments.width;
  const Pool<T> pool(arguments);
  const RealInput weights(arguments.query), gradients(gradient);
  struct Workspace {
    AdjointSystem<T> system;
    std::vector<const T*> rows;
    std::vector<int64_t> support;
    std::vector<double> values;
  };
  const double work = double(arguments.batch) * (kStepsWork + double(width * arguments.dim));
  for_each_query(
      arguments.batch, work, [] { return Workspace{}; },
      [&](Workspace& w, int64_t b) {
        pool.rows(b, width, w.rows);
        w.support.clear(), w.values.clear();
        int64_t origin = 0;  // of the largest weight
        for (int64_t k = 0; k < width; ++k) {
          out[b * width + k] = 0;
          const double weight = weights[b * width + k];
          if (!(weight > 0)) continue;
          if (origin < int64_t(w.support.size()) &&
              weight > weights[b * width + w.support[size_t(origin)]])
            origin = int64_t(w.support.size());
          w.support.push_back(k), w.values.push_back(gradients[b * width + k]);
        }
        if (!on_simplex || w.support.empty()) origin = -1;
        if (is_gram)
          w.system.pick(w.rows, w.support, origin);
        else
          w.system.multiply(w.rows, w.support, arguments.dim, origin);
        w.system.solve(w.values);
        for (size_t i = 0; i < w.support.size(); ++i) out[b * width + w.support[i]] = w.values[i];
        return true;
      });
}

Tensor lstsq_adjoint(const Tensor& pool, const Tensor& weights, const Tensor& gradient,
                     bool is_gram, bool on_simplex) {
  const SelectionArguments arguments = check_adjoint(pool, weights, gradient, is_gram);
  const Tensor adjoint = empty_beside(
      pool, std::array<int64_t, 2>{arguments.batch, arguments.width}, ScalarType::Double);
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    solve_each<decltype(t)>(arguments, gradient, is_gram, on_simplex,
                            adjoint.mutable_data_ptr<double>());
  });
  return adjoint;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) {
  m.impl("lstsq_adjoint", TORCH_BOX(&lstsq_adjoint));
}

}  // namespace hullft
