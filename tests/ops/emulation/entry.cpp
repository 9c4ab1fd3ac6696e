// C functions around the launchers, for ctypes.
#include "cuda/grid.h"
#include "cuda/kernels.h"

using namespace autoselect;

extern "C" {

int64_t grid_size(int64_t work, int64_t each) { return blocks_for(work, each); }

void soft_top_k_f32(const float *scores, const bool *mask,
                    const int64_t *k_rows, int64_t k, double temperature,
                    int64_t batch, int64_t n, float *gates, float *logits) {
  launch_soft_top_k<float>(
      {scores, mask, k_rows, k, {temperature, nullptr}, batch, n}, gates,
      logits, nullptr);
}

void score_gradient_f32(const float *logits, const float *grad_gates,
                        const float *grad_logits, double temperature,
                        int64_t batch, int64_t n, float *out) {
  launch_score_gradient<float>(
      {logits, grad_gates, grad_logits, {temperature, nullptr}, batch, n}, out,
      nullptr);
}

void hard_top_k_f32(const float *scores, const bool *mask,
                    const int64_t *k_rows, int64_t k, int64_t batch, int64_t n,
                    int64_t *positions) {
  launch_hard_top_k<float>({scores, mask, k_rows, k, batch, n}, positions,
                           nullptr);
}

void select_tokens_f32(const float *scores, const bool *mask,
                       const int64_t *k_rows, int64_t k, int64_t batch,
                       int64_t n, const void *tokens, int64_t token_bytes,
                       int64_t batch_stride, int64_t token_stride, void *kept,
                       int64_t *positions) {
  launch_select_tokens<float>({scores, mask, k_rows, k, batch, n},
                              {tokens, token_bytes, batch_stride, token_stride},
                              kept, positions, nullptr);
}

// `pairs` [B, N, N] is null to compare with one kept token after another.
void diverse_steps_f32(const float *scores, const bool *mask,
                       const int64_t *k_rows, int64_t k, double diversity,
                       int64_t batch, int64_t n, const float *directions,
                       int64_t width, const float *pairs, float *scratch,
                       int64_t *order, int64_t *positions) {
  float *relevance = scratch;
  float *nearest = scratch + batch * n;
  float *row = scratch + 2 * batch * n;
  const DiverseArgs args = {
      scores, mask,  k_rows, float(diversity), float(1 - diversity),
      k,      batch, n,      relevance,        nearest,
      order};
  launch_relevance(args, nullptr);
  if (pairs != nullptr)
    launch_diverse_pairs(args, pairs, nullptr);
  for (int64_t step = 0; pairs == nullptr && step < k; ++step) {
    if (step > 0)
      launch_similarity_row(args, directions, width, step - 1, row, nullptr);
    launch_diverse_step(args, row, step, nullptr);
  }
  launch_sort_order(args, positions, nullptr);
}

void marginal_order_f32(const float *scores, const bool *mask, int64_t k,
                        double weight, int64_t batch, int64_t n,
                        const float *pairs, float *scratch, int64_t *order) {
  const DiverseArgs args = {scores, mask,  nullptr, float(weight), 1.0f, k,
                            batch,  n,     scratch, nullptr,       order};
  launch_scores(args, nullptr);
  launch_diverse_pairs(args, pairs, nullptr);
}

#define DIRECTIONS(NAME, T)                                                    \
  void directions_##NAME(const T *tokens, const bool *mask, int64_t batch,     \
                         int64_t n, int64_t width, float *mean,                \
                         float *directions) {                                  \
    launch_mean_token<T>(tokens, mask, batch, n, width, mean, nullptr);        \
    launch_directions<T>(tokens, mean, batch, n, width, directions, nullptr);  \
  }

DIRECTIONS(f32, float)
DIRECTIONS(f64, double)
DIRECTIONS(bf16, BFloat16)
DIRECTIONS(f16, Half16)

void select_backward(const void *grad, const int64_t *positions,
                     void *grad_tokens, int64_t row_bytes, int64_t batch,
                     int64_t k, int64_t n) {
  launch_select_backward(grad, positions, grad_tokens, row_bytes, batch, k, n,
                         nullptr);
}

#define GATE(NAME, T)                                                          \
  void eta_##NAME(const int64_t *key, const int64_t *ids, int64_t rank,        \
                  int64_t batch, int64_t n, int64_t width, T *eta) {           \
    launch_eta<T>({nullptr, nullptr, false, nullptr, nullptr, nullptr, key,    \
                   key + 1, ids, batch, n, width},                             \
                  rank, eta, nullptr);                                         \
  }                                                                            \
  void gate_forward_##NAME(                                                    \
      const T *tokens, const Work<T> *gate, bool from_logits,                  \
      const Work<T> *mean, const Work<T> *std, const T *common,                \
      const int64_t *key, const int64_t *ids, int64_t batch, int64_t n,        \
      int64_t width, T *out) {                                                 \
    launch_gate_forward<T>({tokens, gate, from_logits, mean, std, common, key, \
                            key + 1, ids, batch, n, width},                    \
                           out, nullptr);                                      \
  }                                                                            \
  void gate_backward_##NAME(                                                   \
      const T *tokens, const Work<T> *gate, bool from_logits,                  \
      const Work<T> *mean, const Work<T> *std, const T *common,                \
      const int64_t *key, const int64_t *ids, int64_t batch, int64_t n,        \
      int64_t width, const T *grad, T *grad_tokens, Work<T> *grad_gate) {      \
    launch_gate_backward<T>({tokens, gate, from_logits, mean, std, common,     \
                             key, key + 1, ids, batch, n, width},              \
                            grad, grad_tokens, grad_gate, nullptr);            \
  }

GATE(f32, float)
GATE(f64, double)
GATE(bf16, BFloat16)
GATE(f16, Half16)

} // extern "C"
