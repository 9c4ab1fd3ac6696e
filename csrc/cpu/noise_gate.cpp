#include "noise_gate.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "gate_math.h"
#include "soft_top_k.h"

namespace autoselect {
namespace {

int64_t tokens_per_task(int64_t width) { return std::max<int64_t>(1, 16384 / (width + 1)); }

// The factor [r, D] as NoiseSource wants it, [blocks, r, kFactorBlock].
at::Tensor packed_factor(const OptionalTensor& factor, at::ScalarType type) {
  if (!factor.has_value()) return at::Tensor();
  const int64_t rank = factor->size(0);
  const int64_t width = factor->size(1);
  const int64_t blocks = (width + kFactorBlock - 1) / kFactorBlock;
  const at::Tensor padded =
      at::constant_pad_nd(factor->to(type), {0, blocks * kFactorBlock - width});
  return padded.reshape({rank, blocks, kFactorBlock}).transpose(0, 1).contiguous();
}

// The noise tensors in work precision, and what the kernels read of them.
template <typename W>
class PreparedNoise {
 public:
  PreparedNoise(const at::Tensor& tokens, const NoiseTensors& noise)
      : mean_(in_type(noise.mean, work_type(tokens))),
        std_(in_type(noise.std, work_type(tokens))),
        factor_(packed_factor(noise.factor, work_type(tokens))),
        sample_ids_(noise.sample_ids.contiguous()) {
    const int64_t seed = *noise.seed.const_data_ptr<int64_t>();
    const int64_t step = *noise.step.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(seed >= 0 && step >= 0, "seed and step must not be negative, but are ", seed,
                      " and ", step);
    source_ = {mean_.const_data_ptr<W>(),
               std_.const_data_ptr<W>(),
               factor_.defined() ? factor_.const_data_ptr<W>() : nullptr,
               factor_.defined() ? factor_.size(1) : 0,
               tokens.size(2),
               stream_key(seed, step)};
    ids_ = sample_ids_.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < sample_ids_.numel(); ++row) {
      TORCH_CHECK_VALUE(ids_[row] >= 0, "sample_ids must not be negative, but row ", row, " has ",
                        ids_[row]);
    }
    for (int64_t c = 0; c < source_.width; ++c) {
      TORCH_CHECK_VALUE(source_.std[c] >= 0, "std must not be negative, but channel ", c, " has ",
                        source_.std[c]);
    }
  }

  const NoiseSource<W>& source() const { return source_; }

  // Tokens begin .. end - 1 of the flattened batch, or the first kGroup of them. Only a factor is
  // worth a group: its rows are then read once for all tokens.
  template <typename AmplitudesOf>
  TokenGroup<W> group(int64_t begin, int64_t end, int64_t num_tokens,
                      const AmplitudesOf& amplitudes_of) const {
    TokenGroup<W> group;
    group.count = std::min(end - begin, source_.factor != nullptr ? kGroup : int64_t(1));
    for (int64_t t = 0; t < group.count; ++t) {
      const int64_t i = begin + t;
      const Amplitudes<W> amp = amplitudes_of(i);
      group.places[t] = {uint32_t(i % num_tokens), ids_[i / num_tokens]};
      group.a[t] = amp.a;
      group.b[t] = amp.b;
    }
    return group;
  }

 private:
  at::Tensor mean_, std_, factor_, sample_ids_;
  NoiseSource<W> source_;
  const int64_t* ids_;
};

template <typename T>
const T* read(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// `amplitudes_of(i)` gives a and b of token i of the flattened batch.
template <typename T, typename AmplitudesOf>
at::Tensor run_forward(const at::Tensor& tokens, const NoiseTensors& noise,
                       const AmplitudesOf& amplitudes_of) {
  using W = Work<T>;
  const at::Tensor x = tokens.contiguous();
  at::Tensor out = at::empty_like(x);
  const PreparedNoise<W> prepared(tokens, noise);
  const int64_t num_tokens = x.size(1);
  const int64_t width = x.size(2);
  const T* x_data = read<T>(x);
  T* out_data = static_cast<T*>(out.mutable_data_ptr());
  const TokenKernels<T>& kernels = token_kernels<T>();
  at::parallel_for(
      0, x.size(0) * num_tokens, tokens_per_task(width), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
          const TokenGroup<W> group = prepared.group(i, end, num_tokens, amplitudes_of);
          kernels.forward(x_data + i * width, out_data + i * width, prepared.source(), group);
          i += group.count;
        }
      });
  return out;
}

// Returns dL/dtokens, or without `token_gradient` an empty tensor; `receive(i, amplitudes,
// dot_signal, dot_noise)` takes each token's products.
template <typename T, typename AmplitudesOf, typename Receive>
at::Tensor run_backward(const at::Tensor& grad, const at::Tensor& tokens, const NoiseTensors& noise,
                        bool token_gradient, const AmplitudesOf& amplitudes_of,
                        const Receive& receive) {
  using W = Work<T>;
  const at::Tensor x = tokens.contiguous();
  const at::Tensor g = grad.contiguous();
  at::Tensor grad_x = token_gradient ? at::empty_like(x) : at::empty({0}, x.options());
  const PreparedNoise<W> prepared(tokens, noise);
  const int64_t num_tokens = x.size(1);
  const int64_t width = x.size(2);
  const T* x_data = read<T>(x);
  const T* g_data = read<T>(g);
  T* out_data = static_cast<T*>(grad_x.mutable_data_ptr());
  const TokenKernels<T>& kernels = token_kernels<T>();
  at::parallel_for(
      0, x.size(0) * num_tokens, tokens_per_task(width), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
          const TokenGroup<W> group = prepared.group(i, end, num_tokens, amplitudes_of);
          W dots[kGroup][2];
          T* out = token_gradient ? out_data + i * width : nullptr;
          kernels.backward(g_data + i * width, x_data + i * width, out, prepared.source(), group,
                           dots);
          for (int64_t t = 0; t < group.count; ++t) {
            receive(i + t, {group.a[t], group.b[t]}, dots[t][0], dots[t][1]);
          }
          i += group.count;
        }
      });
  return grad_x;
}

void check_gates(const at::Tensor& gates, const at::Tensor& tokens) {
  check_gate_shape("gates", gates, tokens);
  const bool inside = gates.numel() == 0 || (gates.ge(0) & gates.le(1)).all().item<bool>();
  TORCH_CHECK_VALUE(inside, "gates must lie in 0..1, but reach from ", gates.min().item<double>(),
                    " to ", gates.max().item<double>());
}

}  // namespace

at::Tensor noise_gate_cpu(const at::Tensor& tokens, const at::Tensor& gates, const at::Tensor& mean,
                          const at::Tensor& std, const OptionalTensor& factor,
                          const at::Tensor& seed, const at::Tensor& step,
                          const at::Tensor& sample_ids) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gates(gates, tokens);
  const at::Tensor s = in_type(gates, work_type(tokens));
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  return AS_DISPATCH_TOKENS(tokens.scalar_type(), [&] {
    const Work<T>* s_data = read<Work<T>>(s);
    return run_forward<T>(tokens, noise, [&](int64_t i) { return amplitudes_of_gate(s_data[i]); });
  });
}

std::tuple<at::Tensor, at::Tensor> noise_gate_backward_cpu(
    const at::Tensor& grad, const at::Tensor& tokens, const at::Tensor& gates,
    const at::Tensor& mean, const at::Tensor& std, const OptionalTensor& factor,
    const at::Tensor& seed, const at::Tensor& step, const at::Tensor& sample_ids,
    bool token_gradient) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gates(gates, tokens);
  check_grad(grad, tokens);
  const at::Tensor s = in_type(gates, work_type(tokens));
  at::Tensor grad_s = at::empty_like(s);
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  at::Tensor grad_tokens = AS_DISPATCH_TOKENS(tokens.scalar_type(), [&] {
    using W = Work<T>;
    const W* s_data = read<W>(s);
    W* out = grad_s.mutable_data_ptr<W>();
    return run_backward<T>(
        grad, tokens, noise, token_gradient,
        [&](int64_t i) { return amplitudes_of_gate(s_data[i]); },
        [&](int64_t i, Amplitudes<W> amp, W dot_signal, W dot_noise) {
          out[i] = gate_gradient(amp, dot_signal, dot_noise);
        });
  });
  return {grad_tokens, grad_s.to(gates.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> soft_top_k_noise_gate_cpu(
    const at::Tensor& tokens, const at::Tensor& scores, const OptionalTensor& k_rows, int64_t k,
    const at::Tensor& temperature, const at::Tensor& mean, const at::Tensor& std,
    const OptionalTensor& factor, const at::Tensor& seed, const at::Tensor& step,
    const at::Tensor& sample_ids, const OptionalTensor& mask) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_gate_shape("scores", scores, tokens);
  const auto [gates, logits] = soft_top_k_cpu(scores, k_rows, k, temperature, mask);
  const at::Tensor u = in_type(logits, work_type(tokens));
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  at::Tensor gated = AS_DISPATCH_TOKENS(tokens.scalar_type(), [&] {
    const Work<T>* u_data = read<Work<T>>(u);
    return run_forward<T>(tokens, noise, [&](int64_t i) { return amplitudes(u_data[i]); });
  });
  return {gated, gates, logits};
}

std::tuple<at::Tensor, at::Tensor> soft_top_k_noise_gate_backward_cpu(
    const at::Tensor& grad, const OptionalTensor& grad_gates, const at::Tensor& tokens,
    const at::Tensor& logits, const at::Tensor& temperature, const at::Tensor& mean,
    const at::Tensor& std, const OptionalTensor& factor, const at::Tensor& seed,
    const at::Tensor& step, const at::Tensor& sample_ids, bool token_gradient) {
  check_statistics(tokens, mean, std, factor);
  check_noise_key(tokens, seed, step, sample_ids);
  check_grad(grad, tokens);
  check_logits(logits);
  check_gate_shape("logits", logits, tokens);
  if (grad_gates.has_value()) check_shape("grad_gates", *grad_gates, logits.sizes(), tokens);
  const at::Tensor u = in_type(logits, work_type(tokens));
  at::Tensor grad_u = at::empty_like(u);
  const NoiseTensors noise = {mean, std, factor, seed, step, sample_ids};
  at::Tensor grad_tokens = AS_DISPATCH_TOKENS(tokens.scalar_type(), [&] {
    using W = Work<T>;
    const W* u_data = read<W>(u);
    W* out = grad_u.mutable_data_ptr<W>();
    return run_backward<T>(
        grad, tokens, noise, token_gradient, [&](int64_t i) { return amplitudes(u_data[i]); },
        [&](int64_t i, Amplitudes<W> amp, W dot_signal, W dot_noise) {
          out[i] = logit_gradient(amp, dot_signal, dot_noise);
        });
  });
  return {grad_tokens, score_gradient_cpu(logits, grad_gates, grad_u, temperature)};
}

}  // namespace autoselect
