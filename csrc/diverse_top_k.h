// Top-K by relevance and diversity. See autoselect/ops/diverse_top_k.py.
#pragma once

#include "checks.h"

namespace autoselect {

// Positions int64 [B, K], ascending, then -1 if a row has fewer than k valid tokens. `k_rows` holds
// one budget per row, 1..k; without it every row has budget k.
at::Tensor diverse_top_k_cpu(const at::Tensor& scores, const at::Tensor& tokens, int64_t k,
                             double diversity, const OptionalTensor& mask,
                             const OptionalTensor& k_rows);

void check_diverse_top_k(const at::Tensor& scores, const at::Tensor& tokens, int64_t k,
                         double diversity, const OptionalTensor& mask,
                         const OptionalTensor& k_rows);

}  // namespace autoselect
