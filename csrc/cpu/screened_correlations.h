// The correlation of every candidate with the residual, screened in float32 and decided in float64.
//
// Only the largest correlation matters to a step, and only candidates within a rounding error of it
// can have it. So every candidate has an estimate, made of float32 products, and the few that come
// near the largest, which are mostly the support, become atoms: theirs is computed in float64. The
// bound on the estimates' error is rigorous, and an atom's correlation has the bits that it would
// have had if it had been one from the start, which makes the answer that of ExactCorrelations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../core/frank_wolfe.h"
#include "gram_columns.h"
#include "support.h"

namespace hullft {

// The largest norms of what the estimates are made of.
struct ScreenNorms {
  double query, row;
  double lost;  // of a row and its copy in the type that is screened
};

// Bounds |estimate - c| for c = <x, q> - sum_j w_j <x, x_j>, w convex. A float32 product of d terms
// is a sum of kDotChains chains or more, so no term goes through more additions than a chain and
// the lanes have; by Cauchy and Schwarz the terms sum to at most |x||y|. The state is float64.
inline double screening_error(int64_t d, const ScreenNorms& norm) {
  constexpr double kUnit = 1.0 / (1 << 24), kSmallest = 0x1p-149;
  constexpr double kMargin = 1.1;  // norms and state are rounded too
  const double roundings = double(d / kDotChains) + 20;
  const double rounded = roundings * kUnit * norm.row * (norm.query + norm.row);
  const double lost = norm.lost * (norm.query + norm.row);
  return kMargin * (rounded + lost + double(d) * kSmallest);
}

// T is the pool's type, S the type that is screened: T itself, or Float16 for float32 pools that
// fit a nearer cache as that. Atoms are numbered in the order in which they became so.
template <typename T, typename S>
class ScreenedCorrelations {
 public:
  // The state at w = 0, or false when an estimate is not finite, which says nothing of what it
  // estimates. `support` is the solver's.
  bool begin(const T* const* rows, int64_t n_rows, const T* query, int64_t d, int64_t n_select,
             bool share_rows, Support& support) {
    rows_ = rows, query_ = query, n_rows_ = n_rows, n_ = padded(n_rows), d_ = d;
    support_ = &support, kernels_ = &kernels();
    support.begin(0);
    atom_of_.assign(size_t(n_rows), kNone);
    candidates_.clear(), exact_b_.clear(), exact_u_.clear();
    movers_.clear(), place_.clear(), moves_.clear();
    row_.assign(size_t(padded(d)), 0.0);
    const double lost = screen_rows();
    columns_.begin(screened_, rows, n_rows, d, n_select + 1, share_rows);
    if (!estimate_b(lost)) return false;
    std::fill_n(u_.reserve(n_), n_, 0.0);
    best_ = {-std::numeric_limits<double>::infinity(), 0};
    admit_contenders();
    return true;
  }

  // The largest correlation in the pool and its atom; the lowest candidate on ties.
  const ArgMax& best() const { return best_; }

  int64_t candidate(int64_t atom) const { return candidates_[size_t(atom)]; }
  double b(int64_t atom) const { return exact_b_[size_t(atom)]; }
  double u(int64_t atom) const { return exact_u_[size_t(atom)]; }

  // G[i, j] of two atoms.
  double gram(int64_t i, int64_t j) { return gram_row(i)[j]; }

  // Follows a step of the support toward s, away from a, or both.
  void follow(const Step<double>& step, int64_t s, int64_t a) {
    remember(step, s, a);
    follow_exactly(step, s, a);
    const double highest = kernels_->screened_step_max(
        b_.get(), u_.get(), n_, step.scale, step.toward, step.toward > 0 ? column(s) : nullptr,
        step.away, step.away > 0 ? column(a) : nullptr);
    if (highest + error_ >= best_.value) admit_contenders();
  }

 private:
  static constexpr int64_t kNone = -1;
  // Rows not asked for yet need no memory.
  struct GramRow {
    std::vector<double> values;  // of the first `known` atoms, then 0 in the padding
    int64_t known = 0;
  };

  int64_t n_atoms() const { return int64_t(candidates_.size()); }

  // ---- estimates, of every candidate that is no atom ------------------------------------------

  // Points screened_ at the rows in S; the largest norm of what a row lost.
  double screen_rows() {
    if constexpr (std::is_same_v<S, T>) {
      screened_ = rows_;
      return 0;
    } else {
      S* copy = copy_.reserve(n_rows_ * d_);
      copied_rows_.resize(size_t(n_rows_));
      double lost = 0;
      for (int64_t k = 0; k < n_rows_; ++k) {
        copied_rows_[size_t(k)] = copy + k * d_;
        lost = std::max(lost, kernels_->narrow(rows_[k], d_, copy + k * d_));
      }
      screened_ = copied_rows_.data();
      return std::sqrt(lost);
    }
  }

  bool estimate_b(double lost) {
    float* products = products_.reserve(2 * n_);
    float* squares = products + n_;
    double squared_query = 0;
    for (int64_t i = 0; i < d_; ++i) squared_query += widen(query_[i]) * widen(query_[i]);
    columns_.multiply_and_square(query_, products, squares);
    double* b = b_.reserve(n_);
    double poison = 0, largest = 0;
    for (int64_t k = 0; k < n_rows_; ++k) {
      b[k] = products[k];
      poison += (b[k] + squares[k]) * 0;
      largest = std::max(largest, double(squares[k]));
    }
    std::fill(b + n_rows_, b + n_, -std::numeric_limits<double>::infinity());
    error_ = screening_error(d_, {std::sqrt(squared_query), std::sqrt(largest) + lost, lost});
    return !std::isnan(poison) && std::isfinite(error_);
  }

  ArgMax highest_estimate() {
    return kernels_->step_argmax(b_.get(), u_.get(), n_, 1, 0, nullptr, 0, nullptr);
  }

  const float* column(int64_t atom) {
    const int64_t k = candidate(atom);
    if (const float* column = columns_.find(k)) return column;
    const ArgMax next = highest_estimate();
    return columns_.compute(k, std::isfinite(next.value) ? next.index : k, [this](int64_t i) {
      return atom_of_[size_t(i)] != kNone && support_->has(atom_of_[size_t(i)]);
    });
  }

  // ---- atoms ----------------------------------------------------------------------------------

  // Every candidate whose correlation may be the largest becomes an atom.
  void admit_contenders() {
    contenders_.assign(1, highest_estimate().index);
    admit();  // leaves few of the others within reach
    contenders_.clear();
    for (int64_t k = 0; k < n_rows_; ++k)
      if (b_.get()[k] - u_.get()[k] + error_ >= best_.value) contenders_.push_back(k);
    if (!contenders_.empty()) admit();
  }

  // The list of atoms that steps went toward or away from, and where in it an atom is.
  int64_t place_of_mover(int64_t atom) {
    int64_t& place = place_[size_t(atom)];
    if (place == kNone) {
      place = int64_t(movers_.size());
      movers_.push_back(atom);
      complete(atom);
    }
    return place;
  }

  void remember(const Step<double>& step, int64_t s, int64_t a) {
    const int64_t at_s = step.toward > 0 ? place_of_mover(s) : 0;
    const int64_t at_a = step.away > 0 ? place_of_mover(a) : 0;
    moves_.push_back({step.scale, step.toward, step.away, at_s, at_a});
  }

  // Makes atoms of contenders_.
  void admit() {
    const int64_t first = n_atoms();
    for (const int64_t k : contenders_) {
      atom_of_[size_t(k)] = n_atoms();
      candidates_.push_back(k);
      b_.get()[k] = -std::numeric_limits<double>::infinity();  // no estimate any more
      support_->admit();
    }
    make_room();
    atom_rows_.assign(1, query_);
    for (const int64_t atom : movers_) atom_rows_.push_back(rows_[candidate(atom)]);
    const int64_t m = int64_t(contenders_.size()), width = int64_t(atom_rows_.size());
    const double* products = exact_block();
    for (int64_t i = 0; i < m; ++i) {
      const double* of_atom = products + i * width;
      exact_b_[size_t(first + i)] = of_atom[0];
      exact_u_[size_t(first + i)] =
          kernels_->follow_moves(moves_.data(), int64_t(moves_.size()), of_atom + 1);
      for (size_t j = 0; j < movers_.size(); ++j)
        gram_[size_t(movers_[j])].values[size_t(first + i)] = of_atom[j + 1];
      see(first + i);
    }
    for (const int64_t atom : movers_) gram_[size_t(atom)].known = n_atoms();
  }

  // Room for all atoms in what has a value an atom.
  void make_room() {
    const size_t size = size_t(padded(n_atoms()));
    exact_b_.resize(size_t(n_atoms()));  // drops the padding, which is filled anew
    exact_b_.resize(size, -std::numeric_limits<double>::infinity());
    exact_u_.resize(size);
    place_.resize(candidates_.size(), kNone);
    if (gram_.size() < candidates_.size()) gram_.resize(candidates_.size());
    for (size_t i = candidates_.size() - contenders_.size(); i < candidates_.size(); ++i)
      gram_[i].known = 0;
    for (const int64_t atom : movers_) gram_[size_t(atom)].values.resize(size);
  }

  const double* gram_row(int64_t i) {
    if (gram_[size_t(i)].known < n_atoms()) complete(i);
    return gram_[size_t(i)].values.data();
  }

  // Computes what row i lacks. Once it is a mover's, `admit` keeps it whole.
  void complete(int64_t i) {
    GramRow& row = gram_[size_t(i)];
    if (row.known == 0) row.values.clear();
    row.values.resize(size_t(padded(n_atoms())));
    missing_.clear(), atom_rows_.clear();
    for (int64_t j = row.known; j < n_atoms(); ++j) {
      const GramRow& other = gram_[size_t(j)];
      if (other.known > i) {
        row.values[size_t(j)] = other.values[size_t(i)];
      } else {
        missing_.push_back(j);
        atom_rows_.push_back(rows_[candidate(j)]);
      }
    }
    double* products = block_.reserve(int64_t(missing_.size()));
    exact_products(atom_rows_, rows_[candidate(i)], products);
    for (size_t j = 0; j < missing_.size(); ++j) row.values[size_t(missing_[j])] = products[j];
    row.known = n_atoms();
  }

  void follow_exactly(const Step<double>& step, int64_t s, int64_t a) {
    const double highest = kernels_->step_max(
        exact_b_.data(), exact_u_.data(), padded(n_atoms()), step.scale, step.toward,
        step.toward > 0 ? gram_row(s) : nullptr, step.away, step.away > 0 ? gram_row(a) : nullptr);
    best_ = {highest, kNone};
    // A tie goes to the lowest candidate, not to the first atom.
    for (int64_t i = 0; i < n_atoms(); ++i)
      if (b(i) - u(i) == highest && (best_.index == kNone || candidate(i) < candidate(best_.index)))
        best_.index = i;
  }

  // Takes an atom into the running maximum.
  void see(int64_t atom) {
    const double c = b(atom) - u(atom);
    if (c > best_.value || (c == best_.value && candidate(atom) < candidate(best_.index)))
      best_ = {c, atom};
  }

  // [contenders_, atom_rows_] of float64 products, row by row or column by column, whichever is
  // fewer calls.
  const double* exact_block() {
    const size_t m = contenders_.size(), width = atom_rows_.size();
    double* block = block_.reserve(int64_t(m * width));
    if (m <= width) {
      for (size_t i = 0; i < m; ++i)
        exact_products(atom_rows_, rows_[contenders_[i]], block + i * width);
      return block;
    }
    contender_rows_.clear();
    for (const int64_t k : contenders_) contender_rows_.push_back(rows_[k]);
    double* of_row = of_row_.reserve(int64_t(m));
    for (size_t j = 0; j < width; ++j) {
      exact_products(contender_rows_, atom_rows_[j], of_row);
      for (size_t i = 0; i < m; ++i) block[i * width + j] = of_row[i];
    }
    return block;
  }

  void exact_products(const std::vector<const T*>& rows, const T* x, double* out) {
    for (int64_t i = 0; i < d_; ++i) row_[size_t(i)] = widen(x[i]);
    dot_rows<T, double> (*kernels_)(rows.data(), int64_t(rows.size()), row_.data(), 1, d_, &out);
  }

  const T* const* rows_ = nullptr;
  const T* query_ = nullptr;
  int64_t n_rows_ = 0, n_ = 0, d_ = 0;
  Support* support_ = nullptr;
  const Kernels* kernels_ = nullptr;
  double error_ = 0;

  const S* const* screened_ = nullptr;
  Aligned<S> copy_;
  std::vector<const S*> copied_rows_;
  GramColumns<S, float, T> columns_;
  AlignedDoubles b_, u_;  // of every candidate; b is -infinity for those that are atoms
  Aligned<float> products_;

  std::vector<int64_t> atom_of_;           // of each candidate, kNone: none
  std::vector<int64_t> candidates_;        // of each atom
  std::vector<double> exact_b_, exact_u_;  // of each atom, padded
  std::vector<GramRow> gram_;              // of each atom, and of more in queries before
  ArgMax best_{0, 0};
  std::vector<int64_t> movers_;     // atoms that a step went toward or away from
  std::vector<int64_t> place_;      // of each atom among them, kNone: none
  std::vector<SupportMove> moves_;  // every step, in terms of movers_

  std::vector<int64_t> contenders_, missing_;
  std::vector<const T*> atom_rows_, contender_rows_;
  std::vector<double> row_;  // a row widened, padded(d)
  AlignedDoubles block_, of_row_;
};

}  // namespace hullft
