// Diverse top-K on the GPU: directions of all tokens, then one block per row keeps token after
// token.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/kernels.h"
#include "rank_key.h"
#include "relevance.h"

namespace autoselect {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStepThreads = 512;
constexpr int kStepWarps = kStepThreads / kWarp;

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
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    directions_kernel(const T* __restrict__ tokens, const float* __restrict__ mean, int64_t total,
                      int64_t num_tokens, int64_t width, float* __restrict__ directions) {
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
    directions[i * width + c] = (float(to_work(token[c])) - centre[c]) / length;
  }
}

__global__ void __launch_bounds__(kStepThreads, 2) relevance_kernel(DiverseArgs args) {
  __shared__ float extremes[2 * kStepWarps];
  const int64_t at = int64_t(blockIdx.x) * args.num_tokens;
  float low = INFINITY;
  float high = -INFINITY;
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kStepThreads) {
    if (args.mask != nullptr && !args.mask[at + i]) continue;
    const float score = relevance_score(args.scores[at + i]);
    low = score < low ? score : low;
    high = score > high ? score : high;
  }
  block_extremes<kStepThreads>(low, high, extremes);
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kStepThreads) {
    const bool valid = args.mask == nullptr || args.mask[at + i];
    args.relevance[at + i] =
        valid ? relevance(relevance_score(args.scores[at + i]), low, high) : -1.0f;
    args.nearest[at + i] = -1.0f;
  }
}

// The largest key of the block; every thread gets it.
__device__ __forceinline__ uint64_t block_largest(uint64_t key, uint64_t* shared) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, offset);
    key = other > key ? other : key;
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = key;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w) key = shared[w] > key ? shared[w] : key;
  return key;
}

// The gain above, the position below, inverted: of equal gains the lowest position is the largest.
__device__ __forceinline__ uint64_t candidate_key(float gain, int64_t position) {
  return uint64_t(rank_key(gain)) << 32 | uint32_t(~uint32_t(position));
}

__global__ void __launch_bounds__(kStepThreads, 2)
    diverse_steps_kernel(DiverseArgs args, const float* __restrict__ similarity, bool all_pairs,
                         int64_t first, int64_t last) {
  __shared__ uint64_t best[2][kStepWarps];  // two, so that a step needs one barrier
  const int64_t row = blockIdx.x;
  const int64_t at = row * args.num_tokens;
  int64_t* order = args.order + row * args.k;
  const int64_t budget = args.k_rows != nullptr ? args.k_rows[row] : args.k;
  int64_t chosen = first > 0 ? order[first - 1] : 0;
  for (int64_t step = first; step < last; ++step) {
    const bool goes_on = chosen >= 0 && (step == 0 || step < budget);
    uint64_t key = 0;
    const float* nearby =
        all_pairs ? similarity + (at + chosen) * args.num_tokens : similarity + at;
    for (int64_t i = threadIdx.x; goes_on && i < args.num_tokens; i += kStepThreads) {
      const float relevance = args.relevance[at + i];
      if (relevance < 0.0f) continue;
      float gain = relevance;
      if (step > 0) {
        float nearest = args.nearest[at + i];
        const float likeness = nearby[i];
        if (likeness > nearest) args.nearest[at + i] = nearest = likeness;
        gain = diverse_gain(relevance, nearest, args.relevance_weight, args.diversity);
      }
      const uint64_t own = candidate_key(gain, i);
      key = own > key ? own : key;
    }
    key = block_largest(key, best[step % 2]);
    chosen = key == 0 ? -1 : int64_t(uint32_t(~uint32_t(key)));
    if (chosen >= 0 && chosen % kStepThreads == threadIdx.x) args.relevance[at + chosen] = -1.0f;
    if (threadIdx.x == 0) order[step] = chosen;
  }
}

// A warp compares one token with the one kept last.
__global__ void __launch_bounds__(kThreads, 2)
    similarity_row_kernel(DiverseArgs args, const float* __restrict__ directions, int64_t width,
                          int64_t step, float* __restrict__ similarity) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= args.batch * args.num_tokens) return;
  const int64_t row = i / args.num_tokens;
  const int64_t kept = args.order[row * args.k + step];
  if (kept < 0) return;
  const float* one = directions + i * width;
  const float* other = directions + (row * args.num_tokens + kept) * width;
  float dot = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) dot += one[c] * other[c];
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
  const dim3 grid(unsigned((width + kWarp - 1) / kWarp), unsigned(batch));
  if (batch == 0 || width == 0) return cudaSuccess;
  mean_token_kernel<T><<<grid, kThreads, 0, stream>>>(tokens, mask, num_tokens, width, mean);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_directions(const T* tokens, const float* mean, int64_t batch, int64_t num_tokens,
                              int64_t width, float* directions, cudaStream_t stream) {
  const int64_t total = batch * num_tokens;
  const unsigned grid = unsigned((total + kWarps - 1) / kWarps);
  if (total == 0) return cudaSuccess;
  directions_kernel<T>
      <<<grid, kThreads, 0, stream>>>(tokens, mean, total, num_tokens, width, directions);
  return cudaGetLastError();
}

cudaError_t launch_relevance(const DiverseArgs& args, cudaStream_t stream) {
  const unsigned grid = unsigned(args.batch);
  if (grid == 0) return cudaSuccess;
  relevance_kernel<<<grid, kStepThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_diverse_steps(const DiverseArgs& args, const float* similarity, bool all_pairs,
                                 int64_t first, int64_t last, cudaStream_t stream) {
  const unsigned grid = unsigned(args.batch);
  if (grid == 0) return cudaSuccess;
  diverse_steps_kernel<<<grid, kStepThreads, 0, stream>>>(args, similarity, all_pairs, first, last);
  return cudaGetLastError();
}

cudaError_t launch_similarity_row(const DiverseArgs& args, const float* directions, int64_t width,
                                  int64_t step, float* similarity, cudaStream_t stream) {
  const unsigned grid = unsigned((args.batch * args.num_tokens + kWarps - 1) / kWarps);
  if (grid == 0) return cudaSuccess;
  similarity_row_kernel<<<grid, kThreads, 0, stream>>>(args, directions, width, step, similarity);
  return cudaGetLastError();
}

cudaError_t launch_sort_order(const DiverseArgs& args, int64_t* positions, cudaStream_t stream) {
  const unsigned grid = unsigned(args.batch);
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

}  // namespace autoselect
