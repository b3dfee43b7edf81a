// The Gram matrix of rows that are much longer than they are many: one pass over them, and the
// solver then works on vectors of one value a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../aligned.h"
#include "../query_pool.h"
#include "../share_rows.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "../wide_vectors.h"
#include "gram_correlations.h"

namespace hullft {

// On the simplex of the rows less the query, whose products with the query are 0; without the sum,
// of the rows as they are.
template <typename T, Constraint kConstraint>
class GramOfRows {
 public:
  // Valid until the next call.
  GramProblem multiply(const QueryPool<T>& in) {
    in_ = &in;
    n_ = kSimplex ? in.n_rows : in.n_rows + 1;  // the query is the last row
    const int64_t n_slabs = std::clamp<int64_t>(in.d / (8 * kChunk), 1, kMostSlabs);
    const int64_t slab = (in.d + n_slabs - 1) / n_slabs;
    double* sums = sums_.reserve(n_slabs * n_ * n_);
    std::fill_n(sums, n_slabs * n_ * n_, 0.0);
    for_rows(n_slabs, slab * n_ * n_ / 2, in.share_rows, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        multiply_slab(s * slab, std::min(in.d, (s + 1) * slab), sums + s * n_ * n_);
    });
    return problem(sums, n_slabs);
  }

  double query_square() {
    double square = 0, *values = values_.reserve(kChunk);
    for (int64_t begin = 0; begin < in_->d; begin += kChunk) {
      const int64_t length = std::min(kChunk, in_->d - begin);
      widen(in_->query + begin, length, values);
      square += dot(values, values, padded(length));
    }
    return square;
  }

  // The norm of the query less the combination of rows.
  double residual(const std::vector<int64_t>& rows, const std::vector<double>& weights) {
    double square = 0;
    std::vector<const double*> vectors(rows.size());
    std::vector<double> factors(weights.size());
    double* values = values_.reserve((int64_t(rows.size()) + 1) * kChunk);
    for (size_t j = 0; j < rows.size(); ++j) {
      vectors[j] = values + int64_t(j + 1) * kChunk;
      factors[j] = -weights[j];
    }
    for (int64_t begin = 0; begin < in_->d; begin += kChunk) {
      const int64_t length = std::min(kChunk, in_->d - begin), width = padded(length);
      widen(in_->query + begin, length, values);
      for (size_t j = 0; j < rows.size(); ++j)
        widen(in_->rows[rows[j]] + begin, length, values + int64_t(j + 1) * kChunk);
      corrective_kernels().combine(values, vectors.data(), factors.data(), int64_t(rows.size()),
                                   width, values);
      square += dot(values, values, width);
    }
    return std::sqrt(square);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int64_t kChunk = 512;
  static constexpr int64_t kMostSlabs = 16;

  static void widen(const T* x, int64_t n, double* out) { dot_kernels<T>().widen(x, n, out); }

  void multiply_slab(int64_t begin, int64_t end, double* sums) const {
    AlignedDoubles memory, products_memory;
    double *values = memory.reserve((n_ + 1) * kChunk), *query = values + in_->n_rows * kChunk;
    double* products = products_memory.reserve(n_);
    std::vector<const double*> rows(size_t(n_), nullptr);
    for (int64_t k = 0; k < n_; ++k) rows[size_t(k)] = values + k * kChunk;
    for (; begin < end; begin += kChunk) {
      const int64_t length = std::min(kChunk, end - begin), width = padded(length);
      widen(in_->query + begin, length, query);
      const bool is_zero = std::all_of(query, query + width, [](double x) { return x == 0; });
      for (int64_t k = 0; k < in_->n_rows; ++k) {
        double* row = values + k * kChunk;
        widen(in_->rows[k] + begin, length, row);
        if (kSimplex && !is_zero) subtract(row, query, width);
      }
      for (int64_t i = 0; i < n_; ++i) {
        dot_kernels<double>().few(rows.data() + i, n_ - i, rows[size_t(i)], width, products);
        for (int64_t j = i; j < n_; ++j) sums[i * n_ + j] += products[j - i];
      }
    }
  }

  GramProblem problem(const double* sums, int64_t n_slabs) {
    const int64_t n = in_->n_rows, stride = padded(n);
    double *gram = gram_.reserve(n * stride), *products = products_.reserve(stride);
    std::fill_n(gram, n * stride, 0.0), std::fill_n(products, stride, 0.0);
    double square = 0;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = i; j < n_; ++j) {
        double sum = 0;
        for (int64_t s = 0; s < n_slabs; ++s) sum += sums[(s * n_ + i) * n_ + j];
        if (j < n)
          gram[i * stride + j] = gram[j * stride + i] = sum;
        else
          (i < n ? products[i] : square) = sum;
      }
    }
    return {gram, n, stride, products, square, epsilon<double>()};
  }

  const QueryPool<T>* in_ = nullptr;
  int64_t n_ = 0;  // rows that are multiplied
  AlignedDoubles sums_, gram_, products_, values_;
};

}  // namespace hullft
