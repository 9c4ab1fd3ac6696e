// The search for the threshold theta of a soft top-K row: safeguarded Newton, host and device.
//
// theta is kept as an unevaluated sum of two numbers. Scores near 1e4 with a temperature of 1e-3
// need a threshold finer than one unit in the last place of the score.
#pragma once

#include "gate_math.h"

namespace autoselect {

template <typename T>
struct Threshold {
  T base;
  T rest;
};

// threshold + step, exact to the rounding of the step (Knuth's two-sum).
template <typename T>
AS_INLINE Threshold<T> moved(Threshold<T> threshold, T step) {
  const T small = threshold.rest + step;
  const T base = threshold.base + small;
  const T part = base - threshold.base;
  return {base, (threshold.base - (base - part)) + (small - part)};
}

template <typename T>
AS_INLINE T distance(Threshold<T> from, Threshold<T> to) {
  return (to.base - from.base) + (to.rest - from.rest);
}

template <typename T>
AS_INLINE T gate_logit(T score, Threshold<T> threshold, T inverse_temperature) {
  return ((score - threshold.base) - threshold.rest) * inverse_temperature;
}

// Scores beyond this count as this: sums and differences of them stay finite.
template <typename T>
AS_INLINE T largest_score() {
  return sizeof(T) == 8 ? T(1e60) : T(8e37f);
}

template <typename T>
struct RowSummary {
  T mean, variance, smallest, largest;
};

// Each gate is within sigmoid(-|u|) of 0 or 1, so the excess sum(s) - K is the whole number
// `above - K` plus signed small terms, and keeps its precision when every gate is saturated.
template <typename T>
struct RowExcess {
  T above;         // how many logits are positive
  T signed_terms;  // sum of -sigmoid(-u) over positive and sigmoid(u) over other logits
  T slope;         // sum of s (1 - s)
};

template <typename T>
AS_INLINE void add_token(RowExcess<T>& sum, T u) {
  const T e = exp_nonpositive(-magnitude(u));
  const T small = e / (T(1) + e);
  const bool above = u > T(0);
  sum.above += above ? T(1) : T(0);
  sum.signed_terms += above ? -small : small;
  sum.slope += small * (T(1) - small);
}

template <typename T>
struct ThresholdSearch {
  Threshold<T> current, low, high;
  T budget, temperature, last_step, step_before;
  bool done;

  // The bracket is exact: N sigmoid((smallest - low) / tau) = K, and likewise above. The start
  // solves the row as if its scores were Gaussian, with sigmoid(x) ~ normal CDF(x / 1.702).
  AS_MEMBER void begin(RowSummary<T> row, T k, T count, T tau) {
    budget = k;
    temperature = tau;
    done = false;
    const T shift = T(log(Wide<T>(k / (count - k))));
    low = moved(Threshold<T>{row.smallest, T(0)}, -tau * shift);
    high = moved(Threshold<T>{row.largest, T(0)}, -tau * shift);
    last_step = step_before = distance(low, high);
    const T spread = T(sqrt(Wide<T>(row.variance * T(0.3452) + tau * tau)));
    current = moved(Threshold<T>{row.mean, T(0)}, -spread * shift);
    const bool inside = distance(low, current) >= T(0) && distance(current, high) >= T(0);
    if (!inside) current = moved(low, T(0.5) * last_step);
  }

  // Takes the excess at `current`; moves on or sets `done`. A Newton step that leaves the bracket,
  // or is not half of the step before last, gives way to bisection, so every row ends.
  AS_MEMBER void advance(RowExcess<T> row) {
    const T excess = (row.above - budget) + row.signed_terms;
    const T tolerance = (sizeof(T) == 8 ? T(4e-15) : T(2e-6f)) * row.slope;
    if (magnitude(excess) <= tolerance) {
      done = true;
      return;
    }
    if (excess > T(0)) {
      low = current;
    } else {
      high = current;
    }
    const T newton = temperature * (excess / row.slope);
    const Threshold<T> candidate = moved(current, newton);
    const bool quick = T(2) * magnitude(newton) < magnitude(step_before) &&
                       distance(low, candidate) > T(0) && distance(candidate, high) > T(0);
    const Threshold<T> next = quick ? candidate : moved(low, T(0.5) * distance(low, high));
    const T step = distance(current, next);
    done = !(step != T(0)) || step != step;
    step_before = last_step;
    last_step = step;
    current = next;
  }
};

constexpr int kMaxIterations = 600;

}  // namespace autoselect
