// The support of a Frank-Wolfe iterate: its atoms and their weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hullft {

// The row that enters next.
struct Entering {
  int64_t row;      // of the largest correlation outside the support, the lowest on ties
  double slope;     // the gap on the simplex, the correlation itself without the sum
  bool is_optimal;  // the slope is no more than rounding
};

class Support {
 public:
  // Empty, over atoms 0 .. n_atoms.
  void begin(int64_t n_atoms) {
    position_.assign(size_t(n_atoms), kOutside);
    atoms_.clear(), weights_.clear();
  }

  // One more atom that may enter.
  void admit() { position_.push_back(kOutside); }

  int64_t size() const { return int64_t(atoms_.size()); }
  const std::vector<int64_t>& atoms() const { return atoms_; }  // in no order of note
  const std::vector<double>& weights() const { return weights_; }
  bool has(int64_t atom) const { return position_[size_t(atom)] != kOutside; }

  void scale(double factor) {
    for (double& w : weights_) w *= factor;
  }

  void add(int64_t atom, double weight) {
    if (!has(atom)) enter(atom);
    weights_[size_t(position_[size_t(atom)])] += weight;
  }

  // Takes an atom out by its place; the others keep their order.
  void leave(int64_t place) {
    position_[size_t(atoms_[size_t(place)])] = kOutside;
    atoms_.erase(atoms_.begin() + place), weights_.erase(weights_.begin() + place);
    for (size_t j = size_t(place); j < atoms_.size(); ++j)
      position_[size_t(atoms_[j])] = int32_t(j);
  }

  // New weights of all atoms.
  void assign(const std::vector<double>& weights) { weights_ = weights; }

  // All of the weight on one atom.
  void keep_only(int64_t atom) {
    for (const int64_t k : atoms_) position_[size_t(k)] = kOutside;
    atoms_.clear(), weights_.clear();
    enter(atom);
    weights_[0] = 1;
  }

 private:
  static constexpr int32_t kOutside = -1;

  void enter(int64_t atom) {
    position_[size_t(atom)] = int32_t(atoms_.size());
    atoms_.push_back(atom);
    weights_.push_back(0.0);
  }

  std::vector<int64_t> atoms_;
  std::vector<double> weights_;    // of atoms_
  std::vector<int32_t> position_;  // of each atom in atoms_
};

}  // namespace hullft
