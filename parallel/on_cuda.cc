// SPDX-License-Identifier: Apache-2.0
// The engine on GPUs: every template of this folder and of model/, for CudaQueue.
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/queue.h"
#include "parallel/examine_inl.h"
#include "parallel/model/llama_inl.h"
#include "parallel/model/weights_inl.h"
#include "parallel/rank_inl.h"
#include "parallel/weight_transfer_inl.h"

namespace annulus::parallel {

using kernels::CudaQueue;  // NOLINT(misc-unused-using-decls): instantiations use it

template absl::StatusOr<LlamaWeights<CudaQueue>> load_weights(CudaQueue&, const Checkpoint&, int,
                                                              int, kernels::Precision,
                                                              const LoadProgress&);
template uint64_t digest_of(CudaQueue&, const LlamaWeights<CudaQueue>&);
template absl::StatusOr<std::unique_ptr<Rank>> Rank::create(
    const LlamaConfig&, std::shared_ptr<const LlamaWeights<CudaQueue>>, std::unique_ptr<CudaQueue>,
    Groups<CudaQueue>, Topology, int32_t, int64_t, const RankOptions&);
template void send_weights(CudaQueue&, Communicator<CudaQueue>&, const WeightWish&,
                           const LlamaWeights<CudaQueue>&);
template absl::Status receive_weights(CudaQueue&, Communicator<CudaQueue>&, const WeightWish&,
                                      LlamaWeights<CudaQueue>&);
template absl::Status read_weights(CudaQueue&, const std::function<std::unique_ptr<CudaQueue>()>&,
                                   Communicator<CudaQueue>&, const WeightWish&,
                                   LlamaWeights<CudaQueue>&);
template absl::Status compare_weights(CudaQueue&, Communicator<CudaQueue>&, const Topology&,
                                      uint64_t);

template Examination examine(CudaQueue&, Groups<CudaQueue>, const std::function<void(int, int)>&);

}  // namespace annulus::parallel
