// SPDX-License-Identifier: Apache-2.0
// The engine on CPUs: every template of this folder, for CpuQueue (model/on_cpu.cc: the model).
#include "kernels/cpu/queue.h"
#include "parallel/examine_inl.h"
#include "parallel/rank_inl.h"
#include "parallel/weight_transfer_inl.h"

namespace annulus::parallel {

using kernels::CpuQueue;  // NOLINT(misc-unused-using-decls): instantiations use it

template class KvStore<CpuQueue>;
template Examination examine(CpuQueue&, Groups<CpuQueue>, const std::function<void(int, int)>&);
template LinkMeasure measure_link(Communicator<CpuQueue>&, CpuQueue&, int64_t);
template void upload(CpuQueue&, std::span<GroupLayout>);
template void ring_attend(CpuQueue&, const GroupLayout&, AttentionCall<CpuQueue>&,
                          kernels::ConstTensor, kernels::Partial);
template absl::StatusOr<std::unique_ptr<Rank>> Rank::create(
    const LlamaConfig&, std::shared_ptr<const LlamaWeights<CpuQueue>>, std::unique_ptr<CpuQueue>,
    Groups<CpuQueue>, Topology, int32_t, int64_t, const RankOptions&);
template void send_weights(CpuQueue&, Communicator<CpuQueue>&, const WeightWish&,
                           const LlamaWeights<CpuQueue>&);
template absl::Status receive_weights(CpuQueue&, Communicator<CpuQueue>&, const WeightWish&,
                                      LlamaWeights<CpuQueue>&);
template absl::Status read_weights(CpuQueue&, const std::function<std::unique_ptr<CpuQueue>()>&,
                                   Communicator<CpuQueue>&, const WeightWish&,
                                   LlamaWeights<CpuQueue>&);
template absl::Status compare_weights(CpuQueue&, Communicator<CpuQueue>&, const Topology&,
                                      uint64_t);

}  // namespace annulus::parallel
