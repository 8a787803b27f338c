// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sdpa.h"

#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/cuda/sdpa_graph.h"

namespace annulus::kernels {

struct Sdpa::Plan {
  std::unique_ptr<CudnnContext, int (*)(CudnnHandle)> handle;
  SdpaGraph graph;
  std::vector<CudnnOwned> engines;
  CudnnOwned plan;
  int64_t workspace_bytes = 0;
};

Sdpa::Sdpa(const CudnnApi& api, const SdpaShape& shape) : api_(api), shape_(shape) {
  CudnnHandle made = nullptr;
  check_cudnn(api_, api_.create(&made), "a handle");
  std::unique_ptr<CudnnContext, int (*)(CudnnHandle)> handle(made, api_.destroy);
  SdpaGraph graph(api_, shape_, made);
  std::vector<CudnnOwned> engines = graph.engines(nullptr);
  if (engines.empty()) throw DeviceError("cuDNN has no engine for this attention");
  CudnnOwned plan(api_, kCudnnPlan);
  plan.set(kCudnnPlanHandle, kCudnnOfHandle, 1, &made);
  plan.set_descriptor(kCudnnPlanConfig, engines.front().raw());
  plan.finalize("a plan");
  int64_t count = 0, workspace = 0;
  check_cudnn(api_, api_.get(plan.raw(), kCudnnPlanWorkspace, kCudnnOfInt64, 1, &count, &workspace),
              "the workspace's size");
  plan_ = std::make_unique<Plan>(
      Plan{std::move(handle), std::move(graph), std::move(engines), std::move(plan), workspace});
}

Sdpa::~Sdpa() = default;

void Sdpa::attend(CudaQueue& queue, const void* q, const void* kv, float scale, void* o,
                  float* lse) {
  const CudaQueue::Mark mark(queue);
  void* const workspace = queue.scratch<std::byte>(plan_->workspace_bytes);
  const auto* const values =
      static_cast<const bf16*>(kv) + int64_t{shape_.kv_heads} * shape_.head_dim;
  const float hidden = -std::numeric_limits<float>::infinity();
  const auto offset = static_cast<int32_t>(shape_.keys - shape_.queries);
  const int64_t ids[] = {SdpaGraph::kQ,      SdpaGraph::kK,     SdpaGraph::kV,
                         SdpaGraph::kO,      SdpaGraph::kLse,   SdpaGraph::kScale,
                         SdpaGraph::kHidden, SdpaGraph::kOffset};
  const void* const pointers[] = {q, kv, values, o, lse, &scale, &hidden, &offset};
  static_assert(std::size(ids) == std::size(pointers));
  // Without a mask nothing is hidden, without older keys there is no offset.
  const int64_t count = !shape_.causal ? 6 : offset > 0 ? 8 : 7;
  CudnnOwned pack(api_, kCudnnVariantPack);
  pack.set(kCudnnPackIds, kCudnnOfInt64, count, ids);
  pack.set(kCudnnPackPointers, kCudnnOfPointer, count, pointers);
  pack.set(kCudnnPackWorkspace, kCudnnOfPointer, 1, &workspace);
  pack.finalize("pointers");
  check_cudnn(api_, api_.set_stream(plan_->handle.get(), queue.stream()), "a stream");
  check_cudnn(api_, api_.execute(plan_->handle.get(), plan_->plan.raw(), pack.raw()), "a run");
}

SdpaSupport sdpa_support(const CudnnApi& api, const SdpaShape& shape, std::string_view device,
                         bool compile) {
  CudnnOwned described(api, kCudnnDevice);
  described.set(kCudnnDeviceJson, kCudnnOfChar, static_cast<int64_t>(device.size()), device.data());
  described.finalize("a device");
  SdpaGraph graph(api, shape, nullptr);
  const std::vector<CudnnOwned> engines = graph.engines(described.raw());
  SdpaSupport out = {static_cast<int64_t>(engines.size()), false};
  if (!compile || engines.empty()) return out;
  CudnnOwned plan(api, kCudnnPlan);
  plan.set_descriptor(kCudnnPlanConfig, engines.front().raw());
  plan.set_descriptor(kCudnnPlanDevice, described.raw());
  const int status = api.finalize(plan.raw());
  if (status != kCudnnDriverFailed) check_cudnn(api, status, "a plan");
  out.compiled = true;
  return out;
}

}  // namespace annulus::kernels
