// The arithmetic of Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019), arranged
// for several steps with one gradient: what a call shares, what changes from step to step, and the
// update of one element or one vector of them.
#pragma once

#include <cmath>
#include <cstdint>

#include "platform.h"

namespace hullft {

struct AdamOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled;  // weight decay as in AdamW
  bool maximize;
};

// What all steps of a call share.
template <typename R>
struct AdamRates {
  R sign;           // of the gradient: -1 to maximize
  R coupled_decay;  // g <- g + coupled_decay * p
  R keep;           // p <- keep * p: decoupled weight decay
  R blend;          // m <- (blend_from_grad ? g : m) + blend * (g - m)
  R beta2, square;  // v <- beta2 * v + square * g * g
  bool blend_from_grad;
};

// What changes from step to step: p <- p + rate * (m / (sqrt(v) + eps)).
template <typename R>
struct AdamStep {
  R rate, eps;
};

// Repeated steps. Steps past the table are as its last one.
template <typename R>
struct AdamSchedule {
  AdamRates<R> rates;
  const AdamStep<R>* steps;
  int64_t n_steps, repeats;
};

// As part of the gradient, or apart from it.
enum class WeightDecay { kNone, kCoupled, kDecoupled };

template <typename R>
HULLFT_HD WeightDecay weight_decay(const AdamRates<R>& rates) {
  if (rates.coupled_decay != R(0)) return WeightDecay::kCoupled;
  return rates.keep != R(1) ? WeightDecay::kDecoupled : WeightDecay::kNone;
}

template <typename V>
struct AdamState {
  V param, exp_avg, exp_avg_sq;
};

// decay: lr * weight_decay, rounded before it is taken from 1, as torch.optim.AdamW does.
template <typename R>
HULLFT_HD AdamRates<R> adam_rates(const AdamOptions& o, double decay) {
  const double weight = 1 - o.beta1;
  AdamRates<R> rates;
  rates.sign = o.maximize ? R(-1) : R(1);
  rates.coupled_decay = o.decoupled ? R(0) : R(o.weight_decay);
  rates.keep = o.decoupled ? R(1 - decay) : R(1);
  // From the nearer end, so that beta1 = 0 gives exactly g.
  rates.blend_from_grad = weight >= 0.5;
  rates.blend = rates.blend_from_grad ? R(weight) - R(1) : R(weight);
  rates.beta2 = R(o.beta2);
  rates.square = R(1 - o.beta2);
  return rates;
}

// A number as the sum of two doubles, the second within rounding of the first.
struct TwoDoubles {
  double high, low;
};

// The compiler may fuse no product of its own making into these, so that all devices agree.
HULLFT_HD TwoDoubles product(const TwoDoubles& a, const TwoDoubles& b) {
  const double high = fma(a.high, b.high, 0.0);
  const double low = fma(a.high, b.low, fma(a.low, b.high, fma(a.high, b.high, -high)));
  const double sum = high + low;
  return {sum, low - (sum - high)};
}

// beta^t for beta in [0, 1), rounded once. pow is another function on each device.
HULLFT_HD double power(double beta, double t) {
  constexpr double kLargest = 0x1p63;
  if (!(t < kLargest) || t != floor(t)) return pow(beta, t);
  TwoDoubles result{1, 0}, square{beta, 0};
  for (uint64_t left = uint64_t(t); left; left >>= 1) {
    if (left & 1) result = product(result, square);
    square = product(square, square);
  }
  return result.high;
}

// What makes up for moments that begin at zero: 1 - beta1^t and sqrt(1 - beta2^t).
struct AdamCorrections {
  double first, second;
};

// Step t, counted from 1.
HULLFT_HD AdamCorrections adam_corrections(const AdamOptions& o, double t) {
  return {1 - power(o.beta1, t), sqrt(1 - power(o.beta2, t))};
}

// Whether every later step has these too.
HULLFT_HD bool are_settled(const AdamCorrections& c) { return c.first == 1 && c.second == 1; }

// The textbook's lr / first * m / (sqrt(v) / second + eps) is multiplied through by `second`, which
// takes one of its two divisions an element away.
HULLFT_HD AdamStep<double> adam_step(const AdamOptions& o, const AdamCorrections& c) {
  return {-o.lr / c.first * c.second, o.eps * c.second};
}

// V is R or a vector of R. Math gives the exact square root and quotient, a fused multiply-add, and
// `product`, with which no later operation may be fused: parameters and moments are rounded where
// torch.optim.Adam rounds them, so that they stay its equals over any number of steps.
template <WeightDecay kDecay, typename Math, typename V, typename R>
HULLFT_HD void adam_moments(AdamState<V>& x, V grad, const AdamRates<R>& rates, const Math& math) {
  if constexpr (kDecay == WeightDecay::kCoupled)
    grad = math.fma(rates.coupled_decay, x.param, grad);
  const V anchor = rates.blend_from_grad ? grad : x.exp_avg;
  x.exp_avg = math.fma(rates.blend, grad - x.exp_avg, anchor);
  x.exp_avg_sq = math.fma(rates.square * grad, grad, math.product(rates.beta2, x.exp_avg_sq));
}

// With the direction exp_avg / (sqrt(exp_avg_sq) + eps).
template <WeightDecay kDecay, typename Math, typename V, typename R>
HULLFT_HD void adam_move(AdamState<V>& x, V direction, const AdamRates<R>& rates,
                         const AdamStep<R>& step, const Math& math) {
  if constexpr (kDecay == WeightDecay::kDecoupled) x.param = math.product(rates.keep, x.param);
  x.param = math.fma(step.rate, direction, x.param);
}

template <WeightDecay kDecay, typename Math, typename V, typename R>
HULLFT_HD void adam_update(AdamState<V>& x, V grad, const AdamRates<R>& rates,
                           const AdamStep<R>& step, const Math& math) {
  adam_moments<kDecay>(x, grad, rates, math);
  const V direction = math.quotient(x.exp_avg, math.root(x.exp_avg_sq) + step.eps);
  adam_move<kDecay>(x, direction, rates, step, math);
}

}  // namespace hullft
