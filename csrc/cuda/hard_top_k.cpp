#include "hard_top_k.h"

#include <torch/library.h>

#include "cuda/glue.h"

namespace autoselect {
namespace {

// Scores and mask as the kernels read them.
struct PreparedRanking {
  at::Tensor scores;
  at::Tensor mask;
  at::Tensor k_rows;
  int64_t k;

  template <typename W>
  HardTopKArgs<W> args() const {
    return {read<W>(scores), read<bool>(mask), read<int64_t>(k_rows), k,
            scores.size(0),  scores.size(1)};
  }
};

PreparedRanking prepare(const at::Tensor& scores, int64_t k, const OptionalTensor& mask,
                        const OptionalTensor& k_rows) {
  check_scores(scores, mask);
  check_budget(k, scores.size(1));
  if (k_rows.has_value()) check_row_budgets(*k_rows, k, scores);
  TORCH_CHECK_VALUE(scores.size(1) < (int64_t(1) << 31), "scores has ", scores.size(1),
                    " tokens in a row, but at most 2^31 - 1 can be ranked on a GPU");
  return {in_type(scores, work_type(scores)), in_type(mask, at::kBool), in_type(k_rows, at::kLong),
          k};
}

}  // namespace

at::Tensor hard_top_k_cuda(const at::Tensor& scores, int64_t k, const OptionalTensor& mask,
                           const OptionalTensor& k_rows) {
  const c10::cuda::CUDAGuard guard(scores.device());
  const PreparedRanking ranking = prepare(scores, k, mask, k_rows);
  at::Tensor positions = at::empty({scores.size(0), k}, scores.options().dtype(at::kLong));
  AS_DISPATCH_WORK(ranking.scores.scalar_type(), [&] {
    C10_CUDA_CHECK(
        launch_hard_top_k(ranking.args<W>(), write<int64_t>(positions), stream_of(scores)));
  });
  return positions;
}

std::tuple<at::Tensor, at::Tensor> select_tokens_cuda(const at::Tensor& tokens,
                                                      const at::Tensor& scores, int64_t k,
                                                      const OptionalTensor& mask,
                                                      const OptionalTensor& k_rows) {
  check_float("tokens", tokens, 3);
  check_shape("scores", scores, tokens.sizes().slice(0, 2), tokens);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const PreparedRanking ranking = prepare(scores, k, mask, k_rows);
  const at::Tensor x = with_whole_rows(tokens);
  const int64_t bytes = x.element_size();
  const TokenRows rows = {x.const_data_ptr(), x.size(2) * bytes, x.stride(0) * bytes,
                          x.stride(1) * bytes};
  at::Tensor positions = at::empty({x.size(0), k}, scores.options().dtype(at::kLong));
  at::Tensor kept = at::empty({x.size(0), k, x.size(2)}, x.options());
  AS_DISPATCH_WORK(ranking.scores.scalar_type(), [&] {
    C10_CUDA_CHECK(launch_select_tokens(ranking.args<W>(), rows, kept.mutable_data_ptr(),
                                        write<int64_t>(positions), stream_of(x)));
  });
  return {kept, positions};
}

at::Tensor select_tokens_backward_cuda(const at::Tensor& grad, const at::Tensor& indices,
                                       int64_t num_tokens) {
  check_select_tokens_backward(grad, indices, num_tokens);
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::Tensor g = grad.contiguous();
  const at::Tensor where = indices.contiguous();
  at::Tensor grad_tokens = at::zeros({g.size(0), num_tokens, g.size(2)}, g.options());
  C10_CUDA_CHECK(launch_select_backward(
      g.const_data_ptr(), read<int64_t>(where), grad_tokens.mutable_data_ptr(),
      g.size(2) * g.element_size(), g.size(0), g.size(1), num_tokens, stream_of(g)));
  return grad_tokens;
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) {
  m.impl("hard_top_k", &hard_top_k_cuda);
  m.impl("select_tokens", &select_tokens_cuda);
  m.impl("select_tokens_backward", &select_tokens_backward_cuda);
}

}  // namespace autoselect
