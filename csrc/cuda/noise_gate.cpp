#include "noise_gate.h"

#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "cuda/glue.h"
#include "soft_top_k.h"

namespace autoselect {
namespace {

// The tensors of a call as the kernels read them; keeps converted copies alive.
//
// The part of the noise that channels share is a matrix product in the tokens' dtype, the same in
// forward and backward.
class PreparedGate {
 public:
  PreparedGate(const at::Tensor& tokens, const at::Tensor& gate, const NoiseTensors& noise)
      : tokens_(tokens.contiguous()),
        gate_(in_type(gate, work_type(tokens))),
        mean_(in_type(noise.mean, work_type(tokens))),
        std_(in_type(noise.std, work_type(tokens))),
        seed_(noise.seed),
        step_(noise.step),
        sample_ids_(noise.sample_ids.contiguous()) {
    if (!noise.factor.has_value()) return;
    AS_DISPATCH_TOKENS(tokens_.scalar_type(), [&] { common_ = common_noise<T>(*noise.factor); });
  }

  template <typename T>
  GateArgs<T> args(bool from_logits) const {
    using W = Work<T>;
    return {read<T>(tokens_),     read<W>(gate_),       from_logits,
            read<W>(mean_),       read<W>(std_),        read<T>(common_),
            read<int64_t>(seed_), read<int64_t>(step_), read<int64_t>(sample_ids_),
            tokens_.size(0),      tokens_.size(1),      tokens_.size(2)};
  }

  const at::Tensor& tokens() const { return tokens_; }
  const at::Tensor& gate() const { return gate_; }

 private:
  // factor^T eta of every token, [B N, D]
  template <typename T>
  at::Tensor common_noise(const at::Tensor& factor) const {
    const int64_t rank = factor.size(0);
    at::Tensor eta = at::empty({tokens_.size(0) * tokens_.size(1), rank}, tokens_.options());
    C10_CUDA_CHECK(launch_eta(args<T>(false), rank, write<T>(eta), stream_of(eta)));
    const ExactProducts guard;
    return at::mm(eta, in_type(factor, tokens_.scalar_type()));
  }

  at::Tensor tokens_, gate_, mean_, std_, common_, seed_, step_, sample_ids_;
};

at::Tensor run_forward(const PreparedGate& prepared, bool from_logits) {
  at::Tensor gated = at::empty_like(prepared.tokens());
  AS_DISPATCH_TOKENS(gated.scalar_type(), [&] {
    C10_CUDA_CHECK(
        launch_gate_forward(prepared.args<T>(from_logits), write<T>(gated), stream_of(gated)));
  });
  return gated;
}

// (dL/dtokens, dL/dlogit or dL/dgate of every token); the first is empty without `token_gradient`
std::tuple<at::Tensor, at::Tensor> run_backward(const PreparedGate& prepared, bool from_logits,
                                                const at::Tensor& grad, bool token_gradient) {
  const at::Tensor g = grad.contiguous();
  at::Tensor grad_tokens = token_gradient ? at::empty_like(prepared.tokens())
                                          : at::empty({0}, prepared.tokens().options());
  at::Tensor grad_gate = at::empty_like(prepared.gate());
  AS_DISPATCH_TOKENS(g.scalar_type(), [&] {
    C10_CUDA_CHECK(launch_gate_backward(prepared.args<T>(from_logits), read<T>(g),
                                        token_gradient ? write<T>(grad_tokens) : nullptr,
                                        write<Work<T>>(grad_gate), stream_of(g)));
  });
  return {grad_tokens, grad_gate};
}

}  // namespace

at::Tensor noise_gate_cuda(const at::Tensor& tokens, const at::Tensor& gates,
                           const at::Tensor& mean, const at::Tensor& std,
                           const OptionalTensor& factor, const at::Tensor& seed,
                           const at::Tensor& step, const at::Tensor& sample_ids) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gate_shape("gates", gates, tokens);
  const c10::cuda::CUDAGuard guard(tokens.device());
  return run_forward({tokens, gates, {mean, std, factor, seed, step, sample_ids}}, false);
}

std::tuple<at::Tensor, at::Tensor> noise_gate_backward_cuda(
    const at::Tensor& grad, const at::Tensor& tokens, const at::Tensor& gates,
    const at::Tensor& mean, const at::Tensor& std, const OptionalTensor& factor,
    const at::Tensor& seed, const at::Tensor& step, const at::Tensor& sample_ids,
    bool token_gradient) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gate_shape("gates", gates, tokens);
  check_grad(grad, tokens);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  auto [grad_tokens, grad_gates] =
      run_backward({tokens, gates, noise}, false, grad, token_gradient);
  return {grad_tokens, grad_gates.to(gates.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> soft_top_k_noise_gate_cuda(
    const at::Tensor& tokens, const at::Tensor& scores, const OptionalTensor& k_rows, int64_t k,
    const at::Tensor& temperature, const at::Tensor& mean, const at::Tensor& std,
    const OptionalTensor& factor, const at::Tensor& seed, const at::Tensor& step,
    const at::Tensor& sample_ids, const OptionalTensor& mask) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gate_shape("scores", scores, tokens);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const auto [gates, logits] = soft_top_k_cuda(scores, k_rows, k, temperature, mask);
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  return {run_forward({tokens, logits, noise}, true), gates, logits};
}

std::tuple<at::Tensor, at::Tensor> soft_top_k_noise_gate_backward_cuda(
    const at::Tensor& grad, const OptionalTensor& grad_gates, const at::Tensor& tokens,
    const at::Tensor& logits, const at::Tensor& temperature, const at::Tensor& mean,
    const at::Tensor& std, const OptionalTensor& factor, const at::Tensor& seed,
    const at::Tensor& step, const at::Tensor& sample_ids, bool token_gradient) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_logits(logits);
  check_gate_shape("logits", logits, tokens);
  check_grad(grad, tokens);
  if (grad_gates.has_value()) check_shape("grad_gates", *grad_gates, logits.sizes(), tokens);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  const auto [grad_tokens, grad_logits] =
      run_backward({tokens, logits, noise}, true, grad, token_gradient);
  return {grad_tokens, score_gradient_cuda(logits, grad_gates, grad_logits, temperature)};
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) {
  m.impl("noise_gate", &noise_gate_cuda);
  m.impl("noise_gate_backward", &noise_gate_backward_cuda);
  m.impl("soft_top_k_noise_gate", &soft_top_k_noise_gate_cuda);
  m.impl("soft_top_k_noise_gate_backward", &soft_top_k_noise_gate_backward_cuda);
}

}  // namespace autoselect
