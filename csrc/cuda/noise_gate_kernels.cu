// The noise gate on the GPU: 16 bytes per access, a block of threads per few tokens.
//
// A block walks over the channels of its tokens, so that mean and std are read once for all of
// them. The part of the noise that channels share, factor^T eta, is a matrix product of `eta`,
// which is made here, and is added here.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/grid.h"
#include "cuda/kernels.h"
#include "gate_math.h"
#include "philox.h"

namespace autoselect {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// Channels a thread handles at a time: one 16-byte access, but at least one Philox block of four.
template <typename T>
constexpr int kChannels = sizeof(T) >= 4 ? 4 : 8;

template <typename V, int count>
struct alignas(sizeof(V) * count < 16 ? sizeof(V) * count : 16) Pack {
  V values[count];
};

// Loads a pack; channels from `width` on are zero. `whole` says that packs are aligned and full.
template <bool whole, int count, typename V>
__device__ __forceinline__ Pack<V, count> load_pack(const V* row, int64_t channel, int64_t width) {
  if constexpr (whole) {
    return *reinterpret_cast<const Pack<V, count>*>(row + channel);
  } else {
    Pack<V, count> pack = {};
#pragma unroll
    for (int c = 0; c < count; ++c) {
      if (channel + c < width) pack.values[c] = row[channel + c];
    }
    return pack;
  }
}

template <bool whole, int count, typename V>
__device__ __forceinline__ void store_pack(V* row, int64_t channel, int64_t width,
                                           const Pack<V, count>& pack) {
  if constexpr (whole) {
    *reinterpret_cast<Pack<V, count>*>(row + channel) = pack;
  } else {
#pragma unroll
    for (int c = 0; c < count; ++c) {
      if (channel + c < width) row[channel + c] = pack.values[c];
    }
  }
}

template <typename T>
__device__ __forceinline__ Amplitudes<Work<T>> amplitudes_at(const GateArgs<T>& args, int64_t i) {
  const Work<T> gate = args.gate[i];
  return args.from_logits ? amplitudes(gate) : amplitudes_of_gate(gate);
}

template <typename W>
struct TokenOfTile {
  Amplitudes<W> amp;
  int64_t sample;
  uint32_t token;
};

// Random numbers of channels 4 * block .. 4 * block + 3 of a token.
template <typename T, typename W>
__device__ __forceinline__ void normals(PhiloxKey stream, int64_t block, const TokenOfTile<W>& of,
                                        float (&out)[4]) {
  const PhiloxWords words = noise_words(stream, uint32_t(block), of.token, of.sample);
  box_muller<(sizeof(T) > 2)>(words.x0, words.x1, out[0], out[1]);
  box_muller<(sizeof(T) > 2)>(words.x2, words.x3, out[2], out[3]);
}

// The tokens of a block: first .. first + kTokens - 1 of the flattened batch.
template <typename T, bool whole, int kTokens>
struct Tile {
  using W = Work<T>;
  static constexpr int kCount = kChannels<T>;
  const GateArgs<T>& args;
  TokenOfTile<W> (&tokens)[kTokens];  // shared by the block
  PhiloxKey stream;
  int64_t first;

  __device__ __forceinline__ int64_t total() const { return args.batch * args.num_tokens; }

  __device__ __forceinline__ void prepare() const {
    const int64_t i = first + threadIdx.x;
    if (threadIdx.x < kTokens && i < total()) {
      tokens[threadIdx.x] = {amplitudes_at(args, i), args.sample_ids[i / args.num_tokens],
                             uint32_t(i % args.num_tokens)};
    }
    __syncthreads();
  }

  // L eps of one pack of channels of token t, whose row begins at `row`.
  __device__ __forceinline__ void draw(int t, int64_t row, int64_t channel,
                                       const Pack<W, kCount>& std, W (&noise)[kCount]) const {
#pragma unroll
    for (int start = 0; start < kCount; start += 4) {
      float four[4];
      normals<T>(stream, (channel + start) / 4, tokens[t], four);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        noise[start + lane] = std.values[start + lane] * W(four[lane]);
      }
    }
    if (args.common == nullptr) return;
    const Pack<T, kCount> common = load_pack<whole, kCount>(args.common + row, channel, args.width);
#pragma unroll
    for (int c = 0; c < kCount; ++c) noise[c] += to_work(common.values[c]);
  }
};

template <typename T, bool whole, int kTokens>
__global__ void __launch_bounds__(kThreads, sizeof(T) > 4 ? 4 : 8)
    gate_forward_kernel(GateArgs<T> args, T* __restrict__ gated) {
  using W = Work<T>;
  using Tile = Tile<T, whole, kTokens>;
  constexpr int kCount = Tile::kCount;
  __shared__ TokenOfTile<W> tokens[kTokens];
  const Tile tile = {args, tokens, stream_key(*args.seed, *args.step),
                     int64_t(blockIdx.x) * kTokens};
  tile.prepare();
  for (int64_t channel = int64_t(threadIdx.x) * kCount; channel < args.width;
       channel += kThreads * kCount) {
    const Pack<W, kCount> std = load_pack<whole, kCount>(args.std, channel, args.width);
    const Pack<W, kCount> mean = load_pack<whole, kCount>(args.mean, channel, args.width);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (tile.first + t >= tile.total()) break;
      const int64_t row = (tile.first + t) * args.width;
      const Pack<T, kCount> x = load_pack<whole, kCount>(args.tokens + row, channel, args.width);
      W noise[kCount];
      tile.draw(t, row, channel, std, noise);
      const Amplitudes<W> amp = tokens[t].amp;
      const W rest = W(1) - amp.a;
      Pack<T, kCount> result;
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        const W signal = weighted(amp.a, to_work(x.values[c])) + rest * mean.values[c];
        from_work(signal + weighted(amp.b, noise[c]), result.values[c]);
      }
      store_pack<whole, kCount>(gated + row, channel, args.width, result);
    }
  }
}

template <typename T, bool whole, int kTokens>
__global__ void __launch_bounds__(kThreads, sizeof(T) > 4 ? 4 : 5)
    gate_backward_kernel(GateArgs<T> args, const T* __restrict__ grad, T* __restrict__ grad_tokens,
                         Work<T>* __restrict__ grad_gate) {
  using W = Work<T>;
  using Tile = Tile<T, whole, kTokens>;
  constexpr int kCount = Tile::kCount;
  __shared__ TokenOfTile<W> tokens[kTokens];
  __shared__ W sums[2 * kWarps];
  const Tile tile = {args, tokens, stream_key(*args.seed, *args.step),
                     int64_t(blockIdx.x) * kTokens};
  tile.prepare();
  W dots[kTokens][2] = {};
  for (int64_t channel = int64_t(threadIdx.x) * kCount; channel < args.width;
       channel += kThreads * kCount) {
    const Pack<W, kCount> std = load_pack<whole, kCount>(args.std, channel, args.width);
    const Pack<W, kCount> mean = load_pack<whole, kCount>(args.mean, channel, args.width);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (tile.first + t >= tile.total()) break;
      const int64_t row = (tile.first + t) * args.width;
      const Pack<T, kCount> x = load_pack<whole, kCount>(args.tokens + row, channel, args.width);
      const Pack<T, kCount> g = load_pack<whole, kCount>(grad + row, channel, args.width);
      W noise[kCount];
      tile.draw(t, row, channel, std, noise);
      const W a = tokens[t].amp.a;
      Pack<T, kCount> result;
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        const W gradient = to_work(g.values[c]);
        dots[t][0] += gradient * (to_work(x.values[c]) - mean.values[c]);
        dots[t][1] += gradient * noise[c];
        from_work(weighted(a, gradient), result.values[c]);
      }
      if (grad_tokens != nullptr) {
        store_pack<whole, kCount>(grad_tokens + row, channel, args.width, result);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    block_sum<kThreads>(dots[t], sums);
    if (threadIdx.x == 0 && tile.first + t < tile.total()) {
      const Amplitudes<W> amp = tokens[t].amp;
      grad_gate[tile.first + t] = args.from_logits ? logit_gradient(amp, dots[t][0], dots[t][1])
                                                   : gate_gradient(amp, dots[t][0], dots[t][1]);
    }
  }
}

// A thread per block of four channels. eta lies in the channels behind the token's own; a block of
// four may straddle the border.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    eta_kernel(GateArgs<T> args, int64_t rank, T* __restrict__ eta) {
  const int64_t begin = args.width / 4;
  const int64_t blocks = (args.width + rank + 3) / 4 - begin;
  const int64_t task = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t i = task / blocks;
  if (i >= args.batch * args.num_tokens) return;
  const int64_t block = begin + task % blocks;
  const TokenOfTile<Work<T>> of = {
      {}, args.sample_ids[i / args.num_tokens], uint32_t(i % args.num_tokens)};
  float four[4];
  normals<T>(stream_key(*args.seed, *args.step), block, of, four);
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int64_t j = block * 4 + lane - args.width;
    if (j >= 0 && j < rank) from_work(Work<T>(four[lane]), eta[i * rank + j]);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
bool packs_are_whole(const GateArgs<T>& args, const void* other, const void* out) {
  return args.width % kChannels<T> == 0 && is_aligned(args.tokens) && is_aligned(args.mean) &&
         is_aligned(args.std) && is_aligned(args.common) && is_aligned(other) && is_aligned(out);
}

// From here on, blocks that take several tokens each fill the GPU.
constexpr unsigned kManyTokens = 8192;
constexpr int kTileTokens = 2;

}  // namespace

template <typename T>
cudaError_t launch_eta(const GateArgs<T>& args, int64_t rank, T* eta, cudaStream_t stream) {
  const int64_t blocks = (args.width + rank + 3) / 4 - args.width / 4;
  const int64_t tasks = args.batch * args.num_tokens * blocks;
  if (tasks == 0) return cudaSuccess;
  const unsigned grid = blocks_for(tasks, kThreads);
  eta_kernel<T><<<grid, kThreads, 0, stream>>>(args, rank, eta);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gate_forward(const GateArgs<T>& args, T* gated, cudaStream_t stream) {
  const unsigned tokens = blocks_for(args.batch * args.num_tokens);
  const unsigned tiles = blocks_for(args.batch * args.num_tokens, kTileTokens);
  if (tokens == 0 || args.width == 0) return cudaSuccess;
  if (!packs_are_whole(args, args.tokens, gated)) {
    gate_forward_kernel<T, false, 1><<<tokens, kThreads, 0, stream>>>(args, gated);
  } else if (tokens < kManyTokens) {
    gate_forward_kernel<T, true, 1><<<tokens, kThreads, 0, stream>>>(args, gated);
  } else {
    gate_forward_kernel<T, true, kTileTokens><<<tiles, kThreads, 0, stream>>>(args, gated);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gate_backward(const GateArgs<T>& args, const T* grad, T* grad_tokens,
                                 Work<T>* grad_gate, cudaStream_t stream) {
  const unsigned tokens = blocks_for(args.batch * args.num_tokens);
  const unsigned tiles = blocks_for(args.batch * args.num_tokens, kTileTokens);
  if (tokens == 0) return cudaSuccess;
  if (!packs_are_whole(args, grad, grad_tokens)) {
    gate_backward_kernel<T, false, 1>
        <<<tokens, kThreads, 0, stream>>>(args, grad, grad_tokens, grad_gate);
  } else if (tokens < kManyTokens) {
    gate_backward_kernel<T, true, 1>
        <<<tokens, kThreads, 0, stream>>>(args, grad, grad_tokens, grad_gate);
  } else {
    gate_backward_kernel<T, true, kTileTokens>
        <<<tiles, kThreads, 0, stream>>>(args, grad, grad_tokens, grad_gate);
  }
  return cudaGetLastError();
}

#define AS_INSTANTIATE(T)                                                               \
  template cudaError_t launch_eta(const GateArgs<T>&, int64_t, T*, cudaStream_t);       \
  template cudaError_t launch_gate_forward(const GateArgs<T>&, T*, cudaStream_t);       \
  template cudaError_t launch_gate_backward(const GateArgs<T>&, const T*, T*, Work<T>*, \
                                            cudaStream_t);

AS_INSTANTIATE(float)
AS_INSTANTIATE(double)
AS_INSTANTIATE(BFloat16)
AS_INSTANTIATE(Half16)

}  // namespace autoselect
