#include "cpu/kernels.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

namespace autoselect {
namespace {

int best_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  return avx2 && avx512 ? 2 : avx2 ? 1 : 0;
#else
  return 0;
#endif
}

CpuKernels choose() {
  const char* names[] = {"baseline", "avx2", "avx512"};
  int level = best_level();
  const char* wanted = std::getenv("AUTOSELECT_CPU_ISA");
  if (wanted != nullptr && *wanted != 0) {
    int asked = -1;
    for (int i = 0; i <= level; ++i) {
      if (std::string(wanted) == names[i]) asked = i;
    }
    TORCH_CHECK(asked >= 0, "AUTOSELECT_CPU_ISA=", wanted, " must be baseline",
                level > 0 ? ", avx2" : "", level > 1 ? ", avx512" : "",
                " or unset on this processor");
    level = asked;
  }
  return level == 2   ? cpu_kernels_avx512()
         : level == 1 ? cpu_kernels_avx2()
                      : cpu_kernels_baseline();
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = choose();
  return kernels;
}

}  // namespace autoselect
