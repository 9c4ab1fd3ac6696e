// Soft top-K on the GPU: one block solves one row.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/grid.h"
#include "cuda/kernels.h"
#include "threshold.h"

namespace autoselect {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Scores a thread keeps in registers; tokens beyond 256 * 8 are read again in every iteration.
constexpr int kHeld = 8;

template <typename W>
__device__ __forceinline__ W read_temperature(DeviceScalar temperature) {
  return W(temperature.pointer != nullptr ? *temperature.pointer : temperature.value);
}

// One row as a thread sees it: the tokens i = threadIdx.x + j * kThreads.
template <typename W>
struct ThreadRow {
  const W* scores;
  const bool* mask;
  int64_t num_tokens;
  W held[kHeld];
  bool held_valid[kHeld];

  __device__ __forceinline__ bool load(int64_t i, W& score) const {
    if (i >= num_tokens || (mask != nullptr && !mask[i])) return false;
    const W limit = largest_score<W>();
    const W raw = scores[i];
    score = raw > limit ? limit : raw < -limit ? -limit : raw;
    return true;
  }

  __device__ __forceinline__ void fill() {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      held[j] = W(0);
      held_valid[j] = load(threadIdx.x + j * kThreads, held[j]);
    }
  }

  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (held_valid[j]) visit(held[j]);
    }
    for (int64_t i = threadIdx.x + kHeld * kThreads; i < num_tokens; i += kThreads) {
      W score;
      if (load(i, score)) visit(score);
    }
  }
};

template <typename W>
__device__ __forceinline__ RowSummary<W> summarise(const ThreadRow<W>& row, W count, W* shared) {
  W smallest = largest_score<W>();
  W largest = -smallest;
  row.each([&](W score) {
    smallest = score < smallest ? score : smallest;
    largest = score > largest ? score : largest;
  });
  block_extremes<kThreads>(smallest, largest, shared);
  const W middle = smallest + (largest - smallest) * W(0.5);
  W sums[2] = {};
  row.each([&](W score) {
    const W offset = score - middle;
    sums[0] += offset;
    sums[1] += offset * offset;
  });
  block_sum<kThreads>(sums, shared);
  const W mean = sums[0] / count;
  const W variance = sums[1] / count - mean * mean;
  return {middle + mean, variance > W(0) ? variance : W(0), smallest, largest};
}

// Every thread runs the same search on the same sums, so threads need not exchange the result.
template <typename W>
__device__ __forceinline__ Threshold<W> solve(const ThreadRow<W>& row, W count, W budget,
                                              W temperature, W* shared) {
  const W inverse = W(1) / temperature;
  ThresholdSearch<W> search;
  search.begin(summarise(row, count, shared), budget, count, temperature);
  for (int i = 0; i < kMaxIterations && !search.done; ++i) {
    RowExcess<W> thread_sum = {};
    row.each([&](W score) { add_token(thread_sum, gate_logit(score, search.current, inverse)); });
    W sums[3] = {thread_sum.above, thread_sum.signed_terms, thread_sum.slope};
    block_sum<kThreads>(sums, shared);
    search.advance({sums[0], sums[1], sums[2]});
  }
  return search.current;
}

template <typename W>
__global__ void __launch_bounds__(kThreads, 2)
    soft_top_k_kernel(SoftTopKArgs<W> args, W* __restrict__ gates, W* __restrict__ logits) {
  __shared__ W shared[3 * kWarps];
  const int64_t at = int64_t(blockIdx.x) * args.num_tokens;
  ThreadRow<W> row;
  row.scores = args.scores + at;
  row.mask = args.mask != nullptr ? args.mask + at : nullptr;
  row.num_tokens = args.num_tokens;
  row.fill();

  W counts[2] = {};
  row.each([&](W score) {
    counts[0] += W(1);
    counts[1] += score != score ? W(1) : W(0);
  });
  block_sum<kThreads>(counts, shared);
  const W count = counts[0];
  const W temperature = read_temperature<W>(args.temperature);
  W budget = W(args.k_rows != nullptr ? args.k_rows[blockIdx.x] : args.k);
  budget = budget < W(1) ? W(1) : budget;

  const W infinity = W(INFINITY);
  const bool all_kept = count <= budget;
  Threshold<W> threshold = {W(0), W(0)};
  // A NaN score leaves NaN in every gate of its row, for the loss to show.
  const bool broken = counts[1] > W(0) || !(temperature > W(0));
  if (!all_kept && !broken) threshold = solve(row, count, budget, temperature, shared);
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    W score;
    W logit = -infinity;
    if (row.load(i, score)) {
      logit = all_kept ? infinity : gate_logit(score, threshold, W(1) / temperature);
      if (broken) logit = W(NAN);
    }
    logits[at + i] = logit;
    gates[at + i] = gate_from_logit(logit);
  }
}

template <typename W>
__global__ void __launch_bounds__(kThreads, 2)
    score_gradient_kernel(ScoreGradientArgs<W> args, W* __restrict__ grad_scores) {
  __shared__ W shared[3 * kWarps];
  const int64_t at = int64_t(blockIdx.x) * args.num_tokens;
  const W* logits = args.logits + at;
  W nearest = W(INFINITY);
  W unused = W(0);
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    const W size = magnitude(logits[i]);
    nearest = size < nearest ? size : nearest;
  }
  block_extremes<kThreads>(nearest, unused, shared);

  const auto logit_gradient_of = [&](int64_t i) {
    W h = args.grad_logits != nullptr ? args.grad_logits[at + i] : W(0);
    if (args.grad_gates != nullptr) h += weighted(gate_slope(logits[i]), args.grad_gates[at + i]);
    return h;
  };
  W sums[2] = {};
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    sums[0] += logit_gradient_of(i);
    sums[1] += threshold_weight(logits[i], nearest);
  }
  block_sum<kThreads>(sums, shared);
  const W mean = sums[0] / sums[1];
  const W inverse = W(1) / read_temperature<W>(args.temperature);
  const bool settled = nearest == W(INFINITY);
  for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    const W weight = threshold_weight(logits[i], nearest);
    grad_scores[at + i] =
        settled ? settled_gradient(logits[i]) : (logit_gradient_of(i) - weight * mean) * inverse;
  }
}

}  // namespace

template <typename W>
cudaError_t launch_soft_top_k(const SoftTopKArgs<W>& args, W* gates, W* logits,
                              cudaStream_t stream) {
  if (args.batch == 0 || args.num_tokens == 0) return cudaSuccess;
  soft_top_k_kernel<W><<<blocks_for(args.batch), kThreads, 0, stream>>>(args, gates, logits);
  return cudaGetLastError();
}

template <typename W>
cudaError_t launch_score_gradient(const ScoreGradientArgs<W>& args, W* grad_scores,
                                  cudaStream_t stream) {
  if (args.batch == 0 || args.num_tokens == 0) return cudaSuccess;
  score_gradient_kernel<W><<<blocks_for(args.batch), kThreads, 0, stream>>>(args, grad_scores);
  return cudaGetLastError();
}

template cudaError_t launch_soft_top_k(const SoftTopKArgs<float>&, float*, float*, cudaStream_t);
template cudaError_t launch_soft_top_k(const SoftTopKArgs<double>&, double*, double*, cudaStream_t);
template cudaError_t launch_score_gradient(const ScoreGradientArgs<float>&, float*, cudaStream_t);
template cudaError_t launch_score_gradient(const ScoreGradientArgs<double>&, double*, cudaStream_t);

}  // namespace autoselect
