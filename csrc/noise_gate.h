// The noise gate, alone and fused with soft top-K. See autoselect/ops/noise_gate.py.
#pragma once

#include "checks.h"

namespace autoselect {

// What the noise of a call is drawn from.
struct NoiseTensors {
  const at::Tensor& mean;        // [D]
  const at::Tensor& std;         // [D]
  const OptionalTensor& factor;  // [r, D]
  const at::Tensor& seed;        // int64, 0-d
  const at::Tensor& step;        // int64, 0-d
  const at::Tensor& sample_ids;  // int64, [B]
};

at::Tensor noise_gate_cpu(const at::Tensor& tokens, const at::Tensor& gates, const at::Tensor& mean,
                          const at::Tensor& std, const OptionalTensor& factor,
                          const at::Tensor& seed, const at::Tensor& step,
                          const at::Tensor& sample_ids);

// (dL/dtokens, dL/dgates); the first is empty without `token_gradient`
std::tuple<at::Tensor, at::Tensor> noise_gate_backward_cpu(
    const at::Tensor& grad, const at::Tensor& tokens, const at::Tensor& gates,
    const at::Tensor& mean, const at::Tensor& std, const OptionalTensor& factor,
    const at::Tensor& seed, const at::Tensor& step, const at::Tensor& sample_ids,
    bool token_gradient);

// (gated tokens, gates, logits)
std::tuple<at::Tensor, at::Tensor, at::Tensor> soft_top_k_noise_gate_cpu(
    const at::Tensor& tokens, const at::Tensor& scores, const OptionalTensor& k_rows, int64_t k,
    const at::Tensor& temperature, const at::Tensor& mean, const at::Tensor& std,
    const OptionalTensor& factor, const at::Tensor& seed, const at::Tensor& step,
    const at::Tensor& sample_ids, const OptionalTensor& mask);

// (dL/dtokens, dL/dscores); the first is empty without `token_gradient`
std::tuple<at::Tensor, at::Tensor> soft_top_k_noise_gate_backward_cpu(
    const at::Tensor& grad, const OptionalTensor& grad_gates, const at::Tensor& tokens,
    const at::Tensor& logits, const at::Tensor& temperature, const at::Tensor& mean,
    const at::Tensor& std, const OptionalTensor& factor, const at::Tensor& seed,
    const at::Tensor& step, const at::Tensor& sample_ids, bool token_gradient);

}  // namespace autoselect
