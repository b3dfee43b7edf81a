// The steps so far, for atoms that are admitted later: their entry of u = G w follows from all of
// them.
#pragma once

#include <cstdint>
#include <vector>

#include "../../core/frank_wolfe.h"
#include "../simd/screening_kernels.h"

namespace hullft {

class SupportMoves {
 public:
  void begin() { movers_.clear(), place_.clear(), moves_.clear(); }

  // One more atom that steps may go toward.
  void admit() { place_.push_back(kNone); }

  // The atoms that steps went toward.
  const std::vector<int64_t>& movers() const { return movers_; }

  // Whether the atom is a new one of them.
  bool add_mover(int64_t atom) {
    int64_t& place = place_[size_t(atom)];
    if (place != kNone) return false;
    place = int64_t(movers_.size());
    movers_.push_back(atom);
    return true;
  }

  // A step toward a mover.
  void add(const Step<double>& step, int64_t s) {
    moves_.push_back({step.scale, step.toward, step.toward > 0 ? place_[size_t(s)] : 0});
  }

  // Whether there is no room for another.
  bool is_full() const { return moves_.size() >= kMostMoves; }

  // u of an atom after all steps, given its products with the movers.
  double follow(const double* products) const {
    return screening_kernels().follow_moves(moves_.data(), int64_t(moves_.size()), products);
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr size_t kMostMoves = 1 << 16;  // 1.5 MB

  // place_[movers_[p]] == p, and kNone for every other atom; the ends of moves_ are such places.
  std::vector<int64_t> movers_, place_;
  std::vector<SupportMove> moves_;
};

}  // namespace hullft
