#include "diverse_top_k.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "relevance.h"

namespace autoselect {
namespace {

// A token that may be kept next, and what it gains at most.
struct Candidate {
  float gain;
  int64_t position;
};

// Whether `one` is kept after `other`: the larger gain goes first, then the lower position.
bool goes_after(const Candidate& one, const Candidate& other) {
  return one.gain != other.gain ? one.gain < other.gain : one.position > other.position;
}

// Restores a heap whose first element has become smaller.
void sink_first(std::vector<Candidate>& heap) {
  const Candidate moved = heap[0];
  size_t hole = 0;
  for (size_t child = 1; child < heap.size(); child = 2 * hole + 1) {
    if (child + 1 < heap.size() && goes_after(heap[child], heap[child + 1])) ++child;
    if (!goes_after(moved, heap[child])) break;
    heap[hole] = heap[child];
    hole = child;
  }
  heap[hole] = moved;
}

// The kept tokens of one row. A gain only falls when more tokens are kept, so a candidate is
// compared with the kept tokens one after another, and only while it is the best: few of the
// N x K similarities are ever computed, and the result is that of computing all of them.
template <typename T>
class GreedyRow {
 public:
  GreedyRow(const T* tokens, const float* scores, const bool* mask, int64_t num_tokens,
            int64_t width, float diversity, float relevance_weight)
      : tokens_(tokens),
        width_(width),
        diversity_(diversity),
        relevance_weight_(relevance_weight),
        relevance_(num_tokens),
        nearest_(num_tokens, -1.0f),
        length_(num_tokens),
        seen_(num_tokens, 0),
        mean_(width) {
    std::vector<int64_t> valid;
    for (int64_t i = 0; i < num_tokens; ++i) {
      if (mask == nullptr || mask[i]) valid.push_back(i);
    }
    scale_relevance(scores, valid);
    kernels_.mean(tokens, valid.data(), int64_t(valid.size()), width, mean_.data());
    // The first token is that of the best score: scaling may make scores equal.
    for (const int64_t i : valid) heap_.push_back({relevance_score(scores[i]), i});
  }

  // The positions of up to k tokens, in the order in which they are kept.
  std::vector<int64_t> keep(int64_t k) {
    std::vector<int64_t> kept;
    k = std::min(k, int64_t(heap_.size()));
    if (k == 0) return kept;
    directions_.reserve(k * width_);
    const auto first = std::max_element(heap_.begin(), heap_.end(), goes_after);
    kept.push_back(first->position);
    heap_.erase(first);
    if (int64_t(kept.size()) < k) add_direction(kept[0]);
    for (Candidate& candidate : heap_) candidate.gain = gain(candidate.position);
    std::make_heap(heap_.begin(), heap_.end(), goes_after);
    while (int64_t(kept.size()) < k) {
      const int64_t position = heap_[0].position;
      if (seen_[position] < int64_t(kept.size())) {
        compare(position, int64_t(kept.size()));
        continue;
      }
      std::pop_heap(heap_.begin(), heap_.end(), goes_after);
      heap_.pop_back();
      kept.push_back(position);
      if (int64_t(kept.size()) < k) add_direction(position);
    }
    return kept;
  }

 private:
  void scale_relevance(const float* scores, const std::vector<int64_t>& valid) {
    float low = INFINITY;
    float high = -INFINITY;
    for (const int64_t i : valid) {
      relevance_[i] = relevance_score(scores[i]);
      low = std::min(low, relevance_[i]);
      high = std::max(high, relevance_[i]);
    }
    for (const int64_t i : valid) relevance_[i] = relevance(relevance_[i], low, high);
  }

  float gain(int64_t i) const {
    return diverse_gain(relevance_[i], nearest_[i], relevance_weight_, diversity_);
  }

  const T* token(int64_t i) const { return tokens_ + i * width_; }

  // The length of the centred token.
  float length(int64_t i) {
    if (length_[i] == 0.0f) {
      length_[i] = direction_length(kernels_.centred_square(token(i), mean_.data(), width_));
    }
    return length_[i];
  }

  void add_direction(int64_t i) {
    const size_t start = directions_.size();
    directions_.resize(start + width_);
    kernels_.direction(token(i), mean_.data(), length(i), width_, directions_.data() + start);
  }

  // Compares the best candidate with the next kept tokens that it has not seen: several at once,
  // because most candidates see more than one, and each reads token and mean only once.
  void compare(int64_t i, int64_t kept) {
    const float* directions = directions_.data() + seen_[i] * width_;
    const int64_t count = std::min(kDirections, kept - seen_[i]);
    float dots[kDirections];
    kernels_.centred_dots(token(i), mean_.data(), directions, count, width_, dots);
    seen_[i] += count;
    const float before = nearest_[i];
    for (int64_t other = 0; other < count; ++other) {
      const float similarity = dots[other] / length(i);
      if (similarity > nearest_[i]) nearest_[i] = similarity;
    }
    if (nearest_[i] == before) return;
    heap_[0].gain = gain(i);
    sink_first(heap_);
  }

  const TokenKernels<T>& kernels_ = token_kernels<T>();
  const T* tokens_;
  int64_t width_;
  float diversity_;
  float relevance_weight_;
  std::vector<float> relevance_;  // 0..1
  std::vector<float> nearest_;    // largest similarity to the kept tokens that it has seen
  std::vector<float> length_;     // 0 while unknown
  std::vector<int64_t> seen_;     // of the kept tokens, the first so many
  std::vector<float> mean_;
  std::vector<float> directions_;  // unit vectors of the kept tokens
  std::vector<Candidate> heap_;
};

}  // namespace

void check_diverse_top_k(const at::Tensor& scores, const at::Tensor& tokens, int64_t k,
                         double diversity, const OptionalTensor& mask,
                         const OptionalTensor& k_rows) {
  check_scores(scores, mask);
  check_float("tokens", tokens, 3);
  check_shape("scores", scores, tokens.sizes().slice(0, 2), tokens);
  check_budget(k, scores.size(1));
  if (k_rows.has_value()) check_row_budgets(*k_rows, k, scores);
  TORCH_CHECK_VALUE(diversity >= 0 && diversity <= 1, "diversity must be in 0..1, but is ",
                    diversity);
}

at::Tensor diverse_top_k_cpu(const at::Tensor& scores, const at::Tensor& tokens, int64_t k,
                             double diversity, const OptionalTensor& mask,
                             const OptionalTensor& k_rows) {
  check_diverse_top_k(scores, tokens, k, diversity, mask, k_rows);
  const int64_t batch = scores.size(0);
  const int64_t num_tokens = scores.size(1);
  const int64_t width = tokens.size(2);
  const at::Tensor score = in_type(scores, at::kFloat);
  const at::Tensor x = tokens.contiguous();
  const at::Tensor valid = in_type(mask, at::kBool);
  const at::Tensor budgets = in_type(k_rows, at::kLong);
  refuse_nan(score, valid);
  at::Tensor positions = at::full({batch, k}, -1, scores.options().dtype(at::kLong));
  int64_t* out = positions.mutable_data_ptr<int64_t>();
  AS_DISPATCH_TOKENS(x.scalar_type(), [&] {
    const T* data = static_cast<const T*>(x.const_data_ptr());
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const bool* row_mask =
            valid.defined() ? valid.const_data_ptr<bool>() + row * num_tokens : nullptr;
        GreedyRow<T> greedy(data + row * num_tokens * width,
                            score.const_data_ptr<float>() + row * num_tokens, row_mask, num_tokens,
                            width, float(diversity), float(1 - diversity));
        const int64_t budget = budgets.defined() ? budgets.const_data_ptr<int64_t>()[row] : k;
        std::vector<int64_t> kept = greedy.keep(budget);
        std::sort(kept.begin(), kept.end());
        std::copy(kept.begin(), kept.end(), out + row * k);
      }
    });
  });
  return positions;
}

}  // namespace autoselect
