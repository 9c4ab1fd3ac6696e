// Stands in for the CUDA runtime: the same names, for kernels that run as fibers on the CPU.
#pragma once

#include <cstddef>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
