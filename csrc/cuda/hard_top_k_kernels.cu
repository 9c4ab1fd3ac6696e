// Hard top-K on the GPU: one block ranks one row by radix selection, as the CPU does.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/grid.h"
#include "cuda/kernels.h"
#include "rank_key.h"

namespace autoselect {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;  // values of one byte of a key
static_assert(kThreads == kDigits, "a thread counts one digit");

template <typename W>
__device__ __forceinline__ RankKey<W> key_at(const HardTopKArgs<W>& args, int64_t at, int64_t i) {
  if (args.mask != nullptr && !args.mask[at + i]) return 0;
  return rank_key(args.scores[at + i]);
}

template <typename W>
__device__ __forceinline__ int64_t budget_of(const HardTopKArgs<W>& args, int64_t row) {
  if (args.k_rows == nullptr) return args.k;
  const int64_t budget = args.k_rows[row];
  return budget < 1 ? 1 : budget > args.k ? args.k : budget;
}

// Every thread gets the sum of the values of the threads before it, and the sum of all.
__device__ __forceinline__ int prefix_sum(int value, int* shared, int& total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) shared[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared[w];
    total += shared[w];
  }
  return before + sum - value;
}

struct SelectShared {
  unsigned histogram[kDigits];
  int sums[kWarps];
  int remaining;
  int digit;
};

// The k-th largest key, a byte at a time; `remaining` is how many equal to it belong to the k.
// Counting uses integer atomics in shared memory, whose sum does not depend on their order.
template <typename W>
__device__ RankKey<W> kth_largest(const HardTopKArgs<W>& args, int64_t at, int64_t k,
                                  SelectShared& shared, int& remaining) {
  using Key = RankKey<W>;
  Key prefix = 0;
  Key known = 0;
  remaining = int(k);
  for (int shift = 8 * int(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
    shared.histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
      const Key key = key_at(args, at, i);
      if ((key & known) == prefix) atomicAdd(&shared.histogram[(key >> shift) & 0xff], 1u);
    }
    __syncthreads();
    // Thread t looks at digit kDigits - 1 - t; `above` counts the keys with a larger digit.
    const int digit = kDigits - 1 - int(threadIdx.x);
    int total;
    const int count = int(shared.histogram[digit]);
    const int above = prefix_sum(count, shared.sums, total);
    if (above < remaining && above + count >= remaining) {
      shared.digit = digit;
      shared.remaining = remaining - above;
    }
    __syncthreads();
    remaining = shared.remaining;
    prefix |= Key(shared.digit) << shift;
    known |= Key(0xff) << shift;
    __syncthreads();
  }
  return prefix;
}

// Writes the kept positions of a row in ascending order, then -1.
template <typename W>
__device__ void rank_row(const HardTopKArgs<W>& args, int64_t row, int64_t* positions) {
  __shared__ SelectShared shared;
  const int64_t at = row * args.num_tokens;
  int equal_wanted;
  const RankKey<W> bound = kth_largest(args, at, budget_of(args, row), shared, equal_wanted);
  int equal_seen = 0;
  int written = 0;
  for (int64_t start = 0; start < args.num_tokens; start += kThreads) {
    const int64_t i = start + threadIdx.x;
    const RankKey<W> key = i < args.num_tokens ? key_at(args, at, i) : RankKey<W>(0);
    const bool equal = i < args.num_tokens && key == bound;
    int total;
    const int rank = equal_seen + prefix_sum(equal, shared.sums, total);
    equal_seen += total;
    const bool take = key != 0 && (key > bound || (equal && rank < equal_wanted));
    const int slot = written + prefix_sum(take, shared.sums, total);
    written += total;
    if (take) positions[slot] = i;
  }
  for (int64_t slot = written + int(threadIdx.x); slot < args.k; slot += kThreads)
    positions[slot] = -1;
}

template <typename W>
__global__ void __launch_bounds__(kThreads, 2)
    hard_top_k_kernel(HardTopKArgs<W> args, int64_t* __restrict__ positions) {
  rank_row(args, blockIdx.x, positions + int64_t(blockIdx.x) * args.k);
}

// Copies `bytes` bytes of one row, or writes zeros; in units of 16 bytes if `whole`.
template <bool whole>
__device__ __forceinline__ void copy_row(const char* from, char* to, int64_t bytes) {
  if constexpr (whole) {
    const int4* source = reinterpret_cast<const int4*>(from);
    int4* target = reinterpret_cast<int4*>(to);
    for (int64_t i = threadIdx.x; i < bytes / 16; i += kThreads) {
      target[i] = from != nullptr ? source[i] : make_int4(0, 0, 0, 0);
    }
  } else {
    for (int64_t i = threadIdx.x; i < bytes; i += kThreads) {
      to[i] = from != nullptr ? from[i] : char(0);
    }
  }
}

// Null for the position -1.
__device__ __forceinline__ const char* token_at(const TokenRows& tokens, int64_t row,
                                                int64_t position) {
  if (position < 0) return nullptr;
  return static_cast<const char*>(tokens.data) + row * tokens.batch_stride +
         position * tokens.token_stride;
}

// Block (x, row) ranks its row and copies every gridDim.x-th kept token. Ranking a row again in
// each of its blocks costs less than a second launch.
template <typename W, bool whole>
__global__ void __launch_bounds__(kThreads, 2)
    select_tokens_kernel(HardTopKArgs<W> args, TokenRows tokens, char* __restrict__ kept,
                         int64_t* __restrict__ positions) {
  extern __shared__ int64_t own_positions[];
  const int64_t row = blockIdx.y;
  rank_row(args, row, own_positions);
  __syncthreads();
  for (int64_t slot = blockIdx.x; slot < args.k; slot += gridDim.x) {
    const int64_t position = own_positions[slot];
    if (threadIdx.x == 0) positions[row * args.k + slot] = position;
    copy_row<whole>(token_at(tokens, row, position),
                    kept + (row * args.k + slot) * tokens.token_bytes, tokens.token_bytes);
  }
}

// Copies kept tokens whose positions are already known.
template <bool whole>
__global__ void __launch_bounds__(kThreads, 2)
    gather_kernel(TokenRows tokens, const int64_t* __restrict__ positions, char* __restrict__ kept,
                  int64_t k) {
  const int64_t i = blockIdx.x;
  copy_row<whole>(token_at(tokens, i / k, positions[i]), kept + i * tokens.token_bytes,
                  tokens.token_bytes);
}

template <bool whole>
__global__ void __launch_bounds__(kThreads, 2)
    select_backward_kernel(const char* __restrict__ grad, const int64_t* __restrict__ positions,
                           char* __restrict__ grad_tokens, int64_t row_bytes, int64_t k,
                           int64_t num_tokens) {
  const int64_t i = blockIdx.x;
  const int64_t position = positions[i];
  if (position < 0 || position >= num_tokens) return;
  copy_row<whole>(grad + i * row_bytes, grad_tokens + (i / k * num_tokens + position) * row_bytes,
                  row_bytes);
}

bool whole_rows(const void* one, const void* two, int64_t row_bytes) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(one) | reinterpret_cast<uintptr_t>(two);
  return (bits | uintptr_t(row_bytes)) % 16 == 0;
}

bool whole_rows(const TokenRows& tokens, const void* kept) {
  return whole_rows(tokens.data, kept, tokens.token_bytes) && tokens.batch_stride % 16 == 0 &&
         tokens.token_stride % 16 == 0;
}

constexpr int64_t kMostShared = 4096;  // positions that fit into shared memory: 32 KiB
constexpr int64_t kBlocksPerRow = 64;

}  // namespace

template <typename W>
cudaError_t launch_hard_top_k(const HardTopKArgs<W>& args, int64_t* positions,
                              cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  hard_top_k_kernel<W><<<blocks_for(args.batch), kThreads, 0, stream>>>(args, positions);
  return cudaGetLastError();
}

template <typename W>
cudaError_t launch_select_tokens(const HardTopKArgs<W>& args, const TokenRows& tokens, void* kept,
                                 int64_t* positions, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  const bool whole = whole_rows(tokens, kept);
  char* to = static_cast<char*>(kept);
  if (args.k <= kMostShared && args.batch <= kMostBlocksBeside) {
    const dim3 grid(unsigned(args.k < kBlocksPerRow ? args.k : kBlocksPerRow),
                    unsigned(args.batch));
    const size_t shared = size_t(args.k) * sizeof(int64_t);
    const auto kernel = whole ? select_tokens_kernel<W, true> : select_tokens_kernel<W, false>;
    kernel<<<grid, kThreads, shared, stream>>>(args, tokens, to, positions);
    return cudaGetLastError();
  }
  const cudaError_t status = launch_hard_top_k(args, positions, stream);
  if (status != cudaSuccess) return status;
  const auto kernel = whole ? gather_kernel<true> : gather_kernel<false>;
  const unsigned kept_tokens = blocks_for(args.batch * args.k);
  kernel<<<kept_tokens, kThreads, 0, stream>>>(tokens, positions, to, args.k);
  return cudaGetLastError();
}

cudaError_t launch_select_backward(const void* grad, const int64_t* positions, void* grad_tokens,
                                   int64_t row_bytes, int64_t batch, int64_t k, int64_t num_tokens,
                                   cudaStream_t stream) {
  if (batch == 0 || k == 0 || row_bytes == 0) return cudaSuccess;
  const bool whole = whole_rows(grad, grad_tokens, row_bytes);
  const auto kernel = whole ? select_backward_kernel<true> : select_backward_kernel<false>;
  kernel<<<blocks_for(batch * k), kThreads, 0, stream>>>(static_cast<const char*>(grad), positions,
                                                         static_cast<char*>(grad_tokens), row_bytes,
                                                         k, num_tokens);
  return cudaGetLastError();
}

template cudaError_t launch_hard_top_k(const HardTopKArgs<float>&, int64_t*, cudaStream_t);
template cudaError_t launch_hard_top_k(const HardTopKArgs<double>&, int64_t*, cudaStream_t);
template cudaError_t launch_select_tokens(const HardTopKArgs<float>&, const TokenRows&, void*,
                                          int64_t*, cudaStream_t);
template cudaError_t launch_select_tokens(const HardTopKArgs<double>&, const TokenRows&, void*,
                                          int64_t*, cudaStream_t);

}  // namespace autoselect
