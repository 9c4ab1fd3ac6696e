// Tensors to the arguments of kernels.h; included by the .cpp files of this folder.
#pragma once

#include <ATen/Context.h>
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

// While it lives, products of PyTorch have the dtype and the precision of their operands, whatever
// torch.autocast and the switch for TF32 say.
class ExactProducts {
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
  at::NoTF32Guard no_tf32_;
};

}  // namespace autoselect
