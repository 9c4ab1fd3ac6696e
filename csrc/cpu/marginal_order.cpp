#include "marginal_order.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "relevance.h"

namespace autoselect {
namespace {

constexpr double kLargestWeight = 8e37;  // as in Python; 8e37f is a little less

// The order of one row; ties go to the lowest position.
void take_in_turn(const float* scores, const float* likeness, const bool* mask, int64_t num_tokens,
                  int64_t k, float weight, int64_t* order) {
  std::vector<float> nearest(num_tokens, -1.0f);
  std::vector<char> free(num_tokens, 1);
  if (mask != nullptr) std::copy(mask, mask + num_tokens, free.begin());
  for (int64_t step = 0; step < k; ++step) {
    int64_t best = -1;
    float largest = 0.0f;
    for (int64_t i = 0; i < num_tokens; ++i) {
      if (!free[i]) continue;
      const float score = relevance_score(scores[i]);
      const float gain = step == 0 ? score : diverse_gain(score, nearest[i], 1.0f, weight);
      if (best < 0 || gain > largest) {
        best = i;
        largest = gain;
      }
    }
    order[step] = best;
    if (best < 0) continue;
    free[best] = 0;
    const float* nearby = likeness + best * num_tokens;
    for (int64_t i = 0; i < num_tokens; ++i) nearest[i] = std::max(nearest[i], nearby[i]);
  }
}

}  // namespace

void check_marginal_order(const at::Tensor& scores, const at::Tensor& likeness, int64_t k,
                          double weight, const OptionalTensor& mask) {
  check_scores(scores, mask);
  check_float("likeness", likeness, 3);
  check_shape("likeness", likeness, {scores.size(0), scores.size(1), scores.size(1)}, scores);
  check_budget(k, scores.size(1));
  TORCH_CHECK_VALUE(weight >= 0 && weight <= kLargestWeight, "weight must be in 0..",
                    kLargestWeight, ", but is ", weight);
}

at::Tensor marginal_order_cpu(const at::Tensor& scores, const at::Tensor& likeness, int64_t k,
                              double weight, const OptionalTensor& mask) {
  check_marginal_order(scores, likeness, k, weight, mask);
  const int64_t num_tokens = scores.size(1);
  const at::Tensor score = in_type(scores, at::kFloat);
  const at::Tensor pairs = in_type(likeness, at::kFloat);
  const at::Tensor valid = in_type(mask, at::kBool);
  refuse_nan(score, valid);
  at::Tensor order = at::empty({scores.size(0), k}, scores.options().dtype(at::kLong));
  int64_t* out = order.mutable_data_ptr<int64_t>();
  const float* all_scores = score.const_data_ptr<float>();
  const float* all_pairs = pairs.const_data_ptr<float>();
  const bool* all_valid = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
  at::parallel_for(0, scores.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * num_tokens;
      take_in_turn(all_scores + at, all_pairs + at * num_tokens,
                   all_valid != nullptr ? all_valid + at : nullptr, num_tokens, k, float(weight),
                   out + row * k);
    }
  });
  return order;
}

}  // namespace autoselect
