// Gate and amplitudes from the gate logit u, never forming 1 / sqrt(s).
//
//   s = sigmoid(u)
//   a = sqrt(s) = exp(logsigmoid(u) / 2),        da/du = a b^2 / 2
//   b = sqrt(1 - s) = exp(logsigmoid(-u) / 2),   db/du = -b a^2 / 2
#pragma once

#include "platform.h"

namespace autoselect {

// exp(x) for x <= 0, to about one unit in the last place; 0 below the smallest normal number.
AS_INLINE float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float value = p * (r * r) + r + 1.0f;
  const float scale = bits_float(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.0f ? 0.0f : value * scale;
#endif
}
AS_INLINE double exp_nonpositive(double x) { return exp(x); }

template <typename T>
AS_INLINE T magnitude(T x) {
  return x < T(0) ? -x : x;
}

template <typename T>
AS_INLINE T gate_from_logit(T u) {
  const T e = exp_nonpositive(-magnitude(u));
  return (u >= T(0) ? T(1) : e) / (T(1) + e);
}

// s (1 - s)
template <typename T>
AS_INLINE T gate_slope(T u) {
  const T e = exp_nonpositive(-magnitude(u));
  return e / ((T(1) + e) * (T(1) + e));
}

// The weight w of a token in the threshold's gradient, up to the row's common factor: s (1 - s)
// relative to the token nearest the threshold, so that saturated rows do not give 0 / 0.
template <typename T>
AS_INLINE T threshold_weight(T u, T nearest) {
  const T size = magnitude(u);
  const T e = exp_nonpositive(-size);
  return exp_nonpositive(nearest - size) / ((T(1) + e) * (T(1) + e));
}

// dL/dr of a token of a row without a gate between 0 and 1: 0, or NaN where the gate is NaN.
template <typename T>
AS_INLINE T settled_gradient(T u) {
  return u == u ? T(0) : u;
}

template <typename T>
struct Amplitudes {
  T a;  // of the token
  T b;  // of the noise
};

template <typename T>
AS_INLINE Amplitudes<T> amplitudes(T u) {
  const T half = exp_nonpositive(-magnitude(u) * T(0.5));
  const T larger = T(T(1) / sqrt(Wide<T>(T(1) + half * half)));
  const T smaller = half * larger;
  return u >= T(0) ? Amplitudes<T>{larger, smaller} : Amplitudes<T>{smaller, larger};
}

template <typename T>
AS_INLINE Amplitudes<T> amplitudes_of_gate(T gate) {
  return {T(sqrt(Wide<T>(gate))), T(sqrt(Wide<T>(T(1) - gate)))};
}

// A value times its amplitude; it does not count if that is 0, even where it is infinite or NaN.
template <typename T>
AS_INLINE T weighted(T amplitude, T value) {
  return amplitude == T(0) ? T(0) : amplitude * value;
}

// dL/du of a token from <G, x - mu> and <G, L eps>; 0 where one of the amplitudes is.
template <typename T>
AS_INLINE T logit_gradient(Amplitudes<T> amp, T dot_signal, T dot_noise) {
  if (amp.a * amp.b == T(0)) return T(0);
  return T(0.5) * amp.a * amp.b * (amp.b * dot_signal - amp.a * dot_noise);
}

// dL/ds of a token; 0 at s = 0 and s = 1, because it is not finite there.
template <typename T>
AS_INLINE T gate_gradient(Amplitudes<T> amp, T dot_signal, T dot_noise) {
  if (!(amp.a > T(0)) || !(amp.b > T(0))) return T(0);
  return T(0.5) * (dot_signal / amp.a - dot_noise / amp.b);
}

}  // namespace autoselect
