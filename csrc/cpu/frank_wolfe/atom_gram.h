// The Gram matrix of the atoms in float64, a row at a time, when it is asked for.
#pragma once

#include <cstdint>
#include <vector>

#include "../aligned.h"
#include "../simd/dot_kernels.h"

namespace hullft {

template <typename T>
class AtomGram {
 public:
  void begin(int64_t d) { d_ = d, atoms_.clear(); }

  // Atom number size(), of row x of the pool.
  void admit(const T* x) {
    atoms_.push_back(x);
    if (rows_.size() < atoms_.size()) rows_.emplace_back();
    rows_[atoms_.size() - 1].known = 0;
  }

  int64_t size() const { return int64_t(atoms_.size()); }
  const T* atom(int64_t i) const { return atoms_[size_t(i)]; }
  const T* const* atoms_from(int64_t first) const { return atoms_.data() + first; }

  // G[i, :], padded(size()) values, 0 in the padding. Valid until the next `admit`.
  const double* row(int64_t i) {
    if (rows_[size_t(i)].known < size()) complete(i);
    return rows_[size_t(i)].values.data();
  }

  // Completes rows that lack the last m atoms, given their products with those: [m, rows], a stride
  // from one atom to the next.
  void extend(const std::vector<int64_t>& rows, const double* products, int64_t m, int64_t stride) {
    for (size_t j = 0; j < rows.size(); ++j) {
      Row& row = rows_[size_t(rows[j])];
      row.values.resize(size_t(padded(size())));
      double* last = row.values.data() + size() - m;
      for (int64_t i = 0; i < m; ++i) last[i] = products[i * stride + int64_t(j)];
      row.known = size();
    }
  }

 private:
  // Products with the first `known` atoms, then 0.
  struct Row {
    AlignedVector values;
    int64_t known = 0;
  };

  // Apart, so that `row`, which each step asks twice, is inlined.
  [[gnu::noinline]] void complete(int64_t i) {
    Row& row = rows_[size_t(i)];
    if (row.known == 0) row.values.clear();  // drops an earlier query's
    row.values.resize(size_t(padded(size())));
    missing_.clear(), missing_atoms_.clear();
    for (int64_t j = row.known; j < size(); ++j) {
      const Row& other = rows_[size_t(j)];
      if (other.known > i) {
        row.values[size_t(j)] = other.values[size_t(i)];
      } else {
        missing_.push_back(j);
        missing_atoms_.push_back(atom(j));
      }
    }
    const int64_t n = int64_t(missing_.size());
    double* products = products_.reserve(n);
    dot_kernels<T>().few(missing_atoms_.data(), n, atom(i), d_, products);
    for (int64_t j = 0; j < n; ++j) row.values[size_t(missing_[size_t(j)])] = products[j];
    row.known = size();
  }

  int64_t d_ = 0;
  std::vector<const T*> atoms_;
  std::vector<Row> rows_;  // of the atoms, and behind them the memory of earlier queries' rows
  std::vector<int64_t> missing_;
  std::vector<const T*> missing_atoms_;
  AlignedDoubles products_;
};

}  // namespace hullft
