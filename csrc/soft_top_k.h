// Soft top-K: scores [B, N] -> gates and gate logits [B, N]. See autoselect/ops/soft_top_k.py.
#pragma once

#include "checks.h"

namespace autoselect {

// (gates, logits): logits are -inf at padded tokens and +inf if every token is kept.
std::tuple<at::Tensor, at::Tensor> soft_top_k_cpu(const at::Tensor& scores,
                                                  const OptionalTensor& k_rows, int64_t k,
                                                  const at::Tensor& temperature,
                                                  const OptionalTensor& mask);

// dL/dscores from dL/dgates and, or, dL/dlogits.
at::Tensor score_gradient_cpu(const at::Tensor& logits, const OptionalTensor& grad_gates,
                              const OptionalTensor& grad_logits, const at::Tensor& temperature);

at::Tensor soft_top_k_backward_cpu(const at::Tensor& grad_gates, const at::Tensor& logits,
                                   const at::Tensor& temperature);

// The same on the GPU; defined in CUDA builds only.
std::tuple<at::Tensor, at::Tensor> soft_top_k_cuda(const at::Tensor& scores,
                                                   const OptionalTensor& k_rows, int64_t k,
                                                   const at::Tensor& temperature,
                                                   const OptionalTensor& mask);
at::Tensor score_gradient_cuda(const at::Tensor& logits, const OptionalTensor& grad_gates,
                               const OptionalTensor& grad_logits, const at::Tensor& temperature);

}  // namespace autoselect
