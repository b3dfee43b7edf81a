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

  // An atom more that steps may go toward or away from.
  void admit() { place_.push_back(kNone); }

  // The atoms that steps went toward or away from.
  const std::vector<int64_t>& movers() const { return movers_; }

  // Whether the atom is a new one of them.
  bool add_mover(int64_t atom) {
    int64_t& place = place_[size_t(atom)];
    if (place != kNone) return false;
    place = int64_t(movers_.size());
    movers_.push_back(atom);
    return true;
  }

  // A step between movers.
  void add(const Step<double>& step, int64_t s, int64_t a) {
    const int64_t at_s = step.toward > 0 ? place_[size_t(s)] : 0;
    const int64_t at_a = step.away > 0 ? place_[size_t(a)] : 0;
    moves_.push_back({step.scale, step.toward, step.away, at_s, at_a});
  }

  // Whether there is no room for another.
  bool is_full() const { return moves_.size() >= kMostMoves; }

  // u of an atom after all steps, given its products with the movers.
  double follow(const double* products) const {
    return screening_kernels().follow_moves(moves_.data(), int64_t(moves_.size()), products);
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr size_t kMostMoves = 1 << 16;  // 2.5 MB

  // place_[movers_[p]] == p, and kNone for every other atom; the ends of moves_ are such places.
  std::vector<int64_t> movers_, place_;
  std::vector<SupportMove> moves_;
};

}  // namespace hullft
