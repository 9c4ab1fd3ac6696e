// Hard top-K and the selection of tokens by it. See autoselect/ops/hard_top_k.py.
#pragma once

#include "checks.h"

namespace autoselect {

// Positions int64 [B, K], ascending, then -1 if a row has fewer than k valid tokens. `k_rows` holds
// one budget per row, 1..k; without it every row has budget k.
at::Tensor hard_top_k_cpu(const at::Tensor& scores, int64_t k, const OptionalTensor& mask,
                          const OptionalTensor& k_rows);

// (kept tokens [B, K, D], positions [B, K]); the kept row of a position -1 is zero.
std::tuple<at::Tensor, at::Tensor> select_tokens_cpu(const at::Tensor& tokens,
                                                     const at::Tensor& scores, int64_t k,
                                                     const OptionalTensor& mask,
                                                     const OptionalTensor& k_rows);

// The tokens, or a copy if the channels of one token do not lie together.
at::Tensor with_whole_rows(const at::Tensor& tokens);

// dL/dtokens [B, num_tokens, D]
at::Tensor select_tokens_backward_cpu(const at::Tensor& grad, const at::Tensor& indices,
                                      int64_t num_tokens);

void check_select_tokens_backward(const at::Tensor& grad, const at::Tensor& indices,
                                  int64_t num_tokens);

}  // namespace autoselect
