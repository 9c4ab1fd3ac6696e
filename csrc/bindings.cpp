// The Python module autoselect._C: operator schemas, the CPU kernels and build information.
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/kernels.h"
#include "diverse_top_k.h"
#include "hard_top_k.h"
#include "marginal_order.h"
#include "noise_gate.h"
#include "soft_top_k.h"

#ifndef AUTOSELECT_VERSION
#define AUTOSELECT_VERSION "unknown"
#endif
#ifndef AUTOSELECT_CUDA_ARCHITECTURES
#define AUTOSELECT_CUDA_ARCHITECTURES ""
#endif

namespace autoselect {

TORCH_LIBRARY(autoselect, m) {
  m.def(
      "soft_top_k(Tensor scores, Tensor? k_rows, SymInt k, Tensor temperature, Tensor? mask)"
      " -> (Tensor gates, Tensor logits)");
  m.def("soft_top_k_backward(Tensor grad_gates, Tensor logits, Tensor temperature) -> Tensor");
  m.def(
      "noise_gate(Tensor tokens, Tensor gates, Tensor mean, Tensor std, Tensor? factor,"
      " Tensor seed, Tensor step, Tensor sample_ids) -> Tensor");
  m.def(
      "noise_gate_backward(Tensor grad, Tensor tokens, Tensor gates, Tensor mean, Tensor std,"
      " Tensor? factor, Tensor seed, Tensor step, Tensor sample_ids, bool token_gradient=True)"
      " -> (Tensor grad_tokens, Tensor grad_gates)");
  m.def(
      "soft_top_k_noise_gate(Tensor tokens, Tensor scores, Tensor? k_rows, SymInt k,"
      " Tensor temperature, Tensor mean, Tensor std, Tensor? factor, Tensor seed, Tensor step,"
      " Tensor sample_ids, Tensor? mask) -> (Tensor gated, Tensor gates, Tensor logits)");
  m.def(
      "soft_top_k_noise_gate_backward(Tensor grad, Tensor? grad_gates, Tensor tokens,"
      " Tensor logits, Tensor temperature, Tensor mean, Tensor std, Tensor? factor, Tensor seed,"
      " Tensor step, Tensor sample_ids, bool token_gradient=True)"
      " -> (Tensor grad_tokens, Tensor grad_scores)");
  m.def("hard_top_k(Tensor scores, SymInt k, Tensor? mask, Tensor? k_rows=None) -> Tensor");
  m.def(
      "diverse_top_k(Tensor scores, Tensor tokens, SymInt k, float diversity, Tensor? mask,"
      " Tensor? k_rows=None) -> Tensor");
  m.def(
      "marginal_order(Tensor scores, Tensor likeness, SymInt k, float weight, Tensor? mask)"
      " -> Tensor");
  m.def(
      "select_tokens(Tensor tokens, Tensor scores, SymInt k, Tensor? mask, Tensor? k_rows=None)"
      " -> (Tensor kept, Tensor indices)");
  m.def("select_tokens_backward(Tensor grad, Tensor indices, SymInt num_tokens) -> Tensor");
}

TORCH_LIBRARY_IMPL(autoselect, CPU, m) {
  m.impl("soft_top_k", &soft_top_k_cpu);
  m.impl("soft_top_k_backward", &soft_top_k_backward_cpu);
  m.impl("noise_gate", &noise_gate_cpu);
  m.impl("noise_gate_backward", &noise_gate_backward_cpu);
  m.impl("soft_top_k_noise_gate", &soft_top_k_noise_gate_cpu);
  m.impl("soft_top_k_noise_gate_backward", &soft_top_k_noise_gate_backward_cpu);
  m.impl("hard_top_k", &hard_top_k_cpu);
  m.impl("diverse_top_k", &diverse_top_k_cpu);
  m.impl("marginal_order", &marginal_order_cpu);
  m.impl("select_tokens", &select_tokens_cpu);
  m.impl("select_tokens_backward", &select_tokens_backward_cpu);
}

namespace {

pybind11::tuple philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                             uint32_t k1) {
  const PhiloxWords words = philox4x32({c0, c1, c2, c3}, {k0, k1});
  return pybind11::make_tuple(words.x0, words.x1, words.x2, words.x3);
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = AUTOSELECT_VERSION;
  info["torch"] = TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = __VERSION__;  // "Clang 14.0.6" and more
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["cuda_architectures"] = AUTOSELECT_CUDA_ARCHITECTURES;
  info["cpu_instruction_set"] = cpu_kernels().instruction_set;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of autoselect; their kernels are torch.ops.autoselect.*";
  m.def("build_info", &build_info, "Version, compiler, CUDA architectures, instruction set.");
  m.def("philox4x32", &philox_words, "Philox4x32-10 of four counter words and two key words.");
}

}  // namespace autoselect
