#include "soft_top_k.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "threshold.h"

namespace autoselect {
namespace {

int64_t rows_per_task(int64_t num_tokens) { return std::max<int64_t>(1, 4096 / (num_tokens + 1)); }

template <typename W>
struct Row {
  const W* scores;
  const bool* mask;  // null: all valid
  int64_t num_tokens;
};

// Collects the valid scores and their positions; false if one is NaN.
template <typename W>
bool collect(const Row<W>& row, std::vector<W>& scores, std::vector<int64_t>& positions) {
  scores.clear();
  positions.clear();
  const W limit = largest_score<W>();
  for (int64_t i = 0; i < row.num_tokens; ++i) {
    if (row.mask != nullptr && !row.mask[i]) continue;
    const W score = row.scores[i];
    if (score != score) return false;
    scores.push_back(score > limit ? limit : score < -limit ? -limit : score);
    positions.push_back(i);
  }
  return true;
}

template <typename W>
void solve_collected(const std::vector<W>& scores, const std::vector<int64_t>& positions,
                     int64_t budget, W temperature, W* gates, W* logits) {
  const int64_t count = int64_t(scores.size());
  if (count <= budget) {
    for (const int64_t i : positions) {
      gates[i] = W(1);
      logits[i] = std::numeric_limits<W>::infinity();
    }
    return;
  }
  std::vector<W> row_logits(count), row_gates(count);
  row_kernels<W>().solve(scores.data(), count, W(budget), temperature, row_logits.data(),
                         row_gates.data());
  for (int64_t i = 0; i < count; ++i) {
    gates[positions[i]] = row_gates[i];
    logits[positions[i]] = row_logits[i];
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> soft_top_k_cpu(const at::Tensor& scores,
                                                  const OptionalTensor& k_rows, int64_t k,
                                                  const at::Tensor& temperature,
                                                  const OptionalTensor& mask) {
  check_soft_top_k(scores, k_rows, k, temperature, mask);
  const double tau = *temperature.const_data_ptr<double>();
  const int64_t batch = scores.size(0);
  const int64_t num_tokens = scores.size(1);
  const at::Tensor input = in_type(scores, work_type(scores));
  const at::Tensor valid = in_type(mask, at::kBool);
  const at::Tensor budgets = in_type(k_rows, at::kLong);
  const bool* valid_data = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
  const int64_t* budget_data = budgets.defined() ? budgets.const_data_ptr<int64_t>() : nullptr;

  at::Tensor gates = at::zeros_like(input);
  at::Tensor logits = at::full_like(input, -std::numeric_limits<double>::infinity());
  std::atomic<int64_t> nan_row{-1};
  AS_DISPATCH_WORK(input.scalar_type(), [&] {
    const W* score_data = input.const_data_ptr<W>();
    W* gate_data = gates.mutable_data_ptr<W>();
    W* logit_data = logits.mutable_data_ptr<W>();
    at::parallel_for(0, batch, rows_per_task(num_tokens), [&](int64_t begin, int64_t end) {
      std::vector<W> row_scores;
      std::vector<int64_t> positions;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * num_tokens;
        const Row<W> tokens = {score_data + at, valid_data ? valid_data + at : nullptr, num_tokens};
        if (!collect(tokens, row_scores, positions)) {
          nan_row = row;
          continue;
        }
        solve_collected(row_scores, positions, budget_data ? budget_data[row] : k, W(tau),
                        gate_data + at, logit_data + at);
      }
    });
  });
  TORCH_CHECK_VALUE(nan_row < 0, "scores must be numbers, but row ", nan_row.load(),
                    " contains NaN");
  return {gates, logits};
}

at::Tensor score_gradient_cpu(const at::Tensor& logits, const OptionalTensor& grad_gates,
                              const OptionalTensor& grad_logits, const at::Tensor& temperature) {
  check_temperature(temperature, logits);
  const double tau = *temperature.const_data_ptr<double>();
  const int64_t batch = logits.size(0);
  const int64_t num_tokens = logits.size(1);
  const at::Tensor u = logits.contiguous();
  const at::Tensor by_gate = in_type(grad_gates, u.scalar_type());
  const at::Tensor by_logit = in_type(grad_logits, u.scalar_type());
  at::Tensor grad_scores = at::empty_like(u);
  AS_DISPATCH_WORK(u.scalar_type(), [&] {
    const W* u_data = u.const_data_ptr<W>();
    const W* gate_data = by_gate.defined() ? by_gate.const_data_ptr<W>() : nullptr;
    const W* logit_data = by_logit.defined() ? by_logit.const_data_ptr<W>() : nullptr;
    W* out = grad_scores.mutable_data_ptr<W>();
    at::parallel_for(0, batch, rows_per_task(num_tokens), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * num_tokens;
        row_kernels<W>().score_gradient(u_data + at, gate_data ? gate_data + at : nullptr,
                                        logit_data ? logit_data + at : nullptr, num_tokens, W(tau),
                                        out + at);
      }
    });
  });
  return grad_scores;
}

at::Tensor soft_top_k_backward_cpu(const at::Tensor& grad_gates, const at::Tensor& logits,
                                   const at::Tensor& temperature) {
  check_logits(logits);
  check_shape("grad_gates", grad_gates, logits.sizes(), logits);
  return score_gradient_cpu(logits, grad_gates, std::nullopt, temperature);
}

}  // namespace autoselect
