// The gain of a token in diverse top-K, on host and device.
#pragma once

#include "platform.h"

namespace autoselect {

// Scores beyond this count as this: differences of them stay finite.
constexpr float kLargestRelevance = 8e37f;

// The score as relevance is scaled from it; NaN, which a CPU refuses, counts as the lowest.
AS_INLINE float relevance_score(float score) {
  if (!(score > -kLargestRelevance)) return -kLargestRelevance;
  return score > kLargestRelevance ? kLargestRelevance : score;
}

// Scaled to 0..1 within the row.
AS_INLINE float relevance(float score, float low, float high) {
  const float range = high - low;
  return (score - low) / (range > 1e-12f ? range : 1e-12f);
}

AS_INLINE float diverse_gain(float relevance, float nearest, float relevance_weight,
                             float diversity) {
  if (diversity == 0.0f) nearest = 0.0f;  // which may be infinite in marginal order
#if defined(__CUDA_ARCH__)
  return __fsub_rn(__fmul_rn(relevance_weight, relevance), __fmul_rn(diversity, nearest));
#else
  return relevance_weight * relevance - diversity * nearest;
#endif
}

// The length of a centred token, from its square; a token equal to the mean has no direction and
// similarity 0.
AS_INLINE float direction_length(float square) {
  const float length = sqrtf(square);
  return length > 1e-12f ? length : 1e-12f;
}

}  // namespace autoselect
