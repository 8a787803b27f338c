// SPDX-License-Identifier: Apache-2.0
// The op list: everything that a Llama step computes on one device but attention
// (kernels/attention.h) and sampling (kernels/sampling.h). An op is a function template on the
// queue type, declared here once and specialised in kernels/cpu/<op>.cc and kernels/cuda/<op>.cu; a
// missing specialisation is a link error. Ops only enqueue (a CPU queue may run its work at the
// call), allocate nothing but queue scratch, and CHECK shapes at their front. Activations between
// ops are f32 rows on CPUs; a matmul rounds its input to bf16 where the weights are held in 16 bits
// or fewer and the CPU multiplies bf16 (class bf16 of the goldens). Called by parallel/model/llama
// and parallel/ring_attention, from the one thread that owns the queue.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/tensor.h"
#include "kernels/weight.h"

namespace annulus::kernels {

enum class RopePairing : uint8_t {
  kAdjacent,  // (2i, 2i+1): GGUF files of this family have permuted Q and K rows
  kHalves,    // (i, i + d/2): safetensors
};

// out[r, :] = table row ids[r]; table [vocab, dim] stays in its file format; ids are valid.
template <class Queue>
void embed(Queue& queue, Tensor out, const WeightSource& table, std::span<const int32_t> ids);

// Rows that a matrix multiplies are a Queue::Input, which w.input(room) gives: room, f32 rows one
// after the other, in the form that w reads. It is room itself on CPUs; on GPUs rms_norm and swiglu
// round to w's type as they write, to the bits that matmul would round f32 rows to.

// out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight; weight [cols] f32. out may be x where
// both are f32.
template <class Queue>
void rms_norm(Queue& queue, typename Queue::Input out, ConstTensor x, const float* weight,
              float eps);

// out[M, N] = x[M, K] w[N, K]^T, f32 accumulation. M from 0 (nothing happens) to thousands. Weights
// are held as the queue's device reads them: PackedMatrix on CPUs.
template <class Queue>
void matmul(Queue& queue, Tensor out, typename Queue::ConstInput x,
            const typename Queue::Matrix& w);

// Rotates every head of x [rows, heads * head_dim] in place; cos_sin [rows, head_dim] f32 holds
// head_dim/2 cosines, then head_dim/2 sines of the row's angles (computed in double:
// parallel/model/rope.h).
template <class Queue>
void rope(Queue& queue, Tensor x, ConstTensor cos_sin, int32_t head_dim, RopePairing pairing);

// out[r, i] = silu(gate_up[r, i]) * gate_up[r, n + i], out [rows, n], gate_up [rows, 2n].
template <class Queue>
void swiglu(Queue& queue, typename Queue::Input out, ConstTensor gate_up);

// x += y, same shape, f32.
template <class Queue>
void add(Queue& queue, Tensor x, ConstTensor y);

// out = x with out's dtype (f32 -> bf16 rounds to nearest even, bf16 -> f32 is exact, equal types
// copy).
template <class Queue>
void convert(Queue& queue, Tensor out, ConstTensor x);

// dst row r = src row index[r]; dst has index.size() rows. Any dtype, the same on both sides; index
// values are in range.
template <class Queue>
void gather_rows(Queue& queue, Tensor dst, ConstTensor src, std::span<const int32_t> index);

}  // namespace annulus::kernels
