#include "marginal_order.h"

#include <torch/library.h>

#include "cuda/glue.h"

namespace autoselect {

at::Tensor marginal_order_cuda(const at::Tensor& scores, const at::Tensor& likeness, int64_t k,
                               double weight, const OptionalTensor& mask) {
  check_marginal_order(scores, likeness, k, weight, mask);
  const int64_t num_tokens = scores.size(1);
  TORCH_CHECK_VALUE(num_tokens <= kMostTokensOfPairs, "scores must have at most ",
                    kMostTokensOfPairs, " tokens, but have ", num_tokens);
  const c10::cuda::CUDAGuard guard(scores.device());
  const at::Tensor score = in_type(scores, at::kFloat);
  const at::Tensor pairs = in_type(likeness, at::kFloat);
  const at::Tensor valid = in_type(mask, at::kBool);
  at::Tensor relevance = at::empty_like(score);
  at::Tensor order = at::empty({scores.size(0), k}, scores.options().dtype(at::kLong));
  const DiverseArgs args = {read<float>(score),
                            read<bool>(valid),
                            nullptr,
                            float(weight),
                            1.0f,
                            k,
                            scores.size(0),
                            num_tokens,
                            write<float>(relevance),
                            nullptr,
                            write<int64_t>(order)};
  C10_CUDA_CHECK(launch_scores(args, stream_of(score)));
  C10_CUDA_CHECK(launch_diverse_pairs(args, read<float>(pairs), stream_of(score)));
  return order;
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) { m.impl("marginal_order", &marginal_order_cuda); }

}  // namespace autoselect
