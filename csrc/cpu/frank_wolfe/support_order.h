// How a support goes into an answer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../selection_answer.h"
#include "support.h"

namespace hullft {

class SupportOrder {
 public:
  // At most max_support rows, the largest weight first, the lower candidate on ties.
  template <typename CandidateOf>
  void write(const Support& support, int64_t max_support, SelectionAnswer& answer,
             const CandidateOf& candidate_of) {
    const std::vector<double>& weights = support.weights();
    const std::vector<int64_t>& atoms = support.atoms();
    places_.resize(atoms.size());
    std::iota(places_.begin(), places_.end(), size_t(0));
    std::sort(places_.begin(), places_.end(), [&](size_t i, size_t j) {
      return weights[i] != weights[j] ? weights[i] > weights[j]
                                      : candidate_of(atoms[i]) < candidate_of(atoms[j]);
    });
    places_.resize(size_t(std::min(support.size(), max_support)));
    answer.support_size = int64_t(places_.size());
    answer.indices.clear(), answer.weights.clear();
    for (const size_t i : places_) {
      answer.indices.push_back(candidate_of(atoms[i]));
      answer.weights.push_back(weights[i]);
    }
  }

  // The same for a support whose atoms are the candidates.
  void write(const Support& support, int64_t max_support, SelectionAnswer& answer) {
    write(support, max_support, answer, [](int64_t atom) { return atom; });
  }

  // The places of the written rows in the support.
  const std::vector<size_t>& places() const { return places_; }

 private:
  std::vector<size_t> places_;
};

}  // namespace hullft
