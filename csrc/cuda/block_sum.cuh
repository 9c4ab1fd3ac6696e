// Sums over a thread block in a fixed order, so that reruns give the same bits.
#pragma once

#include <cstdint>

namespace autoselect {

constexpr int kWarp = 32;

template <typename W>
__device__ __forceinline__ W warp_sum(W value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Every thread gets the sums of M values over the block. `shared` holds M * kThreads / 32 values
// and may be used again after the next synchronisation.
template <int kThreads, int M, typename W>
__device__ __forceinline__ void block_sum(W (&values)[M], W* shared) {
  constexpr int kWarps = kThreads / kWarp;
  const int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int m = 0; m < M; ++m) values[m] = warp_sum(values[m]);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int m = 0; m < M; ++m) shared[m * kWarps + warp] = values[m];
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < M; ++m) {
    W total = W(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[m * kWarps + w];
    values[m] = total;
  }
}

template <int kThreads, typename W>
__device__ __forceinline__ void block_extremes(W& smallest, W& largest, W* shared) {
  constexpr int kWarps = kThreads / kWarp;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const W low = __shfl_xor_sync(0xffffffffu, smallest, offset);
    const W high = __shfl_xor_sync(0xffffffffu, largest, offset);
    smallest = low < smallest ? low : smallest;
    largest = high > largest ? high : largest;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    shared[threadIdx.x / kWarp] = smallest;
    shared[kWarps + threadIdx.x / kWarp] = largest;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    smallest = shared[w] < smallest ? shared[w] : smallest;
    largest = shared[kWarps + w] > largest ? shared[kWarps + w] : largest;
  }
}

}  // namespace autoselect
