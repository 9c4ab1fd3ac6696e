#include "hard_top_k.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "rank_key.h"

namespace autoselect {
namespace {

// The k-th largest key, one byte at a time from the top; `remaining` becomes the number of keys
// equal to it that belong to the k largest.
template <typename Key>
Key kth_largest(const std::vector<Key>& keys, int64_t k, int64_t& remaining) {
  Key prefix = 0;
  Key known = 0;
  remaining = k;
  for (int shift = 8 * int(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
    int64_t histogram[256] = {};
    for (const Key key : keys) {
      if ((key & known) == prefix) ++histogram[(key >> shift) & 0xff];
    }
    int digit = 255;
    while (histogram[digit] < remaining) remaining -= histogram[digit--];
    prefix |= Key(digit) << shift;
    known |= Key(0xff) << shift;
  }
  return prefix;
}

// Writes the positions of the k largest keys, and -1 up to slot `columns`; equal keys are taken
// from the lowest position on.
template <typename Key>
void write_positions(const std::vector<Key>& keys, int64_t k, int64_t columns, int64_t* positions) {
  int64_t equal_left = 0;
  const Key bound = kth_largest(keys, k, equal_left);
  int64_t written = 0;
  for (int64_t i = 0; i < int64_t(keys.size()); ++i) {
    const bool take = keys[i] > bound || (keys[i] == bound && equal_left-- > 0);
    if (take && keys[i] != 0) positions[written++] = i;
  }
  while (written < columns) positions[written++] = -1;
}

template <typename W>
bool make_keys(const W* scores, const bool* mask, std::vector<RankKey<W>>& keys) {
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool valid = mask == nullptr || mask[i];
    if (valid && scores[i] != scores[i]) return false;
    keys[i] = valid ? rank_key(scores[i]) : 0;
  }
  return true;
}

int64_t kept_per_task(int64_t bytes) { return std::max<int64_t>(1, 65536 / (bytes + 1)); }

}  // namespace

at::Tensor hard_top_k_cpu(const at::Tensor& scores, int64_t k, const OptionalTensor& mask,
                          const OptionalTensor& k_rows) {
  check_scores(scores, mask);
  const int64_t batch = scores.size(0);
  const int64_t num_tokens = scores.size(1);
  check_budget(k, num_tokens);
  if (k_rows.has_value()) check_row_budgets(*k_rows, k, scores);
  const at::Tensor budgets = in_type(k_rows, at::kLong);
  const int64_t* budget = budgets.defined() ? budgets.const_data_ptr<int64_t>() : nullptr;
  const at::Tensor input = in_type(scores, work_type(scores));
  const at::Tensor valid = in_type(mask, at::kBool);
  const bool* valid_data = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
  at::Tensor positions = at::empty({batch, k}, scores.options().dtype(at::kLong));
  int64_t* out = positions.mutable_data_ptr<int64_t>();
  std::atomic<int64_t> nan_row{-1};
  AS_DISPATCH_WORK(input.scalar_type(), [&] {
    const W* score_data = input.const_data_ptr<W>();
    const int64_t grain = std::max<int64_t>(1, 4096 / num_tokens);
    at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      std::vector<RankKey<W>> keys(num_tokens);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * num_tokens;
        if (make_keys(score_data + at, valid_data ? valid_data + at : nullptr, keys)) {
          write_positions(keys, budget ? budget[row] : k, k, out + row * k);
        } else {
          nan_row = row;
        }
      }
    });
  });
  TORCH_CHECK_VALUE(nan_row < 0, "scores must be numbers, but row ", nan_row.load(),
                    " contains NaN");
  return positions;
}

at::Tensor with_whole_rows(const at::Tensor& tokens) {
  return tokens.stride(2) == 1 || tokens.size(2) == 1 ? tokens : tokens.contiguous();
}

std::tuple<at::Tensor, at::Tensor> select_tokens_cpu(const at::Tensor& tokens,
                                                     const at::Tensor& scores, int64_t k,
                                                     const OptionalTensor& mask,
                                                     const OptionalTensor& k_rows) {
  check_float("tokens", tokens, 3);
  check_shape("scores", scores, tokens.sizes().slice(0, 2), tokens);
  const at::Tensor positions = hard_top_k_cpu(scores, k, mask, k_rows);
  const at::Tensor x = with_whole_rows(tokens);
  at::Tensor kept = at::empty({x.size(0), k, x.size(2)}, x.options());
  const int64_t bytes = x.size(2) * x.element_size();
  const int64_t row_stride = x.stride(0) * x.element_size();
  const int64_t token_stride = x.stride(1) * x.element_size();
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(kept.mutable_data_ptr());
  const int64_t* where = positions.const_data_ptr<int64_t>();
  at::parallel_for(0, x.size(0) * k, kept_per_task(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (where[i] < 0) {
        std::memset(to + i * bytes, 0, bytes);
      } else {
        std::memcpy(to + i * bytes, from + i / k * row_stride + where[i] * token_stride, bytes);
      }
    }
  });
  return {kept, positions};
}

void check_select_tokens_backward(const at::Tensor& grad, const at::Tensor& indices,
                                  int64_t num_tokens) {
  check_float("grad", grad, 3);
  check_shape("indices", indices, grad.sizes().slice(0, 2), grad);
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong, "indices must be int64, but are ",
                   indices.scalar_type());
  TORCH_CHECK_VALUE(num_tokens >= grad.size(1), "num_tokens must be at least the ", grad.size(1),
                    " kept tokens, but is ", num_tokens);
}

at::Tensor select_tokens_backward_cpu(const at::Tensor& grad, const at::Tensor& indices,
                                      int64_t num_tokens) {
  check_select_tokens_backward(grad, indices, num_tokens);
  const at::Tensor g = grad.contiguous();
  const at::Tensor where = indices.contiguous();
  const int64_t k = g.size(1);
  const int64_t bytes = g.size(2) * g.element_size();
  const int64_t* position = where.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < where.numel(); ++i) {
    TORCH_CHECK_INDEX(position[i] >= -1 && position[i] < num_tokens, "indices must be in -1..",
                      num_tokens - 1, ", but one is ", position[i]);
  }
  at::Tensor grad_tokens = at::zeros({g.size(0), num_tokens, g.size(2)}, g.options());
  const char* from = static_cast<const char*>(g.const_data_ptr());
  char* to = static_cast<char*>(grad_tokens.mutable_data_ptr());
  at::parallel_for(0, g.size(0) * k, kept_per_task(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (position[i] < 0) continue;
      std::memcpy(to + (i / k * num_tokens + position[i]) * bytes, from + i * bytes, bytes);
    }
  });
  return grad_tokens;
}

}  // namespace autoselect
