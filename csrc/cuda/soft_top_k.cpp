#include "soft_top_k.h"

#include <torch/library.h>

#include "cuda/glue.h"

namespace autoselect {

std::tuple<at::Tensor, at::Tensor> soft_top_k_cuda(const at::Tensor& scores,
                                                   const OptionalTensor& k_rows, int64_t k,
                                                   const at::Tensor& temperature,
                                                   const OptionalTensor& mask) {
  check_soft_top_k(scores, k_rows, k, temperature, mask);
  const c10::cuda::CUDAGuard guard(scores.device());
  const at::Tensor input = in_type(scores, work_type(scores));
  const at::Tensor valid = in_type(mask, at::kBool);
  const at::Tensor budgets = in_type(k_rows, at::kLong);
  at::Tensor gates = at::empty_like(input);
  at::Tensor logits = at::empty_like(input);
  AS_DISPATCH_WORK(input.scalar_type(), [&] {
    const SoftTopKArgs<W> args = {
        read<W>(input), read<bool>(valid), read<int64_t>(budgets), k, device_scalar(temperature),
        input.size(0),  input.size(1)};
    C10_CUDA_CHECK(launch_soft_top_k(args, write<W>(gates), write<W>(logits), stream_of(input)));
  });
  return {gates, logits};
}

at::Tensor score_gradient_cuda(const at::Tensor& logits, const OptionalTensor& grad_gates,
                               const OptionalTensor& grad_logits, const at::Tensor& temperature) {
  check_temperature(temperature, logits);
  const at::Tensor u = logits.contiguous();
  const at::Tensor by_gate = in_type(grad_gates, u.scalar_type());
  const at::Tensor by_logit = in_type(grad_logits, u.scalar_type());
  at::Tensor grad_scores = at::empty_like(u);
  AS_DISPATCH_WORK(u.scalar_type(), [&] {
    const ScoreGradientArgs<W> args = {read<W>(u),        read<W>(by_gate),
                                       read<W>(by_logit), device_scalar(temperature),
                                       u.size(0),         u.size(1)};
    C10_CUDA_CHECK(launch_score_gradient(args, write<W>(grad_scores), stream_of(u)));
  });
  return grad_scores;
}

at::Tensor soft_top_k_backward_cuda(const at::Tensor& grad_gates, const at::Tensor& logits,
                                    const at::Tensor& temperature) {
  check_logits(logits);
  check_shape("grad_gates", grad_gates, logits.sizes(), logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  return score_gradient_cuda(logits, grad_gates, std::nullopt, temperature);
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) {
  m.impl("soft_top_k", &soft_top_k_cuda);
  m.impl("soft_top_k_backward", &soft_top_k_backward_cuda);
}

}  // namespace autoselect
