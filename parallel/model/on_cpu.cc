// SPDX-License-Identifier: Apache-2.0
// The model on CPUs: every template of this folder, for CpuQueue.
#include "kernels/cpu/queue.h"
#include "parallel/model/llama_inl.h"
#include "parallel/model/weights_inl.h"

namespace annulus::parallel {

using kernels::CpuQueue;  // NOLINT(misc-unused-using-decls): instantiations use it

template absl::StatusOr<LlamaWeights<CpuQueue>> load_weights(CpuQueue&, const Checkpoint&, int, int,
                                                             kernels::Precision,
                                                             const LoadProgress&);
template uint64_t digest_of(CpuQueue&, const LlamaWeights<CpuQueue>&);
template void forward(CpuQueue&, const LlamaConfig&, const LlamaWeights<CpuQueue>&, int32_t,
                      std::span<const int32_t>, kernels::ConstTensor, const LlamaHooks&,
                      kernels::Tensor);
template void logits(CpuQueue&, const LlamaConfig&, const LlamaWeights<CpuQueue>&,
                     kernels::ConstTensor, kernels::Tensor);

}  // namespace annulus::parallel
