// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sdpa.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/cuda/sdpa_graph.h"

namespace annulus::kernels {

namespace {

// What takes the place of a hidden score. Finite, so that a row whose first keys are hidden begins
// with a maximum and no NaN; as a score it is nothing: exp(kHidden - x) is 0 for every other x, and
// what was summed up before x is multiplied by that. Times log2(e) it is finite still.
constexpr float kHidden = -0x1p125f;

}  // namespace

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
  if (engines.empty()) {
    throw DeviceError(concat("cuDNN ", api_.version(), " has no engine for attention of ",
                             shape.heads, " over ", shape.kv_heads, " heads of ", shape.head_dim,
                             ", ", shape.queries, " queries, ", shape.keys,
                             " keys, on this GPU; --gpu-attention own needs none"));
  }
  // What the heuristics name may still fail to compile on this GPU: then the next best.
  std::string why;
  for (const CudnnOwned& engine : engines) {
    CudnnOwned plan(api_, kCudnnPlan);
    plan.set(kCudnnPlanHandle, kCudnnOfHandle, 1, &made);
    plan.set_descriptor(kCudnnPlanConfig, engine.raw());
    if (const int status = api_.finalize(plan.raw()); status != 0) {
      why = cudnn_failure(api_, status, "a plan");
      continue;
    }
    int64_t count = 0, workspace = 0;
    check_cudnn(api_,
                api_.get(plan.raw(), kCudnnPlanWorkspace, kCudnnOfInt64, 1, &count, &workspace),
                "the workspace's size");
    plan_ = std::make_unique<Plan>(
        Plan{std::move(handle), std::move(graph), std::move(engines), std::move(plan), workspace});
    return;
  }
  throw DeviceError(
      concat(why, " (the last of ", engines.size(), " engines; --gpu-attention own needs none)"));
}

Sdpa::~Sdpa() = default;

void Sdpa::attend(CudaQueue& queue, const void* q, const void* kv, float scale, void* o, float* lse,
                  const int32_t* first_rows) {
  const CudaQueue::Mark mark(queue);
  void* const workspace = queue.scratch<std::byte>(plan_->workspace_bytes);
  if (!queue.enqueues(CudaQueue::Work::kProduct, this, q, kv, scale, o, lse, first_rows, workspace))
    return;
  const auto* const values =
      static_cast<const bf16*>(kv) + int64_t{shape_.kv_heads} * shape_.head_dim;
  const float hidden =
      shape_.mask == SdpaMask::kCausal ? -std::numeric_limits<float>::infinity() : kHidden;
  const auto offset = static_cast<int32_t>(shape_.keys - shape_.queries);
  std::vector<int64_t> ids = {SdpaGraph::kQ, SdpaGraph::kK,   SdpaGraph::kV,
                              SdpaGraph::kO, SdpaGraph::kLse, SdpaGraph::kScale};
  std::vector<const void*> pointers = {q, kv, values, o, lse, &scale};
  const auto add = [&](SdpaGraph::Id id, const void* pointer) {
    ids.push_back(id);
    pointers.push_back(pointer);
  };
  if (shape_.mask != SdpaMask::kNone) add(SdpaGraph::kHidden, &hidden);
  if (shape_.mask == SdpaMask::kCausal && offset > 0) add(SdpaGraph::kOffset, &offset);
  if (shape_.mask == SdpaMask::kFirstRows) add(SdpaGraph::kFirstRows, first_rows);
  const auto count = static_cast<int64_t>(ids.size());
  CudnnOwned pack(api_, kCudnnVariantPack);
  pack.set(kCudnnPackIds, kCudnnOfInt64, count, ids.data());
  pack.set(kCudnnPackPointers, kCudnnOfPointer, count, pointers.data());
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
