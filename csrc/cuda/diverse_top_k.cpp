#include "diverse_top_k.h"

#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda/glue.h"

namespace autoselect {
namespace {

// All pairs of a row are compared at once up to so many tokens, else a row of them per step.
constexpr int64_t kMostTokensOfPairs = 2048;
// Rows go through in parts whose directions and pairs fill about 256 MiB at most.
constexpr int64_t kMostFloats = int64_t(1) << 26;

// Rows begin .. end - 1 of the batch.
template <typename T>
void keep_rows(const DiverseArgs& args, const at::Tensor& tokens, const at::Tensor& scratch) {
  const cudaStream_t stream = stream_of(tokens);
  const int64_t width = tokens.size(2);
  const auto floats = scratch.options();
  at::Tensor mean = at::empty({args.batch, width}, floats);
  at::Tensor directions = at::empty({args.batch, args.num_tokens, width}, floats);
  C10_CUDA_CHECK(launch_mean_token(read<T>(tokens), args.mask, args.batch, args.num_tokens, width,
                                   write<float>(mean), stream));
  C10_CUDA_CHECK(launch_directions(read<T>(tokens), read<float>(mean), args.batch, args.num_tokens,
                                   width, write<float>(directions), stream));
  C10_CUDA_CHECK(launch_relevance(args, stream));
  if (args.num_tokens <= kMostTokensOfPairs) {
    const at::Tensor pairs = at::bmm(directions, directions.transpose(1, 2));
    C10_CUDA_CHECK(launch_diverse_steps(args, read<float>(pairs), true, 0, args.k, stream));
    return;
  }
  at::Tensor row = at::empty({args.batch, args.num_tokens}, floats);
  for (int64_t step = 0; step < args.k; ++step) {
    if (step > 0) {
      C10_CUDA_CHECK(launch_similarity_row(args, read<float>(directions), width, step - 1,
                                           write<float>(row), stream));
    }
    C10_CUDA_CHECK(launch_diverse_steps(args, read<float>(row), false, step, step + 1, stream));
  }
}

}  // namespace

at::Tensor diverse_top_k_cuda(const at::Tensor& scores, const at::Tensor& tokens, int64_t k,
                              double diversity, const OptionalTensor& mask,
                              const OptionalTensor& k_rows) {
  check_diverse_top_k(scores, tokens, k, diversity, mask, k_rows);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const int64_t batch = scores.size(0);
  const int64_t num_tokens = scores.size(1);
  const at::Tensor score = in_type(scores, at::kFloat);
  const at::Tensor valid = in_type(mask, at::kBool);
  const at::Tensor budgets = in_type(k_rows, at::kLong);
  const at::Tensor x = tokens.contiguous();
  at::Tensor relevance = at::empty_like(score);
  at::Tensor nearest = at::empty_like(score);
  at::Tensor order = at::empty({batch, k}, scores.options().dtype(at::kLong));
  at::Tensor positions = at::empty_like(order);
  DiverseArgs args = {read<float>(score),
                      read<bool>(valid),
                      read<int64_t>(budgets),
                      float(diversity),
                      float(1 - diversity),
                      k,
                      batch,
                      num_tokens,
                      write<float>(relevance),
                      write<float>(nearest),
                      write<int64_t>(order)};
  const int64_t floats = num_tokens * (tokens.size(2) + std::min(num_tokens, kMostTokensOfPairs));
  const int64_t part = std::max<int64_t>(1, kMostFloats / std::max<int64_t>(1, floats));
  AS_DISPATCH_TOKENS(x.scalar_type(), [&] {
    for (int64_t begin = 0; begin < batch; begin += part) {
      DiverseArgs rows = args;
      rows.batch = std::min(part, batch - begin);
      rows.scores += begin * num_tokens;
      if (rows.mask != nullptr) rows.mask += begin * num_tokens;
      if (rows.k_rows != nullptr) rows.k_rows += begin;
      rows.relevance += begin * num_tokens;
      rows.nearest += begin * num_tokens;
      rows.order += begin * k;
      keep_rows<T>(rows, x.narrow(0, begin, rows.batch), score);
    }
  });
  C10_CUDA_CHECK(launch_sort_order(args, write<int64_t>(positions), stream_of(x)));
  return positions;
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) { m.impl("diverse_top_k", &diverse_top_k_cuda); }

}  // namespace autoselect
