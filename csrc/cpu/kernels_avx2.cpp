// The CPU kernels for processors with AVX2.
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#include "threshold.h"

#define AUTOSELECT_AVX2

namespace autoselect {
namespace {
#include "cpu/kernels.inl"
}  // namespace
#pragma GCC pop_options

CpuKernels cpu_kernels_avx2() { return kernels_here("avx2"); }

}  // namespace autoselect
#else
namespace autoselect {
CpuKernels cpu_kernels_avx2() { return cpu_kernels_baseline(); }
}  // namespace autoselect
#endif
