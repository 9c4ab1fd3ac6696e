// Checks of every operator before it reads memory; messages give expected and actual values.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "philox.h"

namespace autoselect {

using OptionalTensor = std::optional<at::Tensor>;

inline bool is_float_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

inline at::ScalarType work_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                        const at::Tensor& beside) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", but has ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == beside.device(), name, " must be on ", beside.device(),
                    ", but is on ", tensor.device());
}

inline void check_float(const char* name, const at::Tensor& tensor, int64_t dims) {
  TORCH_CHECK_VALUE(tensor.dim() == dims, name, " must have ", dims, " dimensions, but has shape ",
                    tensor.sizes());
  TORCH_CHECK_TYPE(is_float_type(tensor.scalar_type()), name,
                   " must be float32, float64, bfloat16 or float16, but is ", tensor.scalar_type());
}

inline void check_scores(const at::Tensor& scores, const OptionalTensor& mask) {
  check_float("scores", scores, 2);
  if (mask.has_value()) {
    check_shape("mask", *mask, scores.sizes(), scores);
    TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask must be bool, but is ",
                     mask->scalar_type());
  }
}

// Scores in float32, and the mask as bool or an undefined tensor; on a CPU.
inline void refuse_nan(const at::Tensor& score, const at::Tensor& valid) {
  const at::Tensor nan = valid.defined() ? score.isnan().logical_and(valid) : score.isnan();
  TORCH_CHECK_VALUE(!nan.any().item<bool>(), "scores must be numbers, but contain NaN");
}

inline void check_budget(int64_t k, int64_t num_tokens) {
  TORCH_CHECK_VALUE(k >= 1 && k <= num_tokens, "k must be in 1..", num_tokens, ", but is ", k);
}

// The temperature is a number, float64, on the CPU or beside the scores. Float32 holds it and its
// inverse, with room.
inline void check_temperature(const at::Tensor& temperature, const at::Tensor& beside) {
  TORCH_CHECK_VALUE(temperature.dim() == 0, "temperature must be one number, but has shape ",
                    temperature.sizes());
  TORCH_CHECK_TYPE(temperature.scalar_type() == at::kDouble, "temperature must be float64, but is ",
                   temperature.scalar_type());
  TORCH_CHECK_VALUE(temperature.is_cpu() || temperature.device() == beside.device(),
                    "temperature must be on the CPU or on ", beside.device(), ", but is on ",
                    temperature.device());
  if (!temperature.is_cpu()) return;
  const double value = *temperature.const_data_ptr<double>();
  TORCH_CHECK_VALUE(value >= 1e-30 && value <= 1e30, "temperature=", value,
                    " must lie in 1e-30..1e30; the usual range is 0.01..10");
}

// One budget per row, int64 [B], in 1..most; looked at on a CPU alone.
inline void check_row_budgets(const at::Tensor& k_rows, int64_t most, const at::Tensor& scores) {
  check_shape("k_rows", k_rows, {scores.size(0)}, scores);
  TORCH_CHECK_TYPE(k_rows.scalar_type() == at::kLong, "k_rows must be int64, but is ",
                   k_rows.scalar_type());
  if (!k_rows.is_cpu()) return;
  const at::Tensor budgets = k_rows.contiguous();
  for (int64_t row = 0; row < budgets.numel(); ++row) {
    const int64_t budget = budgets.const_data_ptr<int64_t>()[row];
    TORCH_CHECK_VALUE(budget >= 1 && budget <= most, "k_rows must be in 1..", most, ", but row ",
                      row, " has ", budget);
  }
}

// `k_rows` holds one budget per row; without it every row has budget k.
inline void check_soft_top_k(const at::Tensor& scores, const OptionalTensor& k_rows, int64_t k,
                             const at::Tensor& temperature, const OptionalTensor& mask) {
  check_scores(scores, mask);
  check_temperature(temperature, scores);
  if (k_rows.has_value()) {
    check_row_budgets(*k_rows, scores.size(1), scores);
  } else {
    check_budget(k, scores.size(1));
  }
}

// Gate logits as soft top-K returns them.
inline void check_logits(const at::Tensor& logits) {
  check_float("logits", logits, 2);
  TORCH_CHECK_TYPE(logits.scalar_type() == work_type(logits),
                   "logits must be float32 or float64, but are ", logits.scalar_type());
}

inline void check_statistics(const at::Tensor& tokens, const at::Tensor& mean,
                             const at::Tensor& std, const OptionalTensor& factor) {
  check_float("tokens", tokens, 3);
  check_float("mean", mean, 1);
  check_shape("mean", mean, {tokens.size(2)}, tokens);
  check_float("std", std, 1);
  check_shape("std", std, {tokens.size(2)}, tokens);
  TORCH_CHECK_VALUE(tokens.size(1) < (int64_t(1) << 32), "tokens has ", tokens.size(1),
                    " tokens in a row, but at most 2^32 - 1 can be numbered");
  if (factor.has_value()) {
    check_float("factor", *factor, 2);
    const int64_t rank = factor->size(0);
    TORCH_CHECK_VALUE(rank >= 1 && rank <= kLargestRank, "factor must have 1..", kLargestRank,
                      " rows, but has ", rank);
    check_shape("factor", *factor, {rank, tokens.size(2)}, tokens);
  }
}

inline void check_noise_key(const at::Tensor& tokens, const at::Tensor& seed,
                            const at::Tensor& step, const at::Tensor& sample_ids) {
  check_shape("seed", seed, {}, tokens);
  check_shape("step", step, {}, tokens);
  check_shape("sample_ids", sample_ids, {tokens.size(0)}, tokens);
  for (const at::Tensor* part : {&seed, &step, &sample_ids}) {
    TORCH_CHECK_TYPE(part->scalar_type() == at::kLong,
                     "seed, step and sample_ids must be int64, but one is ", part->scalar_type());
  }
}

// One number per token: gates, their logits, or scores.
inline void check_gate_shape(const char* name, const at::Tensor& gate, const at::Tensor& tokens) {
  check_float(name, gate, 2);
  check_shape(name, gate, tokens.sizes().slice(0, 2), tokens);
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& tokens) {
  check_shape("grad", grad, tokens.sizes(), tokens);
  TORCH_CHECK_TYPE(grad.scalar_type() == tokens.scalar_type(), "grad must be ",
                   tokens.scalar_type(), " like the tokens, but is ", grad.scalar_type());
}

// The tensor in the type of the arithmetic, contiguous; a null tensor stays null.
inline at::Tensor in_type(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.to(type).contiguous();
}
inline at::Tensor in_type(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor.has_value() ? in_type(*tensor, type) : at::Tensor();
}

// Calls a function in which T is the storage type of tokens of this dtype.
#define AS_DISPATCH_TOKENS(dtype, ...)                        \
  [&] {                                                       \
    switch (dtype) {                                          \
      case at::kFloat: {                                      \
        using T = float;                                      \
        return __VA_ARGS__();                                 \
      }                                                       \
      case at::kDouble: {                                     \
        using T = double;                                     \
        return __VA_ARGS__();                                 \
      }                                                       \
      case at::kBFloat16: {                                   \
        using T = ::autoselect::BFloat16;                     \
        return __VA_ARGS__();                                 \
      }                                                       \
      case at::kHalf: {                                       \
        using T = ::autoselect::Half16;                       \
        return __VA_ARGS__();                                 \
      }                                                       \
      default:                                                \
        TORCH_CHECK_TYPE(false, "unsupported dtype ", dtype); \
    }                                                         \
  }()

// Calls a function in which W is the type of the arithmetic.
#define AS_DISPATCH_WORK(dtype, ...) \
  [&] {                              \
    if ((dtype) == at::kDouble) {    \
      using W = double;              \
      return __VA_ARGS__();          \
    }                                \
    using W = float;                 \
    return __VA_ARGS__();            \
  }()

}  // namespace autoselect
