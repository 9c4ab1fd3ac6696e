// Philox4x32-10 and Box-Muller: normals that are a pure function of seed, step and position.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
// The counter layout is described in autoselect/ops/philox.py, which computes the same integers.
#pragma once

#include "platform.h"

namespace autoselect {

struct PhiloxKey {
  uint32_t low;
  uint32_t high;
};

struct PhiloxWords {
  uint32_t x0, x1, x2, x3;
};

constexpr uint32_t kStreamTag = 0x41535431u;

// Most rows of the factor, which share noise among the channels of a token.
constexpr int64_t kLargestRank = 64;

AS_INLINE PhiloxWords philox4x32(PhiloxWords c, PhiloxKey key) {
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(c.x0) * 0xD2511F53u;
    const uint64_t product1 = uint64_t(c.x2) * 0xCD9E8D57u;
    c = {uint32_t(product1 >> 32) ^ c.x1 ^ key.low, uint32_t(product1),
         uint32_t(product0 >> 32) ^ c.x3 ^ key.high, uint32_t(product0)};
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return c;
}

// The key of all noise of one step of one run.
AS_INLINE PhiloxKey stream_key(int64_t seed, int64_t step) {
  const PhiloxWords counter = {uint32_t(step), uint32_t(uint64_t(step) >> 32), 0u, kStreamTag};
  const PhiloxWords words = philox4x32(counter, {uint32_t(seed), uint32_t(uint64_t(seed) >> 32)});
  return {words.x0, words.x1};
}

// Random words of channels 4 * block .. 4 * block + 3 of one token.
AS_INLINE PhiloxWords noise_words(PhiloxKey stream, uint32_t block, uint32_t token,
                                  int64_t sample) {
  return philox4x32({block, token, uint32_t(sample), uint32_t(uint64_t(sample) >> 32)}, stream);
}

// -2 ln(u) for u in (0, 1], to about one unit in the last place (polynomial of Cephes' logf).
AS_INLINE float minus_two_log(float u) {
  const uint32_t shifted = float_bits(u) - 0x3f3504f3u;
  const float exponent = float(int32_t(shifted) >> 23);
  const float x = bits_float((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const float square = x * x;
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float tail = x * square * p - 2.12194440e-4f * exponent - 0.5f * square;
  return -2.0f * (tail + x + 0.693359375f * exponent);
}

// cos and sin of 2 pi word / 2^32: the quarter turn from the top bits, a polynomial for the rest.
AS_INLINE void cos_sin_turn(uint32_t word, float& cosine, float& sine) {
  const uint32_t quarter = (word + 0x20000000u) >> 30;
  const float angle = float(int32_t(word - (quarter << 30))) * 1.4629180792671596e-9f;
  const float square = angle * angle;
  const float s = ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) *
                      square * angle +
                  angle;
  const float c =
      ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
          square * square -
      0.5f * square + 1.0f;
  const bool swap = quarter & 1u;
  cosine = bits_float(float_bits(swap ? s : c) ^ (((quarter + 1u) & 2u) << 30));
  sine = bits_float(float_bits(swap ? c : s) ^ ((quarter & 2u) << 30));
}

// Two standard normals from two random words. `fine` is read on a GPU alone: without it a normal
// near zero is off by up to 5e-4.
template <bool fine = true>
AS_INLINE void box_muller(uint32_t first, uint32_t second, float& normal0, float& normal1) {
  const float uniform = float(first) * 0x1p-32f + 0x1p-33f;
#if defined(__CUDA_ARCH__)
  // The special-function unit is accurate to 2^-21 here, and free beside the integer work.
  float radius;
  if constexpr (fine) {
    radius = __fsqrt_rn(fmaxf(minus_two_log(uniform), 0.0f));
  } else {
    asm("sqrt.approx.f32 %0, %1;" : "=f"(radius) : "f"(fmaxf(-2.0f * __logf(uniform), 0.0f)));
  }
  float sine, cosine;
  __sincosf(float(int32_t(second)) * 1.4629180792671596e-9f, &sine, &cosine);
#else
  const float squared = minus_two_log(uniform);
  const float radius = std::sqrt(squared > 0.0f ? squared : 0.0f);
  float sine, cosine;
  cos_sin_turn(second, cosine, sine);
#endif
  normal0 = radius * cosine;
  normal1 = radius * sine;
}

}  // namespace autoselect
