// SPDX-License-Identifier: Apache-2.0
// Attention as a graph of cuDNN's backend API, and the engines that it has for it. Used by sdpa.cc.
// Errors: DeviceError with cuDNN's own words.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/cudnn_api.h"
#include "kernels/cuda/sdpa.h"

namespace annulus::kernels {

// What failed, in cuDNN's own words.
std::string cudnn_failure(const CudnnApi& api, int status, const char* what);
void check_cudnn(const CudnnApi& api, int status, const char* what);

// A descriptor of cuDNN's.
class CudnnOwned {
 public:
  CudnnOwned(const CudnnApi& api, int type);
  ~CudnnOwned();
  CudnnOwned(CudnnOwned&& other) noexcept : api_(other.api_), raw_(other.raw_) {
    other.raw_ = nullptr;
  }
  CudnnOwned(const CudnnOwned&) = delete;
  CudnnOwned& operator=(const CudnnOwned&) = delete;
  CudnnDescriptor raw() const { return raw_; }
  void set(int name, int type, int64_t count, const void* values);
  void set_descriptor(int name, CudnnDescriptor to) { set(name, kCudnnOfDescriptor, 1, &to); }
  void finalize(const char* what);

 private:
  const CudnnApi& api_;
  CudnnDescriptor raw_ = nullptr;
};

// The operations of attention as cudnn-frontend spells them for cuDNN before 9.21 (composite nodes
// of SDPA, of the mask's band and of softmax): a pattern that cuDNN's engines know.
class SdpaGraph {
 public:
  // Tensors that have memory, and scalars; those between operations are numbered from kBetween on.
  enum Id : int64_t {
    kQ = 1,
    kK,
    kV,
    kO,
    kLse,
    kScale,
    kHidden,
    kOffset,
    kFirstRows,
    kBetween = 100
  };

  // handle: of the GPU that it is for; null: `device` of engines().
  SdpaGraph(const CudnnApi& api, const SdpaShape& shape, CudnnHandle handle);

  // The best first. device: a finalised description, or null.
  std::vector<CudnnOwned> engines(CudnnDescriptor device);

 private:
  using Dims = std::array<int64_t, 4>;  // batch, head, row, column
  CudnnOwned& add(int type) { return parts_.emplace_back(api_, type); }
  CudnnDescriptor tensor(int64_t id, int type, const Dims& dims, const Dims& strides,
                         bool by_value = false);
  CudnnDescriptor scores(int type);  // between operations: a value a query and key
  CudnnDescriptor rows();            // a value a query
  CudnnDescriptor scalar(int64_t id, int type);
  // Each gives the tensor that it writes. type: in which it computes.
  CudnnDescriptor pointwise(int mode, CudnnDescriptor to, CudnnDescriptor x,
                            CudnnDescriptor b = nullptr, CudnnDescriptor t = nullptr,
                            int type = kCudnnF32, int64_t axis = -1);
  CudnnDescriptor index(int64_t axis, CudnnDescriptor of);
  CudnnDescriptor reduce(int operation_of, CudnnDescriptor x);
  CudnnDescriptor matmul(CudnnDescriptor a, CudnnDescriptor b, CudnnDescriptor to);
  CudnnDescriptor operation(int type, CudnnDescriptor to,
                            std::initializer_list<std::pair<int, CudnnDescriptor>> attributes);

  const CudnnApi& api_;
  SdpaShape shape_;
  int64_t next_ = kBetween;
  std::deque<CudnnOwned> parts_;      // the graph is the last
  std::vector<CudnnDescriptor> ops_;  // of parts_
};

}  // namespace annulus::kernels
