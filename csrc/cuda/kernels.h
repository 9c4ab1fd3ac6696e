// The CUDA kernels behind raw pointers, so that nvcc compiles them without PyTorch's headers.
//
// All pointers are device pointers to contiguous tensors, all launches go to `stream`, and none
// allocates or waits: they may be captured in a CUDA graph. No kernel uses atomics on results, so
// that a rerun gives the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "platform.h"

namespace autoselect {

// A number that is known on the host, or lies on the device if `pointer` is set.
struct DeviceScalar {
  double value;
  const double* pointer;
};

template <typename W>
struct SoftTopKArgs {
  const W* scores;        // [B, N]
  const bool* mask;       // [B, N], or null
  const int64_t* k_rows;  // [B], or null: then every row has budget k
  int64_t k;
  DeviceScalar temperature;
  int64_t batch;
  int64_t num_tokens;
};

template <typename W>
cudaError_t launch_soft_top_k(const SoftTopKArgs<W>& args, W* gates, W* logits,
                              cudaStream_t stream);

// dL/dr_j = (h_j - w_j sum h) / tau with h = grad_logits + s (1 - s) grad_gates; either may be
// null.
template <typename W>
struct ScoreGradientArgs {
  const W* logits;       // [B, N]
  const W* grad_gates;   // [B, N], or null
  const W* grad_logits;  // [B, N], or null
  DeviceScalar temperature;
  int64_t batch;
  int64_t num_tokens;
};

template <typename W>
cudaError_t launch_score_gradient(const ScoreGradientArgs<W>& args, W* grad_scores,
                                  cudaStream_t stream);

template <typename T>
struct GateArgs {
  const T* tokens;      // [B, N, D]
  const Work<T>* gate;  // [B, N]: gates, or their logits if `from_logits`
  bool from_logits;
  const Work<T>* mean;        // [D]
  const Work<T>* std;         // [D]
  const T* common;            // factor^T eta of every token, [B, N, D], or null
  const int64_t* seed;        // one number
  const int64_t* step;        // one number
  const int64_t* sample_ids;  // [B]
  int64_t batch;
  int64_t num_tokens;
  int64_t width;
};

// Writes eta [B, N, r], the normals behind the D of every token; reads the noise key alone.
template <typename T>
cudaError_t launch_eta(const GateArgs<T>& args, int64_t rank, T* eta, cudaStream_t stream);

template <typename T>
cudaError_t launch_gate_forward(const GateArgs<T>& args, T* gated, cudaStream_t stream);

// Writes dL/dtokens unless `grad_tokens` is null, and dL/dlogit or dL/dgate of every token.
template <typename T>
cudaError_t launch_gate_backward(const GateArgs<T>& args, const T* grad, T* grad_tokens,
                                 Work<T>* grad_gate, cudaStream_t stream);

template <typename W>
struct HardTopKArgs {
  const W* scores;        // [B, N]
  const bool* mask;       // [B, N], or null
  const int64_t* k_rows;  // [B], budgets 1..k; or null: then every row has budget k
  int64_t k;              // columns of the result
  int64_t batch;
  int64_t num_tokens;
};

template <typename W>
cudaError_t launch_hard_top_k(const HardTopKArgs<W>& args, int64_t* positions, cudaStream_t stream);

// Tokens [B, N] of `token_bytes` bytes each, which need not follow one another.
struct TokenRows {
  const void* data;
  int64_t token_bytes;
  int64_t batch_stride;  // in bytes
  int64_t token_stride;  // in bytes
};

// Hard top-K, and the tokens it keeps, in one launch.
template <typename W>
cudaError_t launch_select_tokens(const HardTopKArgs<W>& args, const TokenRows& tokens, void* kept,
                                 int64_t* positions, cudaStream_t stream);

// grad_tokens must be zero; writes the kept rows to their original places.
cudaError_t launch_select_backward(const void* grad, const int64_t* positions, void* grad_tokens,
                                   int64_t row_bytes, int64_t batch, int64_t k, int64_t num_tokens,
                                   cudaStream_t stream);

// The mean of the valid tokens of each row, [B, D]; zeros if there are none.
template <typename T>
cudaError_t launch_mean_token(const T* tokens, const bool* mask, int64_t batch, int64_t num_tokens,
                              int64_t width, float* mean, cudaStream_t stream);

// Unit vectors of the tokens minus their row's mean, [B, N, D]; zeros if there is nothing left.
// D is float, or Half16 for tokens of 16 bits.
template <typename T, typename D>
cudaError_t launch_directions(const T* tokens, const float* mean, int64_t batch, int64_t num_tokens,
                              int64_t width, D* directions, cudaStream_t stream);

// Diverse top-K, step by step: which tokens are kept depends on the similarity to those kept
// before. `order` [B, k] receives positions in the order in which they are kept, -1 after the last.
struct DiverseArgs {
  const float* scores;    // [B, N]
  const bool* mask;       // [B, N], or null
  const int64_t* k_rows;  // [B], budgets 1..k; or null: then every row has budget k
  float diversity;
  float relevance_weight;
  int64_t k;
  int64_t batch;
  int64_t num_tokens;
  float* relevance;  // [B, N], -infinity at tokens that cannot be kept (any more)
  float* nearest;    // [B, N], largest similarity to a kept token
  int64_t* order;    // [B, k]
};

// Writes relevance, and -1 to nearest.
cudaError_t launch_relevance(const DiverseArgs& args, cudaStream_t stream);

// Writes the scores themselves to relevance.
cudaError_t launch_scores(const DiverseArgs& args, cudaStream_t stream);

// All pairs of a row are compared at once up to so many tokens, else a row of them per step.
constexpr int64_t kMostTokensOfPairs = 4096;

// All k steps; `similarity` [B, N, N] is that of all pairs. Does not use `nearest`.
cudaError_t launch_diverse_pairs(const DiverseArgs& args, const float* similarity,
                                 cudaStream_t stream);

// One step; `similarity` [B, N] is that to the token of the step before.
cudaError_t launch_diverse_step(const DiverseArgs& args, const float* similarity, int64_t step,
                                cudaStream_t stream);

// similarity[B, N] = cosine of every token and the token that was kept in a step.
template <typename D>
cudaError_t launch_similarity_row(const DiverseArgs& args, const D* directions, int64_t width,
                                  int64_t step, float* similarity, cudaStream_t stream);

// positions [B, k] = order, ascending.
cudaError_t launch_sort_order(const DiverseArgs& args, int64_t* positions, cudaStream_t stream);

}  // namespace autoselect
