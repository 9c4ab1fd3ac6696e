// Tensors to the arguments of kernels.h; included by the .cpp files of this folder.
#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "checks.h"
#include "cuda/kernels.h"

namespace autoselect {

template <typename T>
const T* read(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <typename T>
T* write(at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline cudaStream_t stream_of(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream();
}

inline DeviceScalar device_scalar(const at::Tensor& number) {
  if (number.is_cpu()) return {*number.const_data_ptr<double>(), nullptr};
  return {0.0, number.const_data_ptr<double>()};
}

// While it lives, products of PyTorch keep the dtype of their operands, under torch.autocast too.
class WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

}  // namespace autoselect
