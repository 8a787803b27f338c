// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/llama.h"

#include "kernels/cpu/queue.h"
#include "kernels/ops.h"

namespace annulus::parallel {

using kernels::ConstTensor;
using kernels::CpuQueue;
using kernels::matrix;
using kernels::Phase;
using kernels::Tensor;

template <>
void forward(CpuQueue& queue, const LlamaConfig& config, const LlamaWeights& weights, int32_t tp,
             std::span<const int32_t> ids, ConstTensor cos_sin, const LlamaHooks& hooks, Tensor x) {
  const CpuQueue::Mark mark(queue);
  const int64_t rows = x.rows, d = config.head_dim;
  const int64_t q_cols = config.heads / tp * d, kv_cols = config.kv_heads / tp * d;
  const int64_t ffn = config.ffn / tp;
  const auto scratch = [&](int64_t cols) {
    return matrix(queue.scratch<float>(rows * cols), rows, cols);
  };
  const Tensor normed = scratch(config.dim), qkv = scratch(q_cols + 2 * kv_cols);
  const Tensor attended = scratch(q_cols), update = scratch(config.dim);
  const Tensor gate_up = scratch(2 * ffn), hidden = scratch(ffn);
  const Tensor q = qkv.slice_cols(0, q_cols), k = qkv.slice_cols(q_cols, kv_cols);
  const Tensor v = qkv.slice_cols(q_cols + kv_cols, kv_cols);

  const kernels::InPhase whole(queue, Phase::kEmbed);
  const auto in = [&](Phase phase) { queue.phases().enter(phase); };
  kernels::embed(queue, x, weights.embedding, ids);
  for (int32_t l = 0; l < config.layers; ++l) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(l)];
    in(Phase::kNorm);
    kernels::rms_norm(queue, normed, x, layer.attn_norm.data(), static_cast<float>(config.rms_eps));
    in(Phase::kQkv);
    kernels::matmul(queue, qkv, normed, layer.qkv);
    in(Phase::kRope);
    kernels::rope(queue, q, cos_sin, config.head_dim, config.pairing);
    kernels::rope(queue, k, cos_sin, config.head_dim, config.pairing);
    in(Phase::kAttention);
    hooks.attend(l, q, k, v, attended);
    in(Phase::kOutput);
    kernels::matmul(queue, update, attended, layer.o);
    if (hooks.all_reduce) hooks.all_reduce(l, update);
    in(Phase::kAdd);
    kernels::add(queue, x, update);

    in(Phase::kNorm);
    kernels::rms_norm(queue, normed, x, layer.ffn_norm.data(), static_cast<float>(config.rms_eps));
    in(Phase::kGateUp);
    kernels::matmul(queue, gate_up, normed, layer.gate_up);
    in(Phase::kSwiglu);
    kernels::swiglu(queue, hidden, gate_up);
    in(Phase::kDown);
    kernels::matmul(queue, update, hidden, layer.down);
    if (hooks.all_reduce) hooks.all_reduce(l, update);
    in(Phase::kAdd);
    kernels::add(queue, x, update);
  }
}

template <>
void logits(CpuQueue& queue, const LlamaConfig& config, const LlamaWeights& weights, ConstTensor x,
            Tensor out) {
  const CpuQueue::Mark mark(queue);
  const Tensor normed = matrix(queue.scratch<float>(x.rows * x.cols), x.rows, x.cols);
  kernels::rms_norm(queue, normed, x, weights.output_norm.data(),
                    static_cast<float>(config.rms_eps));
  kernels::matmul(queue, out, normed, weights.head);
}

}  // namespace annulus::parallel
