// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sdpa_graph.h"

#include "kernels/core/check.h"

namespace annulus::kernels {

std::string cudnn_failure(const CudnnApi& api, int status, const char* what) {
  char text[1024] = "";
  api.last_error(text, sizeof text);
  return concat("cuDNN, ", what, ": status ", status, ", ", text);
}

void check_cudnn(const CudnnApi& api, int status, const char* what) {
  if (status != 0) throw DeviceError(cudnn_failure(api, status, what));
}

CudnnOwned::CudnnOwned(const CudnnApi& api, int type) : api_(api) {
  check_cudnn(api_, api_.descriptor_create(type, &raw_), "a descriptor");
}

CudnnOwned::~CudnnOwned() {
  if (raw_ != nullptr) api_.descriptor_destroy(raw_);
}

void CudnnOwned::set(int name, int type, int64_t count, const void* values) {
  check_cudnn(api_, api_.set(raw_, name, type, count, values), "an attribute");
}

void CudnnOwned::finalize(const char* what) {
  check_cudnn(api_, api_.finalize(raw_), what);
}

SdpaGraph::SdpaGraph(const CudnnApi& api, const SdpaShape& shape, CudnnHandle handle)
    : api_(api), shape_(shape) {
  const auto& [heads, kv_heads, d, queries, keys, mask, output] = shape;
  const int64_t width = int64_t{heads} * d, kv_width = int64_t{2} * kv_heads * d;
  const Dims by_row = {queries * width, d, width, 1}, by_key = {keys * kv_width, d, kv_width, 1};
  const auto q = tensor(kQ, kCudnnBF16, {1, heads, queries, d}, by_row);
  const auto k = tensor(kK, kCudnnBF16, {1, kv_heads, d, keys},  // transposed
                        {keys * kv_width, d, 1, kv_width});
  const auto v = tensor(kV, kCudnnBF16, {1, kv_heads, keys, d}, by_key);
  const auto o =
      tensor(kO, output == DType::kF32 ? kCudnnF32 : kCudnnBF16, {1, heads, queries, d}, by_row);
  const auto lse = tensor(kLse, kCudnnF32, {1, heads, queries, 1}, {heads * queries, 1, heads, 1});

  auto x = matmul(q, k, scores(kCudnnF32));
  x = pointwise(kCudnnMul, scores(kCudnnF32), x, scalar(kScale, kCudnnF32));
  if (mask != SdpaMask::kNone) {
    auto row = index(2, x);
    CudnnDescriptor first = nullptr;  // the row from which on a key is seen
    if (mask == SdpaMask::kFirstRows) {
      first = tensor(kFirstRows, kCudnnI32, {1, 1, 1, keys}, {keys, keys, keys, 1});
    } else {
      first = index(3, x);
      if (keys > queries)
        row = pointwise(kCudnnAdd, scores(kCudnnI32), row, scalar(kOffset, kCudnnI32), nullptr,
                        kCudnnI32);
    }
    const auto seen = pointwise(kCudnnNotLess, scores(kCudnnBool), row, first, nullptr, kCudnnBool);
    x = pointwise(kCudnnSelect, scores(kCudnnF32), x, scalar(kHidden, kCudnnF32), seen);
  }
  const auto most = reduce(kCudnnMost, x);
  const auto part =
      pointwise(kCudnnExp, scores(kCudnnF32), pointwise(kCudnnSub, scores(kCudnnF32), x, most));
  const auto sum = reduce(kCudnnSum, part);
  pointwise(kCudnnAdd, lse, most, pointwise(kCudnnLog, rows(), sum));
  matmul(pointwise(kCudnnDiv, scores(kCudnnBF16), part, sum), v, o);

  CudnnOwned& graph = add(kCudnnGraph);
  if (handle != nullptr) graph.set(kCudnnGraphHandle, kCudnnOfHandle, 1, &handle);
  graph.set(kCudnnGraphOps, kCudnnOfDescriptor, static_cast<int64_t>(ops_.size()), ops_.data());
  graph.finalize("the graph");
}

std::vector<CudnnOwned> SdpaGraph::engines(CudnnDescriptor device) {
  CudnnOwned heuristics(api_, kCudnnHeuristics);
  heuristics.set_descriptor(kCudnnHeuristicsGraph, parts_.back().raw());
  heuristics.set(kCudnnHeuristicsMode, kCudnnOfHeuristicMode, 1, &kCudnnModeA);
  if (device != nullptr) heuristics.set_descriptor(kCudnnHeuristicsDevice, device);
  heuristics.finalize("heuristics");
  int64_t count = 0;
  const auto ask = [&](int64_t room, void* to) {
    check_cudnn(
        api_,
        api_.get(heuristics.raw(), kCudnnHeuristicsResults, kCudnnOfDescriptor, room, &count, to),
        "results of heuristics");
  };
  ask(0, nullptr);
  std::vector<CudnnOwned> out;
  std::vector<CudnnDescriptor> raw;
  for (int64_t i = 0; i < count; ++i)
    raw.push_back(out.emplace_back(api_, kCudnnEngineConfig).raw());
  if (count > 0) ask(count, raw.data());
  while (static_cast<int64_t>(out.size()) > count) out.pop_back();
  return out;
}

CudnnDescriptor SdpaGraph::tensor(int64_t id, int type, const Dims& dims, const Dims& strides,
                                  bool by_value) {
  constexpr int64_t kAlignment = 16;
  const bool between = id >= kBetween;
  CudnnOwned& out = add(kCudnnTensor);
  out.set(kCudnnTensorId, kCudnnOfInt64, 1, &id);
  out.set(kCudnnTensorType, kCudnnOfDataType, 1, &type);
  out.set(kCudnnTensorDims, kCudnnOfInt64, 4, dims.data());
  out.set(kCudnnTensorStrides, kCudnnOfInt64, 4, strides.data());
  out.set(kCudnnTensorAlignment, kCudnnOfInt64, 1, &kAlignment);
  out.set(kCudnnTensorVirtual, kCudnnOfBool, 1, &between);
  out.set(kCudnnTensorByValue, kCudnnOfBool, 1, &by_value);
  out.finalize("a tensor");
  return out.raw();
}

CudnnDescriptor SdpaGraph::scores(int type) {
  const int64_t heads = shape_.heads, queries = shape_.queries, keys = shape_.keys;
  return tensor(next_++, type, {1, heads, queries, keys},
                {heads * queries * keys, queries * keys, keys, 1});
}

CudnnDescriptor SdpaGraph::rows() {
  const int64_t heads = shape_.heads, queries = shape_.queries;
  return tensor(next_++, kCudnnF32, {1, heads, queries, 1}, {heads * queries, queries, 1, 1});
}

CudnnDescriptor SdpaGraph::scalar(int64_t id, int type) {
  return tensor(id, type, {1, 1, 1, 1}, {1, 1, 1, 1}, true);
}

CudnnDescriptor SdpaGraph::pointwise(int mode, CudnnDescriptor to, CudnnDescriptor x,
                                     CudnnDescriptor b, CudnnDescriptor t, int type, int64_t axis) {
  CudnnOwned& kind = add(kCudnnPointwise);
  kind.set(kCudnnPointwiseMode, kCudnnOfPointwiseMode, 1, &mode);
  kind.set(kCudnnPointwiseType, kCudnnOfDataType, 1, &type);
  if (axis >= 0) kind.set(kCudnnPointwiseAxis, kCudnnOfInt64, 1, &axis);
  kind.finalize("pointwise");
  return operation(kCudnnPointwiseOp, to,
                   {{kCudnnOpPointwise, kind.raw()},
                    {kCudnnOpPointwiseX, x},
                    {kCudnnOpPointwiseB, b},
                    {kCudnnOpPointwiseT, t},
                    {kCudnnOpPointwiseY, to}});
}

CudnnDescriptor SdpaGraph::index(int64_t axis, CudnnDescriptor of) {
  return pointwise(kCudnnIndex, scores(kCudnnI32), of, nullptr, nullptr, kCudnnF32, axis);
}

CudnnDescriptor SdpaGraph::reduce(int operation_of, CudnnDescriptor x) {
  CudnnOwned& kind = add(kCudnnReduction);
  kind.set(kCudnnReductionOperator, kCudnnOfReduction, 1, &operation_of);
  kind.set(kCudnnReductionType, kCudnnOfDataType, 1, &kCudnnF32);
  kind.finalize("a reduction");
  const auto to = rows();
  return operation(
      kCudnnReductionOp, to,
      {{kCudnnOpReduction, kind.raw()}, {kCudnnOpReductionX, x}, {kCudnnOpReductionY, to}});
}

CudnnDescriptor SdpaGraph::matmul(CudnnDescriptor a, CudnnDescriptor b, CudnnDescriptor to) {
  CudnnOwned& kind = add(kCudnnMatmul);
  kind.set(kCudnnMatmulType, kCudnnOfDataType, 1, &kCudnnF32);
  kind.finalize("a product");
  return operation(kCudnnMatmulOp, to,
                   {{kCudnnOpMatmul, kind.raw()},
                    {kCudnnOpMatmulA, a},
                    {kCudnnOpMatmulB, b},
                    {kCudnnOpMatmulC, to}});
}

CudnnDescriptor SdpaGraph::operation(
    int type, CudnnDescriptor to,
    std::initializer_list<std::pair<int, CudnnDescriptor>> attributes) {
  CudnnOwned& op = add(type);
  for (const auto& [name, descriptor] : attributes) {
    if (descriptor != nullptr) op.set(name, kCudnnOfDescriptor, 1, &descriptor);
  }
  op.finalize("an operation");
  ops_.push_back(op.raw());
  return to;
}

}  // namespace annulus::kernels
