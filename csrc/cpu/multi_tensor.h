// Shares the elements of many tensors among threads: equal parts of their concatenation. A part may
// begin and end within a tensor.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace hullft {

class MultiTensorElements {
 public:
  void add(int64_t numel) {
    numel_.push_back(numel);
    starts_.push_back(starts_.back() + (numel + kAlignment - 1) / kAlignment * kAlignment);
  }

  // body(tensor, offset, count) for pieces that cover every element once. A piece ends at a
  // multiple of kAlignment or with its tensor, so that the bits of a result cannot depend on the
  // number of threads.
  template <typename Body>
  void for_each_piece(const Body& body) const {
    const int64_t total = starts_.back();
    torch::stable::parallel_for(0, (total + kBlock - 1) / kBlock, 1, [&](int64_t b, int64_t e) {
      visit(b * kBlock, std::min(e * kBlock, total), body);
    });
  }

 private:
  static constexpr int64_t kAlignment = 64;  // elements; whole cache lines and whole vectors
  static constexpr int64_t kBlock = int64_t(1) << 14;

  template <typename Body>
  void visit(int64_t begin, int64_t end, const Body& body) const {
    auto i = size_t(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, starts_[i + 1]);
      const int64_t offset = begin - starts_[i];
      const int64_t count = std::min(stop - starts_[i], numel_[i]) - offset;
      if (count > 0) body(i, offset, count);
      begin = stop;
    }
  }

  std::vector<int64_t> numel_;
  std::vector<int64_t> starts_{0};  // of each tensor in the concatenation, and its end
};

}  // namespace hullft
