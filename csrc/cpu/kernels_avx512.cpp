// The CPU kernels for processors with AVX-512.
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// The intrinsics of g++ 12 leave values undefined on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512dq,avx512bw,avx512vl,avx512cd,avx2,fma,bmi2,prefer-vector-width=512")
#include "threshold.h"

// The pragma does not define __AVX512F__ in every g++.
#define AUTOSELECT_AVX512

namespace autoselect {
namespace {
#include "cpu/kernels.inl"
}  // namespace
#pragma GCC pop_options

CpuKernels cpu_kernels_avx512() { return kernels_here("avx512"); }

}  // namespace autoselect
#else
namespace autoselect {
CpuKernels cpu_kernels_avx512() { return cpu_kernels_baseline(); }
}  // namespace autoselect
#endif
