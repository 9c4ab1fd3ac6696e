// The CPU kernels for any processor.
#include "cpu/kernels.h"
#include "threshold.h"

namespace autoselect {
namespace {
#include "cpu/kernels.inl"
}  // namespace

CpuKernels cpu_kernels_baseline() { return kernels_here("baseline"); }

}  // namespace autoselect
