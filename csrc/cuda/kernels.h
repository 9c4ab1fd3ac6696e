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
  const Work<T>* factor;      // [r, D], or null
  const int64_t* seed;        // one number
  const int64_t* step;        // one number
  const int64_t* sample_ids;  // [B]
  int64_t rank;
  int64_t batch;
  int64_t num_tokens;
  int64_t width;
};

template <typename T>
cudaError_t launch_gate_forward(const GateArgs<T>& args, T* gated, cudaStream_t stream);

// Writes dL/dtokens, and dL/dlogit or dL/dgate of every token.
template <typename T>
cudaError_t launch_gate_backward(const GateArgs<T>& args, const T* grad, T* grad_tokens,
                                 Work<T>* grad_gate, cudaStream_t stream);

template <typename W>
struct HardTopKArgs {
  const W* scores;   // [B, N]
  const bool* mask;  // [B, N], or null
  int64_t k;
  int64_t batch;
  int64_t num_tokens;
};

template <typename W>
cudaError_t launch_hard_top_k(const HardTopKArgs<W>& args, int64_t* positions, cudaStream_t stream);

// Hard top-K, and the rows of `row_bytes` bytes it keeps, in one launch.
template <typename W>
cudaError_t launch_select_tokens(const HardTopKArgs<W>& args, const void* tokens, void* kept,
                                 int64_t row_bytes, int64_t* positions, cudaStream_t stream);

// grad_tokens must be zero; writes the kept rows to their original places.
cudaError_t launch_select_backward(const void* grad, const int64_t* positions, void* grad_tokens,
                                   int64_t row_bytes, int64_t batch, int64_t k, int64_t num_tokens,
                                   cudaStream_t stream);

}  // namespace autoselect
