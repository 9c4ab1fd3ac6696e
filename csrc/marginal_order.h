// The order of maximal marginal relevance. See autoselect/ops/marginal_order.py.
#pragma once

#include "checks.h"

namespace autoselect {

// Positions int64 [B, K] in the order in which tokens are taken, then -1 if a row has fewer than k
// valid tokens; `likeness` [B, N, N] is that of all pairs.
at::Tensor marginal_order_cpu(const at::Tensor& scores, const at::Tensor& likeness, int64_t k,
                              double weight, const OptionalTensor& mask);

void check_marginal_order(const at::Tensor& scores, const at::Tensor& likeness, int64_t k,
                          double weight, const OptionalTensor& mask);

}  // namespace autoselect
