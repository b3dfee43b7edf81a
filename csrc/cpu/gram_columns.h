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
constexpr int64_t kParallelWork = int64_t(1) << 18;

template <typename T>
class GramColumns {
 public:
  // Room for `kept` atoms of the support and some that left it.
  void begin(const T* const* rows, int64_t n_rows, int64_t d, int64_t kept, bool share_rows) {
    rows_ = rows, n_rows_ = n_rows, d_ = d, share_rows_ = share_rows;
    capacity_ = std::min(n_rows, kept + kSpareColumns);
    slot_of_.assign(size_t(n_rows), -1);
    atom_of_.clear();
    next_victim_ = 0;
    vector_.reserve(padded(d));
  }

  // G[:, atom], padded(n_rows) values. Valid until a later call evicts it; `in_use` tells which
  // atoms must stay.
  template <typename InUse>
  const double* get(int64_t atom, const InUse& in_use) {
    int32_t slot = slot_of_[size_t(atom)];
    if (slot < 0) {
      slot = take_slot(in_use);
      slot_of_[size_t(atom)] = slot;
      atom_of_[size_t(slot)] = atom;
      multiply(rows_[atom], columns_[size_t(slot)].reserve(padded(n_rows_)));
    }
    return columns_[size_t(slot)].get();
  }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const T* x, double* out) {
    double* wide = vector_.reserve(padded(d_));
    for (int64_t i = 0; i < d_; ++i) wide[i] = widen(x[i]);
    std::fill(wide + d_, wide + padded(d_), 0.0);
    multiply_wide(wide, out);
  }

  // The same for x already in float64, padded(d) values.
  void multiply_wide(const double* x, double* out) {
    const auto dot = dot_rows<T>(kernels());
    const auto run = [&](int64_t begin, int64_t end) {
      dot(rows_ + begin, end - begin, x, 1, d_, out + begin, 0);
    };
    if (share_rows_ && n_rows_ * d_ >= kParallelWork) {
      torch::stable::parallel_for(0, n_rows_, std::max<int64_t>(1, kParallelWork / (2 * d_)), run);
    } else {
      run(0, n_rows_);
    }
    std::fill(out + n_rows_, out + padded(n_rows_), 0.0);
  }

 private:
  static constexpr int64_t kSpareColumns = 32;

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
  int64_t n_rows_ = 0, d_ = 0, capacity_ = 0, next_victim_ = 0;
  bool share_rows_ = false;
  std::vector<int32_t> slot_of_;  // of each atom, -1: no column
  std::vector<int64_t> atom_of_;  // of each slot
  std::vector<AlignedDoubles> columns_;
  AlignedDoubles vector_;
};

}  // namespace hullft
