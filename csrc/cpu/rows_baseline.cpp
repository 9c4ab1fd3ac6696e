// The CPU kernels for any processor.
#include "cpu/rows.h"
#include "threshold.h"

namespace autoselect {
namespace {
#include "cpu/rows.inl"
}  // namespace

CpuRows cpu_rows_baseline() { return rows_here("baseline"); }

}  // namespace autoselect
