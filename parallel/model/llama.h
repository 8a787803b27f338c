// SPDX-License-Identifier: Apache-2.0
// The Llama forward pass of one rank, written once for every backend: ops in order, with two holes
// that the caller fills, attention (a ring over the CP group) and the sum over the TP group. It
// knows neither ranks nor caches. Shapes are this rank's: heads / tp query heads, kv_heads / tp KV
// heads, ffn / tp, vocab / tp. Activations are f32. ids and cos_sin are as queue.upload() returns
// them. Called by parallel/rank from the thread that owns the queue. Defined in llama_inl.h.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "kernels/core/tensor.h"
#include "parallel/model/config.h"
#include "parallel/model/weights.h"

namespace annulus::parallel {

struct LlamaHooks {
  // q [rows, heads * head_dim] and k, v [rows, kv_heads * head_dim], rotated where due, rows a
  // stride apart; fills out [rows, heads * head_dim].
  std::function<void(int32_t layer, kernels::ConstTensor q, kernels::ConstTensor k,
                     kernels::ConstTensor v, kernels::Tensor out)>
      attend;
  // x = sum of x over the TP group; twice a layer. Empty where there is one rank.
  std::function<void(int32_t layer, kernels::Tensor x)> all_reduce;
  // Memory [rows, dim] for what is summed; null: scratch.
  float* sums = nullptr;
};

// x [rows, dim] = hidden states after the last layer (before the output norm). cos_sin [rows,
// head_dim]: rope.h.
template <class Queue>
void forward(Queue& queue, const LlamaConfig& config, const LlamaWeights<Queue>& weights,
             int32_t tp, std::span<const int32_t> ids, kernels::ConstTensor cos_sin,
             const LlamaHooks& hooks, kernels::Tensor x);

// out [rows, vocab / tp] = logits of this rank's part of the vocabulary, for hidden states x [rows,
// dim].
template <class Queue>
void logits(Queue& queue, const LlamaConfig& config, const LlamaWeights<Queue>& weights,
            kernels::ConstTensor x, kernels::Tensor out);

}  // namespace annulus::parallel
