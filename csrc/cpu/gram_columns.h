// Columns of the Gram matrix G = X X^T, computed when an atom is first picked and kept while it may
// be wanted again.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "simd/kernels.h"

namespace hullft {

// Multiply-adds below which a column is not worth sharing among threads.
constexpr int64_t kParallelWork = int64_t(1) << 16;

// R is the arithmetic of the products. Rows may be multiplied in another type T than the type X of
// what they are multiplied with.
template <typename T, typename R = double, typename X = T>
class GramColumns {
 public:
  // Room for `kept` atoms of the support and some that left it.
  void begin(const T* const* rows, int64_t n_rows, int64_t d, int64_t kept, bool share_rows) {
    begin(rows, rows, n_rows, d, kept, share_rows);
  }

  void begin(const T* const* rows, const X* const* atoms, int64_t n_rows, int64_t d, int64_t kept,
             bool share_rows) {
    rows_ = rows, atoms_ = atoms, n_rows_ = n_rows, d_ = d, share_rows_ = share_rows;
    capacity_ = std::min(n_rows, kept + kSpareColumns);
    slot_of_.assign(size_t(n_rows), -1);
    atom_of_.clear();
    next_victim_ = 0;
  }

  // G[:, atom], padded(n_rows) values, or null when it has to be computed. Valid until a later
  // `compute` evicts it.
  const R* find(int64_t atom) const {
    const int32_t slot = slot_of_[size_t(atom)];
    return slot < 0 ? nullptr : columns_[size_t(slot)].get();
  }

  // Computes G[:, atom], and in the same pass over the pool the column of an atom that is `likely`
  // to be wanted next, where that is another. `in_use` tells which atoms must stay.
  template <typename InUse>
  const R* compute(int64_t atom, int64_t likely, const InUse& in_use) {
    const bool both = likely != atom && !find(likely);
    R* const out[] = {place(atom, in_use), both ? place(likely, in_use) : nullptr};
    R* wide = vector_.reserve(2 * padded(d_));
    widen_row(atoms_[atom], wide);
    if (both) widen_row(atoms_[likely], wide + padded(d_));
    multiply_columns(wide, both ? 2 : 1, out);
    return out[0];
  }

  template <typename InUse>
  const R* get(int64_t atom, const InUse& in_use) {
    const R* column = find(atom);
    return column ? column : compute(atom, atom, in_use);
  }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const X* x, R* out) {
    R* wide = vector_.reserve(2 * padded(d_));
    widen_row(x, wide);
    multiply_wide(wide, out);
  }

  // The same for x already in R, padded(d) values.
  void multiply_wide(const R* x, R* out) { multiply_columns(x, 1, &out); }

  // out[k] = <rows[k], x> and squares[k] = <rows[k], rows[k]>, in float32.
  void multiply_and_square(const X* x, float* out, float* squares) {
    float* wide = vector_.reserve(2 * padded(d_));
    widen_row(x, wide);
    const DotKernels<T>& dot = kernels().dot;
    for_rows([&](int64_t begin, int64_t end) {
      dot.screen_and_square(rows_ + begin, end - begin, wide, d_, out + begin, squares + begin);
    });
  }

 private:
  static constexpr int64_t kSpareColumns = 32;

  void widen_row(const X* x, R* wide) const {
    for (int64_t i = 0; i < d_; ++i) wide[i] = R(widen(x[i]));
    std::fill(wide + d_, wide + padded(d_), R(0));
  }

  void multiply_columns(const R* x, int64_t n_columns, R* const* out) {
    const auto dot = dot_rows<T, R>(kernels());
    for_rows([&](int64_t begin, int64_t end) {
      R* const from[] = {out[0] + begin, n_columns > 1 ? out[1] + begin : nullptr};
      dot(rows_ + begin, end - begin, x, n_columns, d_, from);
    });
    for (int64_t c = 0; c < n_columns; ++c)
      std::fill(out[c] + n_rows_, out[c] + padded(n_rows_), R(0));
  }

  template <typename Body>
  void for_rows(const Body& body) {
    if (share_rows_ && n_rows_ * d_ >= kParallelWork)
      torch::stable::parallel_for(0, n_rows_, std::max<int64_t>(1, kParallelWork / (2 * d_)), body);
    else
      body(int64_t(0), n_rows_);
  }

  template <typename InUse>
  R* place(int64_t atom, const InUse& in_use) {
    const int32_t slot = take_slot(in_use);
    slot_of_[size_t(atom)] = slot;
    atom_of_[size_t(slot)] = atom;
    return columns_[size_t(slot)].reserve(padded(n_rows_));
  }

  template <typename InUse>
  int32_t take_slot(const InUse& in_use) {
    if (int64_t(atom_of_.size()) < capacity_) {
      atom_of_.push_back(-1);
      if (columns_.size() < atom_of_.size()) columns_.emplace_back();
      return int32_t(atom_of_.size() - 1);
    }
    while (in_use(atom_of_[size_t(next_victim_)])) advance_victim();
    const int64_t victim = next_victim_;
    slot_of_[size_t(atom_of_[size_t(victim)])] = -1;
    advance_victim();
    return int32_t(victim);
  }

  void advance_victim() { next_victim_ = (next_victim_ + 1) % int64_t(atom_of_.size()); }

  const T* const* rows_ = nullptr;
  const X* const* atoms_ = nullptr;
  int64_t n_rows_ = 0, d_ = 0, capacity_ = 0, next_victim_ = 0;
  bool share_rows_ = false;
  std::vector<int32_t> slot_of_;  // of each atom, -1: no column
  std::vector<int64_t> atom_of_;  // of each slot
  std::vector<Aligned<R>> columns_;
  Aligned<R> vector_;
};

}  // namespace hullft
