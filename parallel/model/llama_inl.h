// SPDX-License-Identifier: Apache-2.0
// forward() and logits(), instantiated for each queue in on_<device>.cc.
#pragma once

#include "kernels/core/phase.h"
#include "kernels/ops.h"
#include "parallel/model/llama.h"

namespace annulus::parallel {

template <class Queue>
void forward(Queue& queue, const LlamaConfig& config, const LlamaWeights<Queue>& weights,
             int32_t tp, std::span<const int32_t> ids, kernels::ConstTensor cos_sin,
             const LlamaHooks& hooks, kernels::Tensor x) {
  using Input = typename Queue::Input;
  const typename Queue::Mark mark(queue);
  const auto eps = static_cast<float>(config.rms_eps);
  const int64_t rows = x.rows, d = config.head_dim;
  const int64_t q_cols = config.heads / tp * d, kv_cols = config.kv_heads / tp * d;
  const int64_t ffn = config.ffn / tp;
  const auto scratch = [&](int64_t cols) {
    return kernels::matrix(queue.template scratch<float>(rows * cols), rows, cols);
  };
  const kernels::Tensor normed = scratch(config.dim), qkv = scratch(q_cols + 2 * kv_cols);
  const kernels::Tensor attended = scratch(q_cols);
  const kernels::Tensor update =
      hooks.sums == nullptr ? scratch(config.dim) : kernels::matrix(hooks.sums, rows, config.dim);
  const kernels::Tensor gate_up = scratch(2 * ffn), hidden = scratch(ffn);
  const kernels::Tensor q = qkv.slice_cols(0, q_cols), k = qkv.slice_cols(q_cols, kv_cols);
  const kernels::Tensor v = qkv.slice_cols(q_cols + kv_cols, kv_cols);

  const kernels::InPhase whole(queue, kernels::Phase::kEmbed);
  const auto in = [&](kernels::Phase phase) { queue.phases().enter(phase); };
  kernels::embed(queue, x, weights.embedding, ids);
  for (int32_t l = 0; l < config.layers; ++l) {
    const LayerWeights<Queue>& layer = weights.layers[static_cast<size_t>(l)];
    queue.phases().at_layer(l);
    in(kernels::Phase::kNorm);
    const Input attention_in = layer.qkv.input(normed);
    kernels::rms_norm(queue, attention_in, x, layer.attn_norm.data(), eps);
    in(kernels::Phase::kQkv);
    kernels::matmul(queue, qkv, attention_in, layer.qkv);
    in(kernels::Phase::kRope);
    kernels::rope(queue, q, cos_sin, config.head_dim, config.pairing);
    kernels::rope(queue, k, cos_sin, config.head_dim, config.pairing);
    in(kernels::Phase::kAttention);
    hooks.attend(l, q, k, v, attended);
    in(kernels::Phase::kOutput);
    kernels::matmul(queue, update, attended, layer.o);
    if (hooks.all_reduce) hooks.all_reduce(l, update);
    in(kernels::Phase::kAdd);
    kernels::add(queue, x, update);

    in(kernels::Phase::kNorm);
    const Input ffn_in = layer.gate_up.input(normed), down_in = layer.down.input(hidden);
    kernels::rms_norm(queue, ffn_in, x, layer.ffn_norm.data(), eps);
    in(kernels::Phase::kGateUp);
    kernels::matmul(queue, gate_up, ffn_in, layer.gate_up);
    in(kernels::Phase::kSwiglu);
    kernels::swiglu(queue, down_in, gate_up);
    in(kernels::Phase::kDown);
    kernels::matmul(queue, update, down_in, layer.down);
    if (hooks.all_reduce) hooks.all_reduce(l, update);
    in(kernels::Phase::kAdd);
    kernels::add(queue, x, update);
  }
  queue.phases().at_layer(-1);
}

template <class Queue>
void logits(Queue& queue, const LlamaConfig& config, const LlamaWeights<Queue>& weights,
            kernels::ConstTensor x, kernels::Tensor out) {
  const typename Queue::Mark mark(queue);
  const typename Queue::Input normed = weights.head.input(
      kernels::matrix(queue.template scratch<float>(x.rows * x.cols), x.rows, x.cols));
  kernels::rms_norm(queue, normed, x, weights.output_norm.data(),
                    static_cast<float>(config.rms_eps));
  kernels::matmul(queue, out, normed, weights.head);
}

}  // namespace annulus::parallel
