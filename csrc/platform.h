// Functions that the host compiler and nvcc both compile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define AS_INLINE static __host__ __device__ __forceinline__
#define AS_MEMBER __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Internal linkage: the CPU kernels are compiled once per instruction set, and the linker must
// never replace one build of a helper by another.
#define AS_INLINE static inline __attribute__((always_inline))
#define AS_MEMBER inline __attribute__((always_inline))
#else
#define AS_INLINE static inline
#define AS_MEMBER inline
#endif

namespace autoselect {

AS_INLINE uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

AS_INLINE float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// A 16-bit float as stored; arithmetic happens after `to_work`.
struct Half16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which values of a storage type are computed.
template <typename T>
struct WorkOf {
  using type = float;
};
template <>
struct WorkOf<double> {
  using type = double;
};
template <typename T>
using Work = typename WorkOf<T>::type;

// The type in which `sqrt` and `log` take a value. On the host it is double, stated here because
// which functions a name finds for a float depends on the headers of a file.
#if defined(__CUDA_ARCH__)
template <typename W>
using Wide = W;
#else
template <typename W>
using Wide = double;
#endif

AS_INLINE float to_work(float value) { return value; }
AS_INLINE double to_work(double value) { return value; }
AS_INLINE float to_work(BFloat16 value) { return bits_float(uint32_t(value.bits) << 16); }

AS_INLINE float to_work(Half16 value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  // No product with a float below 2^-126, which torch.set_flush_denormal makes 0.
  const uint32_t subnormal = float_bits(bits_float(magnitude | 0x3f000000u) - 0.5f);
  const uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return bits_float((magnitude >= 0x7c00u ? special : finite) | sign);
#endif
}

AS_INLINE void from_work(float value, float& out) { out = value; }
AS_INLINE void from_work(double value, double& out) { out = value; }

// Rounds to nearest, ties to even; NaN stays NaN.
AS_INLINE void from_work(float value, BFloat16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
#endif
}

// Rounds to nearest, ties to even, subnormals included; overflow gives infinity.
AS_INLINE void from_work(float value, Half16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Below 2^-14 a float addition with 0.5 leaves the half's bits at the end of the sum.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  out.bits = uint16_t(result | sign);
#endif
}

}  // namespace autoselect
