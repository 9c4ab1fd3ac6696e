// The noise gate on the GPU: one block per token at a time, 16 bytes per access.
#include <cuda_runtime.h>

#include "cuda/block_sum.cuh"
#include "cuda/kernels.h"
#include "gate_math.h"
#include "philox.h"

namespace autoselect {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxRank = 64;

// Channels a thread handles at a time: one 16-byte access, but at least one Philox block of four.
template <typename T>
constexpr int kChannels = sizeof(T) >= 4 ? 4 : 8;

template <typename T>
struct alignas(sizeof(T) * kChannels<T> < 16 ? sizeof(T) * kChannels<T> : 16) Pack {
  T values[kChannels<T>];
};

// Loads a pack; channels from `width` on are zero. `whole` says that packs are aligned and full.
template <bool whole, typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* row, int64_t channel, int64_t width) {
  if constexpr (whole) {
    return *reinterpret_cast<const Pack<T>*>(row + channel);
  } else {
    Pack<T> pack = {};
#pragma unroll
    for (int c = 0; c < kChannels<T>; ++c) {
      if (channel + c < width) pack.values[c] = row[channel + c];
    }
    return pack;
  }
}

template <bool whole, typename T>
__device__ __forceinline__ void store_pack(T* row, int64_t channel, int64_t width,
                                           const Pack<T>& pack) {
  if constexpr (whole) {
    *reinterpret_cast<Pack<T>*>(row + channel) = pack;
  } else {
#pragma unroll
    for (int c = 0; c < kChannels<T>; ++c) {
      if (channel + c < width) row[channel + c] = pack.values[c];
    }
  }
}

// The noise of one token; `common` holds its eta in shared memory.
template <typename T>
struct TokenNoise {
  using W = Work<T>;
  const GateArgs<T>& args;
  PhiloxKey stream;
  uint32_t token;
  int64_t sample;
  const W* common;

  __device__ __forceinline__ void normals(uint32_t block, float (&out)[4]) const {
    const PhiloxWords words = noise_words(stream, block, token, sample);
    box_muller(words.x0, words.x1, out[0], out[1]);
    box_muller(words.x2, words.x3, out[2], out[3]);
  }

  // eta lies in the channels after the token's own; a block of four may straddle the border.
  __device__ __forceinline__ void draw_common(W* eta) const {
    const int64_t first = args.width / 4;
    const int64_t last = (args.width + args.rank + 3) / 4;
    for (int64_t block = first + threadIdx.x; block < last; block += kThreads) {
      float four[4];
      normals(uint32_t(block), four);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t j = block * 4 + lane - args.width;
        if (j >= 0 && j < args.rank) eta[j] = W(four[lane]);
      }
    }
  }

  // L eps of the channels of one pack.
  template <bool whole>
  __device__ __forceinline__ void pack(int64_t channel, W (&noise)[kChannels<T>]) const {
#pragma unroll
    for (int start = 0; start < kChannels<T>; start += 4) {
      float four[4];
      normals(uint32_t((channel + start) / 4), four);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t c = channel + start + lane;
        noise[start + lane] = whole || c < args.width ? args.std[c] * W(four[lane]) : W(0);
      }
    }
    for (int64_t j = 0; j < args.rank; ++j) {
      const W* direction = args.factor + j * args.width;
#pragma unroll
      for (int c = 0; c < kChannels<T>; ++c) {
        if (whole || channel + c < args.width) noise[c] += common[j] * direction[channel + c];
      }
    }
  }
};

template <typename T>
__device__ __forceinline__ Amplitudes<Work<T>> amplitudes_at(const GateArgs<T>& args, int64_t i) {
  const Work<T> gate = args.gate[i];
  return args.from_logits ? amplitudes(gate) : amplitudes_of_gate(gate);
}

template <typename T, bool whole>
__global__ void __launch_bounds__(kThreads, 4)
    gate_forward_kernel(GateArgs<T> args, T* __restrict__ gated) {
  using W = Work<T>;
  __shared__ W eta[kMaxRank];
  const PhiloxKey stream = stream_key(*args.seed, *args.step);
  const int64_t total = args.batch * args.num_tokens;
  for (int64_t i = blockIdx.x; i < total; i += gridDim.x) {
    const TokenNoise<T> noise_of_token = {args, stream, uint32_t(i % args.num_tokens),
                                          args.sample_ids[i / args.num_tokens], eta};
    if (args.rank > 0) {
      __syncthreads();
      noise_of_token.draw_common(eta);
      __syncthreads();
    }
    const Amplitudes<W> amp = amplitudes_at(args, i);
    const W rest = W(1) - amp.a;
    const T* x = args.tokens + i * args.width;
    T* out = gated + i * args.width;
    for (int64_t channel = threadIdx.x * kChannels<T>; channel < args.width;
         channel += kThreads * kChannels<T>) {
      const Pack<T> x_pack = load_pack<whole>(x, channel, args.width);
      W noise[kChannels<T>];
      noise_of_token.template pack<whole>(channel, noise);
      Pack<T> result;
#pragma unroll
      for (int c = 0; c < kChannels<T>; ++c) {
        const W mean = whole || channel + c < args.width ? args.mean[channel + c] : W(0);
        from_work(amp.a * to_work(x_pack.values[c]) + rest * mean + amp.b * noise[c],
                  result.values[c]);
      }
      store_pack<whole>(out, channel, args.width, result);
    }
  }
}

template <typename T, bool whole>
__global__ void __launch_bounds__(kThreads, 4)
    gate_backward_kernel(GateArgs<T> args, const T* __restrict__ grad, T* __restrict__ grad_tokens,
                         Work<T>* __restrict__ grad_gate) {
  using W = Work<T>;
  __shared__ W eta[kMaxRank];
  __shared__ W shared[2 * kWarps];
  const PhiloxKey stream = stream_key(*args.seed, *args.step);
  const int64_t total = args.batch * args.num_tokens;
  for (int64_t i = blockIdx.x; i < total; i += gridDim.x) {
    const TokenNoise<T> noise_of_token = {args, stream, uint32_t(i % args.num_tokens),
                                          args.sample_ids[i / args.num_tokens], eta};
    if (args.rank > 0) {
      __syncthreads();
      noise_of_token.draw_common(eta);
      __syncthreads();
    }
    const Amplitudes<W> amp = amplitudes_at(args, i);
    const T* x = args.tokens + i * args.width;
    const T* g = grad + i * args.width;
    T* out = grad_tokens + i * args.width;
    W dots[2] = {};
    for (int64_t channel = threadIdx.x * kChannels<T>; channel < args.width;
         channel += kThreads * kChannels<T>) {
      const Pack<T> x_pack = load_pack<whole>(x, channel, args.width);
      const Pack<T> g_pack = load_pack<whole>(g, channel, args.width);
      W noise[kChannels<T>];
      noise_of_token.template pack<whole>(channel, noise);
      Pack<T> result;
#pragma unroll
      for (int c = 0; c < kChannels<T>; ++c) {
        const W mean = whole || channel + c < args.width ? args.mean[channel + c] : W(0);
        const W gradient = to_work(g_pack.values[c]);
        dots[0] += gradient * (to_work(x_pack.values[c]) - mean);
        dots[1] += gradient * noise[c];
        from_work(amp.a * gradient, result.values[c]);
      }
      store_pack<whole>(out, channel, args.width, result);
    }
    block_sum<kThreads>(dots, shared);
    if (threadIdx.x == 0) {
      grad_gate[i] = args.from_logits ? logit_gradient(amp, dots[0], dots[1])
                                      : gate_gradient(amp, dots[0], dots[1]);
    }
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
bool packs_are_whole(const GateArgs<T>& args, const void* other, const void* out) {
  return args.width % kChannels<T> == 0 && is_aligned(args.tokens) && is_aligned(other) &&
         is_aligned(out);
}

// Enough blocks to fill any GPU many times over; each block then takes further tokens.
template <typename T>
unsigned grid_of(const GateArgs<T>& args) {
  const int64_t total = args.batch * args.num_tokens;
  return unsigned(total < (int64_t(1) << 20) ? total : (int64_t(1) << 20));
}

}  // namespace

template <typename T>
cudaError_t launch_gate_forward(const GateArgs<T>& args, T* gated, cudaStream_t stream) {
  const unsigned grid = grid_of(args);
  if (grid == 0 || args.width == 0) return cudaSuccess;
  if (packs_are_whole(args, args.tokens, gated)) {
    gate_forward_kernel<T, true><<<grid, kThreads, 0, stream>>>(args, gated);
  } else {
    gate_forward_kernel<T, false><<<grid, kThreads, 0, stream>>>(args, gated);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gate_backward(const GateArgs<T>& args, const T* grad, T* grad_tokens,
                                 Work<T>* grad_gate, cudaStream_t stream) {
  const unsigned grid = grid_of(args);
  if (grid == 0) return cudaSuccess;
  if (packs_are_whole(args, grad, grad_tokens)) {
    gate_backward_kernel<T, true>
        <<<grid, kThreads, 0, stream>>>(args, grad, grad_tokens, grad_gate);
  } else {
    gate_backward_kernel<T, false>
        <<<grid, kThreads, 0, stream>>>(args, grad, grad_tokens, grad_gate);
  }
  return cudaGetLastError();
}

#define AS_INSTANTIATE(T)                                                               \
  template cudaError_t launch_gate_forward(const GateArgs<T>&, T*, cudaStream_t);       \
  template cudaError_t launch_gate_backward(const GateArgs<T>&, const T*, T*, Work<T>*, \
                                            cudaStream_t);

AS_INSTANTIATE(float)
AS_INSTANTIATE(double)
AS_INSTANTIATE(BFloat16)
AS_INSTANTIATE(Half16)

}  // namespace autoselect
