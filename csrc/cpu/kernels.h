// The CPU kernels: plain loops over one row or one token, compiled once per instruction set.
//
// The compiler vectorises them; every build computes the same bits, because products and sums are
// never contracted or reordered. The files of an instruction set define no function with external
// linkage, such as a template of the standard library: the linker could use that build everywhere.
#pragma once

#include "philox.h"

namespace autoselect {

// Soft top-K of one row of `count` valid scores, 1 <= budget < count; writes logits and gates.
template <typename W>
using SolveRow = void (*)(const W* scores, int64_t count, W budget, W temperature, W* logits,
                          W* gates);

// dL/dr_j = (h_j - w_j sum h) / tau with h = grad_logits + s (1 - s) grad_gates; either may be
// null.
template <typename W>
using ScoreGradient = void (*)(const W* logits, const W* grad_gates, const W* grad_logits,
                               int64_t count, W temperature, W* grad_scores);

// Channels of the factor that lie together, so that a block of all its rows fits the L1 cache.
constexpr int64_t kFactorBlock = 64;

template <typename W>
struct NoiseSource {
  const W* mean;    // [width]
  const W* std;     // [width]
  const W* factor;  // [blocks, rank, kFactorBlock], zeros after the last channel; or null
  int64_t rank;
  int64_t width;
  PhiloxKey stream;
};

struct TokenPlace {
  uint32_t token;
  int64_t sample;
};

// Most tokens of a call of the kernels below.
constexpr int64_t kGroup = 16;

// Tokens that follow one another in memory, and their amplitudes.
template <typename W>
struct TokenGroup {
  int64_t count;
  TokenPlace places[kGroup];
  W a[kGroup];
  W b[kGroup];
};

// out = a x + (1 - a) mu + b L eps
template <typename T>
using GateForward = void (*)(const T* x, T* out, const NoiseSource<Work<T>>& source,
                             const TokenGroup<Work<T>>& group);

// grad_x = a G, unless grad_x is null; dots = { <G, x - mu>, <G, L eps> } of every token
template <typename T>
using GateBackward = void (*)(const T* grad, const T* x, T* grad_x,
                              const NoiseSource<Work<T>>& source, const TokenGroup<Work<T>>& group,
                              Work<T> (*dots)[2]);

// The mean of the listed tokens, [width]; zeros if there are none.
template <typename T>
using MeanToken = void (*)(const T* x, const int64_t* listed, int64_t count, int64_t width,
                           float* mean);

// <x - mean, x - mean>
template <typename T>
using CentredSquare = float (*)(const T* x, const float* mean, int64_t width);

// dots[i] = <x - mean, directions[i]>, for 1..kDirections of them; directions [count, width].
// The partial sums of so many fit into the registers.
constexpr int64_t kDirections = 4;
template <typename T>
using CentredDots = void (*)(const T* x, const float* mean, const float* directions, int64_t count,
                             int64_t width, float* dots);

// direction = (x - mean) / length
template <typename T>
using Direction = void (*)(const T* x, const float* mean, float length, int64_t width,
                           float* direction);

template <typename W>
struct RowKernels {
  SolveRow<W> solve;
  ScoreGradient<W> score_gradient;
};

template <typename T>
struct TokenKernels {
  GateForward<T> forward;
  GateBackward<T> backward;
  MeanToken<T> mean;
  CentredSquare<T> centred_square;
  CentredDots<T> centred_dots;
  Direction<T> direction;
};

// All kernels of one instruction set; those of a type are the base of that type.
struct CpuKernels : RowKernels<float>,
                    RowKernels<double>,
                    TokenKernels<float>,
                    TokenKernels<double>,
                    TokenKernels<BFloat16>,
                    TokenKernels<Half16> {
  const char* instruction_set;
};

CpuKernels cpu_kernels_baseline();
CpuKernels cpu_kernels_avx2();
CpuKernels cpu_kernels_avx512();

// The kernels for this processor; AUTOSELECT_CPU_ISA=baseline|avx2|avx512 chooses simpler ones.
const CpuKernels& cpu_kernels();

template <typename W>
const RowKernels<W>& row_kernels() {
  return cpu_kernels();
}

template <typename T>
const TokenKernels<T>& token_kernels() {
  return cpu_kernels();
}

}  // namespace autoselect
