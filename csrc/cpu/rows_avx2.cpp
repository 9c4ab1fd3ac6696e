// The CPU kernels for processors with AVX2.
#include "cpu/rows.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#include "threshold.h"

#define AUTOSELECT_AVX2

namespace autoselect {
namespace {
#include "cpu/rows.inl"
}  // namespace
#pragma GCC pop_options

CpuRows cpu_rows_avx2() { return rows_here("avx2"); }

}  // namespace autoselect
#else
namespace autoselect {
CpuRows cpu_rows_avx2() { return cpu_rows_baseline(); }
}  // namespace autoselect
#endif
