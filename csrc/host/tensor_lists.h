// Checks of tensor lists, shared by the CPU and CUDA multi-tensor operators. They read metadata
// alone and come before anything is written.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <unordered_set>
#include <utility>
#include <vector>

#include "checks.h"

namespace hullft {

// Tensors and what messages call them. The tensors must outlive it.
struct TensorList {
  const char* name;
  const std::vector<Tensor>& tensors;

  const Tensor& operator[](size_t i) const { return tensors[i]; }
  size_t size() const { return tensors.size(); }
};

// A tensor's name, for messages.
struct Entry {
  const char* list;
  size_t index;
};

inline std::ostream& operator<<(std::ostream& out, const Entry& entry) {
  return out << entry.list << "[" << entry.index << "]";
}

inline Entry entry(const TensorList& list, size_t i) { return {list.name, i}; }

inline void check_same_length(const char* op, const TensorList& list, const TensorList& ref) {
  if (list.size() != ref.size())
    value_error(op, list.name, " has ", list.size(), " tensors, ", ref.name, " has ", ref.size());
}

inline void check_same_shape(const char* op, const TensorList& list, size_t i,
                             const TensorList& ref) {
  const auto x = list[i].sizes(), y = ref[i].sizes();
  if (!std::equal(x.begin(), x.end(), y.begin(), y.end()))
    value_error(op, entry(list, i), " has shape ", shape_text(x), ", ", entry(ref, i),
                " has shape ", shape_text(y));
}

inline void check_same_dtype(const char* op, const TensorList& list, size_t i,
                             const TensorList& ref) {
  if (dtype_of(list[i]) != dtype_of(ref[i]))
    value_error(op, entry(list, i), " is ", dtype_name(dtype_of(list[i])), ", ", entry(ref, i),
                " is ", dtype_name(dtype_of(ref[i])));
}

inline void check_device(const char* op, const TensorList& list, size_t i, const Tensor& ref) {
  check_same_device(op, entry(list, i), list[i], "the first tensor", ref);
}

// Refuses two tensors that share memory unless both are only read, and written ones that overlap
// themselves. Tensors with gaps count from their first element to their last.
class OverlapCheck {
 public:
  explicit OverlapCheck(const char* op) : op_(op) {}

  void add(const TensorList& list, bool written) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].numel() == 0) continue;
      const int64_t extent = extent_of(list[i], entry(list, i), written);
      const auto* begin = static_cast<const char*>(list[i].const_data_ptr());
      ranges_.push_back(
          {begin, begin + extent * int64_t(list[i].element_size()), &list, i, written});
    }
  }

  // Written to; several entries may be the same tensor.
  void add_shared(const TensorList& list) {
    std::unordered_set<const void*> seen;
    for (size_t i = 0; i < list.size(); ++i) {
      const auto* begin = static_cast<const char*>(list[i].const_data_ptr());
      if (list[i].numel() == 0 || !seen.insert(begin).second) continue;
      ranges_.push_back({begin, begin + list[i].element_size(), &list, i, true});
    }
  }

  void run() {
    std::stable_sort(ranges_.begin(), ranges_.end(),
                     [](const Range& a, const Range& b) { return a.begin < b.begin; });
    const Range* last = nullptr;          // the range that reaches furthest
    const Range* last_written = nullptr;  // the same among the ranges that are written
    for (const Range& range : ranges_) {
      const Range* other = range.written ? last : last_written;
      if (other && range.begin < other->end)
        value_error(op_, entry(*range.list, range.index), " overlaps ",
                    entry(*other->list, other->index), " in memory");
      if (!last || range.end > last->end) last = &range;
      if (range.written && (!last_written || range.end > last_written->end)) last_written = &range;
    }
  }

 private:
  struct Range {
    const char* begin;
    const char* end;
    const TensorList* list;
    size_t index;
    bool written;
  };

  // Elements from the first to the last, both included.
  int64_t extent_of(const Tensor& t, const Entry& name, bool written) const {
    if (t.is_contiguous()) return t.numel();
    std::vector<std::pair<int64_t, int64_t>> stride_size;
    for (int64_t d = 0; d < t.dim(); ++d)
      if (t.size(d) > 1) stride_size.emplace_back(t.stride(d), t.size(d));
    std::sort(stride_size.begin(), stride_size.end());
    int64_t extent = 1;
    for (const auto& [stride, size] : stride_size) {
      if (written && stride < extent) value_error(op_, name, " overlaps itself in memory");
      extent += stride * (size - 1);
    }
    return extent;
  }

  const char* op_;
  std::vector<Range> ranges_;
};

}  // namespace hullft
