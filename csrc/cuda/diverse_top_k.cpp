#include "diverse_top_k.h"

#include <ATen/ops/bmm.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "cuda/glue.h"
#include "cuda/grid.h"

namespace autoselect {
namespace {

// Rows go through in parts whose directions and pairs fill about 256 MiB at most.
constexpr int64_t kMostFloats = int64_t(1) << 26;

// Tokens of 16 bits are compared in half precision with float32 sums: rounding a unit vector to
// 2^-11 of each component changes it less than the rounding of the tokens did.
template <typename T>
using Direction = std::conditional_t<sizeof(T) == 2, Half16, float>;
template <typename T>
constexpr at::ScalarType kDirection = sizeof(T) == 2 ? at::kHalf : at::kFloat;

template <typename T>
at::Tensor directions_of(const DiverseArgs& args, const at::Tensor& tokens) {
  const int64_t width = tokens.size(2);
  at::Tensor mean = at::empty({args.batch, width}, tokens.options().dtype(at::kFloat));
  at::Tensor directions = at::empty(tokens.sizes(), tokens.options().dtype(kDirection<T>));
  C10_CUDA_CHECK(launch_mean_token(read<T>(tokens), args.mask, args.batch, args.num_tokens, width,
                                   write<float>(mean), stream_of(tokens)));
  C10_CUDA_CHECK(launch_directions(read<T>(tokens), read<float>(mean), args.batch, args.num_tokens,
                                   width, write<Direction<T>>(directions), stream_of(tokens)));
  return directions;
}

// All pairs of each row, float32, [B, N, N].
at::Tensor similarity_of_pairs(const at::Tensor& directions) {
  const ExactProducts guard;
  const at::Tensor other = directions.transpose(1, 2);
  if (directions.scalar_type() == at::kFloat) return at::bmm(directions, other);
  return at::bmm(directions, other, at::kFloat);
}

template <typename T>
void keep_rows(const DiverseArgs& args, const at::Tensor& tokens) {
  const cudaStream_t stream = stream_of(tokens);
  const at::Tensor directions = directions_of<T>(args, tokens);
  C10_CUDA_CHECK(launch_relevance(args, stream));
  if (args.num_tokens <= kMostTokensOfPairs) {
    const at::Tensor pairs = similarity_of_pairs(directions);
    C10_CUDA_CHECK(launch_diverse_pairs(args, read<float>(pairs), stream));
    return;
  }
  at::Tensor row = at::empty({args.batch, args.num_tokens}, tokens.options().dtype(at::kFloat));
  for (int64_t step = 0; step < args.k; ++step) {
    if (step > 0) {
      C10_CUDA_CHECK(launch_similarity_row(args, read<Direction<T>>(directions), tokens.size(2),
                                           step - 1, write<float>(row), stream));
    }
    C10_CUDA_CHECK(launch_diverse_step(args, read<float>(row), step, stream));
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
  TORCH_CHECK_VALUE(num_tokens < (int64_t(1) << 32), "scores has ", num_tokens,
                    " tokens in a row, but at most 2^32 - 1 can be ranked on a GPU");
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
  const int64_t part =
      std::clamp<int64_t>(kMostFloats / std::max<int64_t>(1, floats), 1, kMostBlocksBeside);
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
      keep_rows<T>(rows, x.narrow(0, begin, rows.batch));
    }
  });
  C10_CUDA_CHECK(launch_sort_order(args, write<int64_t>(positions), stream_of(x)));
  return positions;
}

TORCH_LIBRARY_IMPL(autoselect, CUDA, m) { m.impl("diverse_top_k", &diverse_top_k_cuda); }

}  // namespace autoselect
