// Columns of a Gram matrix, for as long as there is room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "simd/dot_kernels.h"

namespace hullft {

template <typename R>
class ColumnCache {
 public:
  // Room for the columns of `n_atoms` atoms of the support and of some that left it.
  void begin(int64_t n_rows, int64_t n_atoms) {
    n_rows_ = n_rows;
    capacity_ = std::min(n_rows, n_atoms + kSpareColumns);
    slot_of_.assign(size_t(padded(n_rows)), -1);
    atom_of_.clear();
    next_victim_ = 0;
  }

  // The column of an atom, or null. Valid until a later `place` evicts it.
  const R* find(int64_t atom) const {
    const int32_t slot = slot_of_[size_t(atom)];
    return slot < 0 ? nullptr : columns_[size_t(slot)].get();
  }

  // The slot of every candidate, below 0 for those without a column; padded(n_rows) values.
  const int32_t* slots() const { return slot_of_.data(); }

  // Where to write the column of an atom that has none, padded(n_rows) values; the padding is 0
  // already. `in_use` tells which atoms must stay.
  template <typename InUse>
  R* place(int64_t atom, const InUse& in_use) {
    const int32_t slot = take_slot(in_use);
    slot_of_[size_t(atom)] = slot;
    atom_of_[size_t(slot)] = atom;
    R* column = columns_[size_t(slot)].reserve(padded(n_rows_));
    std::fill(column + n_rows_, column + padded(n_rows_), R(0));
    return column;
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

  int64_t n_rows_ = 0, capacity_ = 0, next_victim_ = 0;
  std::vector<int32_t> slot_of_;  // of each atom, padded; -1: no column
  std::vector<int64_t> atom_of_;  // of each slot
  std::vector<Aligned<R>> columns_;
};

}  // namespace hullft
