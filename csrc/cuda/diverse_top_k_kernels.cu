// Diverse top-K on the GPU: directions of all tokens, then one block per row keeps token after
// token.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/grid.h"
#include "cuda/kernels.h"
#include "rank_key.h"
#include "relevance.h"

namespace autoselect {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Block (x, row): a warp reads 32 channels, the warps of the block every kWarps-th token.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    mean_token_kernel(const T* __restrict__ tokens, const bool* __restrict__ mask,
                      int64_t num_tokens, int64_t width, float* __restrict__ mean) {
  __shared__ float sums[kThreads];
  __shared__ int counts[kWarps];
  const int warp = int(threadIdx.x) / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t row = blockIdx.y;
  const int64_t channel = int64_t(blockIdx.x) * kWarp + lane;
  float sum = 0.0f;
  int count = 0;
  for (int64_t i = warp; i < num_tokens; i += kWarps) {
    const int64_t at = row * num_tokens + i;
    if (mask != nullptr && !mask[at]) continue;
    ++count;
    if (channel < width) sum += float(to_work(tokens[at * width + channel]));
  }
  sums[threadIdx.x] = sum;
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  if (warp != 0 || channel >= width) return;
  int total = counts[0];
  for (int w = 1; w < kWarps; ++w) {
    sum += sums[w * kWarp + lane];
    total += counts[w];
  }
  mean[row * width + channel] = sum / float(total > 0 ? total : 1);
}

// A warp makes the direction of one token.
template <typename T, typename D>
__global__ void __launch_bounds__(kThreads, 2)
    directions_kernel(const T* __restrict__ tokens, const float* __restrict__ mean, int64_t total,
                      int64_t num_tokens, int64_t width, D* __restrict__ directions) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= total) return;
  const T* token = tokens + i * width;
  const float* centre = mean + i / num_tokens * width;
  float square = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) {
    const float centred = float(to_work(token[c])) - centre[c];
    square += centred * centred;
  }
  const float length = direction_length(warp_sum(square));
  for (int64_t c = lane; c < width; c += kWarp) {
    from_work((float(to_work(token[c])) - centre[c]) / length, directions[i * width + c]);
  }
}

// The relevance of a token that cannot be kept (any more).
__device__ constexpr float kTaken = -INFINITY;

__global__ void __launch_bounds__(kThreads, 2) relevance_kernel(DiverseArgs args) {
  __shared__ float extremes[2 * kWarps];
  const int64_t at = int64_t(blockIdx.x) * args.num_tokens;
  float low = INFINITY;
  float high = -INFINITY;
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    if (args.mask != nullptr && !args.mask[at + i]) continue;
    const float score = relevance_score(args.scores[at + i]);
    low = score < low ? score : low;
    high = score > high ? score : high;
  }
  block_extremes<kThreads>(low, high, extremes);
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    const bool valid = args.mask == nullptr || args.mask[at + i];
    args.relevance[at + i] =
        valid ? relevance(relevance_score(args.scores[at + i]), low, high) : kTaken;
    args.nearest[at + i] = -1.0f;
  }
}

__global__ void __launch_bounds__(kThreads, 2) scores_kernel(DiverseArgs args, int64_t total) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const bool valid = args.mask == nullptr || args.mask[i];
  args.relevance[i] = valid ? relevance_score(args.scores[i]) : kTaken;
}

// The largest key of the block; every thread gets it.
__device__ __forceinline__ uint64_t block_largest(uint64_t key, uint64_t* shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32_t high = __reduce_max_sync(0xffffffffu, uint32_t(key >> 32));
  const uint32_t own = uint32_t(key >> 32) == high ? uint32_t(key) : 0u;
  key = uint64_t(high) << 32 | __reduce_max_sync(0xffffffffu, own);
#else
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, offset);
    key = other > key ? other : key;
  }
#endif
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = key;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) key = shared[w] > key ? shared[w] : key;
  return key;
}

// The gain above, the position below, inverted: of equal gains the lowest position is the largest.
__device__ __forceinline__ uint64_t candidate_key(float gain, int64_t position) {
  return uint64_t(rank_key(gain)) << 32 | uint32_t(~uint32_t(position));
}

// The position in a key; -1 if there was no candidate.
__device__ __forceinline__ int64_t position_of(uint64_t key) {
  return key == 0 ? -1 : int64_t(uint32_t(~uint32_t(key)));
}

// A token that can be kept first: by its score, because scaling may make scores equal.
__device__ __forceinline__ uint64_t first_key(const DiverseArgs& args, int64_t at, int64_t i) {
  return candidate_key(relevance_score(args.scores[at + i]), i);
}

// A token that can be kept, against the token that was kept last.
__device__ __forceinline__ uint64_t compare(const DiverseArgs& args, int64_t i, float relevance,
                                            float likeness, float& nearest) {
  nearest = likeness > nearest ? likeness : nearest;
  return candidate_key(diverse_gain(relevance, nearest, args.relevance_weight, args.diversity), i);
}

// All steps of a row of up to kOwn * kThreads tokens; what is known of a token is in registers.
template <int kOwn>
__global__ void __launch_bounds__(kThreads, 2)
    diverse_pairs_kernel(DiverseArgs args, const float* __restrict__ similarity) {
  __shared__ uint64_t best[2][kWarps];  // two, so that a step needs one barrier
  const int64_t row = blockIdx.x;
  const int64_t at = row * args.num_tokens;
  int64_t* order = args.order + row * args.k;
  const int64_t budget = args.k_rows != nullptr ? args.k_rows[row] : args.k;
  float relevance[kOwn];
  float nearest[kOwn];
  uint64_t key = 0;
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const int64_t i = own * kThreads + threadIdx.x;
    relevance[own] = i < args.num_tokens ? args.relevance[at + i] : kTaken;
    nearest[own] = -1.0f;
    const uint64_t first = relevance[own] == kTaken ? 0 : first_key(args, at, i);
    key = first > key ? first : key;
  }
  int64_t chosen = position_of(block_largest(key, best[0]));
  if (threadIdx.x == 0) order[0] = chosen;
  for (int64_t step = 1; step < args.k; ++step) {
    key = 0;
    if (chosen >= 0 && step < budget) {
      const float* nearby = similarity + (at + chosen) * args.num_tokens;
      float likeness[kOwn];
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int64_t i = own * kThreads + threadIdx.x;
        likeness[own] = i < args.num_tokens ? nearby[i] : 0.0f;
        if (i == chosen) relevance[own] = kTaken;
      }
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int64_t i = own * kThreads + threadIdx.x;
        if (relevance[own] == kTaken) continue;
        const uint64_t other = compare(args, i, relevance[own], likeness[own], nearest[own]);
        key = other > key ? other : key;
      }
    }
    chosen = position_of(block_largest(key, best[step % 2]));
    if (threadIdx.x == 0) order[step] = chosen;
  }
}

// One step; `similarity` [B, N] is that to the token of the step before.
__global__ void __launch_bounds__(kThreads, 2)
    diverse_step_kernel(DiverseArgs args, const float* __restrict__ similarity, int64_t step) {
  __shared__ uint64_t best[kWarps];
  const int64_t row = blockIdx.x;
  const int64_t at = row * args.num_tokens;
  int64_t* order = args.order + row * args.k;
  const int64_t budget = args.k_rows != nullptr ? args.k_rows[row] : args.k;
  const bool goes_on = step == 0 || (order[step - 1] >= 0 && step < budget);
  uint64_t key = 0;
  for (int64_t i = threadIdx.x; goes_on && i < args.num_tokens; i += kThreads) {
    const float relevance = args.relevance[at + i];
    if (relevance == kTaken) continue;
    const uint64_t own =
        step == 0 ? first_key(args, at, i)
                  : compare(args, i, relevance, similarity[at + i], args.nearest[at + i]);
    key = own > key ? own : key;
  }
  const int64_t chosen = position_of(block_largest(key, best));
  if (chosen >= 0 && chosen % kThreads == threadIdx.x) args.relevance[at + chosen] = kTaken;
  if (threadIdx.x == 0) order[step] = chosen;
}

// A warp compares one token with the one kept last.
template <typename D>
__global__ void __launch_bounds__(kThreads, 2)
    similarity_row_kernel(DiverseArgs args, const D* __restrict__ directions, int64_t width,
                          int64_t step, float* __restrict__ similarity) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= args.batch * args.num_tokens) return;
  const int64_t row = i / args.num_tokens;
  const int64_t kept = args.order[row * args.k + step];
  if (kept < 0) return;
  const D* one = directions + i * width;
  const D* other = directions + (row * args.num_tokens + kept) * width;
  float dot = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) dot += to_work(one[c]) * to_work(other[c]);
  dot = warp_sum(dot);
  if (lane == 0) similarity[i] = dot;
}

// A kept position goes to the slot that is the number of smaller ones.
__global__ void __launch_bounds__(kThreads, 2)
    sort_order_kernel(DiverseArgs args, int64_t* __restrict__ positions) {
  const int64_t* order = args.order + int64_t(blockIdx.x) * args.k;
  int64_t* sorted = positions + int64_t(blockIdx.x) * args.k;
  for (int64_t slot = threadIdx.x; slot < args.k; slot += kThreads) {
    const int64_t position = order[slot];
    int64_t smaller = 0;
    for (int64_t other = 0; other < args.k && position >= 0; ++other) {
      smaller += order[other] >= 0 && order[other] < position;
    }
    sorted[position < 0 ? slot : smaller] = position;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_mean_token(const T* tokens, const bool* mask, int64_t batch, int64_t num_tokens,
                              int64_t width, float* mean, cudaStream_t stream) {
  const dim3 grid(blocks_for(width, kWarp), unsigned(batch));
  if (batch == 0 || width == 0) return cudaSuccess;
  mean_token_kernel<T><<<grid, kThreads, 0, stream>>>(tokens, mask, num_tokens, width, mean);
  return cudaGetLastError();
}

template <typename T, typename D>
cudaError_t launch_directions(const T* tokens, const float* mean, int64_t batch, int64_t num_tokens,
                              int64_t width, D* directions, cudaStream_t stream) {
  const int64_t total = batch * num_tokens;
  const unsigned grid = blocks_for(total, kWarps);
  if (total == 0) return cudaSuccess;
  directions_kernel<T, D>
      <<<grid, kThreads, 0, stream>>>(tokens, mean, total, num_tokens, width, directions);
  return cudaGetLastError();
}

cudaError_t launch_relevance(const DiverseArgs& args, cudaStream_t stream) {
  const unsigned grid = blocks_for(args.batch);
  if (grid == 0) return cudaSuccess;
  relevance_kernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_scores(const DiverseArgs& args, cudaStream_t stream) {
  const int64_t total = args.batch * args.num_tokens;
  const unsigned grid = blocks_for(total, kThreads);
  if (grid == 0) return cudaSuccess;
  scores_kernel<<<grid, kThreads, 0, stream>>>(args, total);
  return cudaGetLastError();
}

cudaError_t launch_diverse_pairs(const DiverseArgs& args, const float* similarity,
                                 cudaStream_t stream) {
  const unsigned grid = blocks_for(args.batch);
  if (grid == 0) return cudaSuccess;
  constexpr int kFew = 3;
  constexpr int kMost = int(kMostTokensOfPairs / kThreads);
  const auto holds = [&](int own) { return args.num_tokens <= own * kThreads; };
  const auto kernel = holds(kFew)        ? diverse_pairs_kernel<kFew>
                      : holds(kMost / 2) ? diverse_pairs_kernel<kMost / 2>
                                         : diverse_pairs_kernel<kMost>;
  kernel<<<grid, kThreads, 0, stream>>>(args, similarity);
  return cudaGetLastError();
}

cudaError_t launch_diverse_step(const DiverseArgs& args, const float* similarity, int64_t step,
                                cudaStream_t stream) {
  const unsigned grid = blocks_for(args.batch);
  if (grid == 0) return cudaSuccess;
  diverse_step_kernel<<<grid, kThreads, 0, stream>>>(args, similarity, step);
  return cudaGetLastError();
}

template <typename D>
cudaError_t launch_similarity_row(const DiverseArgs& args, const D* directions, int64_t width,
                                  int64_t step, float* similarity, cudaStream_t stream) {
  const unsigned grid = blocks_for(args.batch * args.num_tokens, kWarps);
  if (grid == 0) return cudaSuccess;
  similarity_row_kernel<D>
      <<<grid, kThreads, 0, stream>>>(args, directions, width, step, similarity);
  return cudaGetLastError();
}

cudaError_t launch_sort_order(const DiverseArgs& args, int64_t* positions, cudaStream_t stream) {
  const unsigned grid = blocks_for(args.batch);
  if (grid == 0) return cudaSuccess;
  sort_order_kernel<<<grid, kThreads, 0, stream>>>(args, positions);
  return cudaGetLastError();
}

#define AS_INSTANTIATE(T)                                                                          \
  template cudaError_t launch_mean_token(const T*, const bool*, int64_t, int64_t, int64_t, float*, \
                                         cudaStream_t);                                            \
  template cudaError_t launch_directions(const T*, const float*, int64_t, int64_t, int64_t,        \
                                         float*, cudaStream_t);

AS_INSTANTIATE(float)
AS_INSTANTIATE(double)
AS_INSTANTIATE(BFloat16)
AS_INSTANTIATE(Half16)

template cudaError_t launch_directions(const BFloat16*, const float*, int64_t, int64_t, int64_t,
                                       Half16*, cudaStream_t);
template cudaError_t launch_directions(const Half16*, const float*, int64_t, int64_t, int64_t,
                                       Half16*, cudaStream_t);
template cudaError_t launch_similarity_row(const DiverseArgs&, const float*, int64_t, int64_t,
                                           float*, cudaStream_t);
template cudaError_t launch_similarity_row(const DiverseArgs&, const Half16*, int64_t, int64_t,
                                           float*, cudaStream_t);

}  // namespace autoselect
